"""Choice rules against the States Language spec, "Choice State"."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spaceport.asl.choice import ALL_OPERATORS, compile_rule, wildcard_pattern
from spaceport.asl.errors import RUNTIME, StateError
from spaceport.asl.paths import Scope


def holds(rule, data):
    problems = []
    compiled = compile_rule(rule, lambda field, reason: problems.append((field, reason)))
    assert compiled is not None, problems
    return compiled(data, Scope({}))


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
    assert holds({"Not": {"Variable": "$.type", "StringEquals": "Private"}, "Next": "Public"}, {"type": "Public"})


LESS = {"String": ("a", "b"), "Numeric": (1, 1.5), "Timestamp": ("2016-03-14T01:59:00Z", "2016-03-14T03:00:00.5+01:00")}
TRUTH = {
    "Equals": (0, 1, 0),
    "LessThan": (1, 0, 0),
    "GreaterThan": (0, 0, 1),
    "LessThanEquals": (1, 1, 0),
    "GreaterThanEquals": (0, 1, 1),
}


@pytest.mark.parametrize("kind", LESS)
@pytest.mark.parametrize("comparison", TRUTH)
def test_comparisons_and_their_path_forms(kind, comparison):
    small, large = LESS[kind]
    for (found, expected), truth in zip(
        [(small, large), (small, small), (large, small)], TRUTH[comparison], strict=True
    ):
        assert holds({"Variable": "$.v", f"{kind}{comparison}": expected}, {"v": found}) is bool(truth)
        assert holds({"Variable": "$.v", f"{kind}{comparison}Path": "$.w"}, {"v": found, "w": expected}) is bool(truth)


def test_every_operator_of_the_spec_is_known():
    compared = {f"{kind}{comparison}{path}" for kind in LESS for comparison in TRUTH for path in ("", "Path")}
    others = {"BooleanEquals", "BooleanEqualsPath", "StringMatches", "IsNull", "IsPresent", "IsNumeric", "IsString"}
    assert compared | others | {"IsBoolean", "IsTimestamp"} == ALL_OPERATORS


@pytest.mark.parametrize(
    ("operator", "expected", "wrong_type"),
    [
        ("StringEquals", "1", 1),
        ("NumericEquals", 1, True),
        ("NumericEquals", 1, "1"),
        ("BooleanEquals", True, 1),
        ("BooleanEquals", True, "true"),
    ],
)
def test_values_of_another_type_compare_false(operator, expected, wrong_type):
    # Spec: "if the values are not both of the appropriate type … the comparison will return false".
    assert not holds({"Variable": "$.v", operator: expected}, {"v": wrong_type})
    assert not holds({"Variable": "$.v", f"{operator}Path": "$.w"}, {"v": expected, "w": wrong_type})
    assert holds({"Variable": "$.v", operator: expected}, {"v": expected})


@pytest.mark.parametrize(
    ("operator", "yes", "no"),
    [
        ("IsNull", [None], [0, "", False]),
        ("IsNumeric", [0, 1.5], ["1", True, None]),
        ("IsString", ["", "1"], [1, None]),
        ("IsBoolean", [True, False], [0, "true"]),
        (
            "IsTimestamp",
            ["2016-03-14T01:59:00Z", "2016-03-14T01:59:00.123-05:00"],
            ["2016-03-14t01:59:00z", "2016-03-14", 5, "2016-13-14T01:59:00Z"],
        ),
        ("IsPresent", [None, 0], []),
    ],
)
def test_type_tests(operator, yes, no):
    for value, truth in [*((v, True) for v in yes), *((v, False) for v in no)]:
        assert holds({"Variable": "$.v", operator: True}, {"v": value}) is truth
        assert holds({"Variable": "$.v", operator: False}, {"v": value}) is not truth


def test_only_is_present_may_miss_its_variable():
    # Spec, item 19: "if the Variable-field Path fails to match anything in the input no exception is thrown".
    assert not holds({"Variable": "$.v", "IsPresent": True}, {})
    assert holds({"Variable": "$.v", "IsPresent": False}, {})
    for rule in (
        {"StringEquals": "x"},
        {"IsNull": True},
        {"IsString": False},
        {"NumericEqualsPath": "$.w"},
        {"StringMatches": "*"},
    ):
        with pytest.raises(StateError) as caught:
            holds({"Variable": "$.v", **rule}, {"w": 1})
        assert caught.value.error == RUNTIME
    with pytest.raises(StateError):
        holds({"Variable": "$.w", "NumericEqualsPath": "$.v"}, {"w": 1})


def test_boolean_expressions_stop_as_soon_as_they_are_decided():
    missing = {"Variable": "$.missing", "StringEquals": "x"}
    known = {"Variable": "$.a", "NumericEquals": 1}
    assert holds({"Or": [known, missing]}, {"a": 1})
    assert not holds({"And": [known, missing]}, {"a": 2})
    with pytest.raises(StateError):
        holds({"And": [known, missing]}, {"a": 1})


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("foo*.log", ["foo23.log", "foo.log"], ["afoo.log", "foo.logs"]),
        ("*.log", ["zebra.log", ".log"], ["zebra_log"]),
        ("foo*.*", ["foobar.zebra"], ["foobar"]),
        (r"a\*b", ["a*b"], ["axb"]),
        (r"a\\*", ["a\\", "a\\xy"], ["a", "a*"]),
        ("a?[b]", ["a?[b]"], ["axb"]),
        ("*", ["", "two\nlines"], []),
    ],
)
def test_string_matches(pattern, yes, no):
    for value in yes:
        assert holds({"Variable": "$", "StringMatches": pattern}, value)
    for value in no:
        assert not holds({"Variable": "$", "StringMatches": pattern}, value)


@given(st.text("ab*\\.", max_size=6))
def test_escaping_a_text_makes_it_match_itself_only(text):
    escaped = text.replace("\\", "\\\\").replace("*", "\\*")
    assert wildcard_pattern(escaped).fullmatch(text)
    assert not wildcard_pattern(escaped).fullmatch(text + "x")


@pytest.mark.parametrize(
    ("rule", "field"),
    [
        ({"Variable": "$.v"}, ""),
        ({"Variable": "$.v", "StringEquals": "a", "IsNull": True}, ""),
        ({"Variable": "$.v", "StringLike": "a"}, "StringLike"),
        ({"Variable": "$.v", "StringEquals": 1}, "StringEquals"),
        ({"Variable": "$.v", "NumericEquals": True}, "NumericEquals"),
        ({"Variable": "$.v", "TimestampEquals": "today"}, "TimestampEquals"),
        ({"Variable": "$.v", "StringMatches": "a\\"}, "StringMatches"),
        ({"Variable": "$.v", "IsNull": "yes"}, "IsNull"),
        ({"Variable": "v", "IsNull": True}, "Variable"),
        ({"IsNull": True}, "Variable"),
        ({"Variable": "$.v", "StringEqualsPath": "w"}, "StringEqualsPath"),
        ({"And": []}, "And"),
        ({"Or": [{"Variable": "$.v", "IsNull": True, "Next": "X"}]}, "Or[0].Next"),
        ({"Not": {"Variable": "$.v", "Nope": 1}}, "Not.Nope"),
        ("rule", ""),
    ],
)
def test_rules_that_are_refused(rule, field):
    problems = []
    compile_rule(rule, lambda place, reason: problems.append(place))
    assert field in problems
