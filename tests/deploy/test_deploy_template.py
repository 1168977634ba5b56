"""What can be known about template.yaml without an account: three linters, the states language, what is kept."""

from __future__ import annotations

import fnmatch
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from cfnlint.schema import PROVIDER_SCHEMA_MANAGER

from spaceport.stack.functions import Resolver
from spaceport.stack.template import load_stack, read_template
from tests.deploy import iam
from tests.deploy.environments import ROOT, clean_environment, run
from tests.unit.fn_cloud import load_template

TEMPLATE = ROOT / "template.yaml"
# Losing one of these loses photos, results, the history of jobs or the key that the photos are read with.
KEPT = {"Bucket", "JobTable", "DataKey"}
STATEFUL = ("AWS::S3::Bucket", "AWS::DynamoDB::Table", "AWS::KMS::Key", "AWS::ECR::Repository")


@pytest.mark.timeout(120)
def test_cfn_lint_finds_nothing():
    done = run([Path(sys.executable).with_name("cfn-lint"), "--include-checks", "W", "--", TEMPLATE])
    assert done.stdout.strip() == ""


@pytest.mark.timeout(120)
def test_sam_validates_and_lints(sam):
    done = run([sam, "validate", "--lint", "--template", TEMPLATE])
    assert "is a valid SAM Template" in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_checkov_finds_nothing_unexplained(program):
    checkov = program("checkov", "checkov")
    done = run(
        [checkov, "-f", TEMPLATE, "--framework", "cloudformation", "-o", "json", "--skip-download"],
        env=clean_environment(BC_API_KEY=""),
    )
    report = json.loads(done.stdout)
    assert report["summary"]["failed"] == report["summary"]["parsing_errors"] == 0
    assert report["summary"]["passed"] > 80
    skipped = report["results"]["skipped_checks"]
    for check in skipped:
        reason = check["check_result"]["suppress_comment"]
        assert len(reason) > 40, f"{check['resource']}: {check['check_id']} is suppressed without a reason"
    assert len({check["check_id"] for check in skipped}) <= 12


@pytest.mark.timeout(120)
def test_state_machine_is_valid_amazon_states_language(tmp_path):
    """cfn-lint knows the language's schema, but not inside of AWS::Serverless::StateMachine's DefinitionUri."""
    definition = json.loads((ROOT / "statemachine/pipeline.asl.json").read_text())
    done = lint_definition(tmp_path, definition)
    assert done == ""
    del definition["States"]["SfM"]["Next"]
    definition["States"]["Train"]["Type"] = "Tusk"
    found = lint_definition(tmp_path, definition)
    assert "E3601" in found, "the check sees what is wrong"


def lint_definition(folder: Path, definition: dict) -> str:
    import subprocess

    substitutions = load_template()["Resources"]["StateMachine"]["Properties"]["DefinitionSubstitutions"]
    arn = "arn:aws:lambda:us-east-1:123456789012:function:f"
    machine = {
        "Type": "AWS::StepFunctions::StateMachine",
        "Properties": {
            "RoleArn": "arn:aws:iam::123456789012:role/machine",
            "Definition": definition,
            "DefinitionSubstitutions": dict.fromkeys(substitutions, arn),
        },
    }
    file = folder / "machine.yaml"
    file.write_text(yaml.safe_dump({"AWSTemplateFormatVersion": "2010-09-09", "Resources": {"Machine": machine}}))
    command = [Path(sys.executable).with_name("cfn-lint"), "--", file]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=clean_environment()).stdout.strip()


def test_what_holds_data_says_what_happens_to_it():
    resources = load_template()["Resources"]
    stateful = {name for name, resource in resources.items() if resource["Type"] in STATEFUL}
    assert stateful >= KEPT
    for name in stateful:
        wanted = ("RetainExceptOnCreate", "Retain") if name in KEPT else ("Delete", "Delete")
        assert (resources[name].get("DeletionPolicy"), resources[name].get("UpdateReplacePolicy")) == wanted, name


