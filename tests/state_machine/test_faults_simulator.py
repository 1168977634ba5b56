"""The simulator's stand-ins answer as moto does: the same runs on both leave the same rows, objects and messages."""

import io

import boto3
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws
from samtranslator.yaml_helper import yaml_parse

from tests.state_machine.simulator import expressions, fakes, invariants
from tests.state_machine.simulator.catalog import CATALOG, plan_of
from tests.state_machine.simulator.code import ROOT, deployed
from tests.state_machine.simulator.plan import Plan
from tests.state_machine.simulator.world import World


class MotoTable:
    """moto's table with the simulator's gate in front, and its rows as the simulator looks at them."""

    def __init__(self, gate, on_update=lambda pk, expression: None):
        declared = yaml_parse((ROOT / "template.yaml").read_text())["Resources"]["JobTable"]["Properties"]
        names = ("BillingMode", "AttributeDefinitions", "KeySchema", "GlobalSecondaryIndexes")
        boto3.client("dynamodb", "us-east-1").create_table(TableName="jobs", **{n: declared[n] for n in names})
        self.table = boto3.resource("dynamodb", "us-east-1").Table("jobs")
        self.gate, self.on_update = gate, on_update

    @property
    def rows(self):
        return {item["pk"]: item for item in self.table.scan(ConsistentRead=True)["Items"]}

    def __getattr__(self, operation):
        def call(**arguments):
            after = self.gate("dynamodb", operation.title().replace("_", ""))
            answer = getattr(self.table, operation)(**arguments)
            if operation == "update_item":
                self.on_update(arguments["Key"]["pk"], arguments["UpdateExpression"])
            after()
            return answer

        return call

    call_typed = fakes.FakeTable.call_typed


class MotoS3:
    """moto's bucket with the simulator's gate in front."""

    def __init__(self, gate, on_created, now):
        self.client = boto3.client("s3", "us-east-1")
        self.gate, self.on_created, self.now = gate, on_created, now
        self.modified = {}

    @property
    def objects(self):
        listed = self.client.list_objects_v2(Bucket=self.bucket).get("Contents", [])
        return {o["Key"]: self.client.get_object(Bucket=self.bucket, Key=o["Key"])["Body"].read() for o in listed}

    def put(self, key, body):
        self.client.put_object(Bucket=self.bucket, Key=key, Body=body)
        self.modified[key] = self.now()
        self.on_created(key)

    def put_object(self, Bucket, Key, Body, ContentType):
        after = self.gate("s3", "PutObject")
        self.put(Key, Body)
        after()

    def copy(self, source, bucket, key, ExtraArgs):
        after = self.gate("s3", "CopyObject")
        self.client.copy(source, bucket, key, ExtraArgs=ExtraArgs)
        self.on_created(key)
        after()

    def get_paginator(self, name):
        self.gate("s3", "ListObjectsV2")()
        return self.client.get_paginator(name)

    def __getattr__(self, operation):
        def call(**arguments):
            after = self.gate("s3", operation.title().replace("_", ""))
            answer = getattr(self.client, operation)(**arguments)
            after()
            return answer

        return call


