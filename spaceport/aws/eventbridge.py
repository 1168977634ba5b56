"""EventBridge on one machine: the pattern language, a bus that calls functions, and schedules on the engine's clock.

Pattern language: EventBridge user guide, "Comparison operators for use in event patterns"; played are equality and
``prefix``. Any other operator is refused by name when the rule is loaded, never ignored.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from spaceport.base.clock import Clock, Timer
from spaceport.base.errors import ServiceError
from spaceport.stack.template import Rule, Target

MAX_EVENT_BYTES = 256 * 1024
Predicate = Callable[[Any], bool]


class PatternError(Exception):
    """An event pattern that EventBridge, or this implementation, does not accept; the text names rule and field."""


@dataclass(frozen=True)
class Pattern:
    """A compiled event pattern."""

    matches: Callable[[Any], bool]


def compile_pattern(pattern: dict[str, Any], where: str = "pattern") -> Pattern:
    """A matcher for events. Raises PatternError for anything that is not in the pattern language."""
    if not isinstance(pattern, dict) or not pattern:
        raise PatternError(f"{where}: an event pattern is a non-empty object")
    return Pattern(_compile_object(pattern, where))


def _compile_object(pattern: dict[str, Any], where: str) -> Predicate:
    """All fields must match (and); a field that the pattern does not name may be anything."""
    checks: list[Predicate] = []
    for field, expected in pattern.items():
        path = f"{where}.{field}"
        if field.startswith("$"):
            raise PatternError(f"{path}: {field} is not supported by the embedded engine")
        if isinstance(expected, dict):
            checks.append(_field_check(field, _compile_object(expected, path)))
        elif isinstance(expected, list) and expected:
            checks.append(_leaf_check(field, [_compile_matcher(item, path) for item in expected]))
        else:
            raise PatternError(f"{path}: a field's value must be an object or a non-empty list, not {expected!r}")
    return lambda event: all(check(event) for check in checks)


def _field_check(field: str, inner: Predicate) -> Predicate:
    def check(event: Any) -> bool:
        value = event.get(field) if isinstance(event, dict) else None
        candidates = value if isinstance(value, list) else [value]
        return any(inner(item) for item in candidates)

    return check


def _leaf_check(field: str, matchers: list[Predicate]) -> Predicate:
    def check(event: Any) -> bool:
        if not isinstance(event, dict) or field not in event:
            return False
        value = event[field]
        # An array in the event matches when one of its elements does.
        candidates = value if isinstance(value, list) else [value]
        return any(matcher(item) for matcher in matchers for item in candidates)

    return check


def _compile_matcher(matcher: Any, path: str) -> Predicate:
    if not isinstance(matcher, dict):
        if isinstance(matcher, list):
            raise PatternError(f"{path}: a list inside a list")
        return lambda value: _equal(value, matcher)
    if list(matcher) != ["prefix"]:
        raise PatternError(f"{path}: {', '.join(matcher) or 'no operator'} is not supported by the embedded engine")
    prefix = matcher["prefix"]
    if not isinstance(prefix, str) or not prefix:
        raise PatternError(f"{path}.prefix: needs a non-empty string, not {prefix!r}")
    return lambda value: isinstance(value, str) and value.startswith(prefix)


def _equal(value: Any, expected: Any) -> bool:
    """JSON equality: true is not 1, and 1 is 1.0."""
    if isinstance(value, bool) or isinstance(expected, bool):
        return value is expected
    return bool(value == expected)


def schedule_seconds(expression: str, where: str) -> float:
    """Seconds between two runs of ``rate(5 minutes)``. Raises PatternError for cron() and at()."""
    match = re.fullmatch(r"rate\((\d+) (minute|hour|day)(s?)\)", expression)
    if not match or int(match.group(1)) < 1 or (int(match.group(1)) == 1) != (match.group(3) == ""):
        raise PatternError(f"{where}: schedule {expression!r} is not supported; use rate(1 minute), rate(5 minutes), …")
    return int(match.group(1)) * {"minute": 60.0, "hour": 3600.0, "day": 86400.0}[match.group(2)]


@dataclass
class EventBus:
    """The default bus: rules, their targets, and what is sent to them.

    ``deliver(target, event)`` is called on the clock's thread, twice per match with ``duplicate_events``.
    ``schedule_period_s`` replaces the period of every schedule.
    """

    clock: Clock
    rules: list[Rule]
    deliver: Callable[[Target, Any], None]
    ids: Callable[[], str]
    account_id: str
    region: str
    duplicate_events: bool = False
    schedule_period_s: float | None = None

    def __post_init__(self) -> None:
        self.patterns = [(rule, compile_pattern(rule.pattern, rule.logical_id)) for rule in self.rules if rule.pattern]
        self._timers: list[Timer] = []
        self._closed = False

    def start_schedules(self) -> None:
        """Begin the schedules; as on AWS the first run is one period after the rule was made."""
        for rule in self.rules:
            if rule.schedule:
                period_s = schedule_seconds(rule.schedule, rule.logical_id)
                self._schedule(rule, self.schedule_period_s or period_s)

    def close(self) -> None:
        """Deliver nothing more."""
        self._closed = True
        for timer in self._timers:
            timer.cancel()

    def put(self, source: str, detail_type: str, detail: dict[str, Any], resources: list[str] | None = None) -> str:
        """Send an event to every rule that matches; returns its id. Delivery happens later, on the clock's thread."""
        event = self._event(source, detail_type, detail, resources or [])
        for rule, pattern in self.patterns:
            if pattern.matches(event):
                self._send(rule, event)
        return str(event["id"])

    def _event(self, source: str, detail_type: str, detail: dict[str, Any], resources: list[str]) -> dict[str, Any]:
        return {
            "version": "0",
            "id": self.ids(),
            "detail-type": detail_type,
            "source": source,
            "account": self.account_id,
            "time": iso_time(self.clock.now()),
            "region": self.region,
            "resources": resources,
            "detail": detail,
        }

    def _send(self, rule: Rule, event: dict[str, Any]) -> None:
        for target in rule.targets:
            payload = event if target.input is None else target.input
            for _ in range(2 if self.duplicate_events else 1):
                self.clock.call_soon(partial(self._deliver, target, copy.deepcopy(payload)))

    def _deliver(self, target: Target, payload: Any) -> None:
        if not self._closed:
            self.deliver(target, payload)

    def _schedule(self, rule: Rule, period_s: float) -> None:
        def tick() -> None:
            if self._closed:
                return
            event = self._event("aws.events", "Scheduled Event", {}, [rule.arn])
            self._send(rule, event)
            self._schedule(rule, period_s)

        self._timers = [timer for timer in self._timers if not timer.done]
        self._timers.append(self.clock.call_later(period_s, tick))

    def call(self, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        """The EventBridge API, as far as the functions use it: PutEvents."""
        if operation != "PutEvents":
            raise ServiceError("UnknownOperationException", f"{operation} is not played locally")
        entries = [self._put_entry(entry) for entry in request["Entries"]]
        return {"FailedEntryCount": sum("ErrorCode" in entry for entry in entries), "Entries": entries}

    def _put_entry(self, entry: dict[str, Any]) -> dict[str, Any]:
        """One entry of PutEvents; refusals are answers, not errors (EventBridge API reference, PutEvents)."""
        missing = [name for name in ("Source", "DetailType", "Detail") if not entry.get(name)]
        other_bus = entry.get("EventBusName", "default").rpartition("/")[2] != "default"
        if missing or other_bus or len(json.dumps(entry, default=str).encode()) > MAX_EVENT_BYTES:
            problem = f"{missing[0]} is missing" if missing else "unknown bus" if other_bus else "too large"
            return {"ErrorCode": "InvalidArgument", "ErrorMessage": f"Invalid entry: {problem}."}
        if entry["Source"].startswith("aws."):
            message = "Not authorized for the source."
            return {"ErrorCode": "NotAuthorizedForSourceException", "ErrorMessage": message}
        try:
            detail = json.loads(entry["Detail"])
        except ValueError:
            return {"ErrorCode": "MalformedDetail", "ErrorMessage": "Detail is malformed."}
        if not isinstance(detail, dict):
            return {"ErrorCode": "MalformedDetail", "ErrorMessage": "Detail is malformed."}
        return {"EventId": self.put(entry["Source"], entry["DetailType"], detail, entry.get("Resources"))}


def iso_time(time: datetime) -> str:
    """The time of an event's envelope: UTC, to the second."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
