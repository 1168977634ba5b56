"""Roles against recorded calls: nothing missing, nothing granted that is never used, docs/iam.md current.

Set SPACEPORT_WRITE_DOCS=1 (`make iam`) to write the page.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from tests.deploy import iam
from tests.deploy.environments import BUILD, ROOT, clean_environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
PAGE = ROOT / "docs" / "iam.md"
NOT_CALLING = ("template", "text")  # tests of functions that call no handler
FAULTS = ("faults_table", "faults_schedules", "uploads_simulated")  # without the planted bugs: they are not our code
SCHEDULES = "100"  # of several faults at once; the table has each fault in each state


@pytest.fixture(scope="module")
def names():
    return iam.resolver()


@pytest.fixture(scope="module")
def granted(names):
    return iam.grants(names)


@pytest.fixture(scope="module")
def needed(names):
    """The function tests and the suite of faults, run once more with every AWS call of the handlers recorded."""
    suites = sorted((ROOT / "tests/unit").glob("test_functions_*.py"))
    suites = [str(file) for file in suites if not file.stem.endswith(NOT_CALLING)]
    suites += [str(ROOT / "tests/state_machine" / f"test_{name}.py") for name in FAULTS]
    calls = BUILD / "calls.json"
    calls.parent.mkdir(parents=True, exist_ok=True)
    calls.unlink(missing_ok=True)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "tests.deploy.iam_recorder",
        *suites,
    ]
    env = clean_environment(
        SPACEPORT_IAM_CALLS=str(calls),
        SPACEPORT_SCHEDULES=SCHEDULES,
        SPACEPORT_FIRST_SEED="0",
        PYTHONPATH=f"{ROOT}:{ROOT / 'functions'}:{ROOT / 'containers'}",
    )
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    found = iam.needs(names, json.loads(calls.read_text()))
    assert {need.function for need in found} == set(iam.FUNCTIONS.values()), "every handler was called"
    return found


def test_every_call_of_a_handler_is_allowed(granted, needed):
    assert iam.missing(granted, needed) == []


def test_nothing_is_granted_that_is_never_used(granted, needed):
    unused = [grant for grant, tests in iam.uses(granted, needed).items() if not tests]
    assert [grant for grant in unused if iam.why_uncalled(grant) is None] == []
    explained = {(grant.function, grant.action) for grant in unused}
    assert set(iam.UNCALLED) <= explained, "an explanation of a grant that tests do use, or that is gone"


def test_a_lost_grant_would_be_noticed(granted, needed):
    """The comparison itself can fail: without any one of the grants that tests use, a call is refused."""
    used = [grant for grant, tests in iam.uses(granted, needed).items() if tests]
    assert len(used) > 40
    for grant in used:
        without = [other for other in granted if other != grant]
        refused = iam.missing(without, needed)
        assert refused, f"{grant} is granted twice: another grant covers all that it is used for"
        assert all(grant.function == need.function and grant.action == need.action for need in refused)


def test_a_call_that_a_condition_forbids_would_be_noticed(granted, needed):
    """A mail from another sender, an event of another source, a role that is lent to another service."""
    bound = [grant for grant in granted if grant.conditions]
    assert {key for grant in bound for key, _ in grant.conditions} == set(iam.CONDITION_KEYS)
    for need in needed:
        for key in need.keys:
            other = replace(need, keys=need.keys - {key} | {(key[0], "another")})
            assert iam.missing(granted, {need}) == []
            assert iam.missing(granted, {other}) == [other]


def test_state_machine_may_do_what_its_states_do_and_nothing_else(names):
    """Its calls are those of the definition; the rest is what AWS demands for logs and traces."""
    definition = json.loads((ROOT / "statemachine/pipeline.asl.json").read_text())
    wanted = set()
    for state in definition["States"].values():
        if state["Type"] != "Task":
            continue
        called = state["Resource"]
        if called == "arn:aws:states:::dynamodb:updateItem":
            wanted.add(("dynamodb:UpdateItem", names.arn("JobTable", "iam")))
            continue
        if called == "arn:aws:states:::lambda:invoke.waitForTaskToken":
            called = state["Parameters"]["FunctionName"]
        wanted.add(("lambda:InvokeFunction", names.arn(called.strip("${}").removesuffix("Arn"), "iam")))
    (policy,) = names.properties("StateMachineRole")["Policies"]
    granted = {
        (action, resource)
        for statement in policy["PolicyDocument"]["Statement"]
        for action in iam.as_list(statement["Action"])
        for resource in iam.as_list(statement["Resource"])
    }
    assert {grant for grant in granted if not grant[0].startswith(("logs:", "xray:"))} == wanted


def test_stages_roles_are_lent_to_sagemaker_alone(names):
    for policy in names.properties("StartJobFunctionRole")["Policies"]:
        for statement in policy["PolicyDocument"]["Statement"]:
            if "iam:PassRole" in iam.as_list(statement["Action"]):
                assert statement["Condition"] == {"StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}}
                return
    pytest.fail("StartJobFunction may not pass a role")


def test_no_resource_is_everything_where_aws_knows_a_narrower_one():
    """Actions on "*": those that IAM's reference lists without a resource type; with the own key on."""
    names = iam.resolver(UseOwnKey="true")
    narrowest = {"ecr:GetAuthorizationToken", "cloudwatch:PutMetricData"}
    logs = ("CreateLogDelivery", "GetLogDelivery", "UpdateLogDelivery", "DeleteLogDelivery", "ListLogDeliveries")
    narrowest |= {f"logs:{a}" for a in (*logs, "PutResourcePolicy", "DescribeResourcePolicies", "DescribeLogGroups")}
    traces = ("PutTraceSegments", "PutTelemetryRecords", "GetSamplingRules", "GetSamplingTargets")
    narrowest |= {f"xray:{a}" for a in traces}
    for logical_id, resource in names.resources.items():
        if resource["Type"] not in ("AWS::IAM::Role", "AWS::IAM::Policy") or not names.is_created(logical_id):
            continue
        properties = names.properties(logical_id)
        assert "ManagedPolicyArns" not in properties, (
            f"{logical_id}: what AWS puts into its policies is not ours to know"
        )
        for policy in properties.get("Policies", [properties]):
            for statement in policy["PolicyDocument"]["Statement"]:
                actions = set(iam.as_list(statement["Action"]))
                assert not any("*" in action for action in actions), logical_id
                if "*" in iam.as_list(statement["Resource"]):
                    assert actions <= narrowest, f"{logical_id}: {sorted(actions - narrowest)}"


def test_page_is_current(names, granted, needed):
    written = iam.page(iam.uses(granted, needed), names)
    if os.environ.get("SPACEPORT_WRITE_DOCS") == "1":
        PAGE.write_text(written)
    assert rows(PAGE.read_text()) == rows(written), "run `make iam`"


def rows(text: str) -> set[str]:
    """The table without the names of tests, of which there may be several for one row."""
    return {re.sub(r"`test_\w+::\w+`", "test", line) for line in text.splitlines() if line.startswith("| ")}
