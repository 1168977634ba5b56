"""The report and its page."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from pydantic import ValidationError

from compress.evaluate import PhotoQuality
from compress.report_page import (
    STRAGGLERS,
    date,
    describe_exposure,
    draw_curve,
    duration,
    money,
    nice_ticks,
    size,
    why_training_ended,
    write_report_page,
)
from job.documents import CurvePoint, ExposureSummary, Report, StragglerReason
from job.entry import as_stage_error
from job.options import CompressOptions

ROOT = Path(__file__).parents[2]


def test_a_report_that_would_be_wrong_is_our_fault() -> None:
    report = minimal_report()
    report["compression"]["ratio"] = 0
    report["created_at"] = "yesterday"
    with pytest.raises(ValidationError) as error:
        Report.model_validate(report)
    failure = as_stage_error(error.value)
    assert failure.code == "INTERNAL_ERROR" and "Report is wrong at created_at" in failure.reason
    assert [".".join(map(str, one["loc"])) for one in error.value.errors()] == ["created_at", "compression.ratio"]


def minimal_report() -> dict:
    training = {"seconds": 1, "iterations": 1, "stop_reason": "x", "device": "cpu", "gaussians": 1, "sh_degree": 0}
    training |= {"background_rgb": [0, 0, 0]}
    return {
        "job_id": "a",
        "title": "a",
        "created_at": "2026-01-01T00:00:00+00:00",
        "photos": {"total": 1, "registered": 1, "rejected": []},
        "sfm": {
            "seconds": 1,
            "points": 1,
            "reprojection_error_px": 0.5,
            "georeferenced": False,
            "gps_residual_m": None,
        },
        "training": {
            **training,
            "psnr": None,
            "ssim": None,
            "train_psnr": None,
            "heldout_photos": 0,
            "heldout_are": "test",
            "saved_seconds": 0,
            "rollbacks": 0,
            "exposure": {"spread": 0, "compensated": False},
            "stragglers": [],
        },
        "compression": {
            "seconds": 1,
            "ply_bytes": 10,
            "sog_bytes": 5,
            "ratio": 2,
            "psnr_vs_uncompressed": 50,
            "psnr": None,
            "ssim": None,
        },
        "cost": {"estimated_usd": None, "actual_usd": 0, "basis": ""},
        "versions": {},
    }


def test_the_page_calls_photos_unseen_only_when_they_are(tmp_path: Path) -> None:
    """In a user's run the photos kept out join the training at its end, and the quality is that of just before."""
    pixels = np.zeros((4, 4, 3), np.uint8)
    photos = [PhotoQuality("a.jpg", 33.25, 0.9, pixels, pixels)]
    pages = {}
    for kind in ("test", "validation"):
        report = minimal_report()
        report["training"] |= {"psnr": 21.75, "ssim": 0.7, "heldout_are": kind}
        report["compression"] |= {"psnr": 33.25, "ssim": 0.9}
        write_report_page(tmp_path / "report.html", Report.model_validate(report), [], photos)
        pages[kind] = (tmp_path / "report.html").read_text()
    assert "never seen" in pages["test"] and "<dd>33.2 dB</dd>" in pages["test"]
    assert "never seen" not in pages["validation"] and "unseen" not in pages["validation"]
    assert "<dd>21.8 dB</dd>" in pages["validation"] and "until its last part" in pages["validation"]
    assert "a.jpg &middot; 33.2 dB</figcaption>" in pages["test"]
    assert "a.jpg &middot; 33.2 dB after training with it</figcaption>" in pages["validation"]


