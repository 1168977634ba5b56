"""Choice rules, compiled to a function of the state's effective input. States Language spec, "Choice State"."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

from spaceport.asl.errors import RUNTIME, StateError
from spaceport.asl.paths import Path, Scope, compile_path

Rule = Callable[[Any, Scope], bool]
Report = Callable[[str, str], None]  # field within the rule, reason

COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "Equals": operator.eq,
    "LessThan": operator.lt,
    "GreaterThan": operator.gt,
    "LessThanEquals": operator.le,
    "GreaterThanEquals": operator.ge,
}
# RFC 3339 with upper-case T, and upper-case Z where there is no numeric offset (spec, "Timestamps").
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")


def parse_timestamp(text: Any) -> datetime | None:
    """The instant, or None when ``text`` is not a timestamp of the States Language."""
    if not isinstance(text, str) or not TIMESTAMP.fullmatch(text):
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def _as_string(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _as_number(value: Any) -> int | float | None:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _as_boolean(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


TYPES: dict[str, Callable[[Any], Any]] = {
    "String": _as_string,
    "Numeric": _as_number,
    "Boolean": _as_boolean,
    "Timestamp": parse_timestamp,
}
TYPE_TESTS: dict[str, Callable[[Any], bool]] = {
    "IsNull": lambda value: value is None,
    "IsNumeric": lambda value: _as_number(value) is not None,
    "IsString": lambda value: isinstance(value, str),
    "IsBoolean": lambda value: isinstance(value, bool),
    "IsTimestamp": lambda value: parse_timestamp(value) is not None,
}
OPERATORS: dict[str, tuple[Callable[[Any], Any], Callable[[Any, Any], bool]]] = {
    f"{kind}{comparison}": (convert, compare)
    for kind, convert in TYPES.items()
    for comparison, compare in COMPARISONS.items()
    if kind != "Boolean" or comparison == "Equals"
}
ALL_OPERATORS = {*OPERATORS, *(f"{name}Path" for name in OPERATORS), *TYPE_TESTS, "IsPresent", "StringMatches"}


def compile_rule(rule: Any, report: Report, top_level: bool = True) -> Rule | None:
    """``rule`` as a function, or None after reporting each problem as (field, reason)."""
    if not isinstance(rule, dict):
        report("", "a choice rule must be an object")
        return None
    extra = {"Comment", "Next"} if top_level else {"Comment"}
    tests = [name for name in rule if name not in extra and name != "Variable"]
    if not top_level and "Next" in rule:
        report("Next", "only a rule at the top level may have Next")
    if tests and tests[0] in ("And", "Or", "Not") and len(tests) == 1:
        if "Variable" in rule:
            report("Variable", f"a rule with {tests[0]} has no Variable")
        return _compile_boolean(tests[0], rule[tests[0]], report)
    unknown = [name for name in tests if name not in ALL_OPERATORS and name != "Next"]
    for name in unknown:
        report(name, "is not a comparison operator that is implemented")
    known = [name for name in tests if name in ALL_OPERATORS]
    if len(known) != 1 or unknown:
        if not unknown:
            report("", f"a choice rule needs exactly one comparison operator, this one has {len(known)}")
        return None
    return _compile_test(rule, known[0], report)


def _compile_boolean(name: str, value: Any, report: Report) -> Rule | None:
    if name == "Not":
        rule = compile_rule(value, lambda field, reason: report(f"Not.{field}", reason), top_level=False)
        return None if rule is None else lambda data, scope: not rule(data, scope)
    if not isinstance(value, list) or not value:
        report(name, "must be a non-empty array of choice rules")
        return None
    compiled = [
        compile_rule(part, lambda field, reason, i=i: report(f"{name}[{i}].{field}", reason), top_level=False)  # type: ignore[misc]
        for i, part in enumerate(value)
    ]
    rules = [part for part in compiled if part is not None]
    combine = all if name == "And" else any
    return (lambda data, scope: combine(part(data, scope) for part in rules)) if len(rules) == len(compiled) else None


def _compile_test(rule: dict[str, Any], name: str, report: Report) -> Rule | None:
    variable = _compile_variable(rule, report)
    if variable is None:
        return None
    value = rule[name]
    if name in TYPE_TESTS or name == "IsPresent":
        if not isinstance(value, bool):
            report(name, "must be true or false")
            return None
        return _type_test(variable, name, value)
    if name.endswith("Path"):
        return _compile_path_comparison(variable, name, value, report)
    return _compile_literal_comparison(variable, name, value, report)


def _compile_literal_comparison(variable: Path, name: str, value: Any, report: Report) -> Rule | None:
    if name == "StringMatches":
        return _compile_match(variable, value, report)
    convert, compare = OPERATORS[name]
    expected = convert(value)
    if expected is None:
        kind = next(kind for kind in TYPES if name.startswith(kind))
        report(name, f"{value!r} is not a {kind.lower()} value")
        return None

    def test(data: Any, scope: Scope) -> bool:
        found = convert(variable.find(data, scope))
        return found is not None and compare(found, expected)

    return test


def _compile_variable(rule: dict[str, Any], report: Report) -> Path | None:
    if not isinstance(rule.get("Variable"), str):
        report("Variable", "is missing, or is not a string")
        return None
    try:
        return compile_path(rule["Variable"])
    except ValueError as error:
        report("Variable", str(error))
        return None


def _compile_path_comparison(variable: Path, name: str, value: Any, report: Report) -> Rule | None:
    convert, compare = OPERATORS[name.removesuffix("Path")]
    if not isinstance(value, str):
        report(name, "must be a path")
        return None
    try:
        other = compile_path(value)
    except ValueError as error:
        report(name, str(error))
        return None

    def test(data: Any, scope: Scope) -> bool:
        found, expected = convert(variable.find(data, scope)), convert(other.find(data, scope))
        return found is not None and expected is not None and compare(found, expected)

    return test


def _compile_match(variable: Path, pattern: Any, report: Report) -> Rule | None:
    try:
        if not isinstance(pattern, str):
            raise ValueError(f"{pattern!r} is not a string value")
        expression = wildcard_pattern(pattern)
    except ValueError as error:
        report("StringMatches", str(error))
        return None

    def test(data: Any, scope: Scope) -> bool:
        found = variable.find(data, scope)
        return isinstance(found, str) and expression.fullmatch(found) is not None

    return test


def wildcard_pattern(text: str) -> re.Pattern[str]:
    """StringMatches: ``*`` is any text, ``\\*`` and ``\\\\`` are themselves.

    Raises ValueError for another backslash (spec, "Data-test expression", item 6).
    """
    parts, at = [], 0
    while at < len(text):
        if text[at] == "\\":
            at += 1
            if text[at : at + 1] not in ("*", "\\"):
                raise ValueError(f"open escape backslash in '{text}'; only \\* and \\\\ can be escaped")
            parts.append(re.escape(text[at]))
        else:
            parts.append(".*" if text[at] == "*" else re.escape(text[at]))
        at += 1
    return re.compile("".join(parts), re.DOTALL)


def _type_test(variable: Path, name: str, wanted: bool) -> Rule:
    if name == "IsPresent":
        return lambda data, scope: _is_present(variable, data, scope) is wanted
    test = TYPE_TESTS[name]
    return lambda data, scope: test(variable.find(data, scope)) is wanted


def _is_present(variable: Path, data: Any, scope: Scope) -> bool:
    """Whether the path matches anything; the only operator for which a missing field is no error."""
    try:
        found = variable.find(data, scope)
    except StateError as error:
        if error.error != RUNTIME:
            raise
        return False
    return variable.rest is None or bool(found)
