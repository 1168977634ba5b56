"""Paths, ResultPath and intrinsic functions against the examples of the spec and the AWS developer guide."""

from __future__ import annotations

import copy
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
from spaceport.asl.paths import Scope, assign, check_size, compile_path, compile_reference_path

SCOPE = Scope({"Execution": {"Id": "arn"}}, new_uuid=lambda: "ca4c1140-dcc1-40cd-ad05-7b4aa23df4a8", random=lambda: 0.5)

names = st.text(string.ascii_letters, min_size=1, max_size=3)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(names, json_values, max_size=4)


def find(path, data):
    return compile_path(path).find(data, SCOPE)


# Spec, "Reference Paths".
SPEC_INPUT = {"foo": 123, "bar": ["a", "b", "c"], "car": {"cdr": True}}


@pytest.mark.parametrize(
    ("path", "value"),
    [("$.foo", 123), ("$.bar", ["a", "b", "c"]), ("$.car.cdr", True), ("$", SPEC_INPUT), ("$['car']['cdr']", True)],
)
def test_reference_paths_of_the_spec(path, value):
    assert compile_reference_path(path).find(SPEC_INPUT, SCOPE) == value


def test_several_values_are_gathered_into_an_array():
    # Spec, "Using InputPath, …": the JsonPath $.a[0,1] yields [1, 2].
    assert find("$.a[0,1]", {"a": [1, 2, 3, 4]}) == [1, 2]
    # Spec, "Payload Template": $.vals[-3:] of six values.
    assert find("$.vals[-3:]", {"vals": [0, 10, 20, 30, 40, 50]}) == [30, 40, 50]
    assert find("$.a[?(@.b > 1)].c", {"a": [{"b": 1, "c": 2}, {"b": 5, "c": 3}]}) == [3]
    assert find("$..b", {"a": [{"b": 1}, {"c": {"b": 2}}]}) == [1, 2]
    assert find("$.a[*].b", {"a": [{"b": 1}, {}]}) == [1]
    assert find("$..nothing", {"a": 1}) == []


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("$.a", {}),
        ("$.a.b", {"a": 1}),
        ("$.a.b", {"a": None}),
        ("$.a[1]", {"a": [0]}),
        ("$.a[0]", {"a": {"0": 1}}),
        ("$.a", [1]),
        ("$.a[*]", {}),
        ("$.a[0:2]", {"a": "text"}),
        ("$$.Task.Token", {}),
    ],
)
def test_a_missing_path_is_states_runtime_and_names_the_path(path, data):
    with pytest.raises(StateError, match=re.escape(path)) as caught:
        find(path, data)
    assert caught.value.error == RUNTIME


def test_null_is_a_value():
    assert find("$.a", {"a": None}) is None


@pytest.mark.parametrize(
    "path",
    [
        "",
        "a",
        "$.",
        "$.a b",
        "$x",
        "$.a.length()",
        "$.a[(@.length-1)]",
        "$.a + $.b",
        "$$.Nope",
        "$$.State.Nope",
        "$.a | $.b",
    ],
)
def test_paths_that_are_refused(path):
    with pytest.raises(ValueError, match=re.escape(path) if path else "path"):
        compile_path(path)


@pytest.mark.parametrize("path", ["$.a[*]", "$..a", "$.a[0,1]", "$.a[0:1]", "$.a[?(@.b)]", "$.*", "$.a[-1]"])
def test_reference_paths_mean_one_node(path):
    with pytest.raises(ValueError, match="not a reference path"):
        compile_reference_path(path)


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
    path = compile_reference_path("$" + "".join(f"['{key}']" for key in keys))
    parent = raw
    for key in keys[:-1]:
        parent = parent.get(key, {}) if isinstance(parent, dict) else parent
    if not isinstance(parent, dict):
        with pytest.raises(StateError):
            assign(raw, path.keys, value)
        return
    changed = assign(raw, path.keys, value)
    assert raw == before
    assert path.find(changed, SCOPE) == value
    assert {k: v for k, v in changed.items() if k != keys[0]} == {k: v for k, v in raw.items() if k != keys[0]}
    assert assign(changed, path.keys, value) == changed