def named_in(value: Any) -> set[str]:
    """What a property's value depends on: names after Ref, in Sub, and conditions."""
    if isinstance(value, list):
        return set().union(*map(named_in, value))
    if not isinstance(value, dict):
        return set()
    found = named_in(list(value.values()))
    if "Ref" in value:
        found.add(value["Ref"])
    if "Fn::If" in value:
        found.add(value["Fn::If"][0])
    if isinstance(value.get("Fn::Sub"), str):
        found |= set(re.findall(r"\$\{(\w+)\}", value["Fn::Sub"]))
    return found


def what_replaces(resource: dict[str, Any]) -> set[str]:
    """Names that a resource's properties depend on where another value of them makes another resource."""
    schema = PROVIDER_SCHEMA_MANAGER.get_resource_schema("us-east-1", resource["Type"]).schema
    found = set()
    for pointer in schema.get("createOnlyProperties", []) + schema.get("conditionalCreateOnlyProperties", []):
        value = resource["Properties"]
        for part in pointer.removeprefix("/properties/").split("/"):
            value = value.get(part) if isinstance(value, dict) else None
        found |= named_in(value)
    return found


def test_no_parameter_replaces_what_is_kept():
    """By CloudFormation's own schemas of the resources. A table that was replaced would be an empty one."""
    template = load_template()
    choices = {*template["Parameters"], *template["Conditions"]}
    for name in KEPT:
        assert not what_replaces(template["Resources"][name]) & choices, name
    assert what_replaces(template["Resources"]["SfmRepository"]) == {"JobPrefix"}, "the check sees what would"


def test_kept_resources_have_no_fixed_name():
    """A name that CloudFormation chooses lets a change that must replace them go through, with the old one kept."""
    resources = load_template()["Resources"]
    assert "BucketName" not in resources["Bucket"]["Properties"]
    assert "TableName" not in resources["JobTable"]["Properties"]


def test_name_of_the_pages_access_is_the_stacks_own_in_all_regions():
    """CloudFront keeps these names for the whole account and takes 64 characters; a stack's name may have 128."""
    regions, names = boto3.Session().get_available_regions("s3"), iam.resolver(JobPrefix="p" * 20)

    def name(region: str, uuid: str) -> str:
        names.pseudo |= {"AWS::Region": region, "AWS::StackName": "s" * 128}
        names.pseudo["AWS::StackId"] = f"arn:aws:cloudformation:{region}:{iam.ACCOUNT}:stack/{'s' * 128}/{uuid}"
        return names.properties("ResultPagesAccess")["OriginAccessControlConfig"]["Name"]

    ids = ("1f8e2a10-7d5b-11ef-9d2c-0a1b2c3d4e5f", "5c90d3b4-7d5b-11ef-9d2c-0a1b2c3d4e5f")
    made = [name(region, uuid) for region in regions for uuid in ids]
    assert len(regions) > 20
    assert len(set(made)) == len(made), "two stacks would want the same name"
    assert all(re.fullmatch(r"[A-Za-z0-9-]{1,64}", one) for one in made)


