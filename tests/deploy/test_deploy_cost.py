"""docs/cost.md has what benchmarks/cost.py computes, and its formula is that of functions/stages/prices.py."""

from __future__ import annotations

import re

import pytest

from base.stages import find_stage
from benchmarks import cost
from benchmarks.gpus import newest
from benchmarks.marks import between
from stages import prices
from tests.deploy.environments import ROOT
from tests.unit.cloud import load_template
from train.stage import AROUND_TRAINING_S
from uploads.options import JobOptions

SFM, TRAIN = find_stage("sfm"), find_stage("train")
COMPRESS_S = 300
PAGE = (ROOT / "docs" / "cost.md").read_text()


@pytest.fixture(scope="module")
def settings():
    return cost.default_settings()


@pytest.mark.parametrize("part", ["expected", "inputs", "table", "example"])
def test_page_has_the_computed_parts(part):
    assert between(PAGE, part)[1] == cost.parts()[part], "run `python -m benchmarks cost --write`"


def test_formula_is_the_codes():
    assert f"SfM          {prices.START_S} + s × photos" in PAGE
    for texts in (
        {p: f"{s:g}" for p, s in SFM.seconds_per_photo.items()},
        {p: f"{t:,}" for p, t in TRAIN.seconds_per_job.items()},
    ):
        assert ", ".join(f"{text} {preset}" for preset, text in texts.items()) in PAGE
    assert f"training     {prices.START_S} + {prices.AROUND_TRAINING_S} + t" in PAGE
    assert f"compression  {prices.START_S} + {COMPRESS_S}" in PAGE


def test_training_is_counted_with_its_whole_budget():
    """An estimate that is too low would shorten a training whose limit pays for all of it."""
    assert {name: preset.budget_s for name, preset in cost.GPU.items()} == TRAIN.seconds_per_job
    assert prices.AROUND_TRAINING_S == AROUND_TRAINING_S


@pytest.mark.parametrize(("preset", "photos"), [("standard", 200), ("draft", 50)])
def test_sum_by_hand(settings, preset, photos):
    """The example computed from prices per hour alone."""
    seconds_per_photo, training = SFM.seconds_per_photo[preset], TRAIN.seconds_per_job[preset]
    by_hand = (
        (prices.START_S + seconds_per_photo * photos) * 0.408
        + (prices.START_S + 60 + training) * 0.736
        + (prices.START_S + COMPRESS_S) * 0.816
    ) / 3600
    costs = cost.stage_costs(settings, preset, photos)
    assert sum(costs.values()) == pytest.approx(by_hand, abs=1e-5)
    spare = cost.with_spare(costs)
    assert spare == pytest.approx(by_hand - (1 - cost.SPARE_SHARE) * costs["train"], abs=1e-5)


def test_each_input_says_where_it_comes_from():
    for one in cost.inputs():
        assert one.kind in ("measured", "computed", "assumed", "published"), one.name
        assert len(one.source) > 10, one.name
    for name in re.findall(r"([\w-]+\.json) \(", cost.inputs_table()):
        assert (cost.RESULTS / name).is_file()


def test_every_machine_that_can_be_chosen_has_a_price_and_an_assumed_one_is_called_so():
    parameters = load_template()["Parameters"]
    machines = {
        m for stage in ("Sfm", "Train", "Compress") for m in parameters[f"{stage}InstanceType"]["AllowedValues"]
    }
    assert set(prices.TABLE_USD_PER_HOUR) == machines
    assert set(prices.ASSUMED) < machines
    kinds = {one.name: one.kind for one in cost.inputs() if one.name in machines}
    assert kinds == {name: "assumed" if name in prices.ASSUMED else "published" for name in kinds}
    assert set(kinds.values()) == {"assumed", "published"}
    for name in prices.ASSUMED:
        assert name in PAGE or name.split(".")[1] in PAGE


def test_training_on_the_stages_machine_by_hand():
    """10,000 iterations at 1600x1200 pixels: blending by 67 of 8.1 TFLOP/s and by the pixels (a sixteenth of them for a
    tenth of the training, a quarter until two fifths), the rest by 4.8 of 0.32 TB/s."""
    model, result = newest()
    assert model == "H200"
    speed, preset = result["speed"], cost.GPU["standard"]
    blend = speed["kernels_us"]["blend"] + speed["kernels_us"]["blend_backward"]
    share = 0.1 / 16 + 0.3 / 4 + 0.6
    us = blend * (1600 / 1200) ** 2 * share * 67 / 8.1 + (speed["all_kernels_us"] - blend) * 4.8 / 0.32
    assert (preset.max_gaussians, preset.max_iterations) == (speed["gaussians"], 10_000)
    assert cost.train_s("standard") == pytest.approx(10_000 * us / 1e6 + 30, rel=5e-3)
    assert cost.train_s("high") <= TRAIN.seconds_per_job["high"] + 30, "the budget ends it"


def test_expected_cost_by_hand(settings, monkeypatch):
    """1,000 s of SfM, as benchmarks/sfm.py writes it."""
    scenes = {"200": {"seconds_on_8_vcpu": 1000.0}}
    kept = cost.result
    monkeypatch.setattr(
        cost, "result", lambda name: {"figures": {"estimate": {"scenes": scenes}}} if name == "sfm" else kept(name)
    )
    seconds = cost.expected_seconds(200)
    assert seconds["sfm"] == 1180
    assert cost.usd(settings, seconds)["sfm"] == pytest.approx(1180 * 0.408 / 3600, abs=1e-5)
    assert cost.expected_seconds(1000) is None
    text = cost.room(settings, 200, {"sfm": 0.1, "train": 0.2, "compress": 0.1}, 1180)
    by_hand = 1000 + (2.73 / 5 - 0.4) / 0.408 * 3600
    assert f"less than {by_hand:,.0f} s" in text


def test_what_was_counted_before_is_not_less_than_what_is_expected(settings):
    """A job is refused by the count: one that is too low would break the promise of max_cost_usd."""
    for photos in cost.PHOTOS:
        expected = cost.expected_seconds(photos)
        if expected is None:
            pytest.skip("finding cameras was not measured")
        counted = prices.estimate(settings, JobOptions(), photos).seconds
        assert all(counted[stage] >= expected[stage] for stage in counted), photos
