"""The lattice under the path proof is never wrong: what it says of a value holds for each value it stands for."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spaceport.asl.choice import compile_rule
from spaceport.asl.paths import Scope, StateError, compile_path, compile_reference_path
from spaceport.asl.paths import assign as really_assign
from spaceport.asl.templates import compile_expression
from tests.state_machine.pathproof import shapes
from tests.state_machine.pathproof.choices import branch
from tests.state_machine.pathproof.expressions import Env, expression, whole_number
from tests.state_machine.pathproof.shapes import Shape, contains, join, of_json, unknown, widen
from tests.state_machine.test_path_soundness import INTRINSICS, PATHS, SCALARS, TESTS, rules, scalars

EXAMPLES = int(os.environ.get("SPACEPORT_PROOF_EXAMPLES", "400"))
often = settings(
    max_examples=EXAMPLES, deadline=None, database=None, print_blob=True, suppress_health_check=[*HealthCheck]
)

lists = st.lists(st.integers(-2, 4), min_size=1, max_size=3)
inner = st.one_of(scalars, lists, st.dictionaries(st.sampled_from("ab"), st.one_of(scalars, lists), max_size=2))
inputs = st.dictionaries(st.sampled_from("abrne"), inner, max_size=4)
numbers = st.sampled_from([0, 1, 3, -1, 0.5, 2.5, 2**31 - 1])
typical = st.fixed_dictionaries(
    {
        "a": numbers,
        "b": st.fixed_dictionaries({"a": st.sampled_from(["", "x", "a,b"]), "b": lists}),
        "r": st.one_of(scalars, st.fixed_dictionaries({"a": scalars})),
        "e": st.one_of(scalars, st.fixed_dictionaries({"Error": st.just("Boom")}, optional={"Cause": st.just("x")})),
        "n": numbers,
    }
)
whole_values = st.one_of(typical, typical, inputs, inner)


@st.composite
def shapes_of(draw: st.DrawFn, values: st.SearchStrategy[Any] = whole_values) -> tuple[Shape, Any]:
    """A shape and one of the values it stands for: some values joined or widened, with some fields forgotten."""
    concrete = draw(values)
    shape = of_json(concrete)
    for other in draw(st.lists(values, max_size=2)):
        shape = join(shape, of_json(other)) if draw(st.booleans()) else widen(shape, of_json(other))
    if shape.object and draw(st.booleans()):
        fields = dict(shape.object.fields)
        for name in draw(st.lists(st.sampled_from(sorted(fields)), max_size=2)) if fields else []:
            forget = draw(st.sampled_from(["shape", "field"]))
            size = shapes.size(fields[name].shape)
            if forget == "shape":
                fields[name] = replace(fields[name], shape=unknown(size))
            elif fields[name].counted:
                rest = shape.object.rest_bytes + size + len(name) + 4
                shape = Shape(**{**vars_of(shape), "object": shapes.Object(fields, rest)})
                fields[name] = replace(fields[name], shape=unknown(rest), certain=False, counted=False)
        assert shape.object
        shape = Shape(**{**vars_of(shape), "object": replace(shape.object, fields=fields)})
    assert contains(shape, concrete)
    return shape, concrete


def vars_of(shape: Shape) -> dict[str, Any]:
    return {name: getattr(shape, name) for name in ("null", "boolean", "number", "text", "array", "object")}


def env_of(shape: Shape) -> tuple[Env, list[tuple[str, ...]]]:
    problems: list[tuple[str, ...]] = []
    return Env(shape, of_json({}), lambda *problem: problems.append(problem)), problems


scope = Scope({}, lambda: "00000000-0000-0000-0000-000000000000", lambda: 0.5)


@often
@given(shapes_of(), shapes_of())
def test_join_and_widen_are_above_both(one, two):
    for combine in (join, widen):
        assert contains(combine(one[0], two[0]), one[1])
        assert contains(combine(one[0], two[0]), two[1])
    assert contains(shapes.simplify(one[0]), one[1])


@settings(often, max_examples=3 * EXAMPLES)
@given(shapes_of(), st.sampled_from([*PATHS, "$.b[*]", "$.b.b[0:2]", "$..a", *INTRINSICS]))
def test_an_expression_without_a_finding_cannot_fail(known, text):
    shape, concrete = known
    context = {"Execution": {"Name": "run"}}
    env, problems = env_of(shape)
    result = expression(replace(env, context=of_json(context)), "here", text)
    if not problems:
        found = compile_expression(text)(concrete, replace(scope, context=context))
        assert contains(result, found), (result, found)


@settings(often, max_examples=3 * EXAMPLES)
@given(shapes_of(), rules())
def test_a_choice_rule_keeps_to_its_branch(known, rule):
    shape, concrete = known
    env, problems = env_of(shape)
    branches = branch(env, "here", rule)
    compiled = compile_rule({**rule, "Next": "S"}, lambda field, reason: None)
    assert compiled is not None
    try:
        holds = compiled(concrete, scope)
    except StateError:
        assert problems
        return
    assert contains(branches.holds if holds else branches.fails, concrete)


@pytest.mark.parametrize("test", TESTS, ids=str)
@pytest.mark.parametrize("value", SCALARS, ids=repr)
def test_each_comparison_keeps_each_value_on_its_side(test, value):
    operand, concrete = {"a": of_json(1)}, {"a": 1, "r": value}
    known = shapes.closed_object({**operand, "r": unknown(100)})
    for rule in ({"Variable": "$.r", **test}, {"Not": {"Variable": "$.r", **test}}):
        env, problems = env_of(known)
        branches = branch(env, "here", rule)
        compiled = compile_rule({**rule, "Next": "S"}, lambda field, reason: None)
        assert compiled is not None and not problems
        holds = compiled(concrete, scope)
        assert contains(branches.holds if holds else branches.fails, concrete)


@often
@given(shapes_of(), st.sampled_from(["$", "$.r", "$.r.a", "$.b.a", "$.b.b[0]", "$.b[0]", "$.a.b.r"]), shapes_of())
def test_a_result_path_without_a_finding_cannot_fail(known, path, value):
    keys = compile_reference_path(path).keys
    result, problem = shapes.assign(known[0], keys, value[0])
    if problem is None:
        assert contains(result, really_assign(known[1], keys, value[1]))


@often
@given(shapes_of(st.one_of(scalars, inner)))
def test_whole_numbers(known):
    shape, concrete = known
    env, problems = env_of(shape)
    whole_number(env, "here", shape, "$", 0, 3)
    if not problems:
        assert isinstance(concrete, int) and not isinstance(concrete, bool) and 0 <= concrete <= 3


@often
@given(shapes_of(), st.sampled_from(PATHS))
def test_what_is_found_is_there(known, path):
    compiled = compile_path(path)
    found, problem = shapes.find(known[0], compiled.keys)
    if problem is None:
        assert contains(found, compiled.find(known[1], scope))
