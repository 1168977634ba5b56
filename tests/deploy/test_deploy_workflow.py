"""The workflow that deploys, and its role."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml

from spaceport.stack.functions import Resolver
from spaceport.stack.sam import read_template
from tests.deploy import iam
from tests.deploy.environments import ROOT, run


def test_actions_of_the_workflows_are_pinned_by_commit():
    """A tag can be moved by whoever owns the action. The comment says which version it is."""
    found = []
    for file in (ROOT / ".github/workflows").glob("*.yaml"):
        for line in file.read_text().splitlines():
            used = re.search(r"uses: (\S+)(.*)", line)
            if used and not used[1].startswith("./"):
                found.append(used[1])
                assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", used[1]), f"{file.name}: {used[1]}"
                assert re.fullmatch(r" # v\d+\.\d+\.\d+", used[2]), f"{file.name}: {used[1]} has no version"
    assert len(found) > 8


PUSHED = {
    "github.event_name": "workflow_run",
    "github.ref": "refs/heads/main",
    "github.event.workflow_run.conclusion": "success",
    "github.event.workflow_run.event": "push",
    "github.event.workflow_run.head_branch": "main",
}
BY_HAND = {**dict.fromkeys(PUSHED, ""), "github.event_name": "workflow_dispatch", "github.ref": "refs/heads/main"}


def holds(expression: str, values: dict[str, str]) -> bool:
    """An expression of a workflow made of ==, &&, || and brackets; KeyError for a name that `values` lacks."""
    known = re.sub(
        r"'[^']*'|[a-z_]+(?:\.[a-z_]+)+", lambda m: m[0] if m[0][0] == "'" else repr(values[m[0]]), expression
    )
    return bool(eval(known.replace("&&", " and ").replace("||", " or ").replace("\n", " "), {"__builtins__": {}}))


@pytest.fixture(scope="module")
def deploy_workflow():
    return yaml.safe_load((ROOT / ".github/workflows/deploy.yaml").read_text())


@pytest.mark.parametrize(
    ("run", "deployed"),
    [
        (PUSHED, True),
        (BY_HAND, True),
        (PUSHED | {"github.event.workflow_run.conclusion": "failure"}, False),
        (PUSHED | {"github.event.workflow_run.event": "pull_request"}, False),  # of a fork, whose branch may be main
        (PUSHED | {"github.event.workflow_run.head_branch": "draft"}, False),
        (BY_HAND | {"github.ref": "refs/heads/draft"}, False),
        (BY_HAND | {"github.ref": "refs/tags/main"}, False),
    ],
)
def test_only_what_was_pushed_to_main_is_deployed(deploy_workflow, run, deployed):
    assert set(deploy_workflow[True]) == {"workflow_run", "workflow_dispatch"}, "another event needs a case here"
    assert deploy_workflow[True]["workflow_run"]["branches"] == ["main"]
    assert holds(deploy_workflow["jobs"]["build"]["if"], run) is deployed


def test_nothing_is_deployed_before_it_was_built_and_nothing_untested(deploy_workflow):
    jobs = deploy_workflow["jobs"]
    assert {name: job.get("needs") for name, job in jobs.items()} == {"build": None, "dev": "build", "prod": "dev"}
    assert not any("if" in jobs[name] for name in ("dev", "prod")), "they run only after what they need has succeeded"
    steps = jobs["build"]["steps"]
    (tests,) = [step for step in steps if step.get("run", "").startswith("make ")]
    assert {"lint", "types", "test"} <= set(tests["run"].split())
    assert holds(tests["if"], BY_HAND), "ci may not have seen what is deployed by hand"
    assert not holds(tests["if"], PUSHED), "ci has just run them"
    assert not any(step.get("continue-on-error") for step in steps)
    assert steps.index(tests) < next(i for i, step in enumerate(steps) if "sam build" in step.get("run", ""))


# Prefix of the actions of a service whose resource types are called otherwise.
ACTIONS_OF = {"StepFunctions": "states"}


@pytest.fixture(scope="module")
def workflow_role():
    values = {"Repository": "someone/spaceport", "Environment": "dev", "StackName": "spaceport-dev", "JobPrefix": "dev"}
    template = read_template(ROOT / "deploy/github-role.yaml")
    names = Resolver(template, {"ProviderArn": "", **values}, "github", iam.REGION, iam.ACCOUNT)
    names.physical_name = names.arn = lambda logical_id, *_: f"the {logical_id}"  # nothing is looked up in them
    return names.properties("Role")


@pytest.mark.timeout(120)
def test_role_of_the_workflow_has_a_template_without_findings():
    done = run(
        [Path(sys.executable).with_name("cfn-lint"), "--include-checks", "W", "--", ROOT / "deploy/github-role.yaml"]
    )
    assert done.stdout.strip() == ""


def test_role_of_the_workflow_trusts_one_environment_of_one_repository(workflow_role):
    (statement,) = workflow_role["AssumeRolePolicyDocument"]["Statement"]
    assert statement["Action"] == "sts:AssumeRoleWithWebIdentity"
    assert statement["Condition"] == {
        "StringEquals": {
            "token.actions.githubusercontent.com:aud": "sts.amazonaws.com",
            "token.actions.githubusercontent.com:sub": "repo:someone/spaceport:environment:dev",
        }
    }
    workflow = yaml.safe_load((ROOT / ".github/workflows/deploy-to.yaml").read_text())["jobs"]["deploy"]
    asked_s = [step["with"].get("role-duration-seconds") for step in workflow["steps"] if "with" in step]
    assert [s for s in asked_s if s] == [workflow_role["MaxSessionDuration"]]


def test_role_of_the_workflow_may_make_every_kind_of_resource_and_its_roles_for_nobody_else(workflow_role):
    (policy,) = workflow_role["Policies"]
    statements = policy["PolicyDocument"]["Statement"]
    services = {action.partition(":")[0] for s in statements for action in iam.as_list(s["Action"])}
    kinds = {resource["Type"].split("::")[1] for resource in iam.resolver().resources.values()}
    assert len(kinds) > 12
    assert {ACTIONS_OF.get(kind, kind.lower()) for kind in kinds} <= services
    for statement in statements:
        actions, resources = iam.as_list(statement["Action"]), iam.as_list(statement["Resource"])
        if any(action.startswith("iam:") for action in actions):
            assert resources == [f"arn:aws:iam::{iam.ACCOUNT}:role/spaceport-dev-*"]
            assert not any("*" in action for action in actions)
        if "iam:PassRole" in actions:
            assert statement["Condition"]["StringEquals"]["iam:PassedToService"]
        assert "*" not in resources or not any(action.endswith("*") for action in actions)
