"""Choice rules, compiled to a function of the state's input. States Language spec, "Choice State".

Played are And, IsPresent, the type tests, and equality and order of numbers, strings and Booleans with a literal.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from spaceport.asl.errors import RUNTIME, StateError, not_supported
from spaceport.asl.paths import Context, Path, compile_path

Rule = Callable[[Any, Context], bool]
Report = Callable[[str, str], None]  # field within the rule, reason


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_string(value: Any) -> bool:
    return isinstance(value, str)


def _is_boolean(value: Any) -> bool:
    return isinstance(value, bool)


TYPE_TESTS: dict[str, Callable[[Any], bool]] = {
    "IsNumeric": is_number,
    "IsString": _is_string,
    "IsBoolean": _is_boolean,
}
# Comparison: the type of both values, and the test.
COMPARISONS: dict[str, tuple[Callable[[Any], bool], Callable[[Any, Any], bool]]] = {
    "StringEquals": (_is_string, operator.eq),
    "BooleanEquals": (_is_boolean, operator.eq),
    "NumericEquals": (is_number, operator.eq),
    "NumericLessThan": (is_number, operator.lt),
    "NumericGreaterThan": (is_number, operator.gt),
    "NumericLessThanEquals": (is_number, operator.le),
    "NumericGreaterThanEquals": (is_number, operator.ge),
}
OPERATORS = {*COMPARISONS, *TYPE_TESTS, "IsPresent", "And"}


def compile_rule(rule: Any, report: Report, top_level: bool = True) -> Rule | None:
    """``rule`` as a function, or None after reporting each problem as (field, reason)."""
    if not isinstance(rule, dict):
        report("", "a choice rule must be an object")
        return None
    extra = {"Comment", "Next", "Variable"} if top_level else {"Comment", "Variable"}
    tests = [name for name in rule if name not in extra]
    unknown = [name for name in tests if name not in OPERATORS]
    for name in unknown:
        report(name, "only a rule at the top level may have Next" if name == "Next" else not_supported(name))
    if unknown:
        return None
    if len(tests) != 1:
        report("", f"a choice rule needs exactly one comparison operator, this one has {len(tests)}")
        return None
    return _compile_and(rule, report) if tests == ["And"] else _compile_test(rule, tests[0], report)


def _compile_and(rule: dict[str, Any], report: Report) -> Rule | None:
    """And stops at the first test that fails, so IsPresent guards what comes after it."""
    parts = rule["And"]
    if "Variable" in rule:
        report("Variable", "a rule with And has no Variable")
    if not isinstance(parts, list) or not parts:
        report("And", "must be a non-empty array of choice rules")
        return None
    compiled = [
        compile_rule(part, lambda field, reason, i=i: report(f"And[{i}].{field}", reason), top_level=False)  # type: ignore[misc]
        for i, part in enumerate(parts)
    ]
    rules = [part for part in compiled if part is not None]
    return (lambda data, context: all(part(data, context) for part in rules)) if len(rules) == len(parts) else None


def _compile_test(rule: dict[str, Any], name: str, report: Report) -> Rule | None:
    variable, value = _compile_variable(rule, report), rule[name]
    if variable is None:
        return None
    if name in COMPARISONS:
        return _compile_comparison(variable, name, value, report)
    if not isinstance(value, bool):
        report(name, "must be true or false")
        return None
    if name == "IsPresent":
        return lambda data, context: _is_present(variable, data, context) is value
    test = TYPE_TESTS[name]
    return lambda data, context: test(variable.find(data, context)) is value


def _compile_comparison(variable: Path, name: str, expected: Any, report: Report) -> Rule | None:
    has_type, compare = COMPARISONS[name]
    if not has_type(expected):
        report(name, f"{expected!r} is not of the type that {name} compares")
        return None

    def test(data: Any, context: Context) -> bool:
        found = variable.find(data, context)
        return has_type(found) and compare(found, expected)

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


def _is_present(variable: Path, data: Any, context: Context) -> bool:
    """IsPresent: the only operator for which a missing field is no error."""
    try:
        variable.find(data, context)
    except StateError as error:
        if error.error != RUNTIME:
            raise
        return False
    return True
