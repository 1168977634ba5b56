"""What a phase of the stage took, as a line of the job's log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def phase(name: str, log: Callable[..., None]) -> Iterator[None]:
    """``log("phase", ...)`` at the end of the block: wall seconds, and processor seconds of all threads."""
    wall, cpu = time.monotonic(), time.process_time()
    yield
    took = {"seconds": round(time.monotonic() - wall, 3), "cpu_seconds": round(time.process_time() - cpu, 3)}
    log("phase", phase=name, **took)
