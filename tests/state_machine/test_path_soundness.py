"""What the path proof accepts does not fail: random machines and the pipeline, run with any answers and errors.

The interpreter is the judge. Two things are asked of every run: an accepted machine never ends in an error that a path,
a ResultPath, an intrinsic function or a Choice made; and the input of every state is one that its shape allows.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spaceport.asl.journal import MemoryJournal
from spaceport.asl.stepfunctions import StepFunctions, TaskTimedOut
from spaceport.asl.tasks import TaskError, TaskOk
from spaceport.base.clock import VirtualClock
from tests.state_machine.pathproof.assumptions import MACHINES, Assumptions
from tests.state_machine.pathproof.findings import Finding
from tests.state_machine.pathproof.flow import Analysis
from tests.state_machine.pathproof.mutations import MUTATIONS, apply
from tests.state_machine.pathproof.prove import DEFINITIONS, prove_with_entries, read_definition
from tests.state_machine.pathproof.shapes import contains, of_json

MACHINE = "arn:aws:states:us-east-1:123456789012:stateMachine:m"
LAMBDA = "arn:aws:lambda:us-east-1:123456789012:function:f"
CALLBACK = "arn:aws:states:::lambda:invoke.waitForTaskToken"
NEVER = {
    "States.Runtime",
    "States.ResultPathMatchFailure",
    "States.IntrinsicFailure",
    "States.NoChoiceMatched",
    "States.DataLimitExceeded",
}
# Findings of these rules say that an execution may fail in one of the ways above; the others are about good practice.
ABOUT_FAILURES = {
    "path",
    "context",
    "type",
    "intrinsic",
    "result-path",
    "choice-default",
    "next",
    "heartbeat",
    "size",
    "definition",
}
ANSWER_BYTES = 512
EXAMPLES = int(os.environ.get("SPACEPORT_PROOF_EXAMPLES", "300"))
SAME_EACH_TIME = "SPACEPORT_PROOF_EXAMPLES" not in os.environ  # asked for more, it looks elsewhere each time
MAX_STEPS = 250
GIVEN = {"a": 1, "b": {"a": "x", "b": [1, 2]}, "c": None}

# ---- answers and errors

keys = st.sampled_from("abc")
SCALARS = [None, True, False, 0, 1, 3, -1, 0.5, 1e9, "", "a", "x", "2026-01-01T00:00:00Z", "é\u0001"]
scalars = st.sampled_from(SCALARS)
answers = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=6
).filter(lambda value: len(json.dumps(value)) <= ANSWER_BYTES)
errors = st.builds(
    TaskError, st.sampled_from(["Boom", "Spaceport.Transient", "States.Timeout"]), st.sampled_from([None, "", "text"])
)
results = st.one_of(st.builds(TaskOk, answers), errors)

# ---- machines: well formed, with paths that are often, but not always, safe

PATHS = [
    "$",
    "$.a",
    "$.b",
    "$.b.a",
    "$.b.b",
    "$.b.b[1]",
    "$.r",
    "$.r.a",
    "$.r.b",
    "$.e",
    "$.e.Error",
    "$.e.Cause",
    "$.n",
]
CONTEXT = ["$", "$$.State.RetryCount", "$$.State.EnteredTime", "$$", "States.JsonToString($)"]
SAFE = ["$.a", "$.b", "$$.Execution.Name", "$$.State.Name", "$$.Execution.Input.b.a", "States.UUID()"]
INTRINSICS = [
    "States.Format('{}', $.a)",
    "States.Format('{}-{}', $.e.Error, $$.Execution.Name)",
    "States.MathAdd($.a, 1)",
    "States.MathAdd($.r.a, 0)",
    "States.MathAdd($.n, 1)",
    "States.ArrayLength($.b.b)",
    "States.ArrayGetItem($.b.b, 1)",
    "States.ArrayUnique($.b.b)",
    "States.ArrayPartition($.b.b, 1)",
    "States.Array($.a, $.r)",
    "States.JsonMerge($.b, $.r, false)",
    "States.JsonMerge($.b, $, false)",
    "States.StringSplit($.b.a, ',')",
    "States.Hash($.b.a, 'SHA-256')",
    "States.Base64Encode($.b.a)",
    "States.StringToJson($.e.Cause)",
    "States.ArrayRange(0, $.a, 1)",
]
paths = st.sampled_from(PATHS)
rarely = st.integers(0, 11).map(lambda drawn: drawn == 11)
expressions = st.one_of(st.sampled_from(SAFE), st.sampled_from(SAFE), paths, st.sampled_from(CONTEXT + INTRINSICS))
templates = st.dictionaries(st.sampled_from(["a.$", "b.$", "c.$"]), expressions, max_size=2).map(
    lambda fields: {**fields, "d": {"e": [1]}}
)
result_paths = st.sampled_from(["$.r", "$.r", "$.r", "$.r", "$.r", "$.e", "$.n", "$.b.c", "$.b.b", "$.r.a", "$", None])
guarded = st.sampled_from(["$.r.a", "$.r.b", "$.r", "$.e.Cause", "$.n", "$.e", "$.a", "$.b.b[1]"])


TESTS: list[dict[str, Any]] = [
    {"IsNumeric": True},
    {"IsString": True},
    {"IsNull": False},
    {"IsBoolean": False},
    {"IsTimestamp": True},
    {"NumericLessThan": 5},
    {"NumericGreaterThanEquals": 0},
    {"NumericEquals": 1},
    {"StringEquals": "x"},
    {"BooleanEquals": True},
    {"StringMatches": "*"},
    {"TimestampGreaterThan": "2020-01-01T00:00:00Z"},
    {"NumericEqualsPath": "$.a"},
]


@st.composite
def rules(draw: st.DrawFn, depth: int = 0) -> dict[str, Any]:
    variable = draw(guarded)
    test = draw(st.sampled_from(TESTS))
    present = {"Variable": variable, "IsPresent": True}
    kind = draw(st.sampled_from(["guard", "guard", "guard", "present", "bare", "not", "or"]))
    if kind == "guard":
        return {"And": [present, {"Variable": variable, **test}, *([draw(rules(depth + 1))] if depth < 1 else [])]}
    if kind == "present":
        return present
    if kind == "bare" or depth > 1:
        return {"Variable": variable, **test}
    if kind == "not":
        return {"Not": draw(rules(depth + 1))}
    return {"Or": [{"Not": present}, {"Variable": variable, **test}]}


@st.composite
def states(draw: st.DrawFn, name: str, names: list[str], depth: int = 0) -> dict[str, Any]:
    kinds = ["Task", "Task", "Callback", "Choice", "Choice", "Pass", "Wait"] + (
        ["Map", "Parallel"] if depth == 0 else []
    )
    kind = draw(st.sampled_from(kinds))
    later = names[names.index(name) + 1 :]
    targets = st.one_of(st.just(later[0]), st.sampled_from(later), st.sampled_from(names))
    body: dict[str, Any] = {"Type": kind}
    if kind == "Choice":
        body["Choices"] = [{**draw(rules()), "Next": draw(targets)} for _ in range(draw(st.integers(1, 2)))]
        body["Default"] = draw(targets)
        return body
    body["Next"] = draw(targets)
    if draw(rarely):
        body["InputPath"] = draw(paths)
    if draw(rarely):
        body["OutputPath"] = draw(paths)
    if kind == "Wait":
        field, values = draw(
            st.sampled_from(
                [("Seconds", st.just(1)), ("SecondsPath", paths), ("TimestampPath", st.sampled_from(["$.r.a"]))]
            )
        )
        return {**body, field: draw(values)}
    if draw(st.booleans()) and kind != "Map":
        body["Parameters"] = draw(templates)
    if kind == "Pass":
        return {**body, "ResultPath": draw(result_paths)}
    catch = {
        "ErrorEquals": ["States.ALL"],
        "Next": draw(targets),
        "ResultPath": draw(st.sampled_from(["$.e", "$.e", "$.e", "$.e", "$.e", None, "$.r.a"])),
    }
    body |= {"Catch": [catch], "ResultPath": draw(result_paths)}
    if draw(st.booleans()):
        body["Retry"] = [{"ErrorEquals": ["Spaceport.Transient"], "MaxAttempts": 2}]
    if draw(rarely):
        body["ResultSelector"] = draw(templates)
    if kind in ("Map", "Parallel"):
        inner = [f"{name}{letter}" for letter in "xy"]
        graph = {
            "StartAt": inner[0],
            "States": {
                **{one: draw(states(one, [*inner, f"{name}z"], depth + 1)) for one in inner},
                f"{name}z": {"Type": "Succeed"},
            },
        }
        if kind == "Map":
            body |= {"ItemsPath": draw(st.sampled_from(["$.b.b", "$.b.b", "$.r"])), "ItemProcessor": graph}
            if draw(st.booleans()):
                body["ItemSelector"] = {"a.$": "$$.Map.Item.Value", "b.$": draw(expressions)}
        else:
            body["Branches"] = [graph]
        return body
    body |= {"Type": "Task", "Resource": LAMBDA, "TimeoutSeconds": 60}
    if draw(rarely):
        del body["TimeoutSeconds"]
        body["TimeoutSecondsPath"] = draw(paths)
    if kind == "Callback":
        body |= {"Resource": CALLBACK, "HeartbeatSeconds": 20}
        body["Parameters"] = {**body.get("Parameters", {}), "token.$": "$$.Task.Token"}
    return body


@st.composite
def machines(draw: st.DrawFn) -> dict[str, Any]:
    names = [f"S{at}" for at in range(draw(st.integers(1, 4)))]
    bodies = {name: draw(states(name, [*names, "Done", "Failed"])) for name in names}
    failed = {
        "Type": "Fail",
        **draw(st.sampled_from([{"Error": "Ended"}] * 5 + [{"CausePath": "$.e.Cause"}])),
    }
    return {"StartAt": "S0", "States": {**bodies, "Done": {"Type": "Succeed"}, "Failed": failed}}


def prune(definition: dict[str, Any], findings: list[Finding]) -> dict[str, Any]:
    """Without the states that nothing leads to, which a loader refuses."""
    lost = {finding.state for finding in findings if finding.rule == "unreachable"}
    kept = {name: _prune_inner(body, lost) for name, body in definition["States"].items() if name not in lost}
    return {**definition, "States": kept}


def _prune_inner(body: dict[str, Any], lost: set[str]) -> dict[str, Any]:
    def keep(graph: dict[str, Any]) -> dict[str, Any]:
        return {**graph, "States": {name: inner for name, inner in graph["States"].items() if name not in lost}}

    if "Branches" in body:
        return {**body, "Branches": [keep(graph) for graph in body["Branches"]]}
    return {**body, "ItemProcessor": keep(body["ItemProcessor"])} if "ItemProcessor" in body else body


# ---- running


class Work:
    """Tasks that answer what ``draw`` says; a callback task is answered by its token, or not at all."""

    def __init__(self, clock, draw):
        self.clock, self.draw = clock, draw
        self.sfn: Any = None

    def invoke(self, resource, payload, on_done, timeout_s):
        token = payload.get("token") if isinstance(payload, dict) else None
        token = token or (payload.get("Payload", {}).get("task_token") if isinstance(payload, dict) else None)
        result = self.draw()
        if not resource.startswith("arn:aws:states:::lambda:invoke"):
            self.clock.call_later(1, lambda: on_done(result))
            return
        on_done(TaskOk({}))
        if result != LOST:
            self.clock.call_later(2, lambda: self.answer(token, result))

    def answer(self, token, result):
        with suppress(TaskTimedOut):  # too late: the state around the task has ended
            if isinstance(result, TaskError):
                self.sfn.send_task_failure(token, result.error, result.cause)
            else:
                self.sfn.send_task_success(token, json.dumps(result.output))


LOST = TaskOk(None)  # of a callback task: nobody ever answers, and there is no heartbeat


def run(definition, data, draw, max_steps=MAX_STEPS):
    """How the execution ended (None: it still runs), and every (state, input) that was entered."""
    clock, journal = VirtualClock(), MemoryJournal()
    work = Work(clock, draw)
    work.sfn = StepFunctions(clock, work, journal_factory=lambda _arn: journal, random=lambda: 0.5)
    work.sfn.create_state_machine(MACHINE, definition)
    arn = work.sfn.start_execution(MACHINE, "run", json.dumps(data))
    for _ in range(max_steps):
        if not clock.run_next():
            break
    entered = [(record["state"], record["input"]) for record in journal.read() if record["type"] == "entered"]
    return work.sfn.describe_execution(arn), entered


def check_run(
    findings: list[Finding], analysis: Analysis, ended: dict[str, Any], entered: list[tuple[str, Any]]
) -> bool:
    """Whether the machine is accepted; asserts that the proof is right about this run."""
    for state, data in entered:
        assert contains(analysis.entries[state], data), (state, data, analysis.entries[state])
    accepted = not any(finding.rule in ABOUT_FAILURES for finding in findings)
    if accepted:
        assert ended.get("error") not in NEVER, (ended["error"], ended.get("cause"))
    return accepted


ALL_ANSWERS = {name: ANSWER_BYTES for at in range(4) for name in (f"S{at}", f"S{at}x", f"S{at}y")}
assumed = Assumptions(
    execution_input=of_json(GIVEN), answer_bytes=ALL_ANSWERS, map_items={f"S{at}": 600 for at in range(4)}
)
seen: Counter[str] = Counter()
quiet = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=SAME_EACH_TIME,
    print_blob=True,
    suppress_health_check=quiet,
)
@given(machines(), st.lists(results, min_size=6, max_size=6))
def random_machines(definition, script):
    definition = prune(definition, prove_with_entries(definition, assumed)[0])
    findings, analysis = prove_with_entries(definition, assumed)
    if any(finding.rule == "definition" for finding in findings):
        seen["refused by the loader"] += 1
        return
    remaining = iter(script * MAX_STEPS)
    ended, entered = run(definition, GIVEN, lambda: next(remaining))
    accepted = check_run(findings, analysis, ended, entered)
    seen["accepted" if accepted else "rejected"] += 1
    seen[("accepted " if accepted else "rejected ") + str(ended.get("error") in NEVER)] += 1


def test_random_machines():
    random_machines()
    assert seen["accepted"] >= EXAMPLES // 15, f"too few machines were accepted to say anything: {seen}"
    assert seen["rejected True"] >= EXAMPLES // 15, f"too few of the rejected machines really failed: {seen}"


# ---- the pipeline itself


@pytest.fixture(scope="module")
def pipeline():
    return read_definition(DEFINITIONS / "pipeline.asl.json")


settle_answers = st.sampled_from(
    [{"complete": True}, {"complete": False, "wait_s": 5}, {"complete": "yes"}, {"wait_s": 1e9}, {"wait_s": -1}]
)
start_answers = st.sampled_from([{"start_at": at} for at in ("sfm", "train", "compress", "notify", None)])
pipeline_results = st.one_of(
    st.builds(TaskOk, st.one_of(settle_answers, start_answers, answers)),
    st.builds(
        TaskOk, st.sampled_from([{"complete": True, "start_at": "sfm"}, {"complete": True, "start_at": "train"}])
    ),
    st.builds(
        TaskError,
        st.sampled_from(["TOO_FEW_PHOTOS", "Spaceport.Transient", "States.Timeout", "Lambda.Unknown"]),
        st.sampled_from([None, "", "plain text", '{"code": 1}', "\u0001" * 32_768]),
    ),
)


def test_pipeline_under_any_answers(pipeline):
    """Every run ends in Succeeded or in Failed, and no state gets an input that the proof did not foresee."""
    assumptions = MACHINES["pipeline"]
    findings, analysis = prove_with_entries(pipeline, assumptions)
    ends: Counter[str] = Counter()

    @settings(
        max_examples=EXAMPLES // 2,
        deadline=None,
        database=None,
        derandomize=SAME_EACH_TIME,
        print_blob=True,
        suppress_health_check=quiet,
    )
    @given(st.lists(pipeline_results, min_size=8, max_size=8))
    def any_answers(script):
        remaining = iter(script * MAX_STEPS)
        data = {"job_id": "house-01", "scene": "house", "bucket": "b"}
        ended, entered = run(pipeline, data, lambda: next(remaining), max_steps=2_000)
        check_run([finding for finding in findings if finding.rule != "type"], analysis, ended, entered)
        assert (ended["status"], ended.get("error")) in {
            ("SUCCEEDED", None),
            ("FAILED", "SceneFailed"),
            ("RUNNING", None),
            ("TIMED_OUT", None),
        }
        ends[ended["status"]] += 1

    any_answers()
    assert ends["FAILED"] >= 10
    assert ends["SUCCEEDED"] >= 1


COMPLETE = TaskOk({"complete": True})
FATAL = [
    # mutation, the answers in order, what the execution ends with
    ("notifier_reads_the_cause", [TaskError("Boom", None)], "States.Runtime"),
    (
        "catch_writes_elsewhere",
        [TaskOk({"complete": True}), TaskOk({"start_at": "train"}), TaskError("Boom", "")],
        "States.Runtime",
    ),
    ("default_skips_the_error", [TaskOk({"complete": 5})], "States.Runtime"),
    ("stage_that_was_skipped", [TaskOk({"complete": True}), TaskOk({"start_at": "compress"})], "States.Runtime"),
    ("guard_removed", [TaskOk({"wait_s": 5})], "States.Runtime"),
    ("guard_of_the_bound_removed", [TaskOk({"wait_s": -5})], "States.Runtime"),
    ("fail_state_reads_the_cause", [TaskError("Boom", None)], "States.Runtime"),
    ("choice_without_default", [TaskOk({"complete": True}), TaskOk("?")], "States.NoChoiceMatched"),
    ("result_into_an_answer", [TaskOk({"complete": True}), TaskOk({"start_at": "sfm"}), TaskOk("done")], None),
]


@pytest.mark.parametrize(("name", "script", "error"), FATAL, ids=[name for name, _, _ in FATAL])
def test_planted_mistakes_are_fatal(pipeline, name, script, error):
    """What is planted for the proof really ends the execution past every Catch, or puts it on a wrong way."""
    edit = next(mutation.edit for mutation in MUTATIONS if mutation.name == name)
    data = {"job_id": "house-01", "scene": "house", "bucket": "b"}

    def outcome(definition):
        remaining = iter([*script, *[TaskOk({"complete": True})] * 20])
        ended, entered = run(definition, data, lambda: next(remaining), max_steps=2_000)
        return ended.get("error"), [state for state, _ in entered][-1]

    broken, sound = outcome(apply(pipeline, edit)), outcome(pipeline)
    assert broken != sound
    if error is not None:
        assert broken[0] == error
    assert sound[0] in (None, "SceneFailed")
