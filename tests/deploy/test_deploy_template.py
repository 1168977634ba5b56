"""What can be known about template.yaml without an account: three linters, the states language, what is kept."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from spaceport.template import load_stack
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
        wanted = "Retain" if name in KEPT else "Delete"
        policies = (resources[name].get("DeletionPolicy"), resources[name].get("UpdateReplacePolicy"))
        assert policies == (wanted, wanted), name


def test_kept_resources_have_no_fixed_name():
    """A name that CloudFormation chooses lets a change that must replace them go through, with the old one kept."""
    resources = load_template()["Resources"]
    assert "BucketName" not in resources["Bucket"]["Properties"]
    assert "TableName" not in resources["JobTable"]["Properties"]


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


def test_metrics_of_alarms_and_dashboard_are_emitted():
    code = "\n".join(file.read_text() for file in (ROOT / "functions").glob("*.py"))
    resources = load_template()["Resources"]
    names = {
        resource["Properties"]["MetricName"]
        for resource in resources.values()
        if resource["Type"] == "AWS::CloudWatch::Alarm" and resource["Properties"]["Namespace"] == "Spaceport"
    }
    body = json.loads(resources["Dashboard"]["Properties"]["DashboardBody"]["Fn::Sub"])
    for widget in body["widgets"]:
        metrics = widget["properties"]["metrics"]
        namespace = metrics[0][0]
        names |= {m[1] for m in metrics if namespace == "Spaceport" and len(m) > 2 and m[0] in ("Spaceport", ".")}
    assert len(names) >= 8
    for name in names:
        assert f'"{name}"' in code, f"no function emits the metric {name}"


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


def test_whoever_touches_the_bucket_may_use_the_own_key():
    resources = load_template()["Resources"]
    policies = [
        r["Properties"] for r in resources.values() if r.get("Condition") == "HasOwnKey" and "Policy" in r["Type"]
    ]
    allowed = {role["Ref"] for p in policies for role in p["Roles"] if "kms:Decrypt" in json.dumps(p["PolicyDocument"])}
    touching = set()
    for name, resource in resources.items():
        if any(action in json.dumps(resource) for action in ('"s3:GetObject"', '"s3:PutObject"')):
            touching |= {f"{name}Role"} if resource["Type"] == "AWS::Serverless::Function" else {name}
    assert {role for role in touching if role.endswith("Role")} <= allowed
    assert len(allowed) >= 8
