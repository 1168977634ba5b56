"""notify: publish, close the row, one message."""

import email
import json
import re
from urllib.parse import parse_qs, urlsplit

import boto3
import pytest

import notify
from base import aws
from base.failures import JobFailure
from notifications import mails, results
from table import jobs, scenes, tasks
from tests.unit.cloud import BUCKET, JOB, SENDER, ULID, add_job, client_error, cloud, job_row, load_event, row
from tests.unit.notify_calls import LINK, ended, fail, finished, succeed, sweep

__all__ = ["cloud"]


def test_success_publishes_everything_and_the_page_last(cloud, monkeypatch):
    finished(cloud)
    order = []
    copy = results._copy

    def recording(bucket, source, target):
        order.append(target)
        copy(bucket, source, target)

    monkeypatch.setattr(results, "_copy", recording)
    assert succeed(cloud) == {"status": "SUCCEEDED", "message": "topic"}
    folder = f"results/my-house/{JOB}/"
    names = {"index.html", "viewer/main.js", "scene.sog", "scene.ply", "report.html", "report.json"}
    assert set(cloud.keys("results/")) == {folder + name for name in names}
    assert order[-1] == folder + "index.html"
    page = boto3.client("s3").head_object(Bucket=BUCKET, Key=folder + "index.html")
    assert page["ContentType"] == "text/html; charset=utf-8"
    job = job_row()
    assert (job["status"], job["result_url"], job["cost_usd"]) == ("SUCCEEDED", LINK, 3)
    (text,) = cloud.messages()
    for words in (LINK, "19 of 20", "27.3 dB", "123,456", "2.5 MB, 30.0 MB before compression", "3.00 USD"):
        assert words in text


def test_a_training_that_the_cost_limit_shortened_is_named(cloud):
    finished(cloud)
    cloud.put(f"work/{JOB}/compress/report.json", {"training": {"stop_reason": "cost_limit"}})
    succeed(cloud)
    assert "Training: shortened, because the cost limit paid for no more" in cloud.messages()[0]


def test_page_is_not_there_when_another_file_is_missing(cloud):
    finished(cloud)
    boto3.client("s3").delete_object(Bucket=BUCKET, Key=f"work/{JOB}/train/x/output/model/scene.ply")
    with pytest.raises(JobFailure, match=r"scene\.ply does not exist"):
        succeed(cloud)
    assert f"results/my-house/{JOB}/index.html" not in cloud.keys("results/")
    assert job_row()["status"] == "RUNNING"


def test_no_page_is_a_failure(cloud):
    finished(cloud)
    boto3.client("s3").delete_object(Bucket=BUCKET, Key=f"work/{JOB}/compress/index.html")
    with pytest.raises(JobFailure) as raised:
        succeed(cloud)
    assert raised.value.code == "OUTPUT_MISSING"


@pytest.mark.parametrize("report", [b"{", b"[]", b"[" * 60_000, b'{"photos": 3, "training": {"psnr": null}}', None])
def test_strange_report_does_not_stop_the_message(cloud, report):
    finished(cloud)
    key = f"work/{JOB}/compress/report.json"
    if report is None:
        boto3.client("s3").delete_object(Bucket=BUCKET, Key=key)
    else:
        cloud.put(key, report)
    assert succeed(cloud)["status"] == "SUCCEEDED"
    assert LINK in cloud.messages()[0]


@pytest.fixture
def links(cloud, monkeypatch):
    """An installation without a web server: its messages have links that are signed."""
    cloud.set(monkeypatch, RESULT_BASE_URL="")
    finished(cloud)
    cloud.put(f"work/{JOB}/compress/scene.html", b"all in one")
    return cloud


def test_without_a_web_server_the_message_has_a_signed_link_to_the_scene_in_one_file(links):
    assert succeed(links)["status"] == "SUCCEEDED"
    (text,) = links.messages()
    (link,) = re.findall(r"https://\S+", text)
    parts = urlsplit(link)
    asked = parse_qs(parts.query)
    assert (parts.hostname, parts.path) == (f"{BUCKET}.s3.amazonaws.com", f"/results/my-house/{JOB}/scene.html")
    assert asked["X-Amz-Expires"] == ["43200"]
    assert asked["X-Amz-Algorithm"] == ["AWS4-HMAC-SHA256"], "encrypted objects demand it"
    assert "works for some hours, at most 12" in text
    page = f"results/my-house/{JOB}/scene.html"
    assert job_row()["result_url"] == f"s3://{BUCKET}/{page}", "what outlives the link; the row holds no secret"
    assert boto3.client("s3").head_object(Bucket=BUCKET, Key=page)["ContentType"] == "text/html; charset=utf-8"


