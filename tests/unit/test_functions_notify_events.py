"""notify: what other systems are told, and by which call."""

import json

import notify
from base import aws
from table import jobs
from tests.unit.cloud import JOB, ULID, add_job, cloud
from tests.unit.notify_calls import LINK, ended, fail, finished, succeed, sweep

__all__ = ["cloud"]


class Bus:
    """Takes events, or refuses them while ``refuses``."""

    def __init__(self, refuses=False):
        self.refuses, self.kinds = refuses, []

    def put_events(self, Entries):
        if not self.refuses:
            self.kinds += [entry["DetailType"] for entry in Entries]
        return {"FailedEntryCount": int(self.refuses), "Entries": [{"ErrorCode": "InternalFailure"}]}


def test_event_that_was_refused_is_sent_by_the_sweep(cloud, monkeypatch):
    bus = Bus(refuses=True)
    monkeypatch.setattr(aws, "events", lambda: bus)
    finished(cloud, open="job")
    assert succeed(cloud)["status"] == "SUCCEEDED"
    cloud.wait(notify.START_LIMIT_S)
    assert sweep(cloud) == {JOB: "told, not announced"}
    bus.refuses = False
    assert sweep(cloud) == {JOB: "closed"}
    assert sweep(cloud) == {}
    assert (bus.kinds, len(cloud.messages())) == (["SceneSucceeded"], 1)


def test_event_that_is_refused_for_a_day_is_given_up(cloud, monkeypatch):
    monkeypatch.setattr(aws, "events", lambda: Bus(refuses=True))
    add_job(open="job")
    fail(cloud)
    cloud.wait(notify.ANNOUNCE_LIMIT_S - 1)
    assert sweep(cloud) == {JOB: "told, not announced"}
    cloud.wait(2)
    assert sweep(cloud) == {JOB: "closed"}


def test_event_of_a_call_that_died_before_it_is_sent_by_the_next(cloud, monkeypatch):
    bus = Bus()
    monkeypatch.setattr(aws, "events", lambda: bus)
    finished(cloud)
    jobs.end_job(JOB, "SUCCEEDED", result_url=LINK, cost_usd=3)
    assert jobs.claim_message(JOB, "SUCCEEDED") == "claimed"
    jobs.mark_message_sent(JOB)  # and then the process is killed
    assert succeed(cloud)["message"] == "sent before"
    assert bus.kinds == [], "that call may still be about to send it"
    cloud.wait(jobs.MESSAGE_CLAIM_S)
    assert succeed(cloud)["message"] == "sent before"
    assert ended(cloud, "SUCCEEDED")["message"] == "sent before"
    assert bus.kinds == ["SceneSucceeded"]


def test_message_is_claimed_for_the_end_that_it_tells(cloud):
    """The row has changed since it was read: the message that was made from it must not go out."""
    add_job("FAILED")
    assert jobs.claim_message(JOB, "ABORTED") == "busy"
    assert jobs.claim_message(JOB, "FAILED") == "claimed"


def test_a_claim_lasts_longer_than_what_it_is_for(cloud):
    """Claiming, sending by mail, then to the topic, and marking, all of them as slow as the clients allow."""

    def worst_s(config):
        tries = config.retries["total_max_attempts"]
        pauses_s = sum(2**retry for retry in range(tries - 1))  # botocore's standard mode: at most 1, 2, 4, ... s
        return tries * (config.connect_timeout + config.read_timeout) + pauses_s

    assert 2 * worst_s(aws.TABLE_CONFIG) + 2 * worst_s(aws.SENDING_CONFIG) < jobs.MESSAGE_CLAIM_S
    for client, config in ((aws.sns(), aws.SENDING_CONFIG), (aws.sesv2(), aws.SENDING_CONFIG)):
        assert client.meta.config.read_timeout == config.read_timeout
    assert aws.table("jobs").meta.client.meta.config.read_timeout == aws.TABLE_CONFIG.read_timeout


def test_events_for_other_systems(cloud, monkeypatch):
    entries = []

    class Bus:
        def put_events(self, Entries):
            entries.extend(Entries)
            return {"FailedEntryCount": 0}

    monkeypatch.setattr(aws, "events", Bus)
    add_job()
    fail(cloud)
    ((source, kind, detail),) = [(e["Source"], e["DetailType"], json.loads(e["Detail"])) for e in entries]
    assert (source, kind, detail["job_id"], detail["failure"]["code"]) == (
        "spaceport",
        "SceneFailed",
        JOB,
        "TOO_FEW_PHOTOS",
    )
    assert ULID in detail["job_id"]
