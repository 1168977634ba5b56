"""What the loader refuses, each with its state and field, and all problems at once."""

from __future__ import annotations

import pytest

from spaceport.asl.definition import load
from spaceport.asl.model import DefinitionError

LAMBDA = "arn:aws:lambda:us-east-1:123456789012:function:f"
INVOKE = "arn:aws:states:::lambda:invoke"
PASS = {"Type": "Pass", "End": True}
TASK = {"Type": "Task", "Resource": LAMBDA, "End": True}


def problems(definition, **options):
    with pytest.raises(DefinitionError) as caught:
        load(definition, **options)
    return {(problem.state, problem.field) for problem in caught.value.problems}


def one(state, **machine):
    return {"StartAt": "A", "States": {"A": state, **machine.pop("others", {})}, **machine}


def test_a_whole_definition_loads():
    assert load(one(TASK)).root.start_at == "A"


@pytest.mark.parametrize(
    ("definition", "problem"),
    [
        ({"States": {"A": PASS}}, ("", "StartAt")),
        ({"StartAt": "B", "States": {"A": PASS}}, ("", "StartAt")),
        ({"StartAt": "A"}, ("", "States")),
        ({"StartAt": "A", "States": {}}, ("", "States")),
        (one(PASS, Unknown=1), ("", "Unknown")),
        (one(PASS, Version="2.0"), ("", "Version")),
        (one(PASS, TimeoutSeconds=0), ("", "TimeoutSeconds")),
        (one(PASS, QueryLanguage="JSONata"), ("", "QueryLanguage")),
        (one({**PASS, "QueryLanguage": "JSONata"}), ("A", "QueryLanguage")),
        (one({**PASS, "Result": "${Bucket}"}), ("", "")),
        (one({**PASS, "Result": float("nan")}), ("", "")),
        (one({"Type": "Pass"}), ("A", "Next")),
        (one({**PASS, "Next": "A"}), ("A", "Next")),
        (one({"Type": "Pass", "Next": "Gone"}), ("A", "Next")),
        (one({"Type": "Pass", "End": False}), ("A", "End")),
        (one({"Type": "Pass", "Next": "A"}), ("", "States")),
        (one(PASS, others={"B": PASS}), ("B", "")),
        (one({"Type": "Nap", "End": True}), ("A", "Type")),
        (one({"End": True}), ("A", "Type")),
        (one({**PASS, "Assign": {"x": 1}}), ("A", "Assign")),
        (one({**PASS, "Output": "{% 1 %}"}), ("A", "Output")),
        (one({**PASS, "ResultSelector": {}}), ("A", "ResultSelector")),
        (one({**PASS, "Retry": []}), ("A", "Retry")),
        (one({**PASS, "ResultPath": "$.a[*]"}), ("A", "ResultPath")),
        (one({**PASS, "ResultPath": "$$.Execution.Input"}), ("A", "ResultPath")),
        (one({**PASS, "Parameters": []}), ("A", "Parameters")),
        (one({**PASS, "Parameters": {"a.$": 1}}), ("A", "Parameters.a.$")),
        (one({**PASS, "Parameters": {"a.$": "text"}}), ("A", "Parameters.a.$")),
        (one({**PASS, "Parameters": {"x": [{"a": 1, "a.$": "$.b"}]}}), ("A", "Parameters.x[0].a.$")),
        (one({**PASS, "Parameters": {"a.$": "States.Nope()"}}), ("A", "Parameters.a.$")),
        (one({**PASS, "Parameters": {"a.$": "$$.Task.Token"}}), ("A", "Parameters")),
        (one({**PASS, "Parameters": {}, "Result": 1}), ("A", "Result")),
        (one({**TASK, "Resource": "f"}), ("A", "Resource")),
        (one({**TASK, "Resource": INVOKE + ".sync"}), ("A", "Resource")),
        (one({"Type": "Task", "End": True}), ("A", "Resource")),
        (one({**TASK, "Credentials": {}}), ("A", "Credentials")),
        (one({**TASK, "Resource": INVOKE + ".waitForTaskToken"}), ("A", "Parameters")),
        (one({**TASK, "Resource": INVOKE, "Parameters": {"t.$": "$$.Task.Token"}}), ("A", "Parameters")),
        (one({**TASK, "TimeoutSeconds": 0}), ("A", "TimeoutSeconds")),
        (one({**TASK, "TimeoutSeconds": True}), ("A", "TimeoutSeconds")),
        (one({**TASK, "TimeoutSeconds": 5, "HeartbeatSeconds": 5}), ("A", "HeartbeatSeconds")),
        (one({**TASK, "Retry": [{"MaxAttempts": 1}]}), ("A", "Retry[0].ErrorEquals")),
        (one({**TASK, "Retry": [{"ErrorEquals": []}]}), ("A", "Retry[0].ErrorEquals")),
        (one({**TASK, "Retry": [{"ErrorEquals": ["States.ALL", "X"]}]}), ("A", "Retry[0].ErrorEquals")),
        (
            one({**TASK, "Retry": [{"ErrorEquals": ["States.ALL"]}, {"ErrorEquals": ["X"]}]}),
            ("A", "Retry[0].ErrorEquals"),
        ),
        (one({**TASK, "Retry": [{"ErrorEquals": ["States.Runtime"]}]}), ("A", "Retry[0].ErrorEquals")),
        (one({**TASK, "Retry": [{"ErrorEquals": ["X"], "IntervalSeconds": 0}]}), ("A", "Retry[0].IntervalSeconds")),
        (one({**TASK, "Retry": [{"ErrorEquals": ["X"], "MaxAttempts": -1}]}), ("A", "Retry[0].MaxAttempts")),
        (one({**TASK, "Retry": [{"ErrorEquals": ["X"], "BackoffRate": 0.5}]}), ("A", "Retry[0].BackoffRate")),
        (one({**TASK, "Retry": [{"ErrorEquals": ["X"], "MaxDelaySeconds": 1}]}), ("A", "Retry[0].MaxDelaySeconds")),
        (one({**TASK, "Retry": [{"ErrorEquals": ["X"], "JitterStrategy": "SOME"}]}), ("A", "Retry[0].JitterStrategy")),
        (one({**TASK, "Retry": [{"ErrorEquals": ["X"], "Nope": 1}]}), ("A", "Retry[0].Nope")),
        (one({**TASK, "Catch": [{"ErrorEquals": ["X"]}]}), ("A", "Catch[0].Next")),
        (one({**TASK, "Catch": [{"ErrorEquals": ["X"], "Next": "Gone"}]}), ("A", "Catch[0].Next")),
        (
            one({**TASK, "Catch": [{"ErrorEquals": ["X"], "Next": "A", "ResultPath": "$..e"}]}),
            ("A", "Catch[0].ResultPath"),
        ),
        (one({"Type": "Wait", "End": True}), ("A", "Seconds")),
        (one({"Type": "Wait", "Seconds": 1, "SecondsPath": "$.s", "End": True}), ("A", "Seconds")),
        (one({"Type": "Wait", "Seconds": -1, "End": True}), ("A", "Seconds")),
        (one({"Type": "Choice", "Choices": []}), ("A", "Choices")),
        (one({"Type": "Choice", "Choices": [{"Variable": "$.a", "IsString": True}]}), ("A", "Choices[0].Next")),
        (one({"Type": "Choice", "Choices": [{"Variable": "$.a", "Is": 1, "Next": "A"}]}), ("A", "Choices[0].Is")),
        (one({"Type": "Choice", "Choices": [], "Default": "Gone"}), ("A", "Default")),
        (one({"Type": "Choice", "Choices": [], "End": True}), ("A", "End")),
        (one({"Type": "Succeed", "Next": "A"}), ("A", "Next")),
        (one({"Type": "Parallel", "End": True}), ("A", "Branches")),
        (
            one({"Type": "Parallel", "Branches": [{"StartAt": "X", "States": {}}], "End": True}),
            ("A.Branches[0]", "States"),
        ),
        (one({"Type": "Parallel", "Branches": [one(PASS)], "End": True}), ("A", "")),
        (
            one(
                {
                    "Type": "Parallel",
                    "Branches": [{"StartAt": "X", "States": {"X": {"Type": "Pass", "Next": "A"}}}],
                    "End": True,
                }
            ),
            ("X", "Next"),
        ),
        (one({"Type": "Map", "End": True}), ("A", "ItemProcessor")),
        (
            one(
                {
                    "Type": "Map",
                    "ItemProcessor": {
                        "ProcessorConfig": {"Mode": "DISTRIBUTED"},
                        "StartAt": "X",
                        "States": {"X": PASS},
                    },
                    "End": True,
                }
            ),
            ("A", "ItemProcessor.ProcessorConfig"),
        ),
        (one({"Type": "Map", "ItemReader": {}, "End": True}), ("A", "ItemReader")),
        (one({"Type": "Map", "ToleratedFailureCount": 1, "End": True}), ("A", "ToleratedFailureCount")),
        (one(PASS, others={"x" * 81: PASS}), ("x" * 81, "")),
    ],
)
def test_refused(definition, problem):
    assert problem in problems(definition)


