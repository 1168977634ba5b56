"""What the mapping program says while it works, one JSON object a line: progress, something to count, or a log line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict


class Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MapProgress(Line):
    step: int
    total: int
    unit: str
    message: str


class Watch(Line):
    """Something for the parent to count as progress: rows of a database table, or files of a folder."""

    total: int
    unit: str
    message: str
    folder: Path | None = None
    database: Path | None = None
    table: str = ""


class MapLog(Line):
    event: str
    fields: dict[str, bool | int | float | str | None]


class MapMessage(Line):
    """One of the three. Progress also ends the counting."""

    progress: MapProgress | None = None
    watch: Watch | None = None
    log: MapLog | None = None


def send(message: MapMessage) -> None:
    print(message.model_dump_json(exclude_none=True), flush=True)


def log(event: str, **fields: bool | float | str | None) -> None:
    send(MapMessage(log=MapLog(event=event, fields=fields)))


def show_progress(step: int, total: int, unit: str, message: str) -> None:
    send(MapMessage(progress=MapProgress(step=step, total=total, unit=unit, message=message)))


@contextmanager
def count(watch: Watch) -> Iterator[None]:
    """Ask the parent to count while the block runs.

    Not in this process: a second copy of SQLite that opens the file drops the locks of the first one
    (sqlite.org/howtocorrupt.html, section 2.2.1), and the matcher then dies of SIGBUS.
    """
    send(MapMessage(watch=watch))
    yield
    show_progress(watch.total, watch.total, watch.unit, watch.message)
