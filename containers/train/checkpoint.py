"""Checkpoints: one .npz that is replaced atomically, with everything needed to go on as if nothing had happened."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FILE = "checkpoint.npz"
VERSION = 2


def save(folder: Path, engine_state: dict[str, NDArray[Any]], trainer_state: dict[str, Any]) -> None:
    """Write ``folder``/checkpoint.npz; a crash leaves the one before."""
    temporary = folder / f".{FILE}.tmp"
    note = np.array(json.dumps({"version": VERSION, **trainer_state}))
    with temporary.open("wb") as file:
        arrays: dict[str, Any] = {f"engine_{key}": value for key, value in engine_state.items()}
        np.savez(file, trainer=note, **arrays)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / FILE)


def load(folder: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]] | None:
    """(engine state, trainer state), or None when there is none that can be read by this version."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as data:
            trainer = json.loads(str(data["trainer"]))
            engine = {key.removeprefix("engine_"): data[key] for key in data.files if key.startswith("engine_")}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    return (engine, trainer) if trainer.get("version") == VERSION else None
