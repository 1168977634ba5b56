"""When training ends: out of time, out of iterations, or no longer getting better."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

CLOCK_VARIABLE = "SPACEPORT_TRAIN_CLOCK"  # "cpu": count processor time, for measurements on a busy machine


@dataclass
class Plateau:
    """Improvement ends when ``patience`` evaluations in a row bring at most ``delta_db`` over the best before."""

    delta_db: float = 0.05
    patience: int = 4
    best_db: float = float("-inf")
    waited: int = 0

    def update(self, psnr: float) -> bool:
        """Note an evaluation; True when training should cool down and stop."""
        if psnr > self.best_db + self.delta_db:
            self.best_db, self.waited = psnr, 0
        else:
            self.waited += 1
        return self.waited >= self.patience


class Stopwatch:
    """Seconds of training, without pauses (evaluation, saving) and across restarts."""

    def __init__(self, already_s: float, threads: int) -> None:
        self._use_cpu = os.environ.get(CLOCK_VARIABLE) == "cpu"
        self._threads = threads
        self._offset_s = already_s - self._now()
        self._paused_at: float | None = None

    def _now(self) -> float:
        return time.process_time() / self._threads if self._use_cpu else time.monotonic()

    def elapsed_s(self) -> float:
        return (self._now() if self._paused_at is None else self._paused_at) + self._offset_s

    def pause(self) -> None:
        if self._paused_at is None:
            self._paused_at = self._now()

    def go_on(self) -> None:
        if self._paused_at is not None:
            self._offset_s -= self._now() - self._paused_at
            self._paused_at = None