def test_a_link_goes_to_the_regions_own_address(links, monkeypatch):
    """At the common address S3 sends a new bucket's first visitors on, to where the signature does not fit."""
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    monkeypatch.setattr(aws, "signing_s3", aws.signing_s3.__wrapped__)
    job = {"result_url": f"s3://{BUCKET}/results/x/scene.html"}
    assert urlsplit(results.link(job)).hostname == f"{BUCKET}.s3.eu-central-1.amazonaws.com"


def test_without_a_web_server_a_result_without_the_one_file_is_none(links):
    boto3.client("s3").delete_object(Bucket=BUCKET, Key=f"work/{JOB}/compress/scene.html")
    with pytest.raises(JobFailure, match=r"left no scene\.html") as raised:
        succeed(links)
    assert raised.value.code == "OUTPUT_MISSING"


def test_a_message_with_a_page_says_nothing_of_an_end(cloud):
    finished(cloud)
    succeed(cloud)
    assert "at most" not in cloud.messages()[0]


def test_mail_goes_to_the_user_as_text_and_html(cloud, monkeypatch):
    cloud.set(monkeypatch, SENDER_EMAIL=SENDER)
    finished(cloud, options={"email": "user@example.org", "title": "Haus <Ä>"})
    assert succeed(cloud)["message"] == "email"
    (sent,) = cloud.mails()
    assert set(sent.destinations) == {"user@example.org"}
    mime = email.message_from_string(sent.raw_data, policy=email.policy.default)
    assert (mime["From"], mime["To"], mime["Subject"]) == (
        SENDER,
        "user@example.org",
        "Your 3D scene Haus <Ä> is ready",
    )
    bodies = {part.get_content_type(): part.get_content() for part in mime.walk() if not part.is_multipart()}
    text, html = bodies["text/plain"], bodies["text/html"]
    assert LINK in text and LINK in html
    assert "Haus <Ä>" in text
    assert "Haus &lt;Ä&gt;" in html
    assert cloud.messages() == []


def test_refused_mail_goes_to_the_topic(cloud, monkeypatch):
    cloud.set(monkeypatch, SENDER_EMAIL="unverified@example.net")
    finished(cloud, options={"email": "user@example.org"})
    assert succeed(cloud)["message"] == "topic"
    assert len(cloud.messages()) == 1


def test_failure_names_reason_and_advice_once(cloud):
    add_job(title="x")
    assert fail(cloud) == {"status": "FAILED", "message": "topic"}
    assert fail(cloud) == {"status": "FAILED", "message": "sent before"}
    (text,) = cloud.messages()
    assert "Why: Only 3 photos" in text
    assert "What to do: Upload more photos" in text
    assert job_row()["failure"]["code"] == "TOO_FEW_PHOTOS"


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"error": None},
        {"error": "x"},
        {"error": {"Error": 3}},
        {"error": []},
        {"error": {"Error": "X", "Cause": '{"a":' * 6000}},
    ],
)
def test_any_error_makes_a_message(cloud, state):
    add_job()
    notify.handler({"kind": "failed", "job_id": JOB, "state": state}, cloud.context)
    assert "Why: Something went wrong" in cloud.messages()[0]


def test_failure_without_a_row_is_told_too(cloud):
    assert fail(cloud)["message"] == "topic"
    assert row(f"JOB#{JOB}")["status"] == "FAILED"


def test_failure_frees_the_scene_and_stops_the_billed_job(cloud):
    add_job(job_name="spaceport-x-sfm-0")
    scenes.note_object("my-house", aws.timestamp(), JOB)
    tasks.put_task("spaceport-x-sfm-0", JOB, "sfm", 0, "token")
    cloud.sagemaker.jobs["spaceport-x-sfm-0"] = {"ProcessingJobStatus": "InProgress"}
    fail(cloud, "States.HeartbeatTimeout", "")
    assert cloud.sagemaker.stopped == ["spaceport-x-sfm-0"]
    assert tasks.open_task_names() == ["spaceport-x-sfm-0"], "the sweep looks again"
    scene = row("SCENE#my-house")
    assert "settling" not in scene
    assert "job_id" not in scene