def stars(node: yaml.Node) -> Iterator[int]:
    """Lines, from 0, of each "*" that stands as a statement's resource, alone or in a list."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == "Resource":
                scalars = value.value if isinstance(value, yaml.SequenceNode) else [value]
                yield from (one.start_mark.line for one in scalars if one.value == "*")
            yield from stars(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from stars(item)


@pytest.mark.parametrize(("file", "least"), [("template.yaml", 9), ("deploy/github-role.yaml", 1)])
def test_each_star_says_why(file, least):
    """A resource that is everything has its reason in a comment on its line."""
    text = (ROOT / file).read_text()
    lines, found = text.splitlines(), set(stars(yaml.compose(text, Loader=yaml.SafeLoader)))
    assert len(found) >= least
    for line in found:
        assert re.search(r"'\*'\]? # \S.{15,}", lines[line]), f"{file}:{line + 1}: say beside it why it is everything"


def test_lifecycle_by_prefix():
    rules = {
        r["Id"]: r for r in load_template()["Resources"]["Bucket"]["Properties"]["LifecycleConfiguration"]["Rules"]
    }
    assert rules["work"]["Prefix"] == "work/"
    assert rules["work"]["ExpirationInDays"] == {"Ref": "WorkRetentionDays"}
    assert rules["photos"]["Prefix"] == "uploads/"
    assert rules["photos"]["Transitions"] == [{"StorageClass": "INTELLIGENT_TIERING", "TransitionInDays": 0}]
    for name in ("photos", "results"):
        assert "ExpirationInDays" not in rules[name], f"{name} are never deleted"
        assert rules[name]["NoncurrentVersionExpiration"]["NoncurrentDays"] == {"Ref": "PhotoVersionsDays"}
    assert rules["unfinished-uploads"]["AbortIncompleteMultipartUpload"]["DaysAfterInitiation"] > 0


def test_every_alarm_tells_somebody_and_is_in_the_runbook():
    runbook = (ROOT / "docs/runbook.md").read_text()
    alarms = {n: r for n, r in load_template()["Resources"].items() if r["Type"] == "AWS::CloudWatch::Alarm"}
    assert len(alarms) >= 6
    for name, alarm in alarms.items():
        assert alarm["Properties"]["AlarmActions"] == [{"Ref": "MessageTopic"}], name
        assert f"### {name}" in runbook, f"docs/runbook.md has no section {name}"


# Dimensions of the services' metrics, by their guides.
OF_AWS = {"AWS/States": {"StateMachineArn"}, "AWS/Lambda": {"FunctionName"}, "AWS/SQS": {"QueueName"}}
OF_DIMENSION = {
    "StateMachineArn": "AWS::Serverless::StateMachine",
    "FunctionName": "AWS::Serverless::Function",
    "QueueName": "AWS::SQS::Queue",
}
Metric = tuple[str, str, dict[str, str]]  # namespace, name, dimensions


def emitted() -> dict[str, set[str]]:
    """Dimensions of each metric that a function emits; metrics.add_metric gives it the service alone."""
    code = "\n".join(file.read_text() for file in (ROOT / "functions").rglob("*.py"))
    found = {
        name: {"service"} for call in re.findall(r"add_metric\((.*?),", code) for name in re.findall(r'"(\w+)"', call)
    }
    found |= {name: {"service", more} for more, name in re.findall(r'count_by\("(\w+)", .*?, "(\w+)", M', code)}
    return found


def expanded(metrics: list[list]) -> Iterator[Metric]:
    """A widget's metrics with what "." and "..." repeat from the line above."""
    above: list[str] = []
    for line in metrics:
        words = [word for word in line if not isinstance(word, dict)]
        if not words:
            continue  # an expression
        if words[0] == "...":
            words = above[: len(above) - len(words) + 1] + words[1:]
        words = [above[at] if word == "." else word for at, word in enumerate(words)]
        above = words
        yield words[0], words[1], dict(zip(words[2::2], words[3::2], strict=True))


def dashboard() -> list[dict]:
    body = load_template()["Resources"]["Dashboard"]["Properties"]["DashboardBody"]["Fn::Sub"]
    return json.loads(body)["widgets"]


def metrics_of_alarms() -> list[Metric]:
    found = []
    for resource in load_template()["Resources"].values():
        if resource["Type"] == "AWS::CloudWatch::Alarm":
            alarm = resource["Properties"]
            dimensions = {one["Name"]: one["Value"] for one in alarm["Dimensions"]}
            found.append((alarm["Namespace"], alarm["MetricName"], dimensions))
    return found


def test_metrics_of_alarms_and_dashboard_are_emitted_with_their_dimensions():
    shown = [metric for widget in dashboard() for metric in expanded(widget["properties"]["metrics"])]
    ours = emitted()
    for namespace, name, dimensions in shown + metrics_of_alarms():
        wanted = ours.get(name) if namespace == "Spaceport" else OF_AWS[namespace]
        assert wanted is not None, f"no function emits the metric {name}"
        assert set(dimensions) == wanted, f"{namespace} {name}"
    assert len({name for namespace, name, _ in shown if namespace == "Spaceport"}) >= 8


