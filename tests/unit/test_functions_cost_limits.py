"""Jobs that would cost too much are refused before anything is paid: by job.json, by the service, by the day."""

import boto3
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import validate
from base import failures
from base.failures import JobFailure
from base.settings import settings
from stages import prices
from table import jobs
from tests.unit.cloud import BUCKET, JPEG, cloud, row
from uploads.options import JobOptions

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


# A limit that pays for a part of the training -----------------------------------------------------------------------

# Preset standard, 20 photos, by hand: 180 + 4 x 20 s of SfM, 180 + 60 s around the training, 180 + 300 s for SOG.
WITHOUT_TRAINING = (260 * 0.408 + 240 * 0.736 + 480 * 0.816) / 3600
TRAINING_S = 0.736 / 3600


def test_a_limit_that_pays_for_half_the_training_shortens_it(run):
    limit = WITHOUT_TRAINING + 600 * TRAINING_S
    estimate = run(JOBS[0], max_cost_usd=limit)
    assert limit - 2 * TRAINING_S < estimate <= limit
    job = jobs.get_job(JOBS[0])
    assert job["training_shortened"] is True
    assert job["estimated_s"]["train"] == pytest.approx(240 + 600, abs=2)
    assert float(row(DAY)["reserved_usd"]) == pytest.approx(estimate), "the day is charged with what it may cost"


def test_a_limit_above_the_estimate_changes_nothing(run):
    whole = run(JOBS[0])
    assert whole == pytest.approx(WITHOUT_TRAINING + 1200 * TRAINING_S, abs=1e-4)
    assert run(JOBS[1], max_cost_usd=whole) == whole
    assert jobs.get_job(JOBS[1])["training_shortened"] is False


def test_less_than_a_third_of_the_training_is_refused_and_the_mail_says_what_would_do(run):
    third = WITHOUT_TRAINING + 400 * TRAINING_S
    failure = refused(run, JOBS[0], max_cost_usd=third - 0.001)
    assert failure.code == "COST_LIMIT"
    assert f"{third:.2f} USD with a third of the training" in failure.reason
    run(JOBS[1], max_cost_usd=third + 0.001)


def test_the_services_limit_shortens_too(cloud, run, monkeypatch):
    cloud.set(monkeypatch, MAX_USD_PER_SCENE=str(WITHOUT_TRAINING + 600 * TRAINING_S))
    run(JOBS[0], max_cost_usd=100.0)
    assert jobs.get_job(JOBS[0])["training_shortened"] is True


@given(
    limit=st.floats(0.15, 3),
    photos=st.integers(8, 2000),
    preset=st.sampled_from(["draft", "standard", "high"]),
    seconds=st.none() | st.floats(10, 20_000),
    sfm_share=st.floats(0, 1),
)
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_accepted_costs_at_most_its_limit(cloud, limit, photos, preset, seconds, sfm_share):
    """SfM and compression within their counts, training within its money: the sum is never above the limit."""
    options = JobOptions(preset=preset, max_cost_usd=limit, max_training_seconds=seconds)
    try:
        estimate = prices.within_limit(settings(), options, photos)
    except JobFailure as raised:
        assert raised.code == "COST_LIMIT"
        return
    assert estimate.usd <= limit
    sfm = sfm_share * prices.cost_usd(settings(), "ml.c6i.2xlarge", estimate.seconds["sfm"])
    budget = prices.training_usd(settings(), options, {"job_id": JOBS[0], "results": {"sfm": {"cost_usd": sfm}}})
    machine_start, compress = 180 * TRAINING_S, 480 * 0.816 / 3600
    assert sfm + machine_start + budget + compress == pytest.approx(limit)
    counted = min(estimate.seconds["train"], 14_400) - 180
    assert budget >= (counted - 2) * TRAINING_S, "what was promised when the job was accepted is there"


def test_no_money_is_left_for_training(cloud):
    """Finding the cameras took longer than counted: its result is kept, and the failure says how to go on."""
    spent = {"sfm": {"stage": "sfm", "cost_usd": 0.30}}
    with pytest.raises(JobFailure) as raised:
        prices.training_usd(settings(), JobOptions(max_cost_usd=0.45), {"job_id": JOBS[0], "results": spent})
    told = failures.parse({"Error": raised.value.code, "Cause": str(raised.value)})
    assert told.code == "COST_LIMIT"
    assert "has cost 0.30 USD" in told.reason and "allows 0.45 USD" in told.reason
    assert f'"reuse_job": "{JOBS[0]}"' in told.reason
    assert told.advice == "", "the reason says what to do"


def test_an_interruption_that_cost_nothing_takes_nothing_away(cloud):
    job = {"job_id": JOBS[0], "results": {}, "interrupted": {}}
    whole = prices.training_usd(settings(), JobOptions(), job)
    job["interrupted"]["a"] = {"stage": "train", "cost_usd": 0.0}  # no machine became free
    assert prices.training_usd(settings(), JobOptions(), job) == whole
    job["interrupted"]["b"] = {"stage": "train", "cost_usd": 0.2}
    assert prices.training_usd(settings(), JobOptions(), job) == pytest.approx(whole - 300 * TRAINING_S, abs=1e-6)


def test_a_machine_without_a_price_has_no_limit(cloud, monkeypatch):
    cloud.set(monkeypatch, PRICES_USD_PER_HOUR="*=0")
    assert prices.training_usd(settings(), JobOptions(max_cost_usd=0.01), {"job_id": JOBS[0], "results": {}}) is None
