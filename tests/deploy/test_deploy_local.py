"""An unchanged `sam deploy` to the local endpoint, a real upload to the result's message, an update, a deletion.

The endpoint enforces IAM: functions and stages act in their roles, so that a permission that is missing fails here.
"""

from __future__ import annotations

import json
import re
from urllib.error import HTTPError

import pytest
import yaml
from botocore.exceptions import ClientError, WaiterError
from samtranslator.yaml_helper import yaml_parse

from tests.deploy import iam
from tests.deploy.stack import NAME
from tests.unit.cloud import load_template

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
STATEFUL = ("Bucket", "JobTable")
SENDER = "spaceport@example.com"


@pytest.fixture(scope="module")
def inbox(stack):
    return stack.listen()


def test_outputs_have_the_command_to_copy(stack):
    outputs = stack.outputs()
    assert "Successfully created/updated stack" in stack.log
    bucket = outputs["BucketName"]
    assert outputs["UploadCommand"].startswith(f"aws s3 cp ./my-house s3://{bucket}/uploads/my-house/ --recursive")
    assert "UploadCommand" in stack.log, "sam deploy prints it"
    assert set(outputs) >= {"DashboardUrl", "ImageRegistry", "ImageBuildProject", "ResultBaseUrl"}


def test_an_upload_becomes_a_result_and_a_message(stack, inbox):
    stack.upload("my-house", title="The house")
    message = stack.message(inbox, "The house")
    assert message["Subject"] == "Your 3D scene The house is ready"
    base = stack.outputs()["ResultBaseUrl"]
    assert stack.ended("my-house") == "SUCCEEDED"
    (job,) = [name for name in stack.executions() if name.startswith("my-house")]
    assert f"{base}/my-house/{job}/index.html" in message["Message"]
    assert "27.5 dB" in message["Message"]
    bucket, s3 = stack.outputs()["BucketName"], stack.client("s3")
    listed = s3.list_objects_v2(Bucket=bucket, Prefix=f"results/my-house/{job}/")["Contents"]
    names = {item["Key"].rpartition("/")[2] for item in listed}
    assert names == {"index.html", "scene.html", "scene.sog", "scene.spz", "scene.ply", "report.json"}
    page = s3.head_object(Bucket=bucket, Key=f"results/my-house/{job}/index.html")
    assert page["ContentType"] == "text/html; charset=utf-8"


def test_stages_are_started_as_the_template_says(stack, inbox):
    sagemaker, resources = stack.client("sagemaker"), stack.resources()
    sfm = sagemaker.describe_processing_job(ProcessingJobName=stack.job("my-house", "sfm"))
    train = sagemaker.describe_training_job(TrainingJobName=stack.job("my-house", "train"))
    for description, role in ((sfm, "SfmRole"), (train, "TrainRole")):
        assert description["RoleArn"].endswith(f"/{resources[role]}")
    assert sfm["NetworkConfig"]["EnableNetworkIsolation"] is train["EnableNetworkIsolation"] is True
    assert sfm["ProcessingResources"]["ClusterConfig"]["InstanceType"] == "ml.c6i.2xlarge"
    assert train["ResourceConfig"]["InstanceType"] == "ml.g4dn.xlarge"
    assert train["EnableManagedSpotTraining"] is True
    assert train["StoppingCondition"]["MaxWaitTimeInSeconds"] > train["StoppingCondition"]["MaxRuntimeInSeconds"]


@pytest.mark.parametrize(("role", "sid"), [("ValidateFunctionRole", "ListUploads"), ("SfmRole", "WriteChannels")])
def test_without_one_permission_the_scene_fails(stack, inbox, role, sid):
    """The negative control: these roles are what lets the other scenes through."""
    scene = f"less-{sid.lower()}"
    before = stack.without(role, sid)
    try:
        stack.upload(scene)
        message = stack.message(inbox, scene)
        assert message["Subject"] == f"Your 3D scene {scene} could not be made"
        assert stack.ended(scene) == "FAILED"
    finally:
        stack.give_back(role, before)


