"""The pipeline on moto's own interpreter beside ours: happy ways, every Catch, every branch of every Choice.

Both play the same scripted answers, and must take the same states with the same inputs and outputs, call the same tasks
with the same parameters, wait as long before each retry, and end alike. What moto does otherwise is listed, by name, in
second_opinion/differences.py, and exactly that list stands in docs/asl-differences.md.
"""

from __future__ import annotations

import itertools
import json
import os
import re

import pytest

from tests.state_machine.second_opinion.differences import DIFFERENCES, PAGE, as_moto, table
from tests.state_machine.second_opinion.interpreters import moto_interpreter, run_ours
from tests.state_machine.second_opinion.script import (
    BEATS,
    BRANCHES,
    CATCHES,
    DEFINITION,
    HAPPY,
    SILENT,
    STAGES,
    Case,
    failure,
    ok,
    raises,
    refused,
    success,
)

LARGE = ok("x" * 300_000)
THROTTLED = refused("TooManyRequestsException")
TRANSIENT = failure("Spaceport.Transient", "the machine was taken away")
# How the states that only come after an error are reached.
BEFORE = {
    "RecordFailure": {"Validate": [raises("ValueError")]},
    "NotifyFailure": {"Validate": [raises("ValueError")]},
    "FailUnlessDone": {"Notify": [raises("ValueError")]},
}

WAYS = [
    Case("happy"),
    Case("start-at-train", {"Validate": [ok({"start_at": "train"})]}),
    Case("start-at-compress", {"Validate": [ok({"start_at": "compress"})]}),
    Case("upload-goes-on", {"Settle": [ok({"complete": False, "wait_s": 3}), *HAPPY["Settle"]]}),
    Case("wait-is-a-fraction", {"Settle": [ok({"complete": False, "wait_s": 2.5}), *HAPPY["Settle"]]}),
    *[
        Case(f"settle-answers-{number}", {"Settle": [ok(value)]})
        for number, value in enumerate([None, "x", [], {"complete": "true"}, {"wait_s": "3"}, {"wait_s": 86_401}])
    ],
    *[Case(f"validate-answers-{number}", {"Validate": [ok(value)]}) for number, value in enumerate([None, {}])],
    Case("validate-answers-unknown-stage", {"Validate": [ok({"start_at": "other"})]}),
    Case("a-retry-helps", {"Settle": [raises("Spaceport.Transient"), *HAPPY["Settle"]]}),
    Case("a-job-is-tried-again", {"Train": [TRANSIENT, *HAPPY["Train"]]}, differences=("token-of-a-retry",)),
    Case("nothing-is-left-out", {"SfM": [success({"deep": {"list": [1, 2.5, None, "ü"]}})]}),
    Case("stopped", stopped="Validate", differences=("reason-of-a-stop",)),
    Case("stopped-while-a-job-runs", stopped="SfM", differences=("stop-of-a-waiting-task",)),
    Case("out-of-time", {"SfM": [BEATS]}, limits={"": {"TimeoutSeconds": 3}}),
]


def catch_cases(state, index):
    """How the error of this Catch comes about, by the kind of its task: [(what, answers, limits, differences)]."""
    body, errors = DEFINITION["States"][state], CATCHES[state, index]["ErrorEquals"]
    short = {"TimeoutSeconds": 1}
    if errors == ["DynamoDB.ConditionalCheckFailedException"]:
        return [("condition", [refused("ConditionalCheckFailedException")], {}, ())]
    assert errors == ["States.ALL"], f"say how {errors} come about in {state}"
    if body["Resource"].endswith(":updateItem"):
        return [
            ("refused", [refused("ProvisionedThroughputExceededException")], {}, ()),
            ("silent", [refused("InternalServerError")] * 4 + [SILENT], short, ()),
        ]
    if state not in STAGES.values():
        return [
            ("raises", [raises("ValueError")], {}, ()),
            ("transient", [raises("Spaceport.Transient")], {}, ()),
            ("throttled", [THROTTLED], {}, ("function-refused",)),
            *([("silent", [SILENT], short, ("timeout-cause",))] if state == "Settle" else []),
        ]
    return [
        ("cannot-start", [raises("ValueError")], {}, ()),
        ("fails", [failure("NO_MODEL", '{"code": "NO_MODEL", "reason": "r"}')], {}, ()),
        *([] if state != "SfM" else more_of_a_stage()),
    ]


