"""EventBridge on one machine: the pattern language, a bus that calls functions, and schedules on the engine's clock.

Pattern language: EventBridge user guide, "Comparison operators for use in event patterns". An operator that is not
implemented here is refused when the rule is loaded, never ignored.
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

from spaceport.aws.endpoint import ServiceError
from spaceport.base.clock import Clock, Timer
from spaceport.stack.template import Rule, Target

MAX_EVENT_BYTES = 256 * 1024
Predicate = Callable[[Any], bool]
ABSENT = object()


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
        if field == "$or":
            checks.append(_compile_or(expected, path))
        elif isinstance(expected, dict):
            checks.append(_field_check(field, _compile_object(expected, path)))
        elif isinstance(expected, list) and expected:
            checks.append(_leaf_check(field, [_compile_matcher(item, path) for item in expected]))
        else:
            raise PatternError(f"{path}: a field's value must be an object or a non-empty list, not {expected!r}")
    return lambda event: all(check(event) for check in checks)


def _compile_or(alternatives: Any, path: str) -> Predicate:
    if not isinstance(alternatives, list) or len(alternatives) < 2:
        raise PatternError(f"{path}: $or needs a list of at least two patterns")
    compiled = [_compile_object(item, f"{path}[{i}]") for i, item in enumerate(alternatives)]
    return lambda event: any(check(event) for check in compiled)


def _field_check(field: str, inner: Predicate) -> Predicate:
    def check(event: Any) -> bool:
        # Without the field only "exists": false can hold below it, which an empty object decides.
        value = event.get(field, {}) if isinstance(event, dict) else {}
        candidates = value if isinstance(value, list) else [value]
        return any(inner(item if isinstance(item, dict) else {}) for item in candidates)

    return check


def _leaf_check(field: str, matchers: list[Predicate]) -> Predicate:
    def check(event: Any) -> bool:
        value = event.get(field, ABSENT) if isinstance(event, dict) else ABSENT
        # An array in the event matches when one of its elements does; an empty one is as good as absent.
        candidates = (value or [ABSENT]) if isinstance(value, list) else [value]
        return any(matcher(item) for matcher in matchers for item in candidates)

    return check


def _compile_matcher(matcher: Any, path: str) -> Predicate:
    if not isinstance(matcher, dict):
        if isinstance(matcher, list):
            raise PatternError(f"{path}: a list inside a list")
        return lambda value: _equal(value, matcher)
    if len(matcher) != 1:
        raise PatternError(f"{path}: a matcher has exactly one operator, not {', '.join(matcher)}")
    operator, argument = next(iter(matcher.items()))
    if operator not in OPERATORS:
        raise PatternError(f"{path}: unknown operator {operator!r}; known are {', '.join(OPERATORS)}")
    return OPERATORS[operator](argument, f"{path}.{operator}")


def _equal(value: Any, expected: Any) -> bool:
    """JSON equality: true is not 1, and 1 is 1.0."""
    if isinstance(value, bool) or isinstance(expected, bool):
        return value is expected
    return value is not ABSENT and value == expected and (value is None) == (expected is None)


def _text(argument: Any, path: str) -> str:
    if not isinstance(argument, str) or not argument:
        raise PatternError(f"{path}: needs a non-empty string, not {argument!r}")
    return argument


def _text_test(argument: Any, path: str, test: Callable[[str, str], bool]) -> Predicate:
    """``test(value, argument)`` on strings; ``{"equals-ignore-case": text}`` as argument folds both."""
    if isinstance(argument, dict):
        if list(argument) != ["equals-ignore-case"]:
            raise PatternError(f"{path}: unknown argument {argument!r}")
        folded = _text(argument["equals-ignore-case"], path).lower()
        return lambda value: isinstance(value, str) and test(value.lower(), folded)
    text = _text(argument, path)
    return lambda value: isinstance(value, str) and test(value, text)


def _prefix(argument: Any, path: str) -> Predicate:
    return _text_test(argument, path, str.startswith)


def _suffix(argument: Any, path: str) -> Predicate:
    return _text_test(argument, path, str.endswith)


def _equals_ignore_case(argument: Any, path: str) -> Predicate:
    folded = _text(argument, path).lower()
    return lambda value: isinstance(value, str) and value.lower() == folded


def _wildcard(argument: Any, path: str) -> Predicate:
    text = _text(argument, path)
    if "**" in text:
        raise PatternError(f"{path}: two * in a row")
    parts = re.split(r"(\\\*|\\\\|\*)", text)
    pieces = {"*": ".*", r"\*": r"\*", r"\\": r"\\"}
    expression = re.compile("".join(pieces.get(part, re.escape(part)) for part in parts), re.DOTALL)
    return lambda value: isinstance(value, str) and expression.fullmatch(value) is not None


def _exists(argument: Any, path: str) -> Predicate:
    if not isinstance(argument, bool):
        raise PatternError(f"{path}: needs true or false, not {argument!r}")
    return lambda value: (value is not ABSENT) == argument


NUMERIC = {
    "=": lambda a, b: a == b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


def _numeric(argument: Any, path: str) -> Predicate:
    if not isinstance(argument, list) or len(argument) not in (2, 4):
        raise PatternError(f"{path}: needs [operator, number] once or twice, not {argument!r}")
    tests = []
    for operator, limit in zip(argument[::2], argument[1::2], strict=True):
        if operator not in NUMERIC or isinstance(limit, bool) or not isinstance(limit, (int, float)):
            raise PatternError(f"{path}: {operator!r} {limit!r} is not a comparison with a number")
        tests.append((NUMERIC[operator], limit))

    def check(value: Any) -> bool:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return is_number and all(test(value, limit) for test, limit in tests)

    return check


def _anything_but(argument: Any, path: str) -> Predicate:
    """Present and none of the named; one operator (prefix, suffix, wildcard, equals-ignore-case) may be inside."""
    if isinstance(argument, dict):
        if len(argument) != 1 or next(iter(argument)) not in ("prefix", "suffix", "wildcard", "equals-ignore-case"):
            raise PatternError(f"{path}: unknown argument {argument!r}")
        operator, inner_argument = next(iter(argument.items()))
        items = inner_argument if isinstance(inner_argument, list) else [inner_argument]
        inner = [OPERATORS[operator](item, f"{path}.{operator}") for item in items]
        return lambda value: value is not ABSENT and not any(test(value) for test in inner)
    items = argument if isinstance(argument, list) else [argument]
    if not items or not all(isinstance(item, (str, int, float)) for item in items):
        raise PatternError(f"{path}: needs strings or numbers, not {argument!r}")
    return lambda value: value is not ABSENT and not any(_equal(value, item) for item in items)


OPERATORS: dict[str, Callable[[Any, str], Predicate]] = {
    "prefix": _prefix,
    "suffix": _suffix,
    "equals-ignore-case": _equals_ignore_case,
    "wildcard": _wildcard,
    "exists": _exists,
    "numeric": _numeric,
    "anything-but": _anything_but,
}


def schedule_seconds(expression: str, where: str) -> float:
    """Seconds between two runs of ``rate(5 minutes)``. Raises PatternError for cron() and at()."""
    match = re.fullmatch(r"rate\((\d+) (minute|hour|day)(s?)\)", expression)
    if not match or int(match.group(1)) < 1 or (int(match.group(1)) == 1) != (match.group(3) == ""):
        raise PatternError(f"{where}: schedule {expression!r} is not supported; use rate(1 minute), rate(5 minutes), …")
    return int(match.group(1)) * {"minute": 60.0, "hour": 3600.0, "day": 86400.0}[match.group(2)]


class EventBus:
    """The default bus: rules, their targets, and what is sent to them."""

    def __init__(
        self,
        clock: Clock,
        rules: list[Rule],
        deliver: Callable[[Target, Any], None],
        ids: Callable[[], str],
        account_id: str,
        region: str,
        duplicate_events: bool = False,
        schedule_period_s: float | None = None,
    ) -> None:
        """``deliver(target, event)`` is called on the clock's thread, twice per match with ``duplicate_events``.

        ``schedule_period_s`` replaces the period of every schedule.
        """
        self.clock = clock
        self.rules = rules
        self.deliver = deliver
        self.ids = ids
        self.account_id = account_id
        self.region = region
        self.copies = 2 if duplicate_events else 1
        self.schedule_period_s = schedule_period_s
        self.patterns = [(rule, compile_pattern(rule.pattern, rule.logical_id)) for rule in rules if rule.pattern]
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
        event = {
            "version": "0",
            "id": self.ids(),
            "detail-type": detail_type,
            "source": source,
            "account": self.account_id,
            "time": iso_time(self.clock.now()),
            "region": self.region,
            "resources": resources or [],
            "detail": detail,
        }
        for rule, pattern in self.patterns:
            if pattern.matches(event):
                self._send(rule, event)
        return str(event["id"])

    def _send(self, rule: Rule, event: dict[str, Any]) -> None:
        for target in rule.targets:
            payload = event if target.input is None else target.input
            for _ in range(self.copies):
                self.clock.call_soon(partial(self._deliver, target, copy.deepcopy(payload)))

    def _deliver(self, target: Target, payload: Any) -> None:
        if not self._closed:
            self.deliver(target, payload)

    def _schedule(self, rule: Rule, period_s: float) -> None:
        def tick() -> None:
            if self._closed:
                return
            event = {
                "version": "0",
                "id": self.ids(),
                "detail-type": "Scheduled Event",
                "source": "aws.events",
                "account": self.account_id,
                "time": iso_time(self.clock.now()),
                "region": self.region,
                "resources": [rule.arn],
                "detail": {},
            }
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
