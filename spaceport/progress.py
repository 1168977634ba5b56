"""What a person sees while a job runs: one line per state, with real steps, time and time left."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import Progress
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from spaceport.stack.stages import STAGES

SILENCE_LIMIT_S = 4.0  # a plain log says something at least this often
TICK_S = 0.5
TITLES = {
    "Settle": "Is the upload complete?",
    "Validate": "Check photos and options",
    **{stage.state: stage.title for stage in STAGES},
    "Notify": "Publish and send e-mail",
    "RecordFailure": "Record the failure",
    "NotifyFailure": "Send e-mail about the failure",
}


@dataclass
class Row:
    state: str
    started_s: float
    ended_s: float | None = None
    failed: bool = False
    step: float = 0
    total: float = 0
    unit: str = ""
    message: str = ""
    eta_s: float | None = None
    eta_read_s: float = 0.0
    retry_s: float | None = None  # when the next try is due; None while one runs

    def begin(self) -> None:
        """A try begins: nothing that an earlier one reported holds any more."""
        self.ended_s, self.failed, self.retry_s = None, False, None
        self.step, self.total, self.unit, self.message, self.eta_s = 0, 0, "", "", None

    def seconds(self, now_s: float) -> float:
        return (now_s if self.ended_s is None else self.ended_s) - self.started_s

    def seconds_left(self, now_s: float) -> float | None:
        """Time left as last reported, less the time since; None when nothing was reported.

        While a try is waited for, the time until it begins.
        """
        if self.ended_s is not None:
            return None
        if self.retry_s is not None:
            return max(0.0, self.retry_s - now_s)
        if self.eta_s is None:
            return None
        return max(0.0, self.eta_s - (now_s - self.eta_read_s))


class PlainLog:
    """Lines on a console that is no terminal. A line says ``how_it_stands()`` when nothing was said for a while.

    ``plain`` overrides what the console is; without it, nothing is printed. ``now_s`` is a clock in seconds that never
    goes back. Whoever changes what ``how_it_stands`` reads holds ``lock``.
    """

    def __init__(
        self, console: Console, plain: bool | None, now_s: Callable[[], float], how_it_stands: Callable[[], str]
    ) -> None:
        self.console = console
        self.plain = (not console.is_terminal) if plain is None else plain
        self.now_s = now_s
        self.how_it_stands = how_it_stands
        self.lock = threading.RLock()
        self._said_s = now_s()
        self._closed = threading.Event()
        self._ticker = threading.Thread(target=self._tick_until_closed, daemon=True)

    def start(self) -> None:
        if self.plain:
            self._ticker.start()

    def stop(self) -> None:
        self._closed.set()
        if self.plain:
            self._ticker.join()

    def say(self, text: str) -> None:
        self._said_s = self.now_s()
        if self.plain:
            self.console.print(text, highlight=False, markup=False)

    def _tick_until_closed(self) -> None:
        while not self._closed.wait(TICK_S):
            self.tick()

    def tick(self) -> None:
        with self.lock:
            if self.now_s() - self._said_s >= SILENCE_LIMIT_S:
                self.say(self.how_it_stands())


class Display:
    """Listener of a run; a live table on a terminal, plain lines elsewhere. Safe to call from any thread."""

    def __init__(
        self, console: Console, plain: bool | None = None, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self.console = console
        self.now_s = now_s
        self.rows: dict[str, Row] = {}
        self.log = PlainLog(console, plain, now_s, self._how_it_stands)
        self._live: Live | None = None

    def __enter__(self) -> Display:
        self.log.start()
        if not self.log.plain:
            self._live = Live(get_renderable=self.render, console=self.console, refresh_per_second=5)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()
        self.log.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        handler = getattr(self, f"_on_{event['type']}", None)
        if handler:
            with self.log.lock:
                handler(event)

    def _on_state_entered(self, event: dict[str, Any]) -> None:
        state = event["state"]
        if state not in TITLES:
            return
        self.rows.setdefault(state, Row(state, self.now_s())).begin()
        self.log.say(f"{state}: {TITLES[state]}")

    _on_state_resumed = _on_state_entered

    def _on_task_started(self, event: dict[str, Any]) -> None:
        row = self.rows.get(event["state"])
        if row is not None and row.retry_s is not None:
            row.begin()
            self.log.say(f"{row.state}: trying again")

    def _on_retry_waited_for(self, event: dict[str, Any]) -> None:
        row = self.rows.get(event["state"])
        if row is None:
            return
        row.begin()
        row.retry_s = self.now_s() + event["wait_s"]
        row.message = f"failed ({event['error'] or 'for a reason unknown'}), waiting for the next try"
        self.log.say(self._sentence(row))

    def _on_state_exited(self, event: dict[str, Any]) -> None:
        row = self.rows.get(event["state"])
        if row is None:
            return
        row.ended_s = self.now_s()
        row.failed = bool(event.get("failed"))
        self.log.say(f"{row.state}: {'failed' if row.failed else 'done'} in {duration(row.seconds(row.ended_s))}")

    def _on_progress(self, event: dict[str, Any]) -> None:
        row = self.rows.get(event["state"])
        if row is None or row.ended_s is not None:
            return
        changed = (row.message, row.unit) != (event["message"], event["unit"])
        row.step, row.total, row.unit, row.message = event["step"], event["total"], event["unit"], event["message"]
        row.eta_s, row.eta_read_s = event["eta_s"], self.now_s()
        if changed:
            self.log.say(self._sentence(row))

    def _on_mail(self, event: dict[str, Any]) -> None:
        self.log.say(f"E-mail to {event['to']}: {event['path']}")

    def _how_it_stands(self) -> str:
        running = [row for row in self.rows.values() if row.ended_s is None]
        between = "waiting for the next step" if self.rows else "starting …"
        return self._sentence(running[-1]) if running else between

    def _sentence(self, row: Row) -> str:
        now_s = self.now_s()
        parts = [f"{row.state}:", row.message or "running"]
        if row.total:
            parts.append(f"{row.step:.0f}/{row.total:.0f} {row.unit}")
        parts.append(f"({duration(row.seconds(now_s))}")
        left = row.seconds_left(now_s)
        parts[-1] += f", {duration(left)} left)" if left is not None else ")"
        return " ".join(parts)

    def render(self) -> RenderableType:
        with self.log.lock:
            now_s = self.now_s()
            table = Table.grid(padding=(0, 2))
            for row in self.rows.values():
                table.add_row(*self._cells(row, now_s))
            return Group(table) if self.rows else Spinner("dots", "starting")

    def _cells(self, row: Row, now_s: float) -> list[RenderableType]:
        if row.ended_s is not None:
            mark: RenderableType = Text("✗", "red") if row.failed else Text("✓", "green")
        else:
            mark = Spinner("dots")
        running = row.ended_s is None and row.total > 0
        bar: RenderableType = ProgressBar(total=row.total, completed=row.step, width=24) if running else ""
        detail = f"{row.step:.0f}/{row.total:.0f} {row.unit}  {row.message}" if running else row.message
        left = row.seconds_left(now_s)
        times = duration(row.seconds(now_s)) + (f"  {duration(left)} left" if left is not None else "")
        return [mark, Text(TITLES[row.state]), bar, Text(detail, "dim"), Text(times)]


class Work:
    """One piece of work outside of a run: a bar on a terminal, a plain line every few seconds elsewhere.

    Call it with (steps done, steps in all); until then, and for work without steps, the time so far is all it says.
    """

    def __init__(
        self, console: Console, title: str, plain: bool | None = None, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self.title = title
        self.now_s = now_s
        self.step = self.total = 0
        self.log = PlainLog(console, plain, now_s, self._how_it_stands)
        self._started_s = now_s()
        self._bar = Progress(console=console, transient=True)

    def __enter__(self) -> Work:
        self.log.say(f"{self.title} …")
        self.log.start()
        if not self.log.plain:
            self._task = self._bar.add_task(self.title, total=None)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.log.plain:
            self._bar.stop()
        self.log.stop()

    def __call__(self, step: int, total: int) -> None:
        self.step, self.total = step, total
        if not self.log.plain:
            self._bar.update(self._task, completed=step, total=total)

    def _how_it_stands(self) -> str:
        steps = f" {self.step}/{self.total}" if self.total else ""
        return f"{self.title}:{steps} ({duration(self.now_s() - self._started_s)})"


def duration(seconds: float) -> str:
    """``8 s``, ``1 min 20 s``, ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
