"""The engine's clock and its one logical thread: virtual for tests and simulation, real for `spaceport run`."""

from __future__ import annotations

import heapq
import itertools
import sys
import threading
import traceback
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Protocol

DEFAULT_START = datetime(2026, 1, 1, tzinfo=UTC)
MAX_CALLBACKS = 10_000_000


class Timer:
    """A call that is due at ``due_at`` and has neither run nor been cancelled yet, unless ``done``."""

    __slots__ = ("done", "due_at", "fn")

    def __init__(self, due_at: datetime, fn: Callable[[], None]) -> None:
        self.due_at = due_at
        self.fn: Callable[[], None] | None = fn
        self.done = False

    def cancel(self) -> None:
        """Forget the call. Harmless after it has run, and from any thread."""
        self.done = True
        self.fn = None


class Clock(Protocol):
    """What an engine may know of time. Callbacks run one at a time, in the order they fall due."""

    def now(self) -> datetime:
        """The time, with tzinfo UTC."""
        ...

    def call_later(self, delay_s: float, fn: Callable[[], None]) -> Timer:
        """Run ``fn`` once, ``delay_s`` seconds from now (negative counts as 0). From any thread."""
        ...

    def call_soon(self, fn: Callable[[], None]) -> Timer:
        """Run ``fn`` after the callbacks that are already due. From any thread."""
        ...


class _Queue:
    """Timers by due time, and by order of arrival where that is equal."""

    def __init__(self) -> None:
        self._heap: list[tuple[datetime, int, Timer]] = []
        self._order = itertools.count()

    def push(self, due_at: datetime, fn: Callable[[], None]) -> Timer:
        timer = Timer(due_at, fn)
        heapq.heappush(self._heap, (due_at, next(self._order), timer))
        return timer

    def next_due(self) -> datetime | None:
        """When the first live timer is due; cancelled ones are dropped on the way."""
        while self._heap and self._heap[0][2].done:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def pop(self) -> Timer:
        return heapq.heappop(self._heap)[2]


def _fire(timer: Timer) -> None:
    fn, timer.fn = timer.fn, None
    if fn is not None and not timer.done:
        timer.done = True
        fn()


class VirtualClock:
    """Time that passes only when asked to, so that a day takes milliseconds and two runs are the same.

    ``call_soon`` and ``call_later`` may be used from other threads; ``run_*`` and ``advance`` belong to one thread.
    An exception in a callback leaves the ``run_*`` method; the remaining callbacks stay scheduled.
    """

    def __init__(self, start: datetime = DEFAULT_START) -> None:
        if start.tzinfo is None:
            raise ValueError(
                "VirtualClock: start must have a time zone; pass for example datetime(2026, 1, 1, tzinfo=UTC)"
            )
        self._now = start.astimezone(UTC)
        self._queue = _Queue()
        self._lock = threading.Lock()

    def now(self) -> datetime:
        return self._now

    def call_later(self, delay_s: float, fn: Callable[[], None]) -> Timer:
        with self._lock:
            due_at = self._now + timedelta(seconds=delay_s) if delay_s > 0 else self._now
            return self._queue.push(due_at, fn)

    def call_soon(self, fn: Callable[[], None]) -> Timer:
        with self._lock:
            return self._queue.push(self._now, fn)

    def next_due(self) -> datetime | None:
        """When the next callback is due, or None when nothing is scheduled."""
        with self._lock:
            return self._queue.next_due()

    def run_next(self, until: datetime | None = None) -> bool:
        """Move to the next callback and run it; False when none is scheduled, or none up to and including ``until``."""
        with self._lock:
            due_at = self._queue.next_due()
            if due_at is None or (until is not None and due_at > until):
                return False
            timer = self._queue.pop()
            self._now = max(self._now, due_at)
        _fire(timer)
        return True

    def run_until_idle(self, max_callbacks: int = MAX_CALLBACKS) -> int:
        """Run callbacks, skipping the time between them, until none is scheduled; returns how many ran.

        Raises RuntimeError after ``max_callbacks``: something schedules itself forever.
        """
        for count in range(max_callbacks):
            if not self.run_next():
                return count
        raise RuntimeError(f"VirtualClock: still busy after {max_callbacks} callbacks, at {self._now.isoformat()}")

    def advance(self, seconds: float) -> int:
        """Let ``seconds`` pass, running what falls due; returns how many callbacks ran."""
        end = self._now + timedelta(seconds=seconds)
        count = 0
        while self.run_next(until=end):
            count += 1
        self._now = end
        return count


class RealClock:
    """Wall-clock time and one loop thread.

    A callback's exception goes to ``on_error(exception)`` if given; otherwise it is printed, and raised by ``stop()``.
    Either way the loop goes on, so that one broken execution does not take the others with it.
    """

    def __init__(self, on_error: Callable[[BaseException], None] | None = None) -> None:
        self._on_error = on_error
        self._queue = _Queue()
        self._wake = threading.Condition()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._errors: list[BaseException] = []

    def start(self) -> RealClock:
        """Start the loop thread; callbacks scheduled before run first."""
        if self._thread is not None:
            raise RuntimeError("RealClock: already started")
        self._stopping = False
        self._thread = threading.Thread(target=self._loop, name="spaceport-clock", daemon=True)
        self._thread.start()
        return self

    def stop(self, timeout_s: float = 10.0) -> None:
        """End the loop after the running callback; what is scheduled for later is dropped.

        Raises the callbacks' exceptions as an ExceptionGroup when there was no ``on_error``, and TimeoutError when the
        running callback does not return within ``timeout_s``.
        """
        with self._wake:
            self._stopping = True
            self._wake.notify()
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_s)
            if thread.is_alive():
                raise TimeoutError(f"RealClock: a callback still runs {timeout_s} s after stop(); it blocks the loop")
        errors, self._errors = self._errors, []
        if errors:
            raise BaseExceptionGroup("callbacks failed on the clock's thread", errors)

    def __enter__(self) -> RealClock:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def now(self) -> datetime:
        return datetime.now(UTC)

    def call_later(self, delay_s: float, fn: Callable[[], None]) -> Timer:
        with self._wake:
            timer = self._queue.push(self.now() + timedelta(seconds=max(0.0, delay_s)), fn)
            self._wake.notify()
            return timer

    def call_soon(self, fn: Callable[[], None]) -> Timer:
        return self.call_later(0.0, fn)

    def _loop(self) -> None:
        while (timer := self._next()) is not None:
            try:
                _fire(timer)
            except BaseException as error:  # noqa: BLE001 - reported, and raised again by stop()
                self._report(error)

    def _next(self) -> Timer | None:
        with self._wake:
            while not self._stopping:
                due_at = self._queue.next_due()
                wait_s = None if due_at is None else (due_at - self.now()).total_seconds()
                if wait_s is not None and wait_s <= 0:
                    return self._queue.pop()
                self._wake.wait(None if wait_s is None else min(wait_s, threading.TIMEOUT_MAX))
            return None

    def _report(self, error: BaseException) -> None:
        if self._on_error is not None:
            self._on_error(error)
            return
        self._errors.append(error)
        traceback.print_exception(error, file=sys.stderr)
