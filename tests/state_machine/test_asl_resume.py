"""An execution that is cut off after any record of its journal ends as the uninterrupted one does."""

from __future__ import annotations

import itertools
import json
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spaceport.asl.journal import FileJournal, JournalError, MemoryJournal
from spaceport.asl.stepfunctions import ExecutionAlreadyExists, StepFunctions, TaskTimedOut
from spaceport.asl.tasks import TaskError, TaskOk
from spaceport.base.clock import VirtualClock

MACHINE = "arn:aws:states:us-east-1:123456789012:stateMachine:m"
LAMBDA = "arn:aws:lambda:us-east-1:123456789012:function:f"
TOKEN = "arn:aws:states:::lambda:invoke.waitForTaskToken"
START = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
ALL = [{"ErrorEquals": ["States.ALL"], "ResultPath": "$.error", "Next": "End"}]
END = {"Type": "Succeed"}
LATER_IDS = itertools.count(1000)  # ids are unique for ever, also across restarts


def work(name, **fields):
    """A Lambda task that the world below knows by ``name``."""
    return {"Type": "Task", "Resource": LAMBDA, "Parameters": call(name), "ResultPath": f"$.{name}", **fields}


def job(name, **fields):
    """A task that a job answers by token."""
    parameters = {**call(name), "token.$": "$$.Task.Token"}
    return {"Type": "Task", "Resource": TOKEN, "Parameters": parameters, "ResultPath": f"$.{name}", **fields}


def call(name):
    return {"name": name, "attempt.$": "$$.State.RetryCount", "entered.$": "$$.State.EnteredTime"}


class World:
    """What lies outside the engine and survives it: functions that answer after ``seconds``, jobs that answer by token.

    ``script[name]`` is a list of (seconds, error or None), one entry per attempt, the last one for all that follow.
    """

    def __init__(self, script):
        self.script = script
        self.jobs = {}  # token -> (due_at, answer), the job of an attempt is started once
        self.invoked = []

    def attach(self, clock):
        self.clock = clock
        self.sfn: StepFunctions
        for token in self.jobs:
            self._schedule_answer(token)

    def invoke(self, _resource, payload, on_done, timeout_s):
        self.invoked.append(payload)
        attempts = self.script[payload["name"]]
        seconds, error = attempts[min(payload["attempt"], len(attempts) - 1)]
        token = payload.pop("token", None)
        if token is None:
            answer = TaskError(error, "cause") if error else TaskOk(payload)
            self.clock.call_later(seconds, lambda: on_done(answer))
            return
        on_done(TaskOk("ignored"))
        if token not in self.jobs:
            self.jobs[token] = (self.clock.now().timestamp() + seconds, error, payload)
            self._schedule_answer(token)

    def _schedule_answer(self, token):
        due_at, error, payload = self.jobs[token]
        clock = self.clock

        def answer():
            try:
                if error:
                    self.sfn.send_task_failure(token, error, "cause")
                else:
                    self.sfn.send_task_success(token, json.dumps(payload))
            except TaskTimedOut:
                return  # answered before the crash, or the engine gave the job up

        clock.call_later(due_at - clock.now().timestamp(), answer)


def engine(world, clock, journal, changes, numbers):
    world.attach(clock)
    world.sfn = StepFunctions(
        clock,
        world,
        lambda _arn: journal,
        lambda: f"id{next(numbers)}",
        on_status_change=lambda d: changes.append(d["status"]),
    )
    return world.sfn


def uninterrupted(definition, script, data):
    clock, journal = VirtualClock(), MemoryJournal()
    changes: list[str] = []
    world = World(script)
    sfn = engine(world, clock, journal, changes, itertools.count())
    sfn.create_state_machine(MACHINE, definition)
    arn = sfn.start_execution(MACHINE, "run", json.dumps(data))
    clock.run_until_idle()
    return sfn.describe_execution(arn), journal.read(), world, changes