def more_of_a_stage():
    """What the three stages have in common is played once."""
    both = ("failure-without-cause", "failure-without-error")
    return [
        ("throttled", [THROTTLED], {}, ("token-of-a-retry",)),
        ("heart-stops", [SILENT], {"HeartbeatSeconds": 1}, ("heartbeat-missed",)),
        ("fails-with-text", [failure("NO_MODEL", "text")], {}, ()),
        ("fails-with-nothing", [failure()], {}, both),
        ("fails-again-and-again", [TRANSIENT], {}, ("token-of-a-retry",)),
        ("never-ends", [BEATS], {"HeartbeatSeconds": 1, "TimeoutSeconds": 2}, ("timeout-cause",)),
    ]


CAUGHT = [
    Case(f"{state}-{what}", {**BEFORE.get(state, {}), state: answers}, (state, index), {state: limits}, None, names)
    for state, index in CATCHES
    for what, answers, limits, names in catch_cases(state, index)
]
UNCAUGHT = [
    Case(f"{state}-answers-too-much", {**BEFORE.get(state, {}), state: [LARGE]}, differences=("answer-too-large",))
    for state in ("Settle", "Validate", "Notify", "NotifyFailure")
]
CASES = {case.name: case for case in [*WAYS, *UNCAUGHT, *CAUGHT]}


@pytest.fixture(scope="module")
def moto():
    with moto_interpreter() as interpreter:
        yield interpreter


@pytest.fixture(scope="module")
def taken():
    """Branches of Choice states that our interpreter took, for the test that all were."""
    return set()


@pytest.mark.parametrize("name", CASES)
def test_the_same_on_both(name, moto, taken):
    case = CASES[name]
    ours, theirs = run_ours(case), moto.run(case)
    taken |= set(itertools.pairwise(ours.route))
    assert as_moto(case, case.differences) == theirs
    for left_out in case.differences:
        rest = tuple(name for name in case.differences if name != left_out)
        assert as_moto(case, rest) != theirs, f"{left_out} does not occur here"
    assert (ours == theirs) == (not case.differences)
    if case.catch:
        state, index = case.catch
        assert (state, CATCHES[state, index]["Next"]) in itertools.pairwise(ours.route)
        assert ours.route == theirs.route


def test_every_catch_has_a_case():
    assert {case.catch for case in CAUGHT} == set(CATCHES)
    assert len(CATCHES) >= 10
    assert len(CASES) == len(WAYS) + len(UNCAUGHT) + len(CAUGHT), "two cases have the same name"


def test_every_branch_of_a_choice_has_a_case(taken):
    for case in WAYS:  # again where the cases above ran in another process
        taken |= set(itertools.pairwise(run_ours(case).route))
    assert taken >= BRANCHES


def test_every_listed_difference_occurs():
    assert {name for case in CASES.values() for name in case.differences} == set(DIFFERENCES)


def test_the_page_lists_the_differences():
    start, end = "<!-- pipeline on moto -->\n", "<!-- end -->"
    text = PAGE.read_text(encoding="utf-8")
    current = re.sub(f"({start}).*?({end})", lambda m: m[1] + table() + m[2], text, flags=re.DOTALL)
    assert table() in current, f"{PAGE.name} has no place between {start.strip()} and {end}"
    if os.environ.get("SPACEPORT_UPDATE_DOCS"):
        PAGE.write_text(current, encoding="utf-8")
        return
    assert current == text, "run: SPACEPORT_UPDATE_DOCS=1 pytest tests/state_machine/test_second_opinion.py"


def test_the_script_is_the_definition():
    assert set(HAPPY) == {name for name, state in DEFINITION["States"].items() if state["Type"] == "Task"}
    assert not re.search(r"\$\{", json.dumps(DEFINITION))
