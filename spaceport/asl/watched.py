"""A journal that holds back each record until its effects are on the disk, and tells of what the records say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from spaceport.asl.journal import Journal


class WatchedJournal:
    """A journal that is never ahead of the objects and rows on the disk, and tells of states entered and left."""

    def __init__(self, journal: Journal, sync: Callable[[], None], notify: Callable[..., None]) -> None:
        self._journal = journal
        self._sync = sync
        self._notify = notify
        self._failed: dict[str, str] = {}  # frame: name of the error
        self._execution = ""

    def append(self, record: dict[str, Any]) -> None:
        self._sync()
        self._journal.append(record)
        kind, frame = record["type"], record.get("frame", "")
        if kind == "started":
            self._execution = record["execution_arn"]
        elif kind == "entered":
            self._failed.pop(frame, None)
            self._tell("state_entered", record)
        elif kind == "scheduled":
            self._tell("task_started", record)
        elif kind == "failed":
            self._failed[frame] = record["error"]
        elif kind == "retry":
            self._tell_of_retry(record, self._failed.pop(frame, ""), record["at"])
        elif kind == "succeeded":
            self._failed.pop(frame, None)
        elif kind == "exited":
            self._tell("state_exited", record, failed=frame in self._failed)

    def _tell(self, event: str, record: dict[str, Any], **more: Any) -> None:
        self._notify(event, state=record["state"], execution=self._execution, **more)

    def _tell_of_retry(self, record: dict[str, Any], error: str, now_s: float) -> None:
        self._tell("retry_waited_for", record, error=error, wait_s=max(0.0, record["due_at"] - now_s))

    def tell_where_it_is(self, now_s: float) -> None:
        """Tell of the states that an earlier engine entered and did not leave, and of retries that are not yet due."""
        inside: dict[str, dict[str, Any]] = {}
        last: dict[str, dict[str, Any]] = {}
        errors: dict[str, str] = {}
        for record in self._journal.read():
            frame = record.get("frame", "")
            if record["type"] == "entered":
                inside[frame] = record
            elif record["type"] == "exited":
                inside.pop(frame, None)
            elif record["type"] == "failed":
                errors[frame] = record["error"]
            last[frame] = record
        for frame, record in inside.items():
            self._tell("state_resumed", record)
            if last[frame]["type"] == "retry":
                self._tell_of_retry(last[frame], errors.get(frame, ""), now_s)

    def read(self) -> list[dict[str, Any]]:
        records = self._journal.read()
        if records and records[0].get("type") == "started":
            self._execution = records[0]["execution_arn"]
        return records
