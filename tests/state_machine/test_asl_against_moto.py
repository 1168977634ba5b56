"""The same machines in moto's own interpreter: equal where it follows AWS, and each known difference named.

The list is docs/asl-differences.md; a difference that moto mends fails here, so that the list stays true.
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import boto3
import pytest
from moto import mock_aws

from spaceport.asl.stepfunctions import StepFunctions
from spaceport.base.clock import VirtualClock

MACHINE = "arn:aws:states:us-east-1:123456789012:stateMachine:m"
ROLE = "arn:aws:iam::123456789012:role/r"
DIFFERENCES = Path(__file__).parents[2] / "docs" / "asl-differences.md"
STEP_LIMIT_S = 30
END = {"Type": "Pass", "End": True}


def passing(**fields):
    return {"StartAt": "A", "States": {"A": {"Type": "Pass", "End": True, **fields}}}


def choice(rule, default="No"):
    states: dict[str, dict] = {
        "A": {"Type": "Choice", "Choices": [{**rule, "Next": "Yes"}]},
        "Yes": {**END, "Result": {"took": "yes"}},
    }
    if default:
        states["A"]["Default"] = default
        states[default] = {**END, "Result": {"took": "no"}}
    return {"StartAt": "A", "States": states}


def failing(**fields):
    return {"StartAt": "A", "States": {"A": {"Type": "Fail", **fields}}}


def mapping(**fields):
    processor = {"StartAt": "X", "States": {"X": END}}
    return {"StartAt": "M", "States": {"M": {"Type": "Map", "ItemProcessor": processor, "End": True, **fields}}}


PARALLEL = {"Type": "Parallel", "End": True}
BRANCHES = [
    {"StartAt": "B1", "States": {"B1": {**END, "Result": 1}}},
    {"StartAt": "B2", "States": {"B2": {**END, "Parameters": {"x.$": "$.x"}}}},
]
BAD_BRANCHES = [{"StartAt": "B1", "States": {"B1": {"Type": "Fail", "Error": "E", "Cause": "c"}}}]
AND = {"And": [{"Variable": "$.n", "IsNumeric": True}, {"Not": {"Variable": "$.n", "NumericLessThan": 3}}]}

SAME = {
    "pass copies": (passing(), {"x": 1}),
    "pass result": (passing(Result={"a": [1]}, ResultPath="$.p.q"), {"x": 1, "p": {"o": 2}}),
    "pass parameters": (passing(Parameters={"a": 1, "b": {"c.$": "$.x[1:]"}, "d.$": "$.x[0]"}), {"x": [1, 2, 3]}),
    "input path": (passing(InputPath="$.x", ResultPath="$.copy"), {"x": {"y": 1}}),
    "output path": (passing(OutputPath="$.x.y"), {"x": {"y": [1]}}),
    "null paths": (passing(InputPath=None, ResultPath="$.r"), {"x": 1}),
    "null output path": (passing(OutputPath=None), {"x": 1}),
    "null result path": (passing(Result=5, ResultPath=None), {"x": 1}),
    "missing input path": (passing(InputPath="$.gone"), {}),
    "missing output path": (passing(OutputPath="$.gone"), {}),
    "missing parameter": (passing(Parameters={"a.$": "$.gone"}), {}),
    "array functions": (
        passing(
            Parameters={
                "p.$": "States.ArrayPartition($.a, 2)",
                "c.$": "States.ArrayContains($.a, 3)",
                "r.$": "States.ArrayRange(1, 9, 2)",
                "g.$": "States.ArrayGetItem($.a, 1)",
                "l.$": "States.ArrayLength($.a)",
                "u.$": "States.ArrayUnique($.a)",
                "a.$": "States.Array('x', 1, $.a[0])",
            }
        ),
        {"a": [1, 2, 3, 3, 1]},
    ),
    "text functions": (
        passing(
            Parameters={
                "f.$": "States.Format('{} and {}', $.s, 5)",
                "s.$": "States.StringSplit($.s, ',')",
                "e.$": "States.Base64Encode($.s)",
                "d.$": "States.Base64Decode('YWJj')",
                "h.$": "States.Hash($.s, 'SHA-256')",
                "j.$": "States.StringToJson($.j)",
                "t.$": "States.JsonToString($.o)",
                "m.$": "States.JsonMerge($.o, $.o2, false)",
                "n.$": "States.MathAdd($.n, -1)",
            }
        ),
        {"s": "a,b", "j": '{"x": [1, null]}', "o": {"a": {"b": 1}}, "o2": {"a": 2, "c": "é"}, "n": 41},
    ),
    "nested functions": (passing(Parameters={"a.$": "States.Array(States.MathAdd($.n, 1), $.n)"}), {"n": 1}),
    "context": (passing(Parameters={"n.$": "$$.State.Name", "i.$": "$$.Execution.Input.x"}), {"x": 5}),
    "choice yes": (choice(AND), {"n": 5}),
    "choice no": (choice(AND), {"n": 2}),
    "choice other type": (choice({"Variable": "$.n", "NumericEquals": 5}), {"n": "5"}),
    "choice absent": (choice({"Variable": "$.n", "IsPresent": False}), {}),
    "choice present null": (
        choice({"And": [{"Variable": "$.n", "IsPresent": True}, {"Variable": "$.n", "IsNull": True}]}),
        {"n": None},
    ),
    "choice matches": (choice({"Variable": "$.n", "StringMatches": "foo*.log"}), {"n": "foo23.log"}),
    "choice timestamp": (
        choice({"Variable": "$.n", "TimestampLessThan": "2026-01-01T00:00:00Z"}),
        {"n": "2025-12-31T23:00:00Z"},
    ),
    "choice path": (choice({"Variable": "$.n", "NumericGreaterThanEqualsPath": "$.m"}), {"n": 2, "m": 2}),
    "fail": (failing(Error="E", Cause="c"), {}),
    "fail by path": (failing(ErrorPath="$.e", CausePath="States.Format('why {}', $.e)"), {"e": "E"}),
    "succeed": ({"StartAt": "A", "States": {"A": {"Type": "Succeed", "OutputPath": "$.x"}}}, {"x": 1}),
    "parallel": ({"StartAt": "P", "States": {"P": {**PARALLEL, "Branches": BRANCHES, "ResultPath": "$.r"}}}, {"x": 1}),
    "parallel fails": ({"StartAt": "P", "States": {"P": {**PARALLEL, "Branches": BAD_BRANCHES}}}, {}),
    "parallel caught": (
        {
            "StartAt": "P",
            "States": {
                "P": {
                    **PARALLEL,
                    "Branches": BAD_BRANCHES,
                    "Catch": [{"ErrorEquals": ["States.ALL"], "ResultPath": "$.error", "Next": "C"}],
                },
                "C": END,
            },
        },
        {"x": 1},
    ),
    "map": (
        mapping(ItemsPath="$.x", ItemSelector={"i.$": "$$.Map.Item.Index", "v.$": "$$.Map.Item.Value", "n.$": "$.n"}),
        {"x": [7, 8], "n": 1},
    ),
    "map empty": (mapping(ResultPath="$.r", ItemsPath="$.x"), {"x": []}),
}

# name in docs/asl-differences.md: (definition, input, our answer, moto's answer)
DIFFERENT = {
    "choice-missing-variable": (
        choice({"Variable": "$.n", "NumericEquals": 1}),
        {},
        ("FAILED", "States.Runtime"),
        ("SUCCEEDED", '{"took": "no"}'),
    ),
    "no-choice-matched": (
        choice({"Variable": "$.n", "NumericEquals": 1}, default=None),
        {"n": 2},
        ("FAILED", "States.NoChoiceMatched"),
        ("FAILED", "States.Runtime"),
    ),
    "result-path-through-non-object": (
        passing(Result=1, ResultPath="$.x.y"),
        {"x": 5},
        ("FAILED", "States.ResultPathMatchFailure"),
        ("FAILED", "States.Runtime"),
    ),
    "intrinsic-failure": (
        passing(Parameters={"a.$": "States.StringToJson($.s)"}),
        {"s": "{"},
        ("FAILED", "States.IntrinsicFailure"),
        ("FAILED", "States.Runtime"),
    ),
    "text-output": (passing(Result="yes"), {}, ("SUCCEEDED", '"yes"'), ("SUCCEEDED", "yes")),
    "format-escapes": (
        passing(Parameters={"a.$": r"States.Format('{}\'s \{\}', $.s)"}),
        {"s": "A"},
        ("SUCCEEDED", '{"a": "A\'s {}"}'),
        ("FAILED", "States.Runtime"),
    ),
}


class NoTasks:
    def invoke(self, resource, payload, on_done, timeout_s):
        raise AssertionError(f"none of these machines has a task, but {resource} was called")


def ours(definition, data):
    clock = VirtualClock()
    sfn = StepFunctions(clock, NoTasks(), random=lambda: 0.5)
    sfn.create_state_machine(MACHINE, definition)
    arn = sfn.start_execution(MACHINE, "run", json.dumps(data))
    clock.run_until_idle()
    return outcome(sfn.describe_execution(arn))


def outcome(answer):
    return answer["status"], answer["output"] if answer["status"] == "SUCCEEDED" else answer.get("error")


@pytest.fixture(scope="module")
def moto_run():
    with pytest.MonkeyPatch.context() as environment:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            environment.setenv(name, "test")
        with mock_aws(config={"stepfunctions": {"execute_state_machine": True}}):
            client = boto3.client("stepfunctions", region_name="us-east-1")

            def run(name, definition, data):
                machine = client.create_state_machine(name=name, definition=json.dumps(definition), roleArn=ROLE)
                arn = client.start_execution(
                    stateMachineArn=machine["stateMachineArn"], name="run", input=json.dumps(data)
                )["executionArn"]
                give_up_at = time.monotonic() + STEP_LIMIT_S
                while time.monotonic() < give_up_at:
                    answer = client.describe_execution(executionArn=arn)
                    if answer["status"] != "RUNNING":
                        return outcome(answer)
                    time.sleep(0.01)
                raise TimeoutError(f"moto did not finish '{name}' within {STEP_LIMIT_S} s")

            yield run


def machine_name(name):
    return re.sub(r"[^a-z-]", "-", name)


def as_values(result):
    status, text = result
    return status, json.loads(text) if status == "SUCCEEDED" else text


@pytest.mark.parametrize("name", SAME)
def test_equal(name, moto_run):
    definition, data = SAME[name]
    assert as_values(ours(definition, data)) == as_values(moto_run(machine_name(name), definition, data))


@pytest.mark.parametrize("name", DIFFERENT)
def test_known_difference(name, moto_run):
    definition, data, expected, of_moto = DIFFERENT[name]
    assert as_values(ours(definition, data)) == as_values(expected)
    assert f"`{name}`" in DIFFERENCES.read_text(encoding="utf-8")
    answer = moto_run(machine_name(name), definition, data)
    assert answer == of_moto or as_values(answer) == as_values(of_moto)
