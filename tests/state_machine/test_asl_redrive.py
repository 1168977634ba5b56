"""RedriveExecution: in the interpreter, and for jobs of the pipeline (developer guide, "Restarting … with redrive")."""

from __future__ import annotations

import json

import pytest

from spaceport.asl.journal import MemoryJournal
from spaceport.asl.stepfunctions import ExecutionNotRedrivable, StepFunctions, TaskTimedOut
from spaceport.asl.tasks import TaskError, TaskOk
from spaceport.base.clock import VirtualClock
from spaceport.jobs.runner import Exit
from tests.unit.test_engine_in_memory import deploy, executions, upload

MACHINE = "arn:aws:states:us-east-1:123456789012:stateMachine:m"
RESOURCE = "arn:aws:lambda:us-east-1:123456789012:function:f"
CALLBACK = "arn:aws:states:::lambda:invoke.waitForTaskToken"
DAY_S = 86_400


class Bench:
    """A machine whose tasks answer what the test says, one answer after the other; None is no answer."""

    def __init__(self, states, *answers, **fields):
        self.clock, self.answers, self.calls, self.statuses = VirtualClock(), list(answers), [], []
        self.journal = MemoryJournal()
        self.sfn = self.start()
        self.sfn.create_state_machine(MACHINE, {"StartAt": next(iter(states)), "States": states, **fields})
        self.arn = self.sfn.start_execution(MACHINE, "run", '{"x": 1}')
        self.clock.advance(1)

    def start(self):
        return StepFunctions(self.clock, self, lambda arn: self.journal, on_status_change=self.statuses.append)

    def invoke(self, resource, payload, on_done, timeout_s):
        self.calls.append(payload)
        answer = self.answers.pop(0)
        if answer is not None:
            on_done(answer)

    def redrive(self, seconds=1):
        self.sfn.redrive_execution(self.arn)
        self.clock.advance(seconds)

    @property
    def described(self):
        return self.sfn.describe_execution(self.arn)

    @property
    def events(self):
        return [event["type"] for event in self.sfn.get_execution_history(self.arn)]


def task(**fields):
    return {"Type": "Task", "Resource": RESOURCE, "TimeoutSeconds": 60, "End": True, **fields}


FIRST = {"A": {"Type": "Task", "Resource": RESOURCE, "TimeoutSeconds": 60, "ResultPath": "$.a", "Next": "B"}}


def test_what_has_succeeded_is_not_done_again():
    bench = Bench({**FIRST, "B": task(ResultPath="$.b")}, TaskOk(1), TaskError("E", "c"), TaskOk(2))
    assert bench.described["status"] == "FAILED" and bench.described["redriveStatus"] == "REDRIVABLE"
    bench.redrive()
    assert bench.described["status"] == "SUCCEEDED"
    assert json.loads(bench.described["output"]) == {"x": 1, "a": 1, "b": 2}
    assert bench.calls == [{"x": 1}, {"x": 1, "a": 1}, {"x": 1, "a": 1}]
    assert bench.described["redriveCount"] == 1
    assert bench.events.count("ExecutionRedriven") == 1 and bench.events.count("ExecutionFailed") == 1
    assert [d["status"] for d in bench.statuses] == ["RUNNING", "FAILED", "RUNNING", "SUCCEEDED"]
    assert [d["redriveCount"] for d in bench.statuses] == [0, 0, 1, 1]


def test_retries_and_the_time_limit_begin_anew():
    retry = [{"ErrorEquals": ["E"], "IntervalSeconds": 10, "MaxAttempts": 1}]
    parameters = {"n.$": "$$.State.RetryCount", "r.$": "$$.Execution.RedriveCount"}
    bench = Bench({"A": task(Retry=retry, Parameters=parameters)}, *[TaskError("E", None)] * 3, None, TimeoutSeconds=60)
    bench.clock.advance(30)
    assert bench.described["status"] == "FAILED"
    bench.redrive(50)  # 80 s after the start
    assert bench.calls == [{"n": n, "r": r} for r in (0, 1) for n in (0, 1)]
    assert bench.described["status"] == "RUNNING"
    bench.clock.advance(11)
    assert bench.described["status"] == "TIMED_OUT"


def test_an_old_token_stays_closed():
    parameters = {"FunctionName": RESOURCE, "Payload": {"t.$": "$$.Task.Token"}}
    bench = Bench({"A": task(Resource=CALLBACK, Parameters=parameters)}, TaskOk(None), TaskOk(None))
    bench.sfn.stop_execution(bench.arn)
    bench.redrive()
    old, new = (call["Payload"]["t"] for call in bench.calls)
    with pytest.raises(TaskTimedOut):
        bench.sfn.send_task_success(old, "1")
    bench.sfn.send_task_success(new, "2")
    bench.clock.advance(1)
    assert bench.described["output"] == "2"


