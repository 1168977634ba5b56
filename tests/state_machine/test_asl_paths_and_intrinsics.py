"""Paths, ResultPath and intrinsic functions against the examples of the spec and the AWS developer guide."""

from __future__ import annotations

import copy
import json
import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spaceport.asl.errors import (
    DATA_LIMIT_EXCEEDED,
    INTRINSIC_FAILURE,
    RESULT_PATH_MATCH_FAILURE,
    RUNTIME,
    StateError,
)
from spaceport.asl.intrinsics import FUNCTIONS, compile_intrinsic
from spaceport.asl.paths import assign, check_size, compile_path, compile_result_path

CONTEXT = {"Execution": {"Id": "arn"}}

names = st.text(string.ascii_letters, min_size=1, max_size=3)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(names, json_values, max_size=4)


def find(path, data):
    return compile_path(path).find(data, CONTEXT)


# Spec, "Reference Paths".
SPEC_INPUT = {"foo": 123, "bar": ["a", "b", "c"], "car": {"cdr": True}}


@pytest.mark.parametrize(
    ("path", "value"),
    [("$.foo", 123), ("$.bar", ["a", "b", "c"]), ("$.car.cdr", True), ("$", SPEC_INPUT), ("$['car']['cdr']", True)],
)
def test_reference_paths_of_the_spec(path, value):
    assert compile_path(path).find(SPEC_INPUT, CONTEXT) == value


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("$.a", {}),
        ("$.a.b", {"a": 1}),
        ("$.a.b", {"a": None}),
        ("$.a[1]", {"a": [0]}),
        ("$.a[0]", {"a": {"0": 1}}),
        ("$.a", [1]),
        ("$$.Task.Token", {}),
    ],
)
def test_a_missing_path_is_states_runtime_and_names_the_path(path, data):
    with pytest.raises(StateError, match=re.escape(path)) as caught:
        find(path, data)
    assert caught.value.error == RUNTIME


def test_null_is_a_value():
    assert find("$.a", {"a": None}) is None


@pytest.mark.parametrize("path", ["", "a", "$$.Nope", "$$.State.Nope"])
def test_paths_that_are_refused(path):
    with pytest.raises(ValueError, match=re.escape(path) if path else "path"):
        compile_path(path)


@pytest.mark.parametrize(
    "path",
    ["$.", "$.a b", "$x", "$.a.length()", "$.a + $.b", "$.a[*]", "$..a", "$.a[0,1]", "$.a[0:1]", "$.a[-1]", "$.*"]
    + ["$.a[?(@.b)]", "$.a[(@.length-1)]", "$.a | $.b"],
)
def test_json_path_beyond_fields_and_indices_is_refused_by_name(path):
    with pytest.raises(ValueError, match=re.escape(f"'{path}' is not supported by the embedded engine: see docs/asl-")):
        compile_path(path)


def test_the_context_object_cannot_be_written():
    assert compile_result_path("$.a['b c'][0]") == ("a", "b c", 0)
    with pytest.raises(ValueError, match="cannot be written"):
        compile_result_path("$$.Execution.Input")


def test_result_path_examples_of_the_spec():
    raw = {"master": {"detail": [1, 2, 3]}}
    assert assign(raw, ("master", "detail"), 6) == {"master": {"detail": 6}}
    assert assign(raw, ("master", "result", "sum"), 6) == {"master": {"detail": [1, 2, 3], "result": {"sum": 6}}}
    assert assign({"a": 1}, ("b", "greeting"), "Hi!") == {"a": 1, "b": {"greeting": "Hi!"}}
    assert assign(raw, ("master", "detail", 1), "x") == {"master": {"detail": [1, "x", 3]}}


@pytest.mark.parametrize(
    ("raw", "keys"),
    [
        ("foo", ("x",)),
        ([1], ("x",)),
        ({"a": 1}, ("a", "b")),
        ({"a": None}, ("a", "b")),
        ({"a": [1]}, ("a", 1)),
        ({}, ("a", 0)),
    ],
)
def test_result_path_that_cannot_apply(raw, keys):
    # Spec, "Runtime Errors": input "foo", ResultPath $.x.
    with pytest.raises(StateError) as caught:
        assign(raw, keys, 1)
    assert caught.value.error == RESULT_PATH_MATCH_FAILURE