def test_what_the_dashboard_names_exists():
    """The value of a dimension is a name of this stack's, of the kind that the dimension is of."""
    template = load_template()
    shown = [metric for widget in dashboard() for metric in expanded(widget["properties"]["metrics"])]
    queues = set()
    for _, metric, dimensions in shown:
        for dimension, value in dimensions.items():
            named = re.fullmatch(r"\$\{(\w+)(?:\.QueueName)?\}", value)
            if dimension == "service":
                assert value == "${JobPrefix}", metric
            elif dimension in OF_DIMENSION:
                assert named and template["Resources"][named[1]]["Type"] == OF_DIMENSION[dimension], (metric, value)
                queues |= {named[1]} if dimension == "QueueName" else set()
    dead = {name for name, resource in template["Resources"].items() if resource["Type"] == "AWS::SQS::Queue"}
    assert queues == dead, "every queue of lost events is shown"


def test_searches_of_the_dashboard_name_all_dimensions():
    """A SEARCH with a schema that lacks a dimension of the metric finds nothing and says nothing."""
    ours, searches = emitted(), re.findall(r"SEARCH\('(\{.*?\}) MetricName=\\\"(\w+)", json.dumps(dashboard()))
    searches = [(schema, name.strip("\\")) for schema, name in searches]
    assert searches
    for schema, name in searches:
        assert set(schema.strip("{}").split(",")) == {"Spaceport", *ours[name]}