def test_a_fail_state_fails_again():
    bench = Bench({"A": {"Type": "Fail", "Error": "E"}})
    bench.redrive()
    assert bench.described["status"] == "FAILED" and bench.described["error"] == "E"
    assert bench.events.count("ExecutionFailed") == 2


def test_stopped_between_two_states():
    bench = Bench({**FIRST, "B": task()}, None, TaskOk(2))
    frame = bench.sfn._execution(bench.arn).progress.root
    bench.sfn._execution(bench.arn)._exit(frame, {"y": 1}, "B")
    bench.sfn.stop_execution(bench.arn)
    bench.redrive()
    assert bench.calls[-1] == {"y": 1} and bench.described["output"] == "2"


def test_goes_on_from_the_journal_after_a_redrive():
    bench = Bench({**FIRST, "B": task()}, TaskOk(1), TaskError("E", None), TaskOk(2))
    bench.sfn.redrive_execution(bench.arn)
    journal = MemoryJournal(bench.journal.read())
    bench.answers = [TaskOk(3)]
    bench.clock, bench.journal = VirtualClock(bench.clock.now()), journal
    bench.sfn = bench.start()
    bench.sfn.resume(journal)
    bench.clock.advance(1)
    assert bench.described["output"] == "3" and bench.described["redriveCount"] == 1


def test_what_cannot_be_redriven():
    running = Bench({"A": task()}, None)
    with pytest.raises(ExecutionNotRedrivable, match="RUNNING"):
        running.redrive()
    done = Bench({"A": {"Type": "Succeed"}})
    with pytest.raises(ExecutionNotRedrivable, match="SUCCEEDED"):
        done.redrive()
    assert done.described["redriveStatus"] == "NOT_REDRIVABLE"
    old = Bench({"A": {"Type": "Fail"}})
    old.clock.advance(14 * DAY_S + 1)
    with pytest.raises(ExecutionNotRedrivable, match="14 days"):
        old.redrive()
    branches = [{"StartAt": "X", "States": {"X": {"Type": "Fail"}}}]
    parallel = Bench({"P": {"Type": "Parallel", "Branches": branches, "End": True}})
    with pytest.raises(ExecutionNotRedrivable, match="Parallel"):
        parallel.redrive()


# The pipeline ---------------------------------------------------------------------------------------------------------


def redrive(engine):
    (execution,) = executions(engine)
    engine.client("stepfunctions").redrive_execution(executionArn=execution["executionArn"])


def test_a_cancelled_job_goes_on_at_the_stage_that_was_stopped():
    engine, stages, _ = deploy()
    with engine:
        upload(engine)
        engine.clock.advance(900)
        assert [name.split("-", 2)[2] for name in stages.names] == ["sfm-0", "train-0"]
        engine.client("stepfunctions").stop_execution(executionArn=executions(engine)[0]["executionArn"])
        engine.clock.advance(1200)
        job = f"JOB#{executions(engine)[0]['name']}"
        assert engine.row(job)["status"] == "ABORTED" and len(engine.outbox.messages) == 1
        redrive(engine)
        engine.clock.advance(7200)
        assert executions(engine)[0]["status"] == "SUCCEEDED"
        assert [name.split("-", 2)[2] for name in stages.names] == ["sfm-0", "train-0", "train-1", "compress-0"]
        row = engine.row(job)
        assert row["status"] == "SUCCEEDED" and not {"open", "failure"} & set(row)
        told = [message.get_content() for message in engine.outbox.messages]
        assert len(told) == 2 and row["result_url"] in told[1]


def test_a_failed_job_fails_again_and_goes_on_as_a_new_job_instead():
    """Its execution stands in the Fail state; docs/runbook.md names the other way, which does not repeat SfM."""
    engine, stages, _ = deploy()
    stages.outcomes["train", 0] = Exit(1)
    with engine:
        upload(engine)
        engine.clock.advance(7200)
        assert executions(engine)[0]["status"] == "FAILED"
        started = list(stages.names)
        redrive(engine)
        engine.clock.advance(7200)
        assert executions(engine)[0]["status"] == "FAILED"
        assert stages.names == started and len(engine.outbox.messages) == 1
        stages.outcomes.clear()
        options = {"ready": True, "start_at": "train", "reuse_job": executions(engine)[0]["name"]}
        engine.storage.put_bytes(engine.bucket, "uploads/house/job.json", json.dumps(options).encode())
        engine.clock.advance(7200)
        newest, _ = executions(engine)
        assert newest["status"] == "SUCCEEDED" and len(engine.outbox.messages) == 2
        assert [name.split("-", 2)[2] for name in stages.names[len(started) :]] == ["train-0", "compress-0"]
