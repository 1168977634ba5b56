"""What the tasks of the pipeline answer in a case, and what an interpreter made of it.

The same script is played to both interpreters: neither functions nor services are behind it, so nothing but the
definition and its interpreter decides what happens.
"""

from __future__ import annotations

import json
import re
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from base.stages import STAGES as PIPELINE

ROOT = Path(__file__).resolve().parents[3]
MACHINE = "arn:aws:states:us-east-1:123456789012:stateMachine:pipeline"
ROLE = "arn:aws:iam::123456789012:role/pipeline"
STAGES = {stage.name: stage.state for stage in PIPELINE}
ENTERED_AT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)")


@dataclass(frozen=True)
class Answer:
    """``ok`` is the answer of a function or service, ``raises`` an exception of a function, ``refused`` an error of the
    service itself; ``success``, ``failure`` and ``beats`` come with the task token after the start call has returned;
    ``silent`` never comes."""

    kind: Literal["ok", "raises", "refused", "silent", "success", "failure", "beats"]
    value: Any = None
    error: str | None = None
    cause: str | None = None


def ok(value: Any = None) -> Answer:
    return Answer("ok", value)


def raises(error: str, message: str = "the reason") -> Answer:
    return Answer(
        "raises", error=error, cause=json.dumps({"errorMessage": message, "errorType": error}, separators=(",", ":"))
    )


def refused(code: str) -> Answer:
    return Answer("refused", error=code, cause="Refused")


def success(value: Any) -> Answer:
    return Answer("success", value)


def failure(error: str | None = None, cause: str | None = None) -> Answer:
    return Answer("failure", error=error, cause=cause)


SILENT = Answer("silent")
BEATS = Answer("beats")  # one heartbeat every 0.4 s, never an answer


STARTED = {"job_name": "j", "created": True}  # StartJob's own answer, which the state does not use


def stage_result(stage: str) -> dict[str, Any]:
    return {"stage": stage, "job_name": f"spaceport-01-{stage}-0", "output_uri": "s3://b/x/", "seconds": 1.5}


HAPPY: dict[str, list[Answer]] = {
    "Settle": [ok({"complete": True, "wait_s": 0})],
    "Validate": [ok({"start_at": "sfm", "photos": 9, "rejected": 0, "estimated_usd": 0.25})],
    **{state: [success(stage_result(stage))] for stage, state in STAGES.items()},
    "Notify": [ok({"status": "SUCCEEDED", "message": "mail"})],
    "FailUnlessDone": [ok({})],
    "RecordFailure": [ok({})],
    "NotifyFailure": [ok({"status": "FAILED", "message": "mail"})],
}


@dataclass(frozen=True)
class Case:
    """``answers``: by state, the last one again and again; what is left out is as in HAPPY.

    ``catch``: the state and the number of its Catch clause that the case is about. ``limits``: fields of states that
    are made short, so that a timeout comes within seconds; with "" as state of the machine. ``stopped``: the execution
    is stopped when this state's task is called. ``differences``: names of what moto does otherwise in this case.
    """

    name: str
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    catch: tuple[str, int] | None = None
    limits: dict[str, dict[str, int]] = field(default_factory=dict)
    stopped: str | None = None
    differences: tuple[str, ...] = ()

    def definition(self) -> dict[str, Any]:
        definition = deepcopy(DEFINITION)
        for state, limits in self.limits.items():
            (definition["States"][state] if state else definition).update(limits)
        return definition

    def answer(self, state: str, number: int) -> Answer:
        answers = self.answers.get(state, HAPPY[state])
        return answers[min(number, len(answers) - 1)]


@dataclass
class Trace:
    """What an interpreter did: ``steps`` (state, input, output or None), ``calls`` of tasks (state, parameters),
    ``waits`` in seconds, of Retry and Wait, and ``end`` (status, output, error, cause)."""

    steps: list[tuple[str, Any, Any]] = field(default_factory=list)
    calls: list[tuple[str, Any]] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    end: dict[str, Any] = field(default_factory=dict)
    tokens: list[str] = field(default_factory=list, compare=False, repr=False)

    @property
    def route(self) -> list[str]:
        return [state for state, _, _ in self.steps]

    def note_call(self, state: str, parameters: Any) -> None:
        """Tokens are numbered in the order in which they come, times are taken out: they differ between any runs."""
        parameters = deepcopy(parameters)
        if state in STAGES.values():
            token = parameters["task_token"]
            if token not in self.tokens:
                self.tokens.append(token)
            parameters["task_token"] = self.tokens.index(token) + 1
        if "ExpressionAttributeValues" in parameters:
            now = parameters["ExpressionAttributeValues"][":now"]
            assert ENTERED_AT.fullmatch(now["S"]), now
            now["S"] = "NOW"
        self.calls.append((state, parameters))


def read_definition() -> dict[str, Any]:
    """The pipeline with names in place of its substitutions."""
    text = (ROOT / "statemachine/pipeline.asl.json").read_text(encoding="utf-8")
    text = re.sub(r"\$\{(\w+)FunctionArn\}", r"arn:aws:lambda:us-east-1:123456789012:function:\1", text)
    return json.loads(text.replace("${JobTableName}", "jobs"))


DEFINITION = read_definition()
CATCHES = {
    (name, index): catch
    for name, state in DEFINITION["States"].items()
    for index, catch in enumerate(state.get("Catch", []))
}
BRANCHES = {
    (name, branch["Next"])
    for name, state in DEFINITION["States"].items()
    if state["Type"] == "Choice"
    for branch in [*state["Choices"], {"Next": state["Default"]}]
}


def state_called(target: str, parameters: Any) -> str:
    """The state whose task calls ``target`` (a function's ARN, or updateItem) with these parameters."""
    if target == "updateItem":
        return "FailUnlessDone" if "ConditionExpression" in parameters else "RecordFailure"
    function = target.rpartition(":")[2]
    if function == "StartJob":
        return STAGES[parameters["stage"]]
    if function == "Notify":
        return {"succeeded": "Notify", "failed": "NotifyFailure"}[parameters["kind"]]
    return function