@given(objects, st.lists(names, min_size=1, max_size=3), json_values)
def test_result_path_laws(raw, keys, value):
    """What was written is read back, nothing else changes, the input stays as it was, writing twice is writing once."""
    before = copy.deepcopy(raw)
    path = compile_path("$" + "".join(f"['{key}']" for key in keys))
    parent = raw
    for key in keys[:-1]:
        parent = parent.get(key, {}) if isinstance(parent, dict) else parent
    if not isinstance(parent, dict):
        with pytest.raises(StateError):
            assign(raw, path.keys, value)
        return
    changed = assign(raw, path.keys, value)
    assert raw == before
    assert path.find(changed, CONTEXT) == value
    assert {k: v for k, v in changed.items() if k != keys[0]} == {k: v for k, v in raw.items() if k != keys[0]}
    assert assign(changed, path.keys, value) == changed


@given(json_values, json_values)
def test_result_path_of_the_whole_replaces(raw, value):
    assert assign(raw, (), value) == value
    assert find("$", raw) == raw


# Developer guide, "Intrinsic functions for JSONPath states in Step Functions workflows": input, invocation, output.
GUIDE = [
    ({"j": {"name": "Foo", "year": 2020}}, "States.JsonToString($.j)", '{"name":"Foo","year":2020}'),
    ({"value1": 111, "step": -1}, "States.MathAdd($.value1, $.step)", 110),
    ({"value": 1.5}, "States.MathAdd($.value, 0)", 2),
    ({"name": "Arnav"}, "States.Format('Hello, my name is {}.', $.name)", "Hello, my name is Arnav."),
    ({"name": "Foo", "n": None}, "States.Format('{} in {}: {}', $.name, 2020, $.n)", "Foo in 2020: null"),
    ({"x": "{}"}, "States.Format('{}', $.x)", "{}"),
    ({"a b": {"c": [7]}}, "States.Format('{}, {}', $['a b'].c[0], 'x, y')", "7, x, y"),
    ({}, "States.Format('{}', $$.Execution.Id)", "arn"),
]


@pytest.mark.parametrize(("data", "text", "expected"), GUIDE)
def test_intrinsics_as_documented(data, text, expected):
    assert compile_intrinsic(text)(data, CONTEXT) == expected


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"a": {}}, "States.Format('{}', $.a)"),
        ({}, "States.MathAdd(2147483647, 1)"),
        ({"x": "1"}, "States.MathAdd($.x, 1)"),
        ({"x": True}, "States.MathAdd($.x, 1)"),
    ],
)
def test_intrinsic_failures(data, text):
    with pytest.raises(StateError) as caught:
        compile_intrinsic(text)(data, CONTEXT)
    assert caught.value.error == INTRINSIC_FAILURE


def test_a_missing_path_in_an_intrinsic_is_states_runtime():
    with pytest.raises(StateError) as caught:
        compile_intrinsic("States.Format('{}', $.missing)")({}, CONTEXT)
    assert caught.value.error == RUNTIME


@pytest.mark.parametrize(
    "text",
    [
        "States.Format()",
        "States.Format('{}')",
        "States.Format('a', 1)",
        "States.Format(1)",
        "States.Format('{')",
        r"States.Format('\n')",
        "States.Format('abc)",
        "States.MathAdd(1",
        "States.MathAdd(1,)",
        "States.MathAdd(1, 2) x",
        "States.JsonToString(abc)",
        "States.JsonToString($.)",
        "States.JsonToString(States.MathAdd(1, 2))",
    ],
)
def test_intrinsics_that_are_refused(text):
    with pytest.raises(ValueError, match=r".+"):
        compile_intrinsic(text)


REFUSED = "Array ArrayPartition ArrayContains ArrayRange ArrayGetItem ArrayLength ArrayUnique Base64Encode Base64Decode"


@pytest.mark.parametrize(
    "name", [*REFUSED.split(), "Hash", "JsonMerge", "MathRandom", "StringSplit", "StringToJson", "UUID"]
)
def test_the_other_intrinsics_of_aws_are_refused_by_name(name):
    assert f"States.{name}" not in FUNCTIONS
    with pytest.raises(
        ValueError, match=f"the intrinsic function States.{name} is not supported by the embedded engine"
    ):
        compile_intrinsic(f"States.{name}($.a)")


@given(json_values)
def test_json_text_round_trip(value):
    assert json.loads(compile_intrinsic("States.JsonToString($)")(value, CONTEXT)) == value


def test_size_limit_counts_bytes_of_utf8():
    # Quotas: 262,144 bytes as a UTF-8 encoded string; the quotes of the JSON text count.
    check_size("x" * 262_142, "text")
    for text in ("x" * 262_143, "é" * 131_072):
        with pytest.raises(StateError) as caught:
            check_size(text, "text")
        assert caught.value.error == DATA_LIMIT_EXCEEDED