@pytest.mark.parametrize(
    ("status", "row_status", "words"),
    [
        ("ABORTED", "ABORTED", "The job was cancelled."),
        ("TIMED_OUT", "FAILED", "The job took longer than a job may take."),
    ],
)
def test_execution_ended_from_outside(cloud, status, row_status, words):
    add_job(job_name="spaceport-x-train-0")
    tasks.put_task("spaceport-x-train-0", JOB, "train", 0, "token")
    cloud.sagemaker.jobs["spaceport-x-train-0"] = {"TrainingJobStatus": "InProgress"}
    assert ended(cloud, status)["status"] == row_status
    assert ended(cloud, status)["message"] == "sent before"
    assert cloud.sagemaker.stopped == ["spaceport-x-train-0"]
    (text,) = cloud.messages()
    assert words in text


def test_failed_execution_is_told_when_the_state_for_it_failed(cloud):
    add_job(
        "FAILED", raw_error=json.dumps({"Error": "NO_PHOTOS", "Cause": "NO_PHOTOS: None of the 3 files is a photo"})
    )
    ended(cloud, "FAILED", error="SceneFailed", cause="fixed text")
    ended(cloud, "FAILED", error="SceneFailed", cause="fixed text")
    (text,) = cloud.messages()
    assert "None of the 3 files is a photo" in text


def test_failed_execution_without_any_record(cloud):
    add_job()
    ended(cloud, "FAILED", error="States.Runtime", cause="An error occurred while executing the state")
    assert "States.Runtime" in cloud.messages()[0]
    assert job_row()["status"] == "FAILED"


def test_execution_that_is_no_job_is_left_alone(cloud):
    assert ended(cloud)["status"] == "unknown"
    assert cloud.messages() == []


def test_abort_after_success_tells_the_success(cloud):
    finished(cloud)
    jobs.end_job(JOB, "SUCCEEDED", result_url=LINK, cost_usd=3)
    assert ended(cloud)["status"] == "SUCCEEDED"
    assert LINK in cloud.messages()[0]


def test_message_survives_a_call_that_died_while_sending(cloud):
    add_job()
    assert jobs.claim_message(JOB, "RUNNING") == "claimed"  # and then the process is killed
    with pytest.raises(JobFailure) as raised:
        fail(cloud)
    assert type(raised.value).__name__ == "Spaceport.Transient", (
        "so the state machine, or Lambda for events, tries again"
    )
    cloud.wait(jobs.MESSAGE_CLAIM_S)
    assert fail(cloud)["message"] == "topic"
    assert len(cloud.messages()) == 1


def test_failed_sending_can_be_repeated_at_once(cloud, monkeypatch):
    add_job()
    publish = mails.publish
    monkeypatch.setattr(
        mails, "publish", lambda _: (_ for _ in ()).throw(client_error("InternalError", "no", "Publish", 500))
    )
    with pytest.raises(Exception, match="no"):
        fail(cloud)
    monkeypatch.setattr(mails, "publish", publish)
    assert fail(cloud)["message"] == "topic"


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"failure": {"cause": "of an older version"}}, "TypeError"),
        ({"status": "SUCCEEDED"}, "KeyError: 'compress'"),
        ({"created_at": "yesterday"}, "ValueError"),
    ],
)
def test_one_row_that_cannot_be_read_does_not_keep_the_sweep_from_the_others(cloud, bad, words):
    ids = {"job_id": "another-" + ULID, "pk": "JOB#another-" + ULID, "scene": "another"}
    add_job("FAILED", open="job", ended_at=aws.timestamp())
    add_job(**{"status": "FAILED", "open": "job", "ended_at": aws.timestamp(), **ids, **bad})
    cloud.wait(notify.START_LIMIT_S)
    with pytest.raises(RuntimeError, match=f"1 of 2 jobs could not be looked after: another-{ULID}: {words}"):
        notify.handler(load_event("schedule"), cloud.context)
    (text,) = cloud.messages()
    assert JOB in text
    assert "open" not in row(f"JOB#{JOB}")


def test_listener_that_cannot_be_told_does_not_fail_the_job(cloud, monkeypatch):
    class Refusing:
        def put_events(self, **_):
            raise client_error("InternalException", "no", "PutEvents", 500)

    monkeypatch.setattr(aws, "events", Refusing)
    finished(cloud)
    assert succeed(cloud)["status"] == "SUCCEEDED"


def test_row_that_an_execution_without_an_upload_left_does_not_trouble_the_sweep(cloud):
    left = {"pk": f"JOB#{JOB}", "status": "FAILED", "open": "job", "raw_error": "{}", "ended_at": aws.timestamp()}
    boto3.resource("dynamodb").Table("jobs").put_item(Item=left)  # as RecordFailure writes it
    assert sweep(cloud) == {JOB: "no upload"}
    fail(cloud)
    assert sweep(cloud) == {JOB: "no upload"}
    assert sweep(cloud) == {}
