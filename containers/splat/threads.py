"""A few threads that run the same kernel at once. Kernels release the interpreter lock and share work by a counter."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np


def available_cores() -> int:
    """Cores this process may use, or ``$SPACEPORT_THREADS``."""
    asked = os.environ.get("SPACEPORT_THREADS", "")
    return max(1, int(asked) if asked else len(os.sched_getaffinity(0)))


class Workers:
    """``run(kernel, …)`` calls ``kernel(counter, …)`` once per thread; results do not depend on the number of
    threads.
    """

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads or available_cores()
        self._pool = ThreadPoolExecutor(self.threads - 1, "splat") if self.threads > 1 else None
        self.counter = np.zeros(1, np.int64)

    def run(self, kernel: Callable[..., None], *arguments: Any, own: tuple[int, list] | None = None) -> None:
        """``own`` = (position, one value per thread): an argument that each thread has for itself."""
        self.counter[0] = 0
        calls = [[self.counter, *arguments] for _ in range(self.threads)]
        if own:
            for call, value in zip(calls, own[1], strict=True):
                call.insert(own[0] + 1, value)
        others = [self._pool.submit(kernel, *call) for call in calls[1:]] if self._pool else []
        kernel(*calls[0])
        for other in others:
            other.result()
