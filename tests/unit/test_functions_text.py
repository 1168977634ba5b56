"""Pure parts: failures, verdicts' texts, options, prices, names, photo signatures."""

import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from base import failures, layout
from base.failures import JobFailure, failure, parse, transient
from base.settings import settings
from stages import prices
from tests.unit.cloud import cloud
from uploads import options, photos
from uploads.options import JobOptions, parse_options

__all__ = ["cloud"]


@pytest.mark.parametrize(
    ("error", "cause", "code", "reason"),
    [
        (
            "TOO_FEW_PHOTOS",
            json.dumps({"code": "TOO_FEW_PHOTOS", "reason": "Only 3.", "stage": "sfm"}),
            "TOO_FEW_PHOTOS",
            "Only 3.",
        ),
        (
            "COST_LIMIT",
            json.dumps({"errorMessage": "COST_LIMIT: Too dear", "errorType": "COST_LIMIT"}),
            "COST_LIMIT",
            "Too dear",
        ),
        (
            "X",
            "AlgorithmError: DISK_FULL: The disk is full. Free some., exit code: 1",
            "DISK_FULL",
            "The disk is full. Free some.",
        ),
        ("States.Timeout", "", "STAGE_TIMEOUT", "A step took longer than it may."),
        ("States.HeartbeatTimeout", None, "STAGE_LOST", "A stage gave no sign of life for half an hour."),
        ("Spaceport.Transient", json.dumps({"code": "NO_CAPACITY", "reason": "None free"}), "NO_CAPACITY", "None free"),
        (
            "Lambda.Unknown",
            json.dumps({"errorMessage": "2026 abc Task timed out after 60.00 seconds"}),
            "INTERNAL_ERROR",
            "A function of the service took too long.",
        ),
        (
            "KeyError",
            json.dumps({"errorMessage": "'x'", "errorType": "KeyError"}),
            "INTERNAL_ERROR",
            "Something went wrong inside the service (KeyError: 'x')",
        ),
        (
            "DynamoDB.X",
            "plain: text: with colons",
            "INTERNAL_ERROR",
            "Something went wrong inside the service (DynamoDB.X: plain: text: with colons)",
        ),
    ],
)
def test_parse_reads_every_form(error, cause, code, reason):
    found = parse({"Error": error, "Cause": cause})
    assert (found.code, found.reason) == (code, reason)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda c: (
            st.lists(c)
            | st.dictionaries(
                st.sampled_from(["Error", "Cause", "code", "reason", "errorMessage", "errorType", "x"]), c
            )
        ),
        max_leaves=12,
    )
)
def test_parse_never_raises_and_always_answers(value):
    for state_error in (value, {"Error": value, "Cause": json.dumps(value)}):
        found = parse(state_error)
        assert found.code and found.reason
        assert len(found.reason) <= failures.REASON_LIMIT


def test_raised_failures_come_back_through_lambda():
    for raised in (failure("NO_PHOTOS", "Nothing here"), transient("NO_CAPACITY", "None free")):
        envelope = {"errorMessage": str(raised), "errorType": type(raised).__name__, "stackTrace": ["..."]}
        found = parse({"Error": type(raised).__name__, "Cause": json.dumps(envelope)})
        assert (found.code, found.reason) == (raised.code, raised.reason)
    assert type(transient("X_Y", "")).__name__ == "Spaceport.Transient"


def test_advice_only_where_the_reason_has_none():
    assert parse({"Error": "", "Cause": "OUT_OF_MEMORY: Memory ran out"}).advice
    assert not parse({"Error": "", "Cause": "OUT_OF_MEMORY: Memory ran out. Use fewer photos."}).advice


