"""docs/cost.md has the figures that benchmarks/cost.py prints, and its formula is that of functions/prices.py."""

from __future__ import annotations

import re

import pytest

import prices
from benchmarks import cost
from tests.deploy.environments import ROOT

PAGE = (ROOT / "docs" / "cost.md").read_text()


@pytest.fixture(scope="module")
def settings():
    return cost.default_settings()


def between(mark: str) -> str:
    return PAGE.partition(f"<!-- {mark} -->\n")[2].partition(f"<!-- /{mark} -->")[0].strip()


def test_page_has_the_printed_figures(settings):
    assert between("table") == cost.table(settings)
    assert between("example").strip("`\n") == cost.example(settings)


def test_formula_is_the_codes():
    assert f"SfM          {prices.START_S} + s × photos" in PAGE
    for texts in (
        {p: f"{s:g}" for p, s in prices.SFM_S_PER_PHOTO.items()},
        {p: f"{t:,}" for p, t in prices.TRAIN_S.items()},
    ):
        assert ", ".join(f"{text} {preset}" for preset, text in texts.items()) in PAGE
    assert f"compression  {prices.START_S} + {prices.COMPRESS_S}" in PAGE


@pytest.mark.parametrize(("preset", "photos"), [("standard", 200), ("draft", 50)])
def test_sum_by_hand(settings, preset, photos):
    """The example computed from prices per hour alone."""
    seconds_per_photo, training = prices.SFM_S_PER_PHOTO[preset], prices.TRAIN_S[preset]
    by_hand = (
        (prices.START_S + seconds_per_photo * photos) * 0.408
        + (prices.START_S + training) * 0.736
        + (prices.START_S + prices.COMPRESS_S) * 0.816
    ) / 3600
    costs = cost.stage_costs(settings, preset, photos)
    assert sum(costs.values()) == pytest.approx(by_hand, abs=1e-5)
    spare = cost.with_spare(costs)
    assert spare == pytest.approx(by_hand - (1 - cost.SPARE_SHARE) * costs["train"], abs=1e-5)


def test_claims_of_the_page(settings):
    met = {
        (preset, photos): (sum(costs.values()) <= cost.GOAL, cost.with_spare(costs) <= cost.GOAL)
        for preset in cost.PRESETS
        for photos in cost.PHOTOS
        for costs in [cost.stage_costs(settings, preset, photos)]
    }
    assert met["standard", 200] == (False, True), "'met up to a few hundred photos' rests on spare capacity"
    assert met["standard", 1000] == (False, False)
    assert met["draft", 1000] == (False, True)
    assert re.search(r"not for 1,000 photos", PAGE)