def test_a_job_above_the_limit_is_refused_unpaid_and_the_message_says_so(stack, inbox):
    stack.upload("dear-house", max_cost_usd=0.01)
    message = stack.message(inbox, "dear-house")
    assert message["Subject"] == "Your 3D scene dear-house could not be made"
    assert "job.json allows 0.01 USD" in message["Message"]
    assert stack.ended("dear-house") == "FAILED"
    with pytest.raises(ClientError, match="not found"):
        stack.client("sagemaker").describe_processing_job(ProcessingJobName=stack.job("dear-house", "sfm"))


def test_the_bucket_is_closed_versioned_and_encrypted(stack):
    s3, bucket = stack.client("s3"), stack.outputs()["BucketName"]
    assert s3.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
    (rule,) = s3.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"]
    assert rule["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
    policy = json.loads(s3.get_bucket_policy(Bucket=bucket)["Policy"])
    deny = next(s for s in policy["Statement"] if s["Effect"] == "Deny")
    assert deny["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}


def test_a_first_deployment_that_fails_leaves_nothing_behind(stack):
    """What holds data is kept by every deletion but that of the rollback: the next try would make it once more."""
    template, names = load_template(), iam.resolver()
    cloudformation, name = stack.client("cloudformation"), "spaceport-fails"
    resources = {logical_id: {**template["Resources"][logical_id]} for logical_id in STATEFUL}
    for logical_id, resource in resources.items():
        resource["Properties"] = names.properties(logical_id)
    nobodys = {
        "PolicyName": "nobodys",
        "Roles": ["there-is-no-such-role"],
        "PolicyDocument": {"Statement": [{"Effect": "Allow", "Action": "s3:ListBucket", "Resource": "*"}]},
    }
    resources["Broken"] = {"Type": "AWS::IAM::Policy", "DependsOn": [*STATEFUL], "Properties": nobodys}
    body = json.dumps({"Resources": resources})
    cloudformation.create_stack(StackName=name, TemplateBody=body, Capabilities=["CAPABILITY_IAM"])
    with pytest.raises(WaiterError, match="ROLLBACK_COMPLETE"):
        cloudformation.get_waiter("stack_create_complete").wait(StackName=name, WaiterConfig={"Delay": 1})
    events = cloudformation.describe_stack_events(StackName=name)["StackEvents"]
    statuses = {(event["LogicalResourceId"], event["ResourceStatus"]) for event in events}
    for logical_id in STATEFUL:
        assert {(logical_id, "CREATE_COMPLETE"), (logical_id, "DELETE_COMPLETE")} <= statuses
    made = {event["PhysicalResourceId"] for event in events if event["LogicalResourceId"] in STATEFUL}
    assert not made & {bucket["Name"] for bucket in stack.client("s3").list_buckets()["Buckets"]}
    assert not made & set(stack.client("dynamodb").list_tables()["TableNames"])


def test_a_changed_template_updates_and_replaces_nothing_that_holds_data(stack, inbox):
    """A second `sam deploy`: other limits, a key of its own, a sender of mails; bucket and table changed in place."""
    before = stack.resources()
    changed = json.loads(json.dumps(yaml_parse(stack.template.read_text()), default=str))
    resources = changed["Resources"]
    resources["SettleFunction"]["Properties"]["MemorySize"] = 640
    rule = {"AllowedMethods": ["GET"], "AllowedOrigins": ["https://pages.example.com"]}
    resources["Bucket"]["Properties"]["CorsConfiguration"] = {"CorsRules": [rule]}
    resources["JobTable"]["Properties"]["PointInTimeRecoverySpecification"]["PointInTimeRecoveryEnabled"] = False
    file = stack.template.with_name("changed.yaml")
    file.write_text(yaml.safe_dump(changed, sort_keys=False))
    others = {"MaxPhotos": "1000", "WorkRetentionDays": "14", "UseCloudFront": "false"}
    log = stack.deploy(file, UseOwnKey="true", SenderEmail=SENDER, **others)
    assert "UPDATE_COMPLETE" in log
    after = stack.resources()
    for name in STATEFUL:
        assert after[name] == before[name], f"{name} was replaced"
    (allowed,) = stack.client("s3").get_bucket_cors(Bucket=after["Bucket"])["CORSRules"]
    assert allowed["AllowedOrigins"] == rule["AllowedOrigins"], "the bucket was updated"
    backups = stack.client("dynamodb").describe_continuous_backups(TableName=after["JobTable"])
    recovery = backups["ContinuousBackupsDescription"]["PointInTimeRecoveryDescription"]
    assert recovery["PointInTimeRecoveryStatus"] == "DISABLED", "the table was updated"
    cloudformation = stack.client("cloudformation")
    (now,) = cloudformation.describe_stacks(StackName=NAME)["Stacks"]
    assert {"ParameterKey": "WorkRetentionDays", "ParameterValue": "14"} in now["Parameters"]
    deployed = cloudformation.get_template(StackName=NAME, TemplateStage="Processed")["TemplateBody"]
    deployed = yaml_parse(deployed) if isinstance(deployed, str) else deployed
    for name in (*STATEFUL, "DataKey"):
        resource = deployed["Resources"][name]
        policies = (resource["DeletionPolicy"], resource["UpdateReplacePolicy"])
        assert policies == ("RetainExceptOnCreate", "Retain"), f"{name} as it was deployed"
    function = stack.client("lambda").get_function_configuration(FunctionName=after["SettleFunction"])
    assert function["MemorySize"] == 640
    assert function["Environment"]["Variables"]["MAX_PHOTOS"] == "1000"
    assert "ResultPages" not in after
    stack.upload("after-update")
    message = stack.message(inbox, "after-update")
    assert message["Subject"] == "Your 3D scene after-update is ready"
    (link,) = re.findall(r"https://\S+", message["Message"])
    assert stack.opened(link) == b"<!doctype html><title>all in one</title>"
    with pytest.raises(HTTPError, match="403"):
        stack.opened(link.replace("scene.html", "scene.ply"))
    key = stack.client("kms").describe_key(KeyId=after["DataKey"])["KeyMetadata"]["Arn"]
    sfm = stack.client("sagemaker").describe_processing_job(ProcessingJobName=stack.job("after-update", "sfm"))
    assert sfm["ProcessingOutputConfig"]["KmsKeyId"] == key
    assert sfm["ProcessingResources"]["ClusterConfig"]["VolumeKmsKeyId"] == key
    kept = stack.client("s3").list_objects_v2(Bucket=after["Bucket"], Prefix="results/my-house/")
    assert kept["KeyCount"] == 6, "the result from before the update is still there"


def test_a_mail_goes_to_the_address_of_the_job(stack, inbox):
    """SES as the role allows it: raw mails from the one sender. The identity is verified by hand, as in an account."""
    stack.client("sesv2").create_email_identity(EmailIdentity=SENDER)
    stack.upload("by-mail", email="ada@example.org")
    assert stack.ended("by-mail") == "SUCCEEDED"
    (mail,) = stack.mails()
    assert "ada@example.org" in json.dumps(mail)


def test_deletion_keeps_photos_and_rows(stack, inbox):
    before = stack.resources()
    log = stack.run_sam("delete", "--stack-name", NAME, "--no-prompts")
    assert "Deleted successfully" in log
    with pytest.raises(ClientError, match="does not exist"):
        stack.client("cloudformation").describe_stacks(StackName=NAME)
    functions = {f["FunctionName"] for f in stack.client("lambda").list_functions()["Functions"]}
    assert not functions & set(before.values()), "functions are gone"
    photos = stack.client("s3").list_objects_v2(Bucket=before["Bucket"], Prefix="uploads/my-house/")
    assert photos["KeyCount"] == 4, "photos stay until somebody deletes the bucket"
    rows = stack.client("dynamodb").scan(TableName=before["JobTable"], Select="COUNT")
    assert rows["Count"] > 0
