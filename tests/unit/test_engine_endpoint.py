"""The local endpoint: what it adds to moto, over HTTP and inside the process, and what it keeps on the disk."""

import email.policy
import io
from pathlib import Path

import boto3
import botocore.exceptions
import pytest

from spaceport.aws.endpoint import (
    IN_PROCESS_URL,
    AwsApplication,
    HttpServer,
    in_process_session,
    use_in_process,
)
from spaceport.aws.mail import Outbox
from spaceport.aws.storage import FileValue, Storage, StorageError
from spaceport.base.clock import VirtualClock
from spaceport.base.errors import ServiceError
from spaceport.stack.template import Topic

BUCKET = "bucket-one"
TOPIC = "arn:aws:sns:us-east-1:123456789012:told"
TABLE = {
    "TableName": "rows",
    "AttributeDefinitions": [{"AttributeName": "pk", "AttributeType": "S"}],
    "KeySchema": [{"AttributeName": "pk", "KeyType": "HASH"}],
    "BillingMode": "PAY_PER_REQUEST",
}


class Echo:
    def call(self, operation, request):
        if operation == "DescribeTrainingJob":
            return {"TrainingJobName": request["TrainingJobName"]}
        if operation == "StopTrainingJob":
            raise ServiceError("ResourceNotFound", "not there")
        raise RuntimeError("a fault")


class Bench:
    def __init__(self, folder, mode):
        self.storage = Storage(folder, "123456789012", "us-east-1")
        self.created, self.faults = [], []
        self.storage.on_created = lambda bucket, key, reason: self.created.append((key, reason))
        topic = Topic("Told", "told", TOPIC, ("a@example.org", "b@example.org"))
        self.outbox = Outbox(folder and folder / "outbox", [topic], VirtualClock(), lambda to, path: None)
        self.application = AwsApplication(self.storage, {"SageMaker": Echo()}, self.outbox)
        self.application.on_fault = self.faults.append
        use_in_process(self.application)
        self.server = HttpServer(self.application) if mode == "http" else None
        self.storage.create_bucket(BUCKET)
        self.client("dynamodb").create_table(**TABLE)

    def client(self, service):
        keys = {"aws_access_key_id": "local", "aws_secret_access_key": "local", "region_name": "us-east-1"}
        if self.server:
            return boto3.Session().client(service, endpoint_url=self.server.url, **keys)
        return in_process_session().client(service, endpoint_url=IN_PROCESS_URL, **keys)

    def close(self):
        if self.server:
            self.server.close()
        use_in_process(None)
        self.storage.close()


@pytest.fixture(params=["http", "in process"])
def bench(request, tmp_path):
    made = Bench(tmp_path, request.param)
    yield made
    made.close()


def test_every_way_to_create_an_object_is_noticed(bench):
    s3 = bench.client("s3")
    s3.put_object(Bucket=BUCKET, Key="a b/ü+%.jpg", Body=b"one", ContentType="image/jpeg")
    s3.upload_fileobj(io.BytesIO(b"x" * 9_000_000), BUCKET, "large.bin")
    s3.copy_object(Bucket=BUCKET, Key="copy.bin", CopySource={"Bucket": BUCKET, "Key": "large.bin"})
    assert bench.created == [
        ("a b/ü+%.jpg", "PutObject"),
        ("large.bin", "CompleteMultipartUpload"),
        ("copy.bin", "CopyObject"),
    ]
    with pytest.raises(botocore.exceptions.ClientError, match="PreconditionFailed"):
        s3.put_object(Bucket=BUCKET, Key="copy.bin", Body=b"", IfNoneMatch="*")
    s3.put_object_tagging(Bucket=BUCKET, Key="copy.bin", Tagging={"TagSet": [{"Key": "a", "Value": "b"}]})
    assert len(bench.created) == 3
    assert s3.get_object(Bucket=BUCKET, Key="a b/ü+%.jpg")["Body"].read() == b"one"
    assert s3.get_object(Bucket=BUCKET, Key="large.bin", Range="bytes=1-3")["Body"].read() == b"xxx"


