"""A finding of the path proof, and how the parts of the checker report one."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Finding(NamedTuple):
    """One thing that cannot be proven: ``path`` is the JSONPath, error name or state name that it is about."""

    rule: str
    state: str
    field: str
    path: str
    reason: str

    def __str__(self) -> str:
        place = f"state '{self.state}'" if self.state else "state machine"
        return f"[{self.rule}] {place}, {self.field}: {self.path + ': ' if self.path else ''}{self.reason}"


Report = Callable[[str, str, str, str], None]  # rule, field, path, reason


def silent(_rule: str, _field: str, _path: str, _reason: str) -> None:
    """For the passes that only look for what is certain; the last pass reports."""
