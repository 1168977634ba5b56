"""Training on several GPUs of one machine: a process for each (shard.py), and this engine, which tells them what to do.

Gaussian i of the model is number i // ranks of shard i % ranks: shards are equally long, grow at their ends, and each
has its share of every part of the scene. What is saved is in the model's order, for any number of GPUs.

The trainer's process has no shard: it never waits for another GPU, only for answers, so it sees at once when a process
ends or has failed, and ends the others, even those that wait for it inside a collective.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from splat.cameras import View
from splat.model import Gaussians
from train.engine import Arrays, Moves, Rates, Setup
from train.memory import OutOfDeviceMemory, most_opaque

TIMEOUT_S = 600.0  # for an answer; the slowest is the first, after photos are shrunk and kernels compiled
GRACE_S = 1.0  # after a failure, for others to tell theirs: the first that is heard may only be a consequence
END_S = 5.0  # for a process to end, before it is killed
ENDED = ("ended", "")
Heard = dict[int, tuple[str, Any]]  # by rank: done, full, failed or ended, with what comes with it


@dataclass(frozen=True)
class Start:
    """What a rank is told first; its photos follow, one by one."""

    rank: int
    setup: Setup  # without photos; ``max_gaussians`` are those of a shard
    photos: int
    store: str  # the file where the ranks find each other
    timeout_s: float
    place: Callable[[int], tuple[str, str]]  # from rank to (torch device, backend of torch.distributed)


def on_gpu(rank: int) -> tuple[str, str]:
    """Where a rank works, see ``Start.place``."""
    import torch

    torch.cuda.set_device(rank)
    return f"cuda:{rank}", "nccl"


class GpusEngine:
    """See ``train.engine.Engine``. One photo a GPU in each step.

    Raises OutOfDeviceMemory, and RuntimeError when a process ended, failed or gave no answer for ``timeout_s``; of no
    use after that. ``step`` returns before its work is done, and may raise what the step before met.
    """

    name = "gpu"

    def __init__(
        self, setup: Setup, place: Callable[[int], tuple[str, str]] = on_gpu, timeout_s: float = TIMEOUT_S
    ) -> None:
        self.setup, self.views = replace(setup, photos=()), setup.gpus
        self._timeout_s, self._is_stepping, self._count = timeout_s, False, 0
        self._folder = TemporaryDirectory()
        self._pipes: list[Connection] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self.close = weakref.finalize(self, end_processes, self._processes, self._pipes)
        for _ in range(self.views):
            self._start_process()
        shard = replace(self.setup, max_gaussians=-(-setup.max_gaussians // self.views))
        store = str(Path(self._folder.name) / "store")
        for rank in range(self.views):
            self._send(rank, Start(rank, shard, len(setup.photos), store, timeout_s, place))
        for photo in setup.photos:
            for rank in range(self.views):
                self._send(rank, photo)
        self.device = f"{self.views} x {self._answers()[0]}"

    def _start_process(self) -> None:
        ours, theirs = Pipe()
        self._pipes.append(ours)
        words = [sys.executable, "-m", "train.gpus.shard", str(theirs.fileno())]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with theirs:
            process = subprocess.Popen(words, env=environment, stdin=subprocess.PIPE, pass_fds=[theirs.fileno()])
        self._processes.append(process)

    # ------------------------------------------------------------------ calls and answers

    def _ask(self, name: str, *arguments: Any) -> list[Any]:
        """The answers of all ranks to the same call of ``ShardEngine``, or of its model where the name says so."""
        return self._ask_each(name, [arguments] * self.views)

    def _ask_each(self, name: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        self._end_step()
        for rank in range(self.views):
            self._send(rank, (name, arguments[rank]))
        return self._answers()

    def _end_step(self) -> None:
        if self._is_stepping:
            self._is_stepping = False
            self._answers()

    def _send(self, rank: int, message: Any) -> None:
        try:
            self._pipes[rank].send(message)
        except OSError:
            self._give_up({rank: ENDED})

    def _answers(self) -> list[Any]:
        heard = self._hear(range(self.views), self._timeout_s)
        if len(heard) < self.views or not is_well(heard):
            self._give_up(heard)
        return [heard[rank][1] for rank in range(self.views)]

    def _hear(self, ranks: Iterable[int], seconds: float) -> Heard:
        """What these ranks say, until all have, one has bad news, or the time is over."""
        heard: Heard = {}
        until = time.monotonic() + seconds
        while is_well(heard) and (silent := {self._pipes[rank]: rank for rank in ranks if rank not in heard}):
            ready = wait(list(silent), max(0.0, until - time.monotonic()))
            if not ready:
                break
            heard |= {rank: receive(pipe) for pipe, rank in silent.items() if pipe in ready}
        return heard

    def _give_up(self, heard: Heard) -> NoReturn:
        """End all processes and raise what explains ``heard``."""
        for rank in range(self.views):
            if rank not in heard:
                heard |= self._hear([rank], GRACE_S / self.views)
        silent = [rank for rank in range(self.views) if rank not in heard]
        self.close()
        for kind in ("full", "ended", "failed"):
            for rank, (said, text) in sorted(heard.items()):
                if said == kind == "full":
                    raise OutOfDeviceMemory(text)
                if said == kind:
                    why = text or f"exit status {self._processes[rank].returncode}"
                    raise RuntimeError(f"The process of GPU {rank} of {self.views} {kind}: {why}")
        raise RuntimeError(f"The processes of GPUs {silent} of {self.views} gave no answer for {self._timeout_s} s")

    # ------------------------------------------------------------------ the engine

    def load(self, gaussians: Gaussians) -> None:
        gaussians = gaussians.select(most_opaque(gaussians.opacity_logits, self.setup.max_gaussians))
        self._count = len(gaussians)
        self._ask_each("model.load", [(gaussians.select(rows),) for rows in self._rows()])

    def _rows(self) -> list[NDArray[np.int64]]:
        """The numbers of each shard's Gaussians."""
        return [np.arange(rank, self._count, self.views) for rank in range(self.views)]

    def step(self, photos: Sequence[int], level: int, sh_degree: int, rates: Rates) -> None:
        self._end_step()
        for rank in range(self.views):
            self._send(rank, ("step_of_all", (photos, level, sh_degree, rates, self._count)))
        self._is_stepping = True

    def error_per_gaussian(self, photo: int, level: int, sh_degree: int) -> NDArray[np.float32]:
        return interleaved(self._ask("error_per_gaussian", photo, level, sh_degree))

    def mean_loss(self) -> float:
        return float(np.mean(self._ask("mean_loss")))

    def is_finite(self) -> bool:
        return all(self._ask("model.is_finite"))

    def count(self) -> int:
        return self._count

    def opacities(self) -> NDArray[np.float32]:
        return interleaved(self._ask("model.opacities"))

    def log_scales(self) -> NDArray[np.float32]:
        return interleaved(self._ask("model.log_scales"))

    def relocate(self, moves: Moves) -> None:
        self._ask("relocate", moves)
        self._count = max(self._count, moves.count)

    def render(self, view: View, sh_degree: int) -> NDArray[np.float32]:
        image: NDArray[np.float32] = self._ask("render", view, sh_degree)[0]
        return image

    def gaussians(self) -> Gaussians:
        parts = [vars(part) for part in self._ask("model.gaussians")]
        return Gaussians(**{name: interleaved([part[name] for part in parts]) for name in parts[0]})

    def state(self) -> Arrays:
        parts = self._ask("model.state")
        whole = {name: interleaved([part[name] for part in parts], axis(name)) for name in parts[0] if name != "steps"}
        return {"steps": parts[0]["steps"], **whole}

    def restore(self, state: Arrays) -> None:
        """Go on from ``state``. Of more Gaussians than fit (after out-of-memory) the most opaque are kept."""
        keep = most_opaque(state["value_opacity_logits"], self.setup.max_gaussians)
        self._count = len(keep)
        parts = [{name: rows_of(name, array, keep[rows]) for name, array in state.items()} for rows in self._rows()]
        self._ask_each("model.restore", [(part,) for part in parts])

    def versions(self) -> dict[str, str]:
        versions: dict[str, str] = self._ask("versions")[0]
        return versions


