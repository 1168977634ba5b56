"""Checkpoints: one .npz that is replaced atomically, with everything needed to go on as if nothing had happened."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import numpy as np

from job.documents import write_json_atomically
from splat.model import Gaussians
from train.dataset import Dataset, trainable
from train.engine import Arrays, Engine, Setup
from train.evaluate import Score
from train.memory import MemoryPlan
from train.stopping import Plateau

FILE, PLAN_FILE = "checkpoint.npz", "memory.json"
VERSION = 3
# A fingerprint holds every field of Setup but these. Photos are in it by name, size and gain; the random state is
# saved; a training may go on with other GPUs, and with photos elsewhere.
NOT_COMPARED = {"photos", "seed", "gpus", "pinned_photos"}
BY_PLAN = {"size", "gains", "max_gaussians"}  # of a fingerprint, what a smaller memory plan changes

Fingerprint = Mapping[str, object]  # JSON values


@dataclass
class Position:
    """Where the training is; all of it is kept in the checkpoint."""

    iteration: int = 0  # photos that were trained: a step has as many as the engine has views
    elapsed_s: float = 0.0
    order: list[int] = field(default_factory=list)  # photos that are still to come in this round
    evaluated: int = 0
    cooling: bool = False
    plateau_at: list[float] = field(default_factory=list)  # [progress, iteration]
    curve: list[dict[str, float]] = field(default_factory=list)
    validation: list[Score] = field(default_factory=list)
    plateau: Plateau = field(default_factory=Plateau)
    rollbacks: int = 0


@dataclass(frozen=True)
class Checkpoint:
    fingerprint: Fingerprint
    engine: Arrays
    position: Position
    random: Mapping[str, object]  # state of numpy's bit generator
    best: Gaussians | None = None  # on the validation photos
    best_db: float = float("-inf")


def fingerprint(engine: Engine, data: Dataset) -> Fingerprint:
    """What must be equal for a checkpoint to be resumed: all that changes the model, and is not saved itself."""
    photos, first = trainable(data), data.train[0].view
    compared = {f.name: getattr(engine.setup, f.name) for f in fields(Setup) if f.name not in NOT_COMPARED}
    values = {
        "engine": engine.name,
        "photos": [photo.view.name for photo in photos],
        "size": [first.width, first.height],
        "gains": [list(photo.gain) for photo in photos],
        **compared,
    }
    equal: Fingerprint = json.loads(json.dumps(values))  # as it comes back from a file
    return equal


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Write ``folder``/checkpoint.npz; a crash leaves the one before."""
    temporary = folder / f".{FILE}.tmp"
    note = {
        "version": VERSION,
        "fingerprint": checkpoint.fingerprint,
        "position": asdict(checkpoint.position),
        "random": checkpoint.random,
        "best_db": checkpoint.best_db,
    }
    arrays = {f"engine_{name}": values for name, values in checkpoint.engine.items()}
    if checkpoint.best:
        arrays |= {f"best_{name}": values for name, values in vars(checkpoint.best).items()}
    with temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, trainer=np.array(json.dumps(note)), **arrays)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / FILE)


def load(folder: Path) -> Checkpoint | None:
    """None when there is none that can be read by this version."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as data:
            note = json.loads(str(data["trainer"]))
            if note["version"] != VERSION:
                return None
            engine, best = (
                {name.removeprefix(prefix): data[name] for name in data.files if name.startswith(prefix)}
                for prefix in ("engine_", "best_")
            )
        position = Position(**note["position"] | {"plateau": Plateau(**note["position"]["plateau"])})
        return Checkpoint(
            note["fingerprint"], engine, position, note["random"], Gaussians(**best) if best else None, note["best_db"]
        )
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None


def carry_over(folder: Path, plan: MemoryPlan, now: Fingerprint) -> None:
    """Let the checkpoint in ``folder`` be resumed with a smaller ``plan``, now and after an interruption.

    ``now``: the fingerprint of the new training; nothing is done when it differs in more than what a plan changes.
    """
    write_json_atomically(folder / PLAN_FILE, asdict(plan))
    saved = load(folder)
    if saved and unplanned(saved.fingerprint) == unplanned(now):
        save(folder, replace(saved, fingerprint=now))


def unplanned(whole: Fingerprint) -> Fingerprint:
    """A fingerprint without what a memory plan changes."""
    return {name: value for name, value in whole.items() if name not in BY_PLAN}


def carried_over(folder: Path, wanted: MemoryPlan) -> MemoryPlan:
    """The plan of an interrupted training in ``folder`` if it is a smaller one, else ``wanted``."""
    try:
        before = MemoryPlan(**json.loads((folder / PLAN_FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return wanted
    is_smaller = before.max_gaussians <= wanted.max_gaussians and before.long_side <= wanted.long_side
    return before if is_smaller else wanted