def test_every_option_of_the_design_is_accepted():
    value = {
        "email": "a@example.com",
        "preset": "high",
        "max_gaussians": 100_000,
        "max_iterations": 7000,
        "sh_degree": 3,
        "max_image_long_side": 1600,
        "max_training_seconds": 600.0,
        "test_photos": True,
        "matcher": "sequential",
        "start_at": "train",
        "reuse_job": "my-house-01KD8E7J9Q3M5V8X2Z4B6C7D9F",
        "max_cost_usd": 2.5,
        "title": "My house",
        "ready": True,
    }
    assert parse_options(json.dumps(value).encode()).model_dump(exclude_none=True) == value
    assert parse_options(b"\xef\xbb\xbf{}") == JobOptions()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"max_gausians": 1}', "'max_gausians' is unknown, did you mean 'max_gaussians'?"),
        (b'{"colour": 1}', "'colour' is unknown; known are email"),
        (b'{"preset": "best"}', "'preset'"),
        (b'{"max_iterations": "many"}', "'max_iterations'"),
        (b'{"sh_degree": 4}', "'sh_degree'"),
        (b'{"max_cost_usd": 0}', "'max_cost_usd'"),
        (b'{"max_cost_usd": NaN}', "'max_cost_usd'"),
        (b'{"email": "nobody"}', "'email'"),
        (b'{"email": "a@b.c,d@e.f"}', "'email'"),
        (b'{"title": "a\\r\\nBcc: x@y.z"}', "'title': must not contain line breaks"),
        (b'{"start_at": "train"}', "need each other"),
        (b'{"reuse_job": "my-house-01KD8E7J9Q3M5V8X2Z4B6C7D9F"}', "need each other"),
        (b'{"reuse_job": "../x"}', "'reuse_job'"),
        (b"[1]", "one JSON object"),
        (b"{", "not valid JSON"),
        (b"[" * 60_000, "too many brackets"),
        (b'{"a":' * 9_000 + b"1" + b"}" * 9_000, "too many brackets"),
        (b'{"title":' + b"[" * 300 + b"]" * 300 + b"}", "'title'"),
        (b"\xff\xfe", "not valid JSON"),
        (b" " * 70_000, "70,000 bytes"),
    ],
)
def test_wrong_options_are_named(body, words):
    with pytest.raises(JobFailure) as raised:
        parse_options(body)
    assert type(raised.value).__name__ == "BAD_OPTION"
    assert words in raised.value.reason


@pytest.mark.parametrize("depth", [*range(880, 1010), 5_000])
def test_brackets_of_any_depth_are_a_named_failure(depth):
    """Also at the depths that the parser still reads, and the words about them do not."""
    body = b'{"email": "ada@example.org", "max_gaussians":' + b'{"a":' * depth + b"1" + b"}" * (depth + 1)
    with pytest.raises(JobFailure) as raised:
        parse_options(body)
    assert raised.value.code == "BAD_OPTION"
    assert options.find_email(body) in ("ada@example.org", None)


@given(
    st.binary(max_size=40)
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda c: st.lists(c) | st.dictionaries(st.text(), c),
        max_leaves=8,
    ).map(lambda v: json.dumps(v).encode())
)
def test_any_bytes_are_options_or_a_named_failure(body):
    try:
        parse_options(body)
    except JobFailure as raised:
        assert raised.code == "BAD_OPTION"
    assert options.find_email(body) is None or "@" in str(options.find_email(body))


def test_estimate_follows_photos_preset_and_start(cloud, monkeypatch):
    small = prices.estimate(settings(), JobOptions(preset="draft"), 20)
    large = prices.estimate(settings(), JobOptions(preset="high"), 400)
    assert 0 < small.usd < large.usd
    late = JobOptions(start_at="compress", reuse_job="my-house-01KD8E7J9Q3M5V8X2Z4B6C7D9F")
    assert prices.estimate(settings(), late, 400).seconds.keys() == {"compress"}
    assert prices.estimate(settings(), late, 400).usd == round(0.816 * 480 / 3600, 4)
    long = JobOptions(max_training_seconds=5000)
    assert prices.estimate(settings(), long, 400).seconds["train"] == 180 + 60 + 5000
    cloud.set(monkeypatch, PRICES_USD_PER_HOUR="*=0")
    assert prices.estimate(settings(), JobOptions(), 400).usd == 0
    cloud.set(monkeypatch, PRICES_USD_PER_HOUR="ml.c6i.2xlarge=1.5,*=2")
    assert prices.cost_usd(settings(), "ml.c6i.2xlarge", 1800) == 0.75
    assert prices.cost_usd(settings(), "ml.x", 1800) == 1.0
    cloud.set(monkeypatch, PRICES_USD_PER_HOUR="")
    with pytest.raises(JobFailure, match=r"no price is known for ml\.x"):
        prices.cost_usd(settings(), "ml.x", 1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_signatures_of_real_encoders(kind):
    file = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(file, kind)
    assert photos.image_type(file.getvalue()[: photos.HEAD_BYTES]) == kind.lower()


@pytest.mark.parametrize("head", [b"", b"\xff\xd8", b"GIF89a", b"Not a photo....", b"RIFF0000WAVE", b"BM"])
def test_other_content_is_no_photo(head):
    assert photos.image_type(head) == ""


@given(st.text(min_size=1))
def test_suggested_scene_is_always_valid(name):
    assert layout.is_scene(layout.suggest_scene(name))


@given(st.text())
def test_any_key_is_split_or_refused(key):
    place = layout.split_upload_key("uploads/" + key)
    if place:
        assert "uploads/" + "/".join(place) == "uploads/" + key
        layout.starts_a_job(place[1])
        photos.problem_of_path(place[1])
