"""Jobs that would cost too much are refused before anything is paid: by job.json, by the service, by the day."""

import boto3
import pytest

import failures
import jobs
import validate
from failures import JobFailure
from tests.unit.fn_cloud import BUCKET, JPEG, cloud, row

__all__ = ["cloud"]
JOBS = [f"my-house-01KD8E7J9Q3M5V8X2Z4B6C7D0{number}" for number in range(4)]
DAY = "DAY#2026-11-12"


@pytest.fixture
def run(cloud):
    """Validate a job with twenty photos; returns its estimate in USD."""
    for number in range(20):
        cloud.put(f"uploads/my-house/{number}.jpg", JPEG)

    def validated(job_id, **options):
        cloud.put("uploads/my-house/job.json", options)
        jobs.create_job(job_id, "my-house", BUCKET)
        state = {"job_id": job_id, "scene": "my-house", "bucket": BUCKET}
        return validate.handler(state, cloud.context)["estimated_usd"]

    return validated


def refused(run, *arguments, **options):
    with pytest.raises(JobFailure) as raised:
        run(*arguments, **options)
    return failures.parse({"Error": raised.value.code, "Cause": str(raised.value)})


def test_the_services_limit_holds_whatever_job_json_allows(cloud, run, monkeypatch):
    cloud.set(monkeypatch, MAX_USD_PER_SCENE="0.10")
    failure = refused(run, JOBS[0], max_cost_usd=100.0)
    assert failure.code == "COST_LIMIT_OF_SERVICE"
    assert "0.10 USD per scene" in failure.reason
    assert "MaxUsdPerScene" in failure.advice
    assert row(DAY) == {}, "a refused job is not counted"


def test_job_json_can_only_lower_the_limit(run):
    failure = refused(run, JOBS[0], max_cost_usd=0.01)
    assert failure.code == "COST_LIMIT"
    assert "job.json allows 0.01 USD" in failure.reason


def test_a_day_is_full_when_the_estimates_add_up(cloud, run, monkeypatch):
    estimate = run(JOBS[0])
    cloud.set(monkeypatch, MAX_USD_PER_DAY=str(2 * estimate + 0.01))
    assert run(JOBS[0]) == estimate, "the same job again counts once"
    run(JOBS[1])
    failure = refused(run, JOBS[2])
    assert failure.code == "DAILY_COST_LIMIT"
    assert "MaxUsdPerDay" in failure.advice
    counted = row(DAY)
    assert counted["job_ids"] == {JOBS[0], JOBS[1]}
    assert float(counted["reserved_usd"]) == pytest.approx(2 * estimate)
    assert counted["expires_at"] > cloud.clock_s
    assert run(JOBS[1]) == estimate, "a counted job passes a full day when it is validated again"
    cloud.wait(86_400)
    assert run(JOBS[3]) == estimate, "the next day begins at nothing"


def test_one_job_above_the_days_limit_is_refused_on_an_empty_day(cloud, run, monkeypatch):
    cloud.set(monkeypatch, MAX_USD_PER_DAY="0.01")
    assert refused(run, JOBS[0]).code == "DAILY_COST_LIMIT"
    assert boto3.client("s3").list_objects_v2(Bucket=BUCKET, Prefix="uploads/")["KeyCount"] == 21