def test_json_services_are_routed_and_their_errors_keep_code_and_text(bench):
    client = bench.client("sagemaker")
    assert client.describe_training_job(TrainingJobName="t")["TrainingJobName"] == "t"
    with pytest.raises(botocore.exceptions.ClientError) as caught:
        client.stop_training_job(TrainingJobName="t")
    assert caught.value.response["Error"] == {"Code": "ResourceNotFound", "Message": "not there"}
    assert bench.faults == []


def test_a_fault_of_the_endpoint_is_reported(bench, capsys):
    with pytest.raises(botocore.exceptions.ClientError, match="InternalFailure"):
        bench.client("sagemaker").list_training_jobs()
    assert set(bench.faults) == {"RuntimeError: a fault"}
    assert "a fault" in capsys.readouterr().err


def test_mail_lands_in_the_outbox(bench, tmp_path):
    bench.client("sesv2").send_email(
        FromEmailAddress="Space <s@example.org>",
        Destination={"ToAddresses": ["ada@example.org"]},
        Content={
            "Simple": {"Subject": {"Data": "Höhe"}, "Body": {"Text": {"Data": "t"}, "Html": {"Data": "<b>t</b>"}}}
        },
    )
    raw = b"From: s@example.org\r\nTo: ada@example.org\r\nSubject: raw\r\n\r\nbody\r\n"
    bench.client("sesv2").send_email(
        FromEmailAddress="s@example.org",
        Destination={"ToAddresses": ["ada@example.org"]},
        Content={"Raw": {"Data": raw}},
    )
    bench.client("sns").create_topic(Name="told")
    bench.client("sns").publish(TopicArn=TOPIC, Subject="news & more", Message="a=b&c\nd")
    files = sorted((tmp_path / "outbox").iterdir())
    mails = [email.message_from_bytes(f.read_bytes(), policy=email.policy.default) for f in files]
    assert [m["To"] for m in mails] == ["ada@example.org", "ada@example.org", "a@example.org", "b@example.org"]
    assert mails[0]["Subject"] == "Höhe"
    assert mails[0].get_body(("html",)).get_content().strip() == "<b>t</b>"
    assert mails[1]["Subject"] == "raw" and mails[1].get_content().strip() == "body"
    assert (mails[2]["Subject"], mails[2].get_content().strip()) == ("news & more", "a=b&c\nd")
    assert [f.name for f in files][2:] == ["003-news-more.eml", "004-news-more.eml"]


def test_objects_and_rows_outlive_the_process(tmp_path):
    first = Bench(tmp_path, "in process")
    s3, rows = first.client("s3"), first.client("dynamodb")
    s3.put_object(Bucket=BUCKET, Key="a/b.txt", Body=b"old")
    s3.put_object(Bucket=BUCKET, Key="a/b.txt", Body=b"newer", ContentType="text/plain", Metadata={"k": "v"})
    s3.put_object(Bucket=BUCKET, Key="a", Body=b"a key that is also a folder")
    s3.put_object(Bucket=BUCKET, Key="../../up", Body=b"a key that leads up")
    s3.put_object(Bucket=BUCKET, Key="gone", Body=b"")
    s3.delete_object(Bucket=BUCKET, Key="gone")
    etag = s3.head_object(Bucket=BUCKET, Key="a/b.txt")["ETag"]
    item = {"pk": {"S": "a"}, "m": {"M": {"l": {"L": [{"N": "1"}, {"M": {"b": {"BOOL": True}}}]}}}, "s": {"SS": ["x"]}}
    rows.put_item(TableName="rows", Item=item)
    rows.put_item(TableName="rows", Item={"pk": {"S": "b"}})
    rows.delete_item(TableName="rows", Key={"pk": {"S": "b"}})
    first.close()
    with (tmp_path / "objects.jsonl").open("a") as file:
        file.write('{"bucket": "torn')  # what kill -9 leaves

    second = Bench(tmp_path, "in process")
    second.storage.load()
    s3 = second.client("s3")
    assert second.storage.list(BUCKET, "") == ["../../up", "a", "a/b.txt"]
    answer = s3.get_object(Bucket=BUCKET, Key="a/b.txt")
    assert (answer["Body"].read(), answer["ContentType"], answer["Metadata"]) == (b"newer", "text/plain", {"k": "v"})
    assert answer["ETag"] == etag
    assert s3.get_object(Bucket=BUCKET, Key="../../up")["Body"].read() == b"a key that leads up"
    assert second.client("dynamodb").scan(TableName="rows")["Items"] == [item]
    s3.put_object(Bucket=BUCKET, Key="after", Body=b"1")
    second.close()
    third = Bench(tmp_path, "in process")
    third.storage.load()
    assert third.storage.exists(BUCKET, "after")
    third.close()