def resumed(records, world_before, script, downtime_s=0.0, renewals=0):
    """Go on from ``records`` in a new process: what was started before is known to the world, nothing else is left."""
    records = json.loads(json.dumps(records))  # what a file would give back
    crash_at = records[-1]["at"]
    clock = VirtualClock(datetime.fromtimestamp(crash_at + downtime_s, UTC))
    journal, world = MemoryJournal(records), World(script)
    changes: list[str] = []
    submitted = set()
    scheduled = {}
    for record in records:
        if record["type"] == "scheduled" and record["token"]:
            scheduled[record["frame"]] = record["token"]
        if record["type"] == "submitted":
            submitted.add(scheduled[record["frame"]])
    world.jobs = {token: entry for token, entry in world_before.jobs.items() if token in submitted}
    sfn = engine(world, clock, journal, changes, LATER_IDS)
    arn = sfn.resume(journal)
    for _ in range(renewals):
        sfn.renew_limits(arn)
    clock.run_until_idle()
    assert not [p for p in world.invoked if p.get("token") in submitted]
    return sfn.describe_execution(arn), journal.read(), world, changes


PIPELINE = {
    "StartAt": "Settle",
    "TimeoutSeconds": 100_000,
    "States": {
        "Settle": work("settle", Retry=[{"ErrorEquals": ["Transient"], "MaxAttempts": 2}], Catch=ALL, Next="Quiet"),
        "Quiet": {"Type": "Wait", "Seconds": 60, "Next": "Ready?"},
        "Ready?": {
            "Type": "Choice",
            "Choices": [{"Variable": "$.settle", "IsPresent": True, "Next": "Train"}],
            "Default": "End",
        },
        "Train": job(
            "train",
            TimeoutSeconds=5000,
            HeartbeatSeconds=4000,
            Retry=[{"ErrorEquals": ["Transient"], "IntervalSeconds": 30, "MaxAttempts": 1}],
            Catch=ALL,
            Next="Publish",
        ),
        "Publish": {"Type": "Pass", "Parameters": {"id.$": "$$.Execution.Name", "train.$": "$.train"}, "Next": "End"},
        "End": END,
    },
}
FAN = {
    "StartAt": "Fan",
    "States": {
        "Fan": {
            "Type": "Parallel",
            "Branches": [
                {
                    "StartAt": "L",
                    "States": {"L": job("left", Next="L2"), "L2": {"Type": "Wait", "Seconds": 7, "End": True}},
                },
                {"StartAt": "R", "States": {"R": work("right", End=True)}},
            ],
            "Retry": [{"ErrorEquals": ["Again"], "IntervalSeconds": 5, "MaxAttempts": 1}],
            "Catch": ALL,
            "ResultPath": "$.fan",
            "Next": "Each",
        },
        "Each": {
            "Type": "Map",
            "ItemsPath": "$.items",
            "MaxConcurrency": 2,
            "ItemSelector": {"item.$": "$$.Map.Item.Value", "i.$": "$$.Map.Item.Index"},
            "ItemProcessor": {
                "StartAt": "M",
                "States": {"M": work("each", Next="N"), "N": {"Type": "Wait", "SecondsPath": "$.item", "End": True}},
            },
            "ResultPath": "$.each",
            "Catch": ALL,
            "Next": "End",
        },
        "End": END,
    },
}
GOOD, AGAIN = [(5, None)], [(3, "Again"), (4, None)]
CASES = {
    "all well": (PIPELINE, {"settle": GOOD, "train": [(900, None)]}, {}),
    "retries": (
        PIPELINE,
        {"settle": [(1, "Transient"), (1, "Transient"), (1, None)], "train": [(9, "Transient"), (9, None)]},
        {},
    ),
    "caught": (PIPELINE, {"settle": GOOD, "train": [(9, "TOO_FEW_PHOTOS")]}, {}),
    "heartbeat missed": (PIPELINE, {"settle": GOOD, "train": [(9999, None)]}, {}),
    "machine timeout": ({**PIPELINE, "TimeoutSeconds": 70}, {"settle": GOOD, "train": [(900, None)]}, {}),
    "parallel and map": (FAN, {"left": [(20, None)], "right": GOOD, "each": GOOD}, {"items": [3, 1, 2]}),
    "parallel again": (FAN, {"left": [(20, None)], "right": AGAIN, "each": GOOD}, {"items": []}),
    "map fails": (FAN, {"left": [(1, None)], "right": [(9, None)], "each": [(2, "Bad")]}, {"items": [1, 1, 1, 1]}),
    "runtime error": (FAN, {"left": [(1, None)], "right": GOOD, "each": GOOD}, {}),
}
# In "parallel again" the attempt numbers are those of the inner state, so that both attempts fail and Catch takes over.


