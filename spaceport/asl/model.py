"""A compiled state machine, as the loader makes it and the interpreter runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from spaceport.asl.choice import Rule
from spaceport.asl.intrinsics import Expression
from spaceport.asl.paths import Path, compile_path

MAX_SECONDS = 99_999_999
WHOLE = compile_path("$")


class Problem(NamedTuple):
    """One thing that is wrong; ``state`` is a name, a branch such as ``Fan.Branches[0]``, or empty for the machine."""

    state: str
    field: str
    reason: str

    def __str__(self) -> str:
        place = f"state '{self.state}'" if self.state else "state machine"
        return f"{place}{', ' + self.field if self.field else ''}: {self.reason}"


class DefinitionError(Exception):
    """A definition that cannot run; ``problems`` has everything that was found, not only the first."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Retrier:
    errors: tuple[str, ...]
    interval_s: float = 1.0
    max_attempts: int = 3
    backoff_rate: float = 2.0
    max_delay_s: float | None = None
    full_jitter: bool = False

    def delay_s(self, done: int, random: Callable[[], float] | None) -> float:
        """Seconds to wait after ``done`` retries; ``random()`` is a number in [0, 1)."""
        delay_s = min(self.interval_s * min(self.backoff_rate**done, float(MAX_SECONDS)), float(MAX_SECONDS))
        if self.max_delay_s is not None:
            delay_s = min(delay_s, self.max_delay_s)
        return delay_s * random() if self.full_jitter and random is not None else delay_s


@dataclass(frozen=True, slots=True)
class Catcher:
    errors: tuple[str, ...]
    next: str
    result_keys: tuple[str | int, ...] | None = ()  # None: the error output is discarded


@dataclass(slots=True)
class State:
    """One compiled state. A field that its type does not have keeps its default; ``result_keys`` None discards."""

    name: str
    kind: str
    next: str | None = None
    parameters: Expression | None = None
    result_selector: Expression | None = None
    result_keys: tuple[str | int, ...] | None = ()
    retriers: list[Retrier] = field(default_factory=list)
    catchers: list[Catcher] = field(default_factory=list)
    # Task
    resource: str = ""
    waits_for_token: bool = False
    timeout_s: int = MAX_SECONDS
    heartbeat_s: int | None = None
    # Pass: (value,) when there is a Result
    result: tuple[Any] | None = None
    # Wait
    seconds: int | Path | None = None
    # Choice
    choices: list[tuple[Rule, str]] = field(default_factory=list)
    default: str | None = None
    # Fail
    error: str | None = None
    cause: str | None = None
    # Parallel and Map
    branches: list[Branch] = field(default_factory=list)
    items_path: Path = WHOLE
    max_concurrency: int = 0


@dataclass(slots=True)
class Branch:
    """A set of states of which one is current: the machine itself, a branch of Parallel, or the processor of Map."""

    start_at: str
    states: dict[str, State]


@dataclass(slots=True)
class Machine:
    root: Branch
    definition: dict[str, Any]
    timeout_s: int | None = None