def test_a_lost_object_file_is_an_error_that_names_it(tmp_path):
    first = Bench(tmp_path, "in process")
    first.storage.put_bytes(BUCKET, "a.txt", b"1")
    first.close()
    (tmp_path / "objects" / BUCKET / "a.txt").unlink()
    second = Bench(tmp_path, "in process")
    with pytest.raises(StorageError, match=r"a\.txt is missing"):
        second.storage.load()
    second.close()


def test_many_objects_need_no_open_files(tmp_path):
    made = Bench(tmp_path, "in process")
    source = tmp_path / "photo.jpg"
    source.write_bytes(b"x" * 100_000)
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        made.close()
        pytest.skip("needs /proc to count open files")
    before = len(list(descriptors.iterdir()))
    for index in range(50):
        made.storage.put_file(BUCKET, f"uploads/{index}.jpg", source)
        made.client("s3").put_object(Bucket=BUCKET, Key=f"work/{index}", Body=b"y" * 100_000)
    assert len(list(descriptors.iterdir())) < before + 20
    made.storage.copy_to(BUCKET, "uploads/7.jpg", tmp_path / "job" / "7.jpg")
    assert (tmp_path / "job" / "7.jpg").samefile(tmp_path / "objects" / BUCKET / "uploads/7.jpg")
    assert source.stat().st_nlink == 1
    made.close()


def test_a_part_of_an_object_is_read_without_the_rest(bench, monkeypatch):
    s3 = bench.client("s3")
    data = bytes(range(256)) * 1000  # beyond what moto keeps in memory
    s3.put_object(Bucket=BUCKET, Key="a b/+%ü.bin", Body=data)
    etag = s3.head_object(Bucket=BUCKET, Key="a b/+%ü.bin")["ETag"]

    def part(byte_range, **more):
        return s3.get_object(Bucket=BUCKET, Range=byte_range, **{"Key": "a b/+%ü.bin", **more})

    with monkeypatch.context() as patch:
        patch.setattr(FileValue, "read", lambda *_: pytest.fail("the whole object is read"))
        answer = part("bytes=1000-1999", IfMatch=etag)
        assert answer["Body"].read() == data[1000:2000]
        assert (answer["ContentLength"], answer["ContentRange"]) == (1000, "bytes 1000-1999/256000")
        assert part("bytes=255999-300000")["Body"].read() == data[-1:]
    assert part("bytes=-3")["Body"].read() == data[-3:]
    for wrong, code in [
        ({"Key": "none"}, "NoSuchKey"),
        ({"IfMatch": '"0"'}, "PreconditionFailed"),
        ({"byte_range": "bytes=256000-256001"}, "InvalidRange"),
    ]:
        with pytest.raises(botocore.exceptions.ClientError) as raised:
            part(**{"byte_range": "bytes=0-9", **wrong})
        assert raised.value.response["Error"]["Code"] == code