@pytest.mark.parametrize("case", CASES)
def test_cut_off_after_any_record(case):
    definition, script, data = CASES[case]
    expected, records, world, changes = uninterrupted(definition, script, data)
    assert changes[-1] == expected["status"]
    assert len(records) > 5
    for count in range(1, len(records) + 1):
        answer, journal, _, _ = resumed(records[:count], world, script)
        assert answer == expected or same_but_times(answer, expected), (case, count, records[count - 1])
        assert journal[:count] == json.loads(json.dumps(records[:count]))


def same_but_times(answer, expected):
    """A function that was running when the process died runs again from its start, so later times may differ."""
    strip = [{**item, "stopDate": 0, "output": without_times(item.get("output"))} for item in (answer, expected)]
    return strip[0] == strip[1]


def without_times(output):
    return json.loads(output, object_hook=lambda d: {k: v for k, v in d.items() if k != "entered"}) if output else None


@pytest.mark.parametrize(
    ("case", "waits"),
    [
        ("retries", {"retry", "submitted", "Wait"}),
        ("heartbeat missed", {"submitted", "Wait"}),
        ("machine timeout", {"submitted", "Wait"}),
    ],
)
def test_deadlines_are_kept_across_a_crash(case, waits):
    """Waits, retries and limits end when they would have: cut off with a delay that is shorter than what is left."""
    definition, script, data = CASES[case]
    expected, records, world, _ = uninterrupted(definition, script, data)
    checked = set()
    for count in range(1, len(records)):
        last = [record for record in records[:count] if record["type"] != "notified"][-1]
        waiting = last["type"] if last["type"] in ("retry", "submitted") else last.get("kind")
        gap_s = records[count]["at"] - records[count - 1]["at"]
        if waiting not in ("retry", "submitted", "Wait") or gap_s < 1:
            continue
        answer, _, _, _ = resumed(records[:count], world, script, downtime_s=gap_s / 2)
        assert answer == expected, (case, count, last)
        checked.add(waiting)
    assert checked == waits


def test_deadlines_that_passed_meanwhile_fire_at_once():
    script = {"settle": GOOD, "train": [(1_000_000, None)]}
    _, records, world, _ = uninterrupted(PIPELINE, script, {})
    submitted = next(i for i, record in enumerate(records) if record["type"] == "submitted")
    for downtime_s, error in ((4_500, "States.HeartbeatTimeout"), (50_000, "States.HeartbeatTimeout")):
        answer, _, _, _ = resumed(records[: submitted + 1], world, script, downtime_s=downtime_s)
        assert json.loads(answer["output"])["error"]["Error"] == error
        assert answer["stopDate"].timestamp() == records[submitted]["at"] + downtime_s
    answer, _, _, _ = resumed(records[: submitted + 1], world, script, downtime_s=200_000)
    assert answer["status"] == "TIMED_OUT"


