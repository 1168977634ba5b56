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

from spaceport.stack.template import load_stack
from tests.deploy import iam
from tests.deploy.environments import ROOT, clean_environment, run
from tests.unit.cloud import load_template

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
