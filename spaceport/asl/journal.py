"""What an execution did so far, one record per step, written before the step takes effect."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import IO, Any, Protocol

from spaceport.base.durable import sync_folder


class JournalError(Exception):
    """A journal that cannot be read: which file and line, and why."""


class Journal(Protocol):
    """An append-only list of JSON objects."""

    def append(self, record: dict[str, Any]) -> None:
        """Add ``record``; when this returns it is durable."""
        ...

    def read(self) -> list[dict[str, Any]]:
        """Every record, oldest first."""
        ...


class MemoryJournal:
    """A journal for tests and simulation. Records are kept by reference; the engine never changes one."""

    def __init__(self, records: list[dict[str, Any]] | None = None) -> None:
        self._records = list(records or [])

    def append(self, record: dict[str, Any]) -> None:
        self._records.append(record)

    def read(self) -> list[dict[str, Any]]:
        return list(self._records)


class FileJournal:
    """JSON lines in ``path``; every record is on the disk when ``append`` returns (flush and fsync).

    A last line without its line feed is what a killed process leaves behind. It was never acknowledged, so it is cut
    off before the next append. Any other line that is not a JSON object is damage and raises JournalError.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._file: IO[bytes] | None = None

    def append(self, record: dict[str, Any]) -> None:
        line = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        file = self._file or self._open()
        file.write(line)
        file.flush()
        os.fsync(file.fileno())

    def read(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        lines = self.path.read_bytes().split(b"\n")[:-1]  # what follows the last line feed is torn, or empty
        return [self._parse(number, line) for number, line in enumerate(lines, 1)]

    def close(self) -> None:
        """Close the file; the next append opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> IO[bytes]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not self.path.exists()
        file = self.path.open("ab")
        if is_new:
            sync_folder(self.path.parent)
        else:
            _cut_torn_line(self.path, file)
        self._file = file
        return file

    def _parse(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except ValueError as error:
            raise JournalError(f"{self.path}: line {number} is not JSON ({error}); the journal is damaged") from error
        if not isinstance(record, dict):
            raise JournalError(f"{self.path}: line {number} is not a JSON object; the journal is damaged")
        return record


def _cut_torn_line(path: Path, file: IO[bytes]) -> None:
    """Truncate to the last line feed, so that the next record starts on a line of its own."""
    kept = path.read_bytes().rfind(b"\n") + 1
    if kept != path.stat().st_size:
        file.truncate(kept)
