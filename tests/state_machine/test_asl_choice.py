"""Choice rules against the States Language spec, "Choice State"."""

from __future__ import annotations

import pytest

from spaceport.asl.choice import OPERATORS, compile_rule
from spaceport.asl.errors import RUNTIME, StateError


def holds(rule, data):
    problems = []
    compiled = compile_rule(rule, lambda field, reason: problems.append((field, reason)))
    assert compiled is not None, problems
    return compiled(data, {})


def test_the_example_of_the_spec():
    rule = {
        "And": [
            {"Variable": "$.value", "IsPresent": True},
            {"Variable": "$.value", "IsNumeric": True},
            {"Variable": "$.value", "NumericGreaterThanEquals": 20},
            {"Variable": "$.value", "NumericLessThan": 30},
        ],
        "Next": "ValueInTwenties",
    }
    assert holds(rule, {"type": "Private", "value": 22})
    assert not holds(rule, {"value": 30})
    assert not holds(rule, {"value": "22"})
    assert not holds(rule, {})


@pytest.mark.parametrize(
    ("operator", "expected", "yes", "no"),
    [
        ("StringEquals", "1", ["1"], [1, "2", None]),
        ("BooleanEquals", True, [True], [False, 1, "true"]),
        ("NumericEquals", 1, [1, 1.0], [True, "1", 2]),
        ("NumericLessThan", 1, [0.5], [1, 2, "0"]),
        ("NumericGreaterThan", 1, [1.5], [1, 0, True]),
        ("NumericLessThanEquals", 1, [0, 1], [1.5, None]),
        ("NumericGreaterThanEquals", 1, [1, 2], [0, "2"]),
        ("IsNumeric", True, [0, 1.5], ["1", True, None]),
        ("IsString", True, ["", "1"], [1, None]),
        ("IsBoolean", True, [True, False], [0, "true"]),
        ("IsBoolean", False, [0, "true"], [True, False]),
        ("IsPresent", True, [None, 0], []),
        ("IsPresent", False, [], [None, 0]),
    ],
)
def test_comparisons(operator, expected, yes, no):
    # Spec: "if the values are not both of the appropriate type … the comparison will return false".
    for value, truth in [*((v, True) for v in yes), *((v, False) for v in no)]:
        assert holds({"Variable": "$.v", operator: expected}, {"v": value}) is truth


def test_only_is_present_may_miss_its_variable():
    # Spec, item 19: "if the Variable-field Path fails to match anything in the input no exception is thrown".
    assert not holds({"Variable": "$.v", "IsPresent": True}, {})
    assert holds({"Variable": "$.v", "IsPresent": False}, {})
    for rule in ({"StringEquals": "x"}, {"IsNumeric": True}, {"IsString": False}):
        with pytest.raises(StateError) as caught:
            holds({"Variable": "$.v", **rule}, {"w": 1})
        assert caught.value.error == RUNTIME


def test_and_stops_at_the_first_test_that_fails():
    missing = {"Variable": "$.missing", "StringEquals": "x"}
    known = {"Variable": "$.a", "NumericEquals": 1}
    assert not holds({"And": [known, missing]}, {"a": 2})
    with pytest.raises(StateError):
        holds({"And": [known, missing]}, {"a": 1})


@pytest.mark.parametrize(
    ("rule", "field"),
    [
        ({"Variable": "$.v"}, ""),
        ({"Variable": "$.v", "StringEquals": "a", "IsString": True}, ""),
        ({"Variable": "$.v", "StringEquals": 1}, "StringEquals"),
        ({"Variable": "$.v", "NumericEquals": True}, "NumericEquals"),
        ({"Variable": "$.v", "IsString": "yes"}, "IsString"),
        ({"Variable": "v", "IsString": True}, "Variable"),
        ({"IsString": True}, "Variable"),
        ({"And": []}, "And"),
        ({"And": [{"Variable": "$.v", "IsString": True, "Next": "X"}]}, "And[0].Next"),
        ({"And": [{"Variable": "$.v", "Nope": 1}]}, "And[0].Nope"),
        ("rule", ""),
    ],
)
def test_rules_that_are_refused(rule, field):
    problems = []
    assert compile_rule(rule, lambda place, reason: problems.append(place)) is None
    assert field in problems


@pytest.mark.parametrize(
    "operator",
    ["Or", "Not", "IsNull", "IsTimestamp", "StringMatches", "StringLessThan", "StringEqualsPath", "TimestampEquals"],
)
def test_operators_of_the_spec_that_are_refused_by_name(operator):
    reasons = []
    assert operator not in OPERATORS
    assert compile_rule({"Variable": "$.v", operator: "x"}, lambda _, reason: reasons.append(reason)) is None
    assert reasons == [f"{operator} is not supported by the embedded engine: see docs/asl-differences.md"]