@given(json_values, json_values)
def test_result_path_of_the_whole_replaces(raw, value):
    assert assign(raw, (), value) == value
    assert find("$", raw) == raw


# Developer guide, "Intrinsic functions for JSONPath states in Step Functions workflows": input, invocation, output.
GUIDE = [
    ({}, "States.Array('Foo', 2020, null)", ["Foo", 2020, None]),
    ({"Id": 123456}, "States.Array($.Id)", [123456]),
    ({"a": [1, 2, 3, 4, 5, 6, 7, 8, 9]}, "States.ArrayPartition($.a,4)", [[1, 2, 3, 4], [5, 6, 7, 8], [9]]),
    ({"a": [1, 2, 3], "v": 3}, "States.ArrayContains($.a, $.v)", True),
    ({"a": [1, 2, 3]}, "States.ArrayContains($.a, true)", False),
    ({}, "States.ArrayRange(1, 9, 2)", [1, 3, 5, 7, 9]),
    ({}, "States.ArrayRange(3, 1, -1)", [3, 2, 1]),
    ({"a": [1, 2, 3, 4, 5, 6, 7, 8, 9], "i": 5}, "States.ArrayGetItem($.a, $.i)", 6),
    ({"a": [1, 2, 3]}, "States.ArrayLength($.a)", 3),
    ({"a": [1, 2, 3, 3, 3, 3, 3, 3, 4]}, "States.ArrayUnique($.a)", [1, 2, 3, 4]),
    ({"a": [1, True, "1", 1]}, "States.ArrayUnique($.a)", [1, True, "1"]),
    ({"input": "Data to encode"}, "States.Base64Encode($.input)", "RGF0YSB0byBlbmNvZGU="),
    ({"base64": "RGF0YSB0byBlbmNvZGU="}, "States.Base64Decode($.base64)", "Data to encode"),
    ({"D": "input data", "A": "SHA-1"}, "States.Hash($.D, $.A)", "aaff4a450a104cd177d28d18d74485e8cae074b7"),
    (
        {"j": {"a": {"a1": 1, "a2": 2}, "b": 2}, "k": {"a": {"a3": 1, "a4": 2}, "c": 3}},
        "States.JsonMerge($.j, $.k, false)",
        {"a": {"a3": 1, "a4": 2}, "b": 2, "c": 3},
    ),
    ({"s": '{"number": 20}'}, "States.StringToJson($.s)", {"number": 20}),
    ({"j": {"name": "Foo", "year": 2020}}, "States.JsonToString($.j)", '{"name":"Foo","year":2020}'),
    ({"value1": 111, "step": -1}, "States.MathAdd($.value1, $.step)", 110),
    ({"s": "1,2,3,4,5"}, "States.StringSplit($.s, ',')", ["1", "2", "3", "4", "5"]),
    ({"s": "This.is+a,test=string"}, "States.StringSplit($.s, '.+,=')", ["This", "is", "a", "test", "string"]),
    ({}, "States.UUID()", "ca4c1140-dcc1-40cd-ad05-7b4aa23df4a8"),
    ({}, "States.MathRandom(1, 999)", 500),
    ({"name": "Arnav"}, "States.Format('Hello, my name is {}.', $.name)", "Hello, my name is Arnav."),
    ({"t": "Hello, my name is {}.", "name": "Arnav"}, "States.Format($.t, $.name)", "Hello, my name is Arnav."),
    ({"name": "Foo"}, "States.Format('{} in {}: {} {}', $.name, 2020, null, true)", "Foo in 2020: null true"),
    ({"f": "A", "l": "B"}, r"States.Format('Welcome to {} {}\'s playlist.', $.f, $.l)", "Welcome to A B's playlist."),
    ({"x": 1}, r"States.Format('\{{}\} \\ \{\}', $.x)", "{1} \\ {}"),
    ({"x": "{}"}, "States.Format('{}', $.x)", "{}"),
    ({"a b": {"c": [7]}}, "States.Array($['a b'].c[0], States.ArrayLength($['a b'].c))", [7, 1]),
    ({}, "States.Format('{}', $$.Execution.Id)", "arn"),
]


