"""No path of a state machine can fail: the lint of the real definitions, and the planted mistakes that it must see."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.state_machine.pathlint.assumptions import MACHINES, Assumptions
from tests.state_machine.pathlint.lint import DEFINITIONS, lint, read_definition
from tests.state_machine.pathlint.mutations import MUTATIONS, Mutation, apply

BROKEN = Path(__file__).parent / "broken"
FILES = sorted(DEFINITIONS.glob("*.asl.json"))


@pytest.fixture(scope="module")
def pipeline():
    return read_definition(DEFINITIONS / "pipeline.asl.json")


def found(findings):
    return {(finding.rule, finding.state, finding.path) for finding in findings}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_definition_is_clean(path):
    name = path.name.removesuffix(".asl.json")
    assert name in MACHINES, f"{path.name} has no entry in pathlint/assumptions.py, MACHINES"
    findings = lint(read_definition(path), MACHINES[name])
    assert not findings, "\n".join(map(str, findings))


def test_there_is_something_to_lint():
    assert DEFINITIONS / "pipeline.asl.json" in FILES
    assert len(MUTATIONS) >= 20
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_each_planted_mistake_is_found(pipeline, mutation: Mutation):
    findings = lint(apply(pipeline, mutation.edit), MACHINES["pipeline"])
    rule, state, *path = mutation.finding.split(" ")
    hits = [item for item in findings if (item.rule, item.state) == (rule, state) and path in ([], [item.path])]
    assert hits, "\n".join(["not found; the findings are:", *map(str, findings)])


def test_execution_that_may_hang(pipeline):
    endless = {key: value for key, value in pipeline.items() if key != "TimeoutSeconds"}
    assert ("timeout", "", "") in found(lint(endless, MACHINES["pipeline"]))


def test_start_at_nowhere(pipeline):
    findings = found(lint({**pipeline, "StartAt": "Start"}, MACHINES["pipeline"]))
    assert ("next", "", "Start") in findings
    assert ("unreachable", "Settle", "Settle") in findings


def test_old_failure_route():
    """The route that could never send its mail, as it was: `$.error.Cause` on a way that writes no `$.error`."""
    definition = json.loads((BROKEN / "old_notify_error.asl.json").read_text())
    given = {"email": "string", "job_id": "string"}
    findings = lint(definition, Assumptions(execution_input=given, answer_bytes={"Train": 4096, "NotifyError": 512}))
    assert found(findings) == {
        ("path", "Trained?", "$.status.TrainingJobStatus"),
        ("path", "NotifyError", "$.error.Cause"),
        ("catch", "NotifyError", "States.ALL"),
        ("failure-route", "Train", "NotifyError"),
    }


def test_fan_out():
    definition = json.loads((BROKEN / "fan_out.asl.json").read_text())
    given = {"scenes": "array"}
    findings = found(lint(definition, Assumptions(execution_input=given, answer_bytes={"One": 64})))
    assert findings >= {
        ("context", "Each", "$$.Map.Item.Value.name"),
        ("timeout", "One", ""),
        ("context", "One", "$$.Map.Item.Value"),
        ("next", "After", "Nowhere"),
        ("no-end", "One", "One"),
        ("no-end", "After", "After"),
        ("catch", "One", "States.ALL"),
        ("catch", "Each", "States.ALL"),
        ("catch", "Both", "States.ALL"),
    }


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ("no_heartbeat", "SfM"),
        ("no_catch", "Notify"),
        ("recovers", "Train"),
        ("retries", ("Train", "States.TaskFailed")),
    ],
)
def test_reasoned_exceptions(pipeline, table, key):
    """An exception with a reason silences its finding, and is itself a finding when nothing needs it."""
    mutations = {mutation.name: mutation for mutation in MUTATIONS}
    needing = {
        "no_heartbeat": "callback_without_heartbeat",
        "no_catch": "task_without_catch",
        "recovers": "failure_ends_as_success",
        "retries": "retry_of_what_will_fail_again",
    }[table]
    base = MACHINES["pipeline"]
    exceptions: Any = {table: {**getattr(base, table), key: "for a reason"}}
    listed = replace(base, **exceptions)
    broken = apply(pipeline, mutations[needing].edit)
    rule, state, *_ = mutations[needing].finding.split(" ")
    assert (rule, state) in {item[:2] for item in found(lint(broken, base))}
    assert (rule, state) not in {item[:2] for item in found(lint(broken, listed))}
    assert ("exception", state) in {item[:2] for item in found(lint(pipeline, listed))}


@pytest.mark.parametrize(
    "definition",
    [{}, {"StartAt": "A", "States": {}}, {"StartAt": "A", "States": {"A": {}}}, {"StartAt": "A", "States": {"A": 5}}],
)
def test_what_is_no_definition(definition):
    assert {finding.rule for finding in lint(definition)} & {"definition", "next"}