def test_all_problems_are_listed_with_their_places():
    definition = one(
        {"Type": "Task", "Resource": "f", "Frobnicate": 1, "Next": "Gone"},
        others={"B": {"Type": "Wait", "End": True}},
        Extra=True,
    )
    found = problems(definition)
    assert {("A", "Resource"), ("A", "Frobnicate"), ("A", "Next"), ("B", "Seconds"), ("B", ""), ("", "Extra")} <= found
    with pytest.raises(DefinitionError, match="state 'A', Next: there is no state 'Gone'"):
        load(definition)


@pytest.mark.parametrize(
    ("state", "field"),
    [
        ({**PASS, "InputPath": "$.a"}, "InputPath"),
        ({**PASS, "OutputPath": "$.a"}, "OutputPath"),
        ({**TASK, "TimeoutSecondsPath": "$.t"}, "TimeoutSecondsPath"),
        ({**TASK, "HeartbeatSecondsPath": "$.t"}, "HeartbeatSecondsPath"),
        ({"Type": "Wait", "Seconds": 1, "Timestamp": "2026-01-31T12:00:00Z", "End": True}, "Timestamp"),
        ({"Type": "Wait", "Seconds": 1, "TimestampPath": "$.t", "End": True}, "TimestampPath"),
        ({"Type": "Fail", "ErrorPath": "$.e"}, "ErrorPath"),
        ({"Type": "Fail", "CausePath": "$.e"}, "CausePath"),
        ({"Type": "Map", "ItemProcessor": one(PASS), "Parameters": {}, "End": True}, "Parameters"),
        ({"Type": "Map", "ItemProcessor": one(PASS), "Iterator": one(PASS), "End": True}, "Iterator"),
        ({"Type": "Map", "ItemProcessor": one(PASS), "MaxConcurrencyPath": "$.n", "End": True}, "MaxConcurrencyPath"),
    ],
)
def test_fields_that_are_refused_by_name(state, field):
    with pytest.raises(DefinitionError) as caught:
        load(one(state))
    reason = f"{field} is not supported by the embedded engine: see docs/asl-differences.md"
    assert ("A", field, reason) in caught.value.problems


def test_random_numbers_must_be_provided():
    jitter = one({**TASK, "Retry": [{"ErrorEquals": ["X"], "JitterStrategy": "FULL"}]})
    assert problems(jitter, has_random=False) == {("A", "Retry[0].JitterStrategy")}
    load(jitter)