def end_processes(processes: list[subprocess.Popen[bytes]], pipes: list[Connection]) -> None:
    """Let every process end by itself, or kill it after END_S."""
    for process in processes:
        if process.stdin:
            process.stdin.close()
    for process in processes:
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for pipe in pipes:
        pipe.close()


def receive(pipe: Connection) -> tuple[str, Any]:
    try:
        kind, answer = pipe.recv()
    except (EOFError, OSError):
        return ENDED
    return kind, answer


def is_well(heard: Heard) -> bool:
    return all(kind == "done" for kind, _ in heard.values())


def axis(name: str) -> int:
    """The axis of the Gaussians in an array of ``GpuEngine.state``."""
    return 0 if name.startswith("value_") and name != "value_sh" else 1


def rows_of(name: str, array: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[Any]:
    return array if name == "steps" else np.take(array, rows, axis(name))


def interleaved(parts: list[NDArray[Any]], along: int = 0) -> NDArray[Any]:
    """One array of the shards', in the model's order."""
    shape = list(parts[0].shape)
    shape[along] = sum(part.shape[along] for part in parts)
    whole = np.empty(shape, parts[0].dtype)
    for rank, part in enumerate(parts):
        whole[(slice(None),) * along + (slice(rank, None, len(parts)),)] = part
    return whole