@pytest.mark.parametrize(("data", "text", "expected"), GUIDE)
def test_intrinsics_as_documented(data, text, expected):
    value = compile_intrinsic(text)(data, SCOPE)
    assert value == expected
    assert [type(item) for item in value] == [type(item) for item in expected] if isinstance(value, list) else True


def test_every_documented_intrinsic_is_there():
    covered = {match for _, text, _ in GUIDE for match in re.findall(r"States\.\w+", text)}
    assert covered == set(FUNCTIONS)
    assert len(FUNCTIONS) == 18


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"s": "{"}, "States.StringToJson($.s)"),
        ({"s": "NaN"}, "States.StringToJson($.s)"),
        ({"s": 5}, "States.StringToJson($.s)"),
        ({"a": [1]}, "States.ArrayGetItem($.a, 1)"),
        ({"a": [1]}, "States.ArrayGetItem($.a, -1)"),
        ({"a": 1}, "States.ArrayLength($.a)"),
        ({"a": [1]}, "States.ArrayPartition($.a, 0)"),
        ({}, "States.ArrayRange(1, 2000, 1)"),
        ({}, "States.ArrayRange(1, 2, 0)"),
        ({"a": {}}, "States.JsonMerge($.a, $.a, true)"),
        ({"a": {}}, "States.JsonMerge($.a, 1, false)"),
        ({"a": {}}, "States.Format('{}', $.a)"),
        ({"t": "{} {}"}, "States.Format($.t, 1)"),
        ({"t": 1}, "States.Format($.t)"),
        ({"s": "!"}, "States.Base64Decode($.s)"),
        ({"s": "x" * 10_001}, "States.Base64Encode($.s)"),
        ({}, "States.Hash('x', 'SHA-3')"),
        ({}, "States.MathAdd(2147483647, 1)"),
        ({"x": "1"}, "States.MathAdd($.x, 1)"),
        ({}, "States.MathRandom(2, 2)"),
        ({}, "States.StringSplit(1, ',')"),
    ],
)
def test_intrinsic_failures(data, text):
    with pytest.raises(StateError) as caught:
        compile_intrinsic(text)(data, SCOPE)
    assert caught.value.error == INTRINSIC_FAILURE


def test_a_missing_path_in_an_intrinsic_is_states_runtime():
    with pytest.raises(StateError) as caught:
        compile_intrinsic("States.Format('{}', $.missing)")({}, SCOPE)
    assert caught.value.error == RUNTIME


@pytest.mark.parametrize(
    "text",
    [
        "States.Nope()",
        "States.Format('{}')",
        "States.Format('a', 1)",
        "States.Format(1)",
        "States.Format('{')",
        r"States.Format('\n')",
        "States.Format('abc)",
        "States.Array(1",
        "States.Array(1,)",
        "States.Array(1) x",
        "States.Array(abc)",
        "States.UUID(1)",
        "States.Array($.)",
        "States.Array(" * 11 + ")" * 11,
    ],
)
def test_intrinsics_that_are_refused(text):
    with pytest.raises(ValueError, match=r".+"):
        compile_intrinsic(text)


@given(st.lists(st.integers(-3, 3), max_size=9), st.integers(1, 5))
def test_partition_keeps_everything_in_order(array, size):
    parts = compile_intrinsic(f"States.ArrayPartition($, {size})")(array, SCOPE)
    assert [item for part in parts for item in part] == array
    assert all(len(part) == size for part in parts[:-1])
    assert all(parts)


@given(json_values)
def test_json_text_round_trip(value):
    text = compile_intrinsic("States.JsonToString($)")(value, SCOPE)
    assert compile_intrinsic("States.StringToJson($)")(text, SCOPE) == value


@given(st.text(max_size=50))
def test_base64_round_trip(text):
    encoded = compile_intrinsic("States.Base64Encode($)")(text, SCOPE)
    assert compile_intrinsic("States.Base64Decode($)")(encoded, SCOPE) == text


def test_size_limit_counts_bytes_of_utf8():
    # Quotas: 262,144 bytes as a UTF-8 encoded string; the quotes of the JSON text count.
    check_size("x" * 262_142, "text")
    for text in ("x" * 262_143, "é" * 131_072):
        with pytest.raises(StateError) as caught:
            check_size(text, "text")
        assert caught.value.error == DATA_LIMIT_EXCEEDED