def test_the_page_names_photos_that_fit_badly_and_what_helps(tmp_path: Path) -> None:
    report = minimal_report()
    report["training"]["stragglers"] = [
        {"name": "<b>.jpg", "below_db": 4.25, "reason": "light", "detail": ""},
        {"name": "a.jpg", "below_db": 9.5, "reason": "pose", "detail": ""},
    ]
    write_report_page(tmp_path / "report.html", Report.model_validate(report), [], [])
    page = (tmp_path / "report.html").read_text()
    assert "&lt;b&gt;.jpg" in page and "<b>.jpg" not in page
    assert page.index("9.5 dB below the others") < page.index("4.2 dB below the others"), "the worst comes first"
    assert "keep your own shadow out" in page and "overlap with it" in page
    report["training"]["stragglers"] = []
    write_report_page(tmp_path / "report.html", Report.model_validate(report), [], [])
    assert "fit badly" not in (tmp_path / "report.html").read_text()


def test_the_page_knows_every_reason_that_training_gives() -> None:
    source = (ROOT / "containers/train/stragglers.py").read_text()
    assert set(STRAGGLERS) == set(re.findall(r'reason(?:, detail|: \w+)? = "(\w+)"', source))
    assert set(get_args(StragglerReason)) == set(STRAGGLERS)


def test_why_training_ended() -> None:
    training = Report.model_validate(minimal_report()).training.model_copy(
        update={"stop_reason": "plateau", "saved_seconds": 200.0}
    )
    assert why_training_ended(training).endswith("any more, 3 min 20 s before its time.")
    training = training.model_copy(update={"stop_reason": "cost_limit", "saved_seconds": 0.0, "rollbacks": 2})
    assert "cost limit" in why_training_ended(training) and "diverged 2 times" in why_training_ended(training)
    assert "diverged once" in why_training_ended(training.model_copy(update={"rollbacks": 1}))


def test_exposure_in_percent() -> None:
    """A spread of the logarithm of 0.0953 is a factor of 1.1."""
    measured, none = ExposureSummary(spread=0.0953, compensated=True), ExposureSummary(spread=0.0, compensated=False)
    assert describe_exposure(measured).startswith("varies by about 10 %")
    assert describe_exposure(none).endswith("0.0 % from photo to photo; left as it is")


def test_numbers_of_options() -> None:
    assert CompressOptions.model_validate({}).spent_usd == 0
    assert CompressOptions.model_validate({"spent_usd": " "}).spent_usd == 0
    assert CompressOptions.model_validate({"spent_usd": " 2.5 ", "title": " Hut "}).spent_usd == 2.5
    for text in ("-1", "nan", "inf", "two"):
        with pytest.raises(ValidationError) as error:
            CompressOptions.model_validate({"spent_usd": text})
        assert "'spent_usd'" in as_stage_error(error.value).reason


def test_words_for_people() -> None:
    assert [duration(s) for s in (0.04, 9.96, 42, 200, 3900)] == ["0.0 s", "10.0 s", "42 s", "3 min 20 s", "1 h 05 min"]
    assert [size(b) for b in (12, 45_015, 1_328_134, 2.5e9)] == ["12 B", "45 kB", "1.33 MB", "2.5 GB"]
    assert [money(usd) for usd in (0, 0.0011, 0.25, 12.345)] == ["$0.00", "$0.0011", "$0.25", "$12.35"]
    assert date("2026-11-23T20:59:36+01:00") == "23 November 2026, 19:59 UTC"
    assert nice_ticks(18.2, 29.9, 4, beyond=True) == [15, 20, 25, 30]


def test_curve_needs_two_points() -> None:
    points = [
        CurvePoint(iteration=iteration, seconds=1.0, psnr=psnr, gaussians=1)
        for iteration, psnr in ((0, 20.0), (10, math.nan), (20, 25.0))
    ]
    assert draw_curve(points[:2]) is None
    svg = draw_curve(points)
    assert svg is not None
    line = re.search(r'points="([^"]+)"', svg)
    assert line is not None
    first, last = (tuple(map(float, pair.split(","))) for pair in line.group(1).split())
    assert first[0] < last[0] and first[1] > last[1]  # later is to the right, better is higher
