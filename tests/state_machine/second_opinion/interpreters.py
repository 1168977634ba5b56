"""Plays a case to the two interpreters: spaceport's in virtual time, moto's own with its real parser."""

from __future__ import annotations

import io
import json
import queue
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError
from moto import mock_aws
from moto.stepfunctions.parser.asl.component.common.retry import retrier_decl
from moto.stepfunctions.parser.asl.component.state.exec.state_task import lambda_eval_utils
from moto.stepfunctions.parser.asl.component.state.exec.state_task.service import state_task_service_dynamodb
from moto.stepfunctions.parser.asl.component.state.wait.wait_function.wait_function import WaitFunction
from moto.stepfunctions.parser.models import stepfunctions_parser_backends

from spaceport.asl.journal import MemoryJournal
from spaceport.asl.stepfunctions import ApiError, StepFunctions
from spaceport.asl.tasks import TaskError, TaskOk, TaskResult, wrap_lambda_result
from spaceport.base.clock import VirtualClock
from tests.state_machine.second_opinion.script import (
    DEFINITION,
    MACHINE,
    ROLE,
    STAGES,
    STARTED,
    Answer,
    Case,
    Trace,
    state_called,
)

ANSWER_S = 0.05
BEAT_S = 0.4
CASE_LIMIT_S = 30
SERVICES = {"Lambda": "AWSLambda", "DynamoDB": "AmazonDynamoDBv2"}


def execution_input(name: str) -> dict[str, str]:
    return {"job_id": name, "scene": "house", "bucket": "b"}


def cause_of_refusal(service: str, answer: Answer) -> str:
    """As the states of the optimized integrations report an error of the service they call."""
    details = f"Service: {SERVICES[service]}; Status Code: 400; Error Code: {answer.error}; Request ID: 0; Proxy: null"
    return f"{answer.cause} ({details})"


# spaceport ------------------------------------------------------------------------------------------------------------


class Tasks:
    """The interpreter's Tasks, from the script."""

    def __init__(self, case: Case, clock: VirtualClock, trace: Trace) -> None:
        self.case, self.clock, self.trace = case, clock, trace
        self.counts: Counter[str] = Counter()
        self.step_functions: Any = None
        self.arn = ""

    def invoke(self, resource: str, payload: Any, on_done: Callable[[TaskResult], None], timeout_s: float) -> None:
        target, parameters, service = resource, payload, "Lambda"
        if resource.endswith("lambda:invoke"):
            target, parameters = payload["FunctionName"], payload["Payload"]
        elif resource.endswith("dynamodb:updateItem"):
            target, service = "updateItem", "DynamoDB"
        state = state_called(target, parameters)
        self.trace.note_call(state, parameters)
        answer = self.case.answer(state, self.counts[state])
        self.counts[state] += 1
        if self.case.stopped == state:
            self.clock.call_soon(lambda: self.step_functions.stop_execution(self.arn, "Stopped", "by hand"))
        elif answer.kind == "ok":
            on_done(TaskOk(answer.value))
        elif answer.kind == "raises":
            on_done(TaskError(answer.error or "", answer.cause))
        elif answer.kind == "refused":
            on_done(TaskError(f"{service}.{answer.error}", cause_of_refusal(service, answer)))
        elif state in STAGES.values():
            on_done(TaskOk(wrap_lambda_result(STARTED)))
            self.clock.call_later(ANSWER_S, lambda: self._answer_token(answer, parameters["task_token"]))

    def _answer_token(self, answer: Answer, token: str) -> None:
        if answer.kind == "success":
            self.step_functions.send_task_success(token, json.dumps(answer.value))
        elif answer.kind == "failure":
            self.step_functions.send_task_failure(token, answer.error, answer.cause)
        elif answer.kind == "beats":
            with suppress(ApiError):
                self.step_functions.send_task_heartbeat(token)
                self.clock.call_later(BEAT_S, lambda: self._answer_token(answer, token))


def run_ours(case: Case) -> Trace:
    clock, trace, journal = VirtualClock(), Trace(), MemoryJournal()
    tasks = Tasks(case, clock, trace)
    tasks.step_functions = StepFunctions(clock, tasks, lambda arn: journal)
    tasks.step_functions.create_state_machine(MACHINE, case.definition(), ROLE)
    tasks.arn = tasks.step_functions.start_execution(MACHINE, case.name, json.dumps(execution_input(case.name)))
    clock.run_until_idle()
    trace.steps = steps_of(tasks.step_functions.get_execution_history(tasks.arn))
    trace.end = end_of(tasks.step_functions.describe_execution(tasks.arn))
    entered_at = 0.0
    for record in journal.read():
        if record["type"] == "entered":
            entered_at = record["at"]
        elif record["type"] == "retry":
            trace.waits.append(round(record["due_at"] - record["at"], 3))
        elif record["type"] == "exited" and record["kind"] == "Wait":
            trace.waits.append(round(record["at"] - entered_at, 3))
    return trace


# moto -----------------------------------------------------------------------------------------------------------------


