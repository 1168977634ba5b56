"""Every time limit follows from template.yaml: the numbers in the definition are those that deploy/limits.py makes."""

from __future__ import annotations

import json
from copy import deepcopy

import pytest

import check_status
import notify
import settle
from deploy import limits
from spaceport import local_run
from table import jobs, tasks

TEMPLATE = limits.read_template(limits.TEMPLATE)
TEXT = limits.DEFINITION.read_text(encoding="utf-8")
DEFINITION = json.loads(TEXT)
WANTED = limits.limits(TEMPLATE, DEFINITION)
TASKS = {name: state for name, state in DEFINITION["States"].items() if state["Type"] == "Task"}
DAY_S = 86_400


def of_definition(definition):
    states = {"": definition, **definition["States"]}
    return {
        name: {field: state[field] for field in ("TimeoutSeconds", "HeartbeatSeconds") if field in state}
        for name, state in states.items()
        if "TimeoutSeconds" in state
    }


def test_the_definition_has_these_limits():
    assert of_definition(DEFINITION) == WANTED, "run: python -m deploy.limits"
    assert limits.apply(TEXT, WANTED) == TEXT


def raised(path, value):
    """The template with another value at ``path``."""
    template = deepcopy(TEMPLATE)
    *folders, last = path
    place = template
    for folder in folders:
        place = place[folder]
    assert place.get(last) != value
    place[last] = value
    return template


SOURCES = {
    "SfM may run longer": (("Parameters", "SfmMaxRuntimeSeconds", "MaxValue"), 500_000, {"SfM", ""}),
    "training may run longer": (("Parameters", "TrainMaxRuntimeSeconds", "MaxValue"), 500_000, {"Train", ""}),
    "compression may run longer": (("Parameters", "CompressMaxRuntimeSeconds", "MaxValue"), 500_000, {"Compress", ""}),
    "training may wait longer": (("Parameters", "SpotWaitSeconds", "MaxValue"), 500_000, {"Train", ""}),
    "less of everything": (("Parameters", "TrainMaxRuntimeSeconds", "MaxValue"), 86_400, {"Train", ""}),
    "all functions": (("Globals", "Function", "Timeout"), 600, {"Settle"}),
    "the longest functions": (
        ("Resources", "NotifyFunction", "Properties", "Timeout"),
        850,
        {"Notify", "NotifyFailure"},
    ),
    "validation": (("Resources", "ValidateFunction", "Properties", "Timeout"), 300, {"Validate"}),
    "sweeps": (
        ("Resources", "CheckStatusFunction", "Properties", "Events", "Sweep", "Properties", "Schedule"),
        "rate(10 minutes)",
        {"SfM", "Train", "Compress"},
    ),
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_change_of_the_source_changes_what_follows_from_it_and_nothing_else(name):
    path, value, expected = SOURCES[name]
    template = raised(path, value)
    changed = limits.limits(template, DEFINITION)
    different = {state for state in WANTED if changed[state] != WANTED[state]}
    # The machine's limit is in whole days, so that a minute more of a function need not show in it.
    assert expected <= different <= expected | {""}
    definition = json.loads(limits.apply(TEXT, changed))
    assert of_definition(definition) == changed
    assert_consistent(template, definition)


def test_more_tries_make_the_machine_wait_longer():
    definition = deepcopy(DEFINITION)
    definition["States"]["Train"]["Retry"][0]["MaxAttempts"] += 1
    more = limits.limits(TEMPLATE, definition)[""]["TimeoutSeconds"] - WANTED[""]["TimeoutSeconds"]
    assert abs(more - WANTED["Train"]["TimeoutSeconds"]) <= DAY_S


def test_the_limits_are_consistent():
    assert_consistent(TEMPLATE, DEFINITION)


def assert_consistent(template, definition):
    """What must hold between the limits, said without the formulas that made them."""
    states, parameters, resources = definition["States"], template["Parameters"], template["Resources"]
    all_tries_s = 0
    for state, stage in (("SfM", "Sfm"), ("Train", "Train"), ("Compress", "Compress")):
        job_s = parameters[f"{stage}MaxRuntimeSeconds"]["MaxValue"]
        job_s += parameters["SpotWaitSeconds"]["MaxValue"] if stage == "Train" else 0
        assert states[state]["TimeoutSeconds"] >= job_s + 3600, f"{state} gives up before SageMaker does"
        assert states[state]["TimeoutSeconds"] > states[state]["HeartbeatSeconds"]
        assert states[state]["HeartbeatSeconds"] >= 3 * limits.sweep_period_s(template), "two sweeps may fail"
        (retry,) = [r for r in states[state]["Retry"] if r["ErrorEquals"] == ["Spaceport.Transient"]]
        all_tries_s += states[state]["TimeoutSeconds"] * (1 + retry["MaxAttempts"])
    upload_s = settle.UPLOAD_LIMIT_S + parameters["QuietPeriodSeconds"]["MaxValue"]
    assert definition["TimeoutSeconds"] > all_tries_s + upload_s
    assert definition["TimeoutSeconds"] < 365 * DAY_S, "the longest that Step Functions lets an execution run"
    for name, state in states.items():
        function = f"{name.removesuffix('Failure')}Function"
        if state["Type"] == "Task" and function in resources:
            own = resources[function]["Properties"].get("Timeout", template["Globals"]["Function"]["Timeout"])
            assert own < state["TimeoutSeconds"] < own + 300, (
                f"{name}: the function ends first, and soon after it the task"
            )


def test_what_the_functions_take_for_granted():
    heartbeat_s = WANTED["SfM"]["HeartbeatSeconds"]
    assert check_status.CREATION_S + 2 * limits.sweep_period_s(TEMPLATE) < heartbeat_s, (
        "a job never made is found first"
    )
    assert limits.function_timeout_s(TEMPLATE, "StartJobFunction") < check_status.CREATION_S
    assert limits.function_timeout_s(TEMPLATE, "NotifyFunction") < notify.CALL_LIMIT_S
    assert limits.function_timeout_s(TEMPLATE, "CheckStatusFunction") < limits.sweep_period_s(TEMPLATE)
    assert max(own["TimeoutSeconds"] for name, own in WANTED.items() if name) < tasks.TASK_DAYS * DAY_S
    assert WANTED[""]["TimeoutSeconds"] < jobs.JOB_DAYS * DAY_S


def test_runs_on_one_machine_have_the_longest_limits():
    for stage in ("Sfm", "Train", "Compress"):
        name = f"{stage}MaxRuntimeSeconds"
        assert int(local_run.PARAMETERS[name]) == TEMPLATE["Parameters"][name]["MaxValue"]


def test_a_task_whose_limit_follows_from_nothing_is_refused():
    definition = deepcopy(DEFINITION)
    definition["States"]["RecordFailure"]["Resource"] = "arn:aws:states:::sqs:sendMessage"
    with pytest.raises(ValueError, match="RecordFailure"):
        limits.limits(TEMPLATE, definition)