def run_on_moto(plan, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with mock_aws():
        code = deployed()
        world = World(code, plan)
        world.table = MotoTable(world.gate, world._row_changed)
        world.s3 = MotoS3(world.gate, world._object_created, world.now)
        world.s3.bucket = code.stack.buckets[0].name
        world.s3.client.create_bucket(Bucket=world.s3.bucket)
        world.run()
        return world.table.rows, world.s3.objects, world.messages.sent, world.log, invariants.check(world)


def without_boundaries(messages):
    """MIME boundaries are drawn anew for each mail."""
    return [(to, subject, [line for line in text.splitlines() if "==" not in line]) for to, subject, text in messages]


PLANS = {
    "happy path": Plan(),
    "no options": Plan(options=None),
    **{
        f"{state}: {kind.name}": plan_of(state, next(iter(kind.parts(state))))
        for state, name in (
            ("SfM", "job Failed with a reason"),
            ("SfM", "execution aborted"),
            ("Train", "create: name in use by a stranger"),
            ("Notify", "Lambda.ServiceException always"),
            ("Notify", "answer never comes"),
            ("NotifyFailure", "cut off after each of its calls"),
            ("Train", "execution aborted, its event lost"),
        )
        for kind in CATALOG
        if kind.name == name
    },
}


@pytest.mark.parametrize("name", PLANS)
def test_same_run_on_moto(name, monkeypatch):
    rows, objects, messages, log, violations = run_on_moto(PLANS[name], monkeypatch)
    world = World(deployed(), PLANS[name]).run()
    assert violations == invariants.check(world) == []
    assert log == world.log
    assert rows == world.table.rows
    assert objects == world.s3.objects
    assert without_boundaries(messages) == without_boundaries(world.messages.sent)


@pytest.mark.parametrize(
    "arguments",
    [
        {"UpdateExpression": "SET a = :x", "ExpressionAttributeValues": {":x": "1", ":unused": "2"}},
        {"UpdateExpression": "SET m.b = :x", "ExpressionAttributeValues": {":x": "1"}},
        {"UpdateExpression": "SET a = :x, a = :x", "ExpressionAttributeValues": {":x": "1"}},
        {"UpdateExpression": "SET a = :missing"},
    ],
)
def test_what_dynamodb_refuses_is_refused(arguments, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with mock_aws():
        moto = MotoTable(lambda service, operation: lambda: None)
        fake = fakes.FakeTable(lambda service, operation: lambda: None, "open-tasks", lambda pk, expression: None)
        for table in (moto, fake):
            with pytest.raises(Exception, match="ValidationException") as caught:
                table.update_item(Key={"pk": "x"}, **arguments)
            assert caught.value.response["Error"]["Code"] == "ValidationException"


@pytest.mark.parametrize(
    ("condition", "row", "holds"),
    [
        ("attribute_not_exists(a) OR a <= :x", {"a": "1"}, True),
        ("attribute_not_exists(a) AND b = :x", {"b": "2"}, True),
        ("NOT contains(a, :x) OR a = :x", {"a": "2"}, True),
        ("a IN (:x, :y)", {"a": "3"}, True),
        ("a <> :x", {}, True),
        ("a < :x", {}, False),
        ("(attribute_exists(a) OR attribute_exists(b)) AND a = :y", {"a": "2"}, False),
    ],
)
def test_conditions(condition, row, holds):
    """As the developer guide defines them ("Condition and filter expressions")."""
    assert expressions.compile_condition(condition)(row, {}, {":x": "2", ":y": "3"}) is holds


def answers_of(s3):
    """What archives.py asks of S3, and what comes of it: bytes, listed objects, codes of errors."""
    bucket = {"Bucket": "bucket"}
    s3.put_object(**bucket, Key="a.zip", Body=io.BytesIO(b"0123456789"))
    (page,) = s3.get_paginator("list_objects_v2").paginate(**bucket, Prefix="a")
    (listed,) = page["Contents"]
    yield listed["Key"], listed["Size"], listed["ETag"]
    yield listed["LastModified"].microsecond, listed["LastModified"].utcoffset()
    for arguments in (
        {"Key": "a.zip", "Range": "bytes=2-4", "IfMatch": listed["ETag"]},
        {"Key": "a.zip", "Range": "bytes=8-99", "IfMatch": listed["ETag"]},
        {"Key": "a.zip", "Range": "bytes=2-4", "IfMatch": '"0"'},
        {"Key": "none.zip", "Range": "bytes=2-4", "IfMatch": listed["ETag"]},
    ):
        try:
            yield s3.get_object(**bucket, **arguments)["Body"].read()
        except ClientError as error:
            yield error.response["Error"]["Code"]
    for source in ("a.zip", "none.zip"):
        try:
            copied = {"CopySource": {**bucket, "Key": source}, "Key": "copy", "TaggingDirective": "REPLACE"}
            s3.copy_object(**bucket, **copied)
            yield s3.get_object(**bucket, Key="copy")["Body"].read()
        except ClientError as error:
            yield error.response["Error"]["Code"]


def test_ranges_conditions_and_copies_are_as_motos(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with mock_aws():
        moto = boto3.client("s3", "us-east-1")
        moto.create_bucket(Bucket="bucket")
        real = list(answers_of(moto))
    fake = fakes.FakeS3(lambda service, operation: lambda: None, lambda key: None, lambda: 1_800_000_000.5)
    assert list(answers_of(fake)) == real