class Scripted:
    """The AWS clients that the tasks of moto's interpreter make, from the script."""

    def __init__(self, case: Case, trace: Trace) -> None:
        self.case, self.trace = case, trace
        self.counts: Counter[str] = Counter()
        self.tokens: queue.Queue[tuple[Answer, str]] = queue.Queue()
        self.stop: Callable[[], Any] = lambda: None

    def invoke(self, FunctionName: str, Payload: bytes) -> dict[str, Any]:
        parameters = json.loads(Payload)
        state = state_called(FunctionName, parameters)
        answer = self._answer(state, parameters)
        if answer.kind == "raises":
            return {"FunctionError": "Unhandled", "Payload": io.BytesIO((answer.cause or "").encode())}
        if state in STAGES.values():
            if self.case.stopped != state:  # the stop has ended the token: an answer would race with it
                self.tokens.put((answer, parameters["task_token"]))
            return {"Payload": io.BytesIO(json.dumps(STARTED).encode())}
        return {"Payload": io.BytesIO(json.dumps(answer.value).encode())}

    def update_item(self, **parameters: Any) -> dict[str, Any]:
        self._answer(state_called("updateItem", parameters), parameters)
        return {"ResponseMetadata": {}}

    def _answer(self, state: str, parameters: Any) -> Answer:
        self.trace.note_call(state, parameters)
        answer = self.case.answer(state, self.counts[state])
        self.counts[state] += 1
        if self.case.stopped == state:
            self.stop()
        elif answer.kind == "refused":
            problem: Any = {"Code": answer.error, "Message": answer.cause}
            raise ClientError({"Error": problem, "ResponseMetadata": {"HTTPStatusCode": 400, "RequestId": "0"}}, state)  # type: ignore[typeddict-item]
        elif answer.kind == "silent" and state not in STAGES.values():
            time.sleep(1.5)  # longer than its limit (Case.limits), and not for ever: moto does not end the thread
        return answer


class MotoInterpreter:
    """moto's Step Functions backend with ``execute_state_machine``; ``scripted`` and ``trace`` belong to a case."""

    def __init__(self) -> None:
        self.backend = stepfunctions_parser_backends["123456789012"]["us-east-1"]
        self.scripted: Any = None
        self.trace = Trace()
        self.definition = json.dumps(DEFINITION)
        self.machine = self.backend.create_state_machine(name="pipeline", definition=self.definition, roleArn=ROLE)

    def run(self, case: Case) -> Trace:
        assert self.machine.arn == MACHINE
        definition = json.dumps(case.definition())
        if definition != self.definition:
            self.backend.update_state_machine(MACHINE, definition)
            self.definition = definition
        trace = self.trace = Trace()
        scripted = self.scripted = Scripted(case, trace)
        execution = self.backend.start_execution(MACHINE, case.name, json.dumps(execution_input(case.name)))
        scripted.stop = lambda: self.backend.stop_execution(execution.exec_arn)
        taken: list[Any] = []
        beats: list[tuple[float, str]] = []
        give_up_at = time.monotonic() + CASE_LIMIT_S
        while execution.status == "RUNNING":
            assert time.monotonic() < give_up_at, f"moto did not finish '{case.name}': {trace}"
            with suppress(queue.Empty):
                answer, token = scripted.tokens.get(timeout=0.01)
                self._answer_token(execution, answer, token, taken, beats)
            while beats and beats[0][0] <= time.monotonic():
                self._beat(beats.pop(0)[1], beats)
        trace.steps = steps_of(execution.to_history_output()["events"])
        trace.end = end_of({**execution.to_describe_output(), "status": execution.status})
        return trace

    def _answer_token(
        self, execution: Any, answer: Answer, token: str, taken: list[Any], beats: list[tuple[float, str]]
    ) -> None:
        """moto hears answers only once it waits for them, which is after the start call has returned."""
        endpoint = execution.exec_worker.env.callback_pool_manager.get(token)
        while endpoint._heartbeat_endpoint is None or endpoint._heartbeat_endpoint in taken:
            if execution.status != "RUNNING":
                return
            time.sleep(0.001)
        taken.append(endpoint._heartbeat_endpoint)
        if answer.kind == "success":
            self.backend.send_task_success(token, json.dumps(answer.value))
        elif answer.kind == "failure":
            self.backend.send_task_failure(token, answer.error, answer.cause)
        elif answer.kind == "beats":
            self._beat(token, beats)

    def _beat(self, token: str, beats: list[tuple[float, str]]) -> None:
        with suppress(Exception):  # the task has ended
            self.backend.send_task_heartbeat(token)
            beats.append((time.monotonic() + BEAT_S, token))


@contextmanager
def moto_interpreter() -> Iterator[MotoInterpreter]:
    """Three things are replaced: the AWS clients of tasks, the sleep of Retry and the wait of Wait, which are noted."""
    with pytest.MonkeyPatch.context() as patch, mock_aws(config={"stepfunctions": {"execute_state_machine": True}}):
        interpreter = MotoInterpreter()

        def note(seconds: float) -> None:
            interpreter.trace.waits.append(float(seconds))

        for module in (lambda_eval_utils, state_task_service_dynamodb):
            patch.setattr(module, "boto_client_for", lambda **_: interpreter.scripted)
        patch.setattr(retrier_decl, "time", SimpleNamespace(sleep=note))
        patch.setattr(WaitFunction, "_wait_interval", lambda self, env, wait_seconds: note(wait_seconds))
        yield interpreter


# both -----------------------------------------------------------------------------------------------------------------


def steps_of(history: list[dict[str, Any]]) -> list[tuple[str, Any, Any]]:
    """(state, input, output) in the order of entering; the output is None where the execution ended before."""
    steps: list[tuple[str, Any, Any]] = []
    for event in history:
        if "stateEnteredEventDetails" in event:
            details = event["stateEnteredEventDetails"]
            steps.append((details["name"], json.loads(details["input"]), None))
        elif "stateExitedEventDetails" in event:
            details = event["stateExitedEventDetails"]
            assert steps[-1][0] == details["name"]
            steps[-1] = (*steps[-1][:2], json.loads(details["output"]))
    return steps


def end_of(answer: dict[str, Any]) -> dict[str, Any]:
    end = {name: answer[name] for name in ("status", "error", "cause") if answer.get(name) is not None}
    if answer["status"] == "SUCCEEDED":
        end["output"] = json.loads(answer["output"])
    return end