def test_renewed_limits_count_from_the_renewal_on():
    """Away for ten days, longer than each limit: the task has its whole time again, the machine as well."""
    script = {"settle": GOOD, "train": [(1_000_000, None)]}
    _, records, world, _ = uninterrupted(PIPELINE, script, {})
    submitted = next(i for i, record in enumerate(records) if record["type"] == "submitted")
    away_s = 864_000
    lasted = {}
    for renewals in (0, 1):
        answer, journal, _, _ = resumed(records[: submitted + 1], world, script, away_s, renewals)
        lasted[renewals] = answer["stopDate"].timestamp() - records[submitted]["at"] - away_s
        assert [record["type"] for record in journal].count("renewed") == renewals
    assert lasted == {0: 0, 1: 4000}  # HeartbeatSeconds
    # Cut off once more, the second engine keeps the limits that the first one renewed.
    renewed = next(i for i, record in enumerate(journal) if record["type"] == "renewed")
    again, _, _, _ = resumed(journal[: renewed + 1], world, script)
    assert again["stopDate"] == answer["stopDate"] and again["status"] == answer["status"]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_cut_off_several_times(data):
    case = data.draw(st.sampled_from(sorted(set(CASES) - {"runtime error"})))
    definition, script, source = CASES[case]
    expected, records, world, _ = uninterrupted(definition, script, source)
    for _ in range(data.draw(st.integers(1, 4))):
        count = data.draw(st.integers(1, len(records)))
        answer, records, world_after, _ = resumed(records[:count], world, script)
        world.jobs.update(world_after.jobs)
        assert same_but_times(answer, expected)


def test_status_changes_are_delivered_at_least_once():
    definition, script, data = CASES["all well"]
    _, records, world, _ = uninterrupted(definition, script, data)
    for count in range(1, len(records) + 1):
        noted = [record["status"] for record in records[:count] if record["type"] == "notified"]
        _, _, _, changes = resumed(records[:count], world, script)
        assert noted + changes == ["RUNNING", "SUCCEEDED"]


def test_a_finished_execution_is_known_and_not_run_again():
    definition, script, data = CASES["all well"]
    expected, records, world, _ = uninterrupted(definition, script, data)
    answer, _, after, changes = resumed(records, world, script)
    assert answer == expected
    assert after.invoked == []
    assert changes == []


def test_the_definition_of_the_start_is_used():
    definition, script, data = CASES["all well"]
    _, records, _, _ = uninterrupted(definition, script, data)
    clock, journal = VirtualClock(), MemoryJournal(records[:3])
    world = World(script)
    sfn = engine(world, clock, journal, [], itertools.count(100))
    sfn.create_state_machine(MACHINE, {"StartAt": "Other", "States": {"Other": {"Type": "Succeed"}}})
    arn = sfn.resume(journal)
    clock.run_until_idle()
    assert json.loads(sfn.describe_execution(arn)["output"])["id"] == "run"
    with pytest.raises(ExecutionAlreadyExists):
        sfn.resume(journal)


def test_journals_that_cannot_be_resumed():
    sfn = StepFunctions(VirtualClock(), World({}))
    for records in ([], [{"type": "entered"}]):
        with pytest.raises(JournalError):
            sfn.resume(MemoryJournal(records))


# ---- the file


def test_file_journal_and_a_torn_last_line(tmp_path):
    path = tmp_path / "deep" / "run.jsonl"
    journal = FileJournal(path)
    assert journal.read() == []
    records: list[dict[str, object]] = [{"type": "a", "text": "é\n"}, {"n": 1.5}]
    for record in records:
        journal.append(record)
    assert FileJournal(path).read() == records
    whole = path.read_bytes()
    for torn in (b"{", b'{"n": 2}', b'{"text": "\xc3'):
        path.write_bytes(whole + torn)
        again = FileJournal(path)
        assert again.read() == records
        again.append({"n": 3})
        again.close()
        assert FileJournal(path).read() == [*records, {"n": 3}]


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "run.jsonl"
    for text in ('{"a": 1}\n{"b": \n{"c": 1}\n', '{"a": 1}\n[1]\n'):
        path.write_text(text)
        with pytest.raises(JournalError, match="line 2"):
            FileJournal(path).read()


def test_resume_from_a_file(tmp_path):
    definition, script, data = CASES["all well"]
    expected, records, _, _ = uninterrupted(definition, script, data)
    journal = FileJournal(tmp_path / "run.jsonl")
    for record in records[:9]:
        journal.append(record)
    clock = VirtualClock(datetime.fromtimestamp(records[8]["at"], UTC))
    after = World(script)
    sfn = engine(after, clock, journal, [], itertools.count(100))
    arn = sfn.resume(journal)
    clock.run_until_idle()
    assert same_but_times(sfn.describe_execution(arn), expected)
    assert FileJournal(journal.path).read()[-2]["type"] == "finished"
