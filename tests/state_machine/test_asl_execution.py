# Longer than 400 lines: every kind of state on one bench.
"""Executions on a virtual clock: what each state does and how it fails, by the spec and the AWS developer guide."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from spaceport.asl.stepfunctions import (
    ExecutionAlreadyExists,
    ExecutionDoesNotExist,
    InvalidArn,
    InvalidExecutionInput,
    InvalidName,
    InvalidOutput,
    InvalidToken,
    StateMachineAlreadyExists,
    StateMachineDoesNotExist,
    StepFunctions,
    TaskDoesNotExist,
    TaskTimedOut,
    ValidationException,
)
from spaceport.asl.tasks import TaskError, TaskOk, wrap_lambda_result
from spaceport.base.clock import VirtualClock

MACHINE = "arn:aws:states:us-east-1:123456789012:stateMachine:m"
EXECUTION = "arn:aws:states:us-east-1:123456789012:execution:m:run"
LAMBDA = "arn:aws:lambda:us-east-1:123456789012:function:f"
INVOKE = "arn:aws:states:::lambda:invoke"
START = datetime(2026, 1, 1, tzinfo=UTC)


class Work:
    """Tasks that answer from a script: each answer is TaskOk, TaskError, or None for no answer at all."""

    def __init__(self, *answers, delay_s=0.0):
        self.answers = list(answers)
        self.delay_s = delay_s
        self.calls = []
        self.clock = VirtualClock()

    def invoke(self, resource, payload, on_done, timeout_s):
        self.calls.append((resource, payload, timeout_s))
        answer = self.answers.pop(0) if self.answers else TaskOk(payload)
        if answer is not None:
            self.clock.call_later(self.delay_s, lambda: on_done(answer))


class Bench:
    def __init__(self, states, *answers, start_at=None, delay_s=0.0, **machine):
        self.clock = VirtualClock(START)
        self.work = Work(*answers, delay_s=delay_s)
        self.work.clock = self.clock
        self.changes: list[dict] = []
        self.sfn = StepFunctions(self.clock, self.work, on_status_change=self.changes.append, random=lambda: 0.5)
        self.sfn.create_state_machine(MACHINE, {"StartAt": start_at or next(iter(states)), "States": states, **machine})

    def start(self, data=None):
        self.sfn.start_execution(MACHINE, "run", json.dumps({} if data is None else data))
        return self

    def run(self, data=None):
        self.start(data)
        self.clock.run_until_idle()
        return self.answer

    @property
    def answer(self):
        return self.sfn.describe_execution(EXECUTION)

    @property
    def output(self):
        assert self.answer["status"] == "SUCCEEDED", self.answer
        return json.loads(self.answer["output"])

    @property
    def elapsed_s(self):
        return (self.clock.now() - START).total_seconds()


def run(states, *answers, data=None, **options):
    bench = Bench(states, *answers, **options)
    bench.run(data)
    return bench


def task(**fields):
    return {"Type": "Task", "Resource": LAMBDA, **({} if "Next" in fields else {"End": True}), **fields}


def token_task(**fields):
    return task(Resource=f"{INVOKE}.waitForTaskToken", Parameters={"token.$": "$$.Task.Token"}, **fields)


CAUGHT = {"Type": "Pass", "End": True}


def failing(state, *answers, data=None):
    """What an execution of ``state`` fails with, and what a Catch for States.ALL would have written."""
    plain = run({"A": state}, *answers, data=data)
    caught = run(
        {"A": {**state, "Catch": [{"ErrorEquals": ["States.ALL"], "ResultPath": "$.error", "Next": "C"}]}, "C": CAUGHT},
        *answers,
        data=data,
    )
    return plain.answer.get("error"), caught


# ---- input and output processing


def test_input_and_output_processing_example_of_the_spec():
    # Spec, "Input/Output Processing Examples".
    state = task(Parameters={"val1.$": "$.numbers.val1", "val2.$": "$.numbers.val2"}, ResultPath="$.sum")
    data = {"title": "Numbers to add", "numbers": {"val1": 3, "val2": 4}}
    bench = run({"A": state}, TaskOk(7), data=data)
    assert bench.work.calls[0][1] == {"val1": 3, "val2": 4}
    assert bench.output == {**data, "sum": 7}


def test_payload_template_example_of_the_spec():
    # Spec, "Payload Template".
    state = task(
        Parameters={
            "flagged": True,
            "parts": {"first.$": "$.vals[0]"},
            "list": [{"x.$": "$.flagged"}],
        }
    )
    bench = run({"A": state}, data={"flagged": 7, "vals": [0, 10, 20, 30, 40, 50]})
    assert bench.work.calls[0][1] == {"flagged": True, "parts": {"first": 0}, "list": [{"x": 7}]}


@pytest.mark.parametrize(
    ("fields", "output"),
    [
        ({}, {"r": 1}),
        ({"ResultPath": None}, {"in": 5}),
        ({"ResultSelector": {"only.$": "$.r"}}, {"only": 1}),
        ({"ResultSelector": {"name.$": "$$.State.Name"}, "ResultPath": "$.out"}, {"in": 5, "out": {"name": "A"}}),
    ],
)
def test_result_processing(fields, output):
    assert run({"A": task(**fields)}, TaskOk({"r": 1}), data={"in": 5}).output == output


def test_pass_result_example_of_the_spec():
    # Spec, "Pass State".
    coords = {"x-datum": 0.381018, "y-datum": 622.2269926397355}
    bench = run(
        {"No-op": {"Type": "Pass", "Result": coords, "ResultPath": "$.coords", "End": True}}, data={"georefOf": "Home"}
    )
    assert bench.output == {"georefOf": "Home", "coords": coords}


def test_context_object():
    paths = [
        "Execution.Id",
        "Execution.Name",
        "Execution.Input",
        "Execution.StartTime",
        "Execution.RoleArn",
        "State.Name",
    ]
    paths += ["State.EnteredTime", "StateMachine.Id", "StateMachine.Name", "State.RetryCount", "Execution.RedriveCount"]
    template = {f"{path}.$": f"$$.{path}" for path in paths}
    bench = run(
        {"W": {"Type": "Wait", "Seconds": 1, "Next": "A"}, "A": {"Type": "Pass", "Parameters": template, "End": True}},
        data={"x": 1},
    )
    assert bench.output == {
        "Execution.Id": EXECUTION,
        "Execution.Name": "run",
        "Execution.Input": {"x": 1},
        "Execution.StartTime": "2026-01-01T00:00:00.000Z",
        "Execution.RoleArn": "arn:aws:iam::123456789012:role/state-machine",
        "Execution.RedriveCount": 0,
        "State.Name": "A",
        "State.EnteredTime": "2026-01-01T00:00:01.000Z",
        "State.RetryCount": 0,
        "StateMachine.Id": MACHINE,
        "StateMachine.Name": "m",
    }


# ---- errors that nothing catches, and errors that can be caught


@pytest.mark.parametrize(
    "state",
    [
        task(Parameters={"a.$": "$.gone"}),
        task(Parameters={"a.$": "States.Format('{}', $.gone)"}),
        task(ResultSelector={"a.$": "$.gone"}),
        {"Type": "Map", "ItemProcessor": {"StartAt": "X", "States": {"X": CAUGHT}}, "End": True},
        {
            "Type": "Parallel",
            "Branches": [{"StartAt": "X", "States": {"X": {**CAUGHT, "Parameters": {"a.$": "$.gone"}}}}],
            "End": True,
        },
    ],
)
def test_a_missing_path_fails_the_execution_and_is_not_caught(state):
    # Developer guide, States.Runtime: "A retry or catch on States.ALL won't catch States.Runtime errors."
    error, caught = failing(state, data={"zero": 0})
    assert error == "States.Runtime"
    assert (caught.answer["status"], caught.answer["error"]) == ("FAILED", "States.Runtime")


@pytest.mark.parametrize("answer", [TaskOk("x" * 262_200), TaskOk({"big": "é" * 131_100})])
def test_too_much_data_is_not_caught_by_states_all_but_by_its_name(answer):
    # Developer guide, States.DataLimitExceeded: "a terminal error that can't be caught by the States.ALL error type".
    error, caught = failing(task(), answer)
    assert error == caught.answer["error"] == "States.DataLimitExceeded"
    named = task(Catch=[{"ErrorEquals": ["States.DataLimitExceeded"], "ResultPath": "$.e", "Next": "C"}])
    assert run({"A": named, "C": CAUGHT}, answer).output["e"]["Error"] == "States.DataLimitExceeded"


@pytest.mark.parametrize(
    ("state", "answer", "error"),
    [
        (task(ResultPath="$.a.b"), TaskOk(1), "States.ResultPathMatchFailure"),
        (task(Parameters={"a.$": "States.MathAdd($.a, 1)"}), TaskOk(1), "States.IntrinsicFailure"),
        (task(ResultSelector={"a.$": "States.Format('{}', $)"}), TaskOk([1]), "States.IntrinsicFailure"),
        (task(), TaskError("Custom", "why"), "Custom"),
        (task(TimeoutSeconds=5), None, "States.Timeout"),
        (token_task(TimeoutSeconds=9, HeartbeatSeconds=5), TaskOk(None), "States.HeartbeatTimeout"),
    ],
)
def test_errors_that_states_all_catches(state, answer, error):
    plain, caught = failing(state, answer, data={"a": "{"})
    assert plain == error
    assert caught.output["error"]["Error"] == error
    assert caught.output["a"] == "{"


def test_error_output_has_a_cause_only_when_there_is_one():
    # Spec, "Error output": Error is a MUST, Cause a SHOULD.
    _, caught = failing(task(), TaskError("E", "why"))
    assert caught.output["error"] == {"Error": "E", "Cause": "why"}
    _, caught = failing(task(), TaskError("E"))
    assert caught.output["error"] == {"Error": "E"}
    whole = run({"A": task(Catch=[{"ErrorEquals": ["E"], "Next": "C"}]), "C": CAUGHT}, TaskError("E"), data={"x": 1})
    assert whole.output == {"Error": "E"}  # the default ResultPath is $


def test_catch_with_a_result_path_that_cannot_apply_fails_without_a_second_catch():
    state = task(Catch=[{"ErrorEquals": ["States.ALL"], "ResultPath": "$.a.b", "Next": "C"}])
    bench = run({"A": state, "C": CAUGHT}, TaskError("E"), data={"a": 1})
    assert bench.answer["error"] == "States.ResultPathMatchFailure"


@pytest.mark.parametrize(
    ("names", "answer", "matches"),
    [
        (["States.TaskFailed"], TaskError("Anything"), True),
        (["States.TaskFailed"], None, False),  # a time-out
        (["States.Timeout"], None, True),
        (["Other", "E"], TaskError("E"), True),
        (["e"], TaskError("E"), False),
    ],
)
def test_which_names_match(names, answer, matches):
    state = task(TimeoutSeconds=5, Catch=[{"ErrorEquals": names, "Next": "C"}])
    assert (run({"A": state, "C": CAUGHT}, answer).answer["status"] == "SUCCEEDED") is matches


@pytest.mark.parametrize(
    ("name", "matches"), [("States.Timeout", True), ("States.HeartbeatTimeout", True), ("States.TaskFailed", False)]
)
def test_names_that_match_a_missed_heartbeat(name, matches):
    # Spec, Appendix A: both States.HeartbeatTimeout and States.Timeout describe a missed heartbeat.
    state = token_task(TimeoutSeconds=50, HeartbeatSeconds=5, Catch=[{"ErrorEquals": [name], "Next": "C"}])
    bench = run({"A": state, "C": CAUGHT}, TaskOk(None))
    assert (bench.answer["status"] == "SUCCEEDED") is matches
    assert bench.elapsed_s == 5


def test_choice():
    states: dict[str, dict] = {
        "A": {"Type": "Choice", "Choices": [{"Variable": "$.n", "NumericEquals": 1, "Next": "B"}]},
        "B": CAUGHT,
    }
    assert run(states, data={"n": 1}).output == {"n": 1}
    assert run(states, data={"n": 2}).answer["error"] == "States.NoChoiceMatched"
    assert run(states, data={}).answer["error"] == "States.Runtime"
    states["A"]["Default"] = "B"
    assert run(states, data={"n": 2}).output == {"n": 2}
    assert run(states, data={}).answer["error"] == "States.Runtime"  # AWS does not take Default here


def test_fail_state():
    fixed = run({"A": {"Type": "Fail", "Error": "ErrorA", "Cause": "Kaiju attack"}}).answer
    assert (fixed["status"], fixed["error"], fixed["cause"]) == ("FAILED", "ErrorA", "Kaiju attack")
    bare = run({"A": {"Type": "Fail"}}).answer
    assert bare["status"] == "FAILED"
    assert "error" not in bare


# ---- retry


def test_complex_retry_scenario_of_the_spec():
    # Spec, "Complex retry scenarios": ErrorA, ErrorB, ErrorC, ErrorB; waits of 1, 2 and 5 seconds; then Catch.
    state = task(
        Parameters={"attempt.$": "$$.State.RetryCount"},
        Retry=[
            {"ErrorEquals": ["ErrorA", "ErrorB"], "IntervalSeconds": 1, "BackoffRate": 2, "MaxAttempts": 2},
            {"ErrorEquals": ["ErrorC"], "IntervalSeconds": 5},
        ],
        Catch=[{"ErrorEquals": ["States.ALL"], "Next": "Z"}],
    )
    errors = [TaskError(name) for name in ("ErrorA", "ErrorB", "ErrorC", "ErrorB")]
    bench = run({"X": state, "Z": CAUGHT}, *errors)
    assert bench.output == {"Error": "ErrorB"}
    assert bench.elapsed_s == 1 + 2 + 5
    assert [payload for _, payload, _ in bench.work.calls] == [{"attempt": n} for n in range(4)]


@pytest.mark.parametrize(
    ("retrier", "waits_s"),
    [
        ({}, 1 + 2 + 4),  # defaults: 1 s, factor 2.0, 3 attempts
        ({"IntervalSeconds": 3, "MaxAttempts": 2, "BackoffRate": 1.5}, 3 + 4.5),
        ({"MaxAttempts": 0}, 0),
        ({"IntervalSeconds": 3, "BackoffRate": 2, "MaxAttempts": 3, "MaxDelaySeconds": 5}, 3 + 5 + 5),
        ({"IntervalSeconds": 4, "MaxAttempts": 1, "JitterStrategy": "FULL"}, 2),  # random() is 0.5
    ],
)
def test_retry_intervals(retrier, waits_s):
    state = task(Retry=[{"ErrorEquals": ["States.ALL"], **retrier}])
    bench = run({"A": state}, *[TaskError("E")] * 9)
    assert bench.answer["error"] == "E"
    assert bench.elapsed_s == waits_s


def test_retry_counts_begin_anew_in_the_next_state():
    retry = [{"ErrorEquals": ["E"], "MaxAttempts": 1}]
    states = {"A": task(Next="B", Retry=retry), "B": task(Parameters={"n.$": "$$.State.RetryCount"}, Retry=retry)}
    bench = run(states, TaskError("E"), TaskOk(1), TaskError("E"))
    assert bench.output == {"n": 1}
    assert bench.work.calls[2][1] == {"n": 0}


# ---- time


def test_wait_states_and_a_day_in_no_time():
    states = {
        "A": {"Type": "Wait", "Seconds": 86_400, "Next": "B"},
        "B": {"Type": "Wait", "SecondsPath": "$.s", "End": True},
    }
    bench = run(states, data={"s": 10})
    assert bench.answer["stopDate"] == datetime(2026, 1, 2, 0, 0, 10, tzinfo=UTC)
    assert bench.output == {"s": 10}


@pytest.mark.parametrize("data", [{"s": -1}, {"s": "1"}, {"s": 0.5}, {"s": True}, {}])
def test_wait_that_cannot(data):
    assert (
        run({"A": {"Type": "Wait", "SecondsPath": "$.s", "End": True}}, data=data).answer["error"] == "States.Runtime"
    )


def test_task_timeout_and_an_answer_that_comes_too_late():
    states = {
        "A": task(TimeoutSeconds=5, Catch=[{"ErrorEquals": ["States.Timeout"], "Next": "C"}]),
        "C": CAUGHT,
    }
    bench = run(states, TaskOk("late"), delay_s=6)
    assert bench.output == {"Error": "States.Timeout"}
    assert bench.work.calls[0][2] == 5
    assert run(states, TaskOk("in time"), delay_s=4).output == "in time"


def test_machine_timeout_runs_no_further_state():
    bench = run({"A": task(Catch=[{"ErrorEquals": ["States.ALL"], "Next": "C"}]), "C": CAUGHT}, None, TimeoutSeconds=60)
    assert bench.answer["status"] == "TIMED_OUT"
    assert bench.elapsed_s == 60
    assert [change["status"] for change in bench.changes] == ["RUNNING", "TIMED_OUT"]


def test_a_loop_ends_at_the_history_quota():
    # Quotas: 25,000 events in one execution history.
    states = {
        "A": {
            "Type": "Choice",
            "Choices": [{"Variable": "$.stop", "BooleanEquals": True, "Next": "B"}],
            "Default": "A",
        },
        "B": CAUGHT,
    }
    bench = run(states, data={"stop": False})
    assert bench.answer["error"] == "States.Runtime"
    assert "25000" in bench.answer["cause"]
    assert len(bench.sfn.get_execution_history(EXECUTION)) <= 25_000


# ---- task tokens


def token_of(bench, call=-1):
    return bench.work.calls[call][1]["token"]


def waiting(*answers, data=None, **fields):
    bench = Bench(
        {"A": token_task(**fields), "C": CAUGHT} if "Catch" in fields else {"A": token_task(**fields)}, *answers
    )
    bench.start(data)
    bench.clock.advance(1)
    return bench


def test_the_answer_of_the_start_call_is_ignored_and_the_token_decides():
    bench = waiting(TaskOk("ignored"), ResultPath="$.r")
    assert bench.answer["status"] == "RUNNING"
    assert bench.work.calls[0][0] == INVOKE
    bench.sfn.send_task_success(token_of(bench), '{"a": 1}')
    bench.clock.run_until_idle()
    assert bench.output == {"r": {"a": 1}}


def test_an_error_of_the_start_call_fails_the_task_at_once():
    bench = waiting(TaskError("Lambda.Unknown", "boom"), TimeoutSeconds=1000)
    assert (bench.answer["error"], bench.answer["cause"]) == ("Lambda.Unknown", "boom")
    with pytest.raises(TaskTimedOut):
        bench.sfn.send_task_success(token_of(bench), "1")


def test_task_failure_by_token():
    bench = waiting(TaskOk(None), Catch=[{"ErrorEquals": ["TOO_FEW_PHOTOS"], "ResultPath": "$.error", "Next": "C"}])
    bench.sfn.send_task_failure(token_of(bench), "TOO_FEW_PHOTOS", '{"code": 1}')
    bench.clock.run_until_idle()
    assert bench.output == {"error": {"Error": "TOO_FEW_PHOTOS", "Cause": '{"code": 1}'}}


def test_success_may_come_before_the_start_call_returns():
    bench = waiting(None)
    bench.sfn.send_task_success(token_of(bench), '"early"')
    bench.clock.run_until_idle()
    assert bench.output == "early"


def test_heartbeats_extend_and_late_ones_are_refused():
    bench = waiting(TaskOk(None), HeartbeatSeconds=10, TimeoutSeconds=100)
    for _ in range(5):
        bench.clock.advance(8)
        bench.sfn.send_task_heartbeat(token_of(bench))
    assert bench.answer["status"] == "RUNNING"
    bench.clock.run_until_idle()
    assert bench.answer["error"] == "States.HeartbeatTimeout"
    assert bench.elapsed_s == 1 + 5 * 8 + 10
    with pytest.raises(TaskTimedOut):
        bench.sfn.send_task_heartbeat(token_of(bench))


def test_heartbeats_do_not_extend_the_timeout():
    bench = waiting(TaskOk(None), HeartbeatSeconds=10, TimeoutSeconds=30)
    for _ in range(3):
        bench.clock.advance(8)
        bench.sfn.send_task_heartbeat(token_of(bench))
    bench.clock.run_until_idle()
    assert bench.answer["error"] == "States.Timeout"
    assert bench.elapsed_s == 30


def test_misused_tokens():
    bench = waiting(TaskOk(None))
    token = token_of(bench)
    for text in ("", "nonsense", "x" * 3000, token.partition(".")[0]):
        with pytest.raises(InvalidToken) as caught:
            bench.sfn.send_task_success(text, "1")
        assert caught.value.code == "InvalidToken"
    with pytest.raises(TaskDoesNotExist):
        bench.sfn.send_task_success(token + "x", "1")
    for output in ("{", "NaN", ""):
        with pytest.raises(InvalidOutput):
            bench.sfn.send_task_success(token, output)
    with pytest.raises(ValidationException):
        bench.sfn.send_task_success(token, json.dumps("x" * 262_144))
    with pytest.raises(ValidationException):
        bench.sfn.send_task_failure(token, "E" * 257)
    with pytest.raises(ValidationException):
        bench.sfn.send_task_failure(token, "E", "c" * 32_769)
    bench.sfn.send_task_success(token, "1")
    with pytest.raises(TaskTimedOut):
        bench.sfn.send_task_success(token, "1")
    with pytest.raises(TaskTimedOut):
        bench.sfn.send_task_failure(token, "E")


def test_each_attempt_has_its_own_token():
    bench = waiting(TaskOk(None), TaskOk(None), Retry=[{"ErrorEquals": ["E"], "MaxAttempts": 1}])
    first = token_of(bench)
    bench.sfn.send_task_failure(first, "E")
    bench.clock.advance(5)
    assert token_of(bench) != first
    with pytest.raises(TaskTimedOut):
        bench.sfn.send_task_success(first, "1")
    bench.sfn.send_task_success(token_of(bench), "2")
    bench.clock.run_until_idle()
    assert bench.output == 2


# ---- Parallel and Map


def branch(**states):
    return {"StartAt": next(iter(states)), "States": states}


def test_parallel_example_of_the_spec():
    # Spec, "Parallel State": the result is [5, 1] for the input [3, 2].
    state = {"Type": "Parallel", "Branches": [branch(Add=task()), branch(Subtract=task())], "End": True}
    bench = run({"FunWithMath": state}, TaskOk(5), TaskOk(1), data=[3, 2])
    assert [payload for _, payload, _ in bench.work.calls] == [[3, 2], [3, 2]]
    assert bench.output == [5, 1]


def test_a_failing_branch_ends_its_siblings_at_once_and_can_be_retried_and_caught():
    bad = branch(B1={"Type": "Wait", "Seconds": 1, "Next": "B2"}, B2=task())
    slow = branch(S1={"Type": "Wait", "Seconds": 100, "Next": "S2"}, S2=task())
    state = {
        "Type": "Parallel",
        "Branches": [slow, bad],
        "Retry": [{"ErrorEquals": ["E"], "MaxAttempts": 1}],
        "Catch": [{"ErrorEquals": ["E"], "ResultPath": "$.error", "Next": "C"}],
        "Next": "C",
    }
    bench = run({"P": state, "C": CAUGHT}, TaskError("E", "c"), TaskError("E", "c"))
    assert bench.output == {"error": {"Error": "E", "Cause": "c"}}
    assert bench.elapsed_s == 1 + 1 + 1
    assert run({"P": state, "C": CAUGHT}, TaskError("E"), TaskOk("b"), TaskOk("s")).output == ["s", "b"]


def test_map_example_of_the_spec():
    # Spec, "Map State": ItemSelector with $$.Map.Item.Value; ResultPath replaces the array.
    state = {
        "Type": "Map",
        "ItemsPath": "$.detail.shipped",
        "ItemSelector": {
            "parcel.$": "$$.Map.Item.Value",
            "courier.$": "$.detail.delivery-partner",
            "i.$": "$$.Map.Item.Index",
        },
        "ItemProcessor": branch(Validate=task()),
        "ResultPath": "$.detail.shipped",
        "End": True,
    }
    detail = {"delivery-partner": "UQS", "shipped": [{"prod": "R31"}, {"prod": "S39"}]}
    expected = [
        {"parcel": {"prod": "R31"}, "courier": "UQS", "i": 0},
        {"parcel": {"prod": "S39"}, "courier": "UQS", "i": 1},
    ]
    assert run({"M": state}, data={"detail": detail}).output == {
        "detail": {"delivery-partner": "UQS", "shipped": expected}
    }


@pytest.mark.parametrize(
    ("limit", "elapsed_s"),
    [({}, 10), ({"MaxConcurrency": 1}, 50), ({"MaxConcurrency": 2}, 30)],
)
def test_map_concurrency_keeps_the_order(limit, elapsed_s):
    inner = branch(
        W={"Type": "Wait", "Seconds": 10, "Next": "T"},
        T={**CAUGHT, "Parameters": {"v.$": "$", "i.$": "$$.Map.Item.Index"}},
    )
    state = {"Type": "Map", "ItemsPath": "$.items", "ItemProcessor": inner, "End": True, **limit}
    bench = run({"M": state}, data={"items": [4, 3, 2, 1, 0], "n": 3})
    assert bench.output == [{"v": 4 - i, "i": i} for i in range(5)]
    assert bench.elapsed_s == elapsed_s


def test_an_empty_map_is_an_empty_array():
    assert run({"M": {"Type": "Map", "ItemProcessor": branch(T=task()), "End": True}}, data=[]).output == []


def test_a_large_map_and_nested_maps():
    inner = {
        "Type": "Map",
        "ItemProcessor": branch(T={**CAUGHT, "Parameters": {"x.$": "$$.Map.Item.Value"}}),
        "End": True,
    }
    outer = {"Type": "Map", "ItemProcessor": branch(Inner=inner), "End": True}
    assert run({"M": outer}, data=[[1, 2], [], [3]]).output == [[{"x": 1}, {"x": 2}], [], [{"x": 3}]]
    flat = {"Type": "Map", "ItemProcessor": branch(T=CAUGHT), "End": True}
    assert run({"M": flat}, data=list(range(2000))).output == list(range(2000))


# ---- the API


def test_start_execution_is_idempotent_while_running():
    bench = Bench({"A": {"Type": "Wait", "Seconds": 5, "End": True}}).start({"a": 1})
    assert bench.sfn.start_execution(MACHINE, "run", '{"a":1}') == EXECUTION
    with pytest.raises(ExecutionAlreadyExists):
        bench.sfn.start_execution(MACHINE, "run", '{"a": 2}')
    bench.clock.run_until_idle()
    with pytest.raises(ExecutionAlreadyExists):
        bench.sfn.start_execution(MACHINE, "run", '{"a": 1}')
    assert len([e for e in bench.sfn.get_execution_history(EXECUTION) if e["type"] == "ExecutionStarted"]) == 1


@pytest.mark.parametrize("name", ["", "x" * 81, "a b", "a/b", "a:b", "a*", "a\n", 'a"', "a$"])
def test_execution_names_that_are_refused(name):
    with pytest.raises(InvalidName):
        Bench({"A": CAUGHT}).sfn.start_execution(MACHINE, name)


def test_execution_names_that_are_allowed():
    bench = Bench({"A": CAUGHT})
    for name in ("x" * 80, "my-house-01J_x.y", "名"):
        assert bench.sfn.start_execution(MACHINE, name).endswith(f":execution:m:{name}")
    assert bench.sfn.start_execution(MACHINE) != bench.sfn.start_execution(MACHINE)


def test_api_errors():
    bench = Bench({"A": CAUGHT})
    with pytest.raises(StateMachineDoesNotExist):
        bench.sfn.start_execution(MACHINE + "2")
    with pytest.raises(InvalidExecutionInput):
        bench.sfn.start_execution(MACHINE, "x", "{")
    for call in (bench.sfn.describe_execution, bench.sfn.get_execution_history, bench.sfn.stop_execution):
        with pytest.raises(ExecutionDoesNotExist):
            call(EXECUTION)
    with pytest.raises(StateMachineAlreadyExists):
        bench.sfn.create_state_machine(MACHINE, {"StartAt": "B", "States": {"B": CAUGHT}})
    with pytest.raises(InvalidArn):
        bench.sfn.create_state_machine("m", {"StartAt": "B", "States": {"B": CAUGHT}})
    bench.sfn.create_state_machine(MACHINE, {"StartAt": "A", "States": {"A": CAUGHT}})


def test_stop_execution():
    bench = Bench({"A": token_task()}, TaskOk(None)).start()
    bench.clock.advance(3)
    assert bench.sfn.stop_execution(EXECUTION, "Stopped", "by the user") == START + timedelta(seconds=3)
    bench.clock.advance(9)
    assert bench.sfn.stop_execution(EXECUTION) == START + timedelta(seconds=3)
    assert (bench.answer["status"], bench.answer["error"], bench.answer["cause"]) == (
        "ABORTED",
        "Stopped",
        "by the user",
    )
    with pytest.raises(TaskTimedOut):
        bench.sfn.send_task_success(token_of(bench), "1")
    assert bench.clock.next_due() is None


def test_list_executions_newest_first():
    bench = Bench({"A": task()}, None)
    for name in ("one", "two", "three"):
        bench.sfn.start_execution(MACHINE, name)
        bench.clock.advance(1)
    assert [item["name"] for item in bench.sfn.list_executions(MACHINE)] == ["three", "two", "one"]
    assert [item["name"] for item in bench.sfn.list_executions(MACHINE, "RUNNING")] == ["one"]
    with pytest.raises(ValidationException):
        bench.sfn.list_executions(MACHINE, "DONE")


def test_status_changes_have_the_shape_of_the_event():
    # Developer guide, "Step Functions event examples".
    bench = run({"A": {**CAUGHT, "Result": 5}}, data={"x": 1})
    running, succeeded = bench.changes
    assert running["status"] == "RUNNING"
    assert (running["stopDate"], running["output"], running["outputDetails"]) == (None, None, None)
    assert succeeded == {
        "executionArn": EXECUTION,
        "stateMachineArn": MACHINE,
        "name": "run",
        "status": "SUCCEEDED",
        "startDate": 1767225600000,
        "stopDate": 1767225600000,
        "input": '{"x": 1}',
        "inputDetails": {"included": True},
        "output": "5",
        "outputDetails": {"included": True},
        "stateMachineVersionArn": None,
        "stateMachineAliasArn": None,
        "redriveCount": 0,
        "redriveDate": None,
        "redriveStatus": "NOT_REDRIVABLE",
        "redriveStatusReason": "Execution is SUCCEEDED and cannot be redriven",
        "error": None,
        "cause": None,
    }


def test_history_has_the_events_of_aws():
    states = {"A": token_task(TimeoutSeconds=5, Catch=[{"ErrorEquals": ["States.ALL"], "Next": "L"}]), "L": task()}
    bench = run({**states, "A": {**states["A"]}}, TaskOk(None))
    events = bench.sfn.get_execution_history(EXECUTION)
    assert [event["type"] for event in events] == [
        *(
            "ExecutionStarted",
            "TaskStateEntered",
            "TaskScheduled",
            "TaskStarted",
            "TaskSubmitted",
            "TaskTimedOut",
            "TaskStateExited",
        ),
        *(
            "TaskStateEntered",
            "LambdaFunctionScheduled",
            "LambdaFunctionStarted",
            "LambdaFunctionSucceeded",
            "TaskStateExited",
        ),
        "ExecutionSucceeded",
    ]
    assert [event["previousEventId"] for event in events] == list(range(13))
    assert events[5]["taskTimedOutEventDetails"] == {
        "resourceType": "lambda",
        "resource": "invoke",
        "error": "States.Timeout",
    }
    assert events[6]["stateExitedEventDetails"] == {"name": "A", "output": '{"Error": "States.Timeout"}'}


def test_the_tasks_may_change_their_payload_and_keep_their_result():
    class Careless(Work):
        def invoke(self, resource, payload, on_done, timeout_s):
            payload["list"].append("changed")
            result = {"mine": [1]}
            on_done(TaskOk(result))
            self.clock.call_later(1, lambda: result["mine"].append(2))

    bench = Bench({"A": task(ResultPath="$.r", Next="W"), "W": {"Type": "Wait", "Seconds": 5, "End": True}})
    bench.work.__class__ = Careless
    bench.run({"list": []})
    assert bench.output == {"list": [], "r": {"mine": [1]}}


def test_a_result_that_is_not_json_fails_the_execution():
    for value in ({1, 2}, float("nan"), object()):
        assert run({"A": task()}, TaskOk(value)).answer["error"] == "States.Runtime"


def test_an_exception_of_the_tasks_reaches_the_clock():
    class Broken(Work):
        def invoke(self, resource, payload, on_done, timeout_s):
            raise ZeroDivisionError

    bench = Bench({"A": task()})
    bench.work.__class__ = Broken
    bench.start()
    with pytest.raises(ZeroDivisionError):
        bench.clock.run_until_idle()


def test_lambda_results_are_wrapped_as_the_optimized_integration_does():
    # Developer guide, "Invoke an AWS Lambda function with Step Functions".
    wrapped = wrap_lambda_result({"a": 1})
    assert (wrapped["Payload"], wrapped["StatusCode"], wrapped["ExecutedVersion"]) == ({"a": 1}, 200, "$LATEST")
    assert wrapped["SdkHttpMetadata"]["HttpStatusCode"] == 200
