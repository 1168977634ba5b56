"""No path of a state machine can fail: the proof of the real definitions, and of it that it sees planted mistakes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.state_machine.pathproof.assumptions import MACHINES, Assumptions
from tests.state_machine.pathproof.mutations import MUTATIONS, Mutation, apply
from tests.state_machine.pathproof.prove import DEFINITIONS, prove, read_definition
from tests.state_machine.pathproof.shapes import array_of, closed_object, text

BROKEN = Path(__file__).parent / "broken"
FILES = sorted(DEFINITIONS.glob("*.asl.json"))


@pytest.fixture(scope="module")
def pipeline():
    return read_definition(DEFINITIONS / "pipeline.asl.json")


def found(findings):
    return {(finding.rule, finding.state, finding.path) for finding in findings}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_definition_is_proven(path):
    name = path.name.removesuffix(".asl.json")
    assert name in MACHINES, f"{path.name} has no entry in pathproof/assumptions.py, MACHINES"
    findings = prove(read_definition(path), MACHINES[name])
    assert not findings, "\n".join(map(str, findings))


def test_there_is_something_to_prove():
    assert DEFINITIONS / "pipeline.asl.json" in FILES
    assert len(MUTATIONS) >= 20
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_each_planted_mistake_is_found(pipeline, mutation: Mutation):
    before = prove(pipeline, MACHINES["pipeline"])
    findings = prove(apply(pipeline, mutation.edit), MACHINES["pipeline"])
    rule, state, path = mutation.expected
    hits = [item for item in findings if (item.rule, item.state) == (rule, state) and path in (None, item.path)]
    new = [item for item in hits if item not in before]
    assert new, "\n".join(["not found; the findings are:", *map(str, findings)])
    assert all(item.reason for item in new)


def test_execution_that_may_hang(pipeline):
    endless = {key: value for key, value in pipeline.items() if key != "TimeoutSeconds"}
    assert ("timeout", "", "") in found(prove(endless, MACHINES["pipeline"]))


def test_start_at_nowhere(pipeline):
    findings = found(prove({**pipeline, "StartAt": "Start"}, MACHINES["pipeline"]))
    assert ("next", "", "Start") in findings
    assert ("unreachable", "Settle", "Settle") in findings


def test_old_failure_route():
    """The route that could never send its mail, as it was: `$.error.Cause` on a way that writes no `$.error`."""
    definition = json.loads((BROKEN / "old_notify_error.asl.json").read_text())
    given = closed_object({"email": text(254), "job_id": text(67, plain=True)})
    findings = prove(definition, Assumptions(execution_input=given, answer_bytes={"Train": 4096, "NotifyError": 512}))
    assert found(findings) == {
        ("path", "Trained?", "$.status.TrainingJobStatus"),
        ("path", "NotifyError", "$.error.Cause"),
        ("catch", "NotifyError", "States.ALL"),
        ("failure-route", "Train", "NotifyError"),
    }
    cause = next(str(finding) for finding in findings if finding.path == "$.error.Cause")
    assert "'$' has the field 'error' only sometimes" in cause
    assert "on the way Catch of 'Train', Choices[1] of 'Trained?'" in cause


def test_fan_out():
    definition = json.loads((BROKEN / "fan_out.asl.json").read_text())
    scene = closed_object({"id": text(40, plain=True)})
    given = closed_object({"scenes": array_of([scene, scene])})
    findings = found(prove(definition, Assumptions(execution_input=given, answer_bytes={"One": 64})))
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
    expected = mutations[needing].expected
    assert (expected.rule, expected.state) in {item[:2] for item in found(prove(broken, base))}
    assert (expected.rule, expected.state) not in {item[:2] for item in found(prove(broken, listed))}
    assert ("exception", expected.state) in {item[:2] for item in found(prove(pipeline, listed))}


@pytest.mark.parametrize(
    "definition",
    [{}, {"StartAt": "A", "States": {}}, {"StartAt": "A", "States": {"A": {}}}, {"StartAt": "A", "States": {"A": 5}}],
)
def test_what_is_no_definition(definition):
    assert [finding.rule for finding in prove(definition)] == ["definition"]