def test_widgets_do_not_overlap():
    cells = [
        (x, y)
        for widget in dashboard()
        for x in range(widget["x"], widget["x"] + widget["width"])
        for y in range(widget["y"], widget["y"] + widget["height"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_every_condition_can_be_on():
    """All optional parts at once: own key, sender identity, budget, subscription, pages elsewhere, limits."""
    parameters = {
        "UseOwnKey": "true",
        "SenderEmail": "spaceport@example.com",
        "CreateSenderIdentity": "true",
        "MonthlyBudgetUsd": "50",
        "NotificationEmail": "operator@example.com",
        "ResultBaseUrl": "https://pages.example.com",
        "IngestConcurrency": "5",
    }
    stack = load_stack(TEMPLATE, parameters)
    key = stack.function("StartJobFunction").environment["KMS_KEY_ARN"]
    assert key.startswith("arn:aws:kms:us-east-1:")
    assert load_stack(TEMPLATE).function("StartJobFunction").environment["KMS_KEY_ARN"] == ""


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


# What a role needs of the own key for what it does elsewhere, by AWS's guides for S3, SNS and SageMaker.
NEEDS_OF_KEY = {
    "s3:GetObject": {"kms:Decrypt"},
    "s3:PutObject": {"kms:Decrypt", "kms:GenerateDataKey"},  # Decrypt: parts of a multipart upload
    "sns:Publish": {"kms:Decrypt", "kms:GenerateDataKey"},
    "sagemaker:CreateProcessingJob": {"kms:CreateGrant", "kms:DescribeKey"},
}
STAGES = ("SfmRole", "TrainRole", "CompressRole")
STAGES_DISKS = {"kms:CreateGrant", "kms:DescribeKey"}
MORE_OF_KEY = {
    **dict.fromkeys(STAGES, STAGES_DISKS),
    "ImageBuildRole": {"kms:GenerateDataKey"},
}  # CodeBuild's own files


@pytest.fixture(scope="module")
def with_own_key():
    return iam.resolver(UseOwnKey="true")


def test_each_role_may_do_with_the_own_key_what_it_needs_and_no_more(with_own_key):
    granted, needed, key = {}, {}, with_own_key.arn("DataKey", "iam")
    for name, resource in with_own_key.resources.items():
        if resource["Type"] == "AWS::IAM::Policy" and with_own_key.is_created(name):
            documents = [
                (role["Ref"], with_own_key.properties(name)["PolicyDocument"])
                for role in resource["Properties"]["Roles"]
            ]
        elif resource["Type"] == "AWS::IAM::Role":
            documents = [(name, policy["PolicyDocument"]) for policy in with_own_key.properties(name)["Policies"]]
        else:
            continue
        for role, statement in ((role, s) for role, document in documents for s in document["Statement"]):
            for action in iam.as_list(statement["Action"]):
                needed.setdefault(role, set()).update(NEEDS_OF_KEY.get(action, ()))
                if action.startswith("kms:"):
                    assert statement["Resource"] == key, f"{role} may use other keys"
                    granted.setdefault(role, set()).add(action)
                    by_service = "kms:ViaService" in json.dumps(statement.get("Condition", {}))
                    assert by_service or role in MORE_OF_KEY, f"{role} may use the key for anything"
    for role, more in MORE_OF_KEY.items():
        needed[role] |= more
    assert granted == {role: actions for role, actions in needed.items() if actions}


OWN_PAGES, PAGES_ELSEWHERE, LINKS = {}, {"ResultBaseUrl": "https://pages.example.com"}, {"UseCloudFront": "false"}


@pytest.mark.parametrize(
    ("delivery", "made", "address"),
    [
        (OWN_PAGES, True, "https://spaceport-resultpages.cloudfront.invalid"),
        (PAGES_ELSEWHERE, False, "https://pages.example.com"),
        (LINKS, False, ""),
        (PAGES_ELSEWHERE | LINKS, False, "https://pages.example.com"),
    ],
)
def test_results_reach_users_by_one_way(delivery, made, address):
    """Pages of the stack's own, pages elsewhere, or signed links, and nobody may read more than that way needs."""
    names = iam.resolver(**delivery)
    assert names.is_created("ResultPages") is names.is_created("ResultPagesAccess") is made
    readers = [s["Sid"] for s in names.properties("BucketPolicy")["PolicyDocument"]["Statement"]]
    assert ("PagesReadResults" in readers) is made
    stack = load_stack(TEMPLATE, delivery)
    assert stack.function("NotifyFunction").environment["RESULT_BASE_URL"] == address
    assert stack.outputs.get("ResultBaseUrl", "") == address
    signs = [grant for grant in iam.grants(names) if grant.sid == "SignLinks"]
    assert [grant.action for grant in signs] == ([] if address else ["s3:GetObject"])
    assert all(grant.resource.endswith("/results/*/scene.html") for grant in signs)


@pytest.mark.parametrize(
    ("delivery", "services"), [(OWN_PAGES, {"cloudfront"}), (PAGES_ELSEWHERE, set()), (LINKS, set())]
)
def test_key_policy_lets_in_four_services_each_under_a_condition(delivery, services):
    names = iam.resolver(UseOwnKey="true", **delivery)
    root, *others = names.properties("DataKey")["KeyPolicy"]["Statement"]
    assert root["Principal"] == {"AWS": f"arn:aws:iam::{iam.ACCOUNT}:root"}
    by_service = {}
    for statement in others:
        for service in iam.as_list(statement["Principal"]["Service"]):
            by_service[service.partition(".")[0]] = set(iam.as_list(statement["Action"]))
        condition = json.dumps(statement["Condition"])
        assert iam.ACCOUNT in condition, f"{statement['Sid']} lets in other accounts"
    assert set(by_service) == {"logs", "cloudwatch", "budgets"} | services
    assert by_service["cloudwatch"] == {"kms:Decrypt", "kms:GenerateDataKey"}
    assert by_service.get("cloudfront", {"kms:Decrypt"}) == {"kms:Decrypt"}
    (logs,) = [s for s in others if "logs" in json.dumps(s["Principal"])]
    patterns = logs["Condition"]["ArnLike"]["kms:EncryptionContext:aws:logs:arn"]
    groups = {n: r for n, r in names.resources.items() if r["Type"] == "AWS::Logs::LogGroup"}
    assert len(groups) >= 8
    for name in groups:
        arn = names.arn(name, "iam").removesuffix(":*")
        assert any(fnmatch.fnmatchcase(arn, pattern) for pattern in patterns), f"{name} cannot be written"
        assert names.properties(name)["KmsKeyId"] == names.arn("DataKey", "iam")
