"""What a scene costs, for docs/cost.md: python -m benchmarks cost (prints parts of that page; --write puts them in).

Two figures: what the service counts with before it pays (functions/stages/prices.py, rounded up on purpose), and what
is to be expected by the measurements in benchmarks/results. Nothing was measured on AWS; each input says where it comes
from.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from base.settings import Settings, read_settings
from base.stages import STAGE_NAMES
from benchmarks.gpus import iteration_ms, newest
from benchmarks.marks import filled
from spaceport.stack.template import load_stack
from stages import prices
from train.presets import GPU
from uploads.options import JobOptions

ROOT = Path(__file__).resolve().parents[1]

PAGE = ROOT / "docs" / "cost.md"
RESULTS = ROOT / "benchmarks" / "results"
PHOTOS = (50, 200, 1000)
PRESETS = ("draft", "standard", "high")
EXPECTED_PRESET = "standard"  # the default, and the one that SfM was measured with
# aws-solutions-library-samples, guidance for 3D Gaussian splats, README: 273.00 USD of SageMaker for 100 scenes.
PEER_USD = 2.73
GOAL = PEER_USD / 5
# SageMaker publishes no list of Spot prices and promises "up to 90 %"; this share is an assumption.
SPARE_SHARE = 0.4
TRAINED_ON = "T4"  # of ml.g4dn
EVALUATION_S = 30  # loading photos, held-out views, report; assumed


@dataclass(frozen=True)
class Input:
    """One number of the expected cost. ``kind``: measured, computed, assumed or published."""

    name: str
    value: str
    kind: str
    source: str


def default_settings() -> Settings:
    """The settings that template.yaml gives the functions by default."""
    environment = load_stack(ROOT / "template.yaml").function("ValidateFunction").environment
    return read_settings(environment)


def stage_costs(settings: Settings, preset: str, photos: int) -> dict[str, float]:
    """USD by stage, on-demand, as the service counts before it pays."""
    estimate = prices.estimate(settings, JobOptions.model_validate({"preset": preset}), photos)
    return usd(settings, estimate.seconds)


def usd(settings: Settings, seconds: dict[str, float]) -> dict[str, float]:
    return {s: prices.cost_usd(settings, settings.stage(s).instance_type, seconds[s]) for s in STAGE_NAMES}


def with_spare(costs: dict[str, float]) -> float:
    """USD of a scene whose training ran on Spot."""
    return costs["sfm"] + SPARE_SHARE * costs["train"] + costs["compress"]


def result(name: str) -> dict[str, Any] | None:
    """A file of benchmarks/results, or None where it was not measured."""
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def train_s(preset: str) -> float:
    """Seconds of training on a T4, without the stop rule: benchmarks/gpus.py, from the newest GPU result."""
    measured_on, measured = newest()
    chosen = GPU[preset]
    each_s = iteration_ms(measured["speed"], measured_on, chosen, TRAINED_ON) / 1000
    return min(chosen.budget_s, chosen.max_iterations * each_s) + EVALUATION_S


def compress_s(preset: str) -> float:
    """Seconds of compression: the measured scene on two cores, scaled by Gaussians; more cores are not counted."""
    measured = (result("plush-draft") or {})["figures"]
    return float(measured["compress_s"]) * GPU[preset].max_gaussians / float(measured["gaussians"])


def sfm_s(photos: int) -> float | None:
    """Seconds of SfM on 8 vCPU by benchmarks/sfm.py, or None where that was not measured."""
    measured = result("sfm")
    scene = (((measured or {}).get("figures") or {}).get("estimate") or {}).get("scenes", {}).get(str(photos))
    return None if scene is None else float(scene["seconds_on_8_vcpu"])


def expected_seconds(photos: int, preset: str = EXPECTED_PRESET) -> dict[str, float] | None:
    """Billed seconds by stage, or None where SfM was not measured."""
    cameras = sfm_s(photos)
    if cameras is None:
        return None
    stages = {"sfm": cameras, "train": train_s(preset), "compress": compress_s(preset)}
    return {stage: prices.START_S + seconds for stage, seconds in stages.items()}


def inputs() -> list[Input]:
    """Every number of the expected cost and where it comes from."""
    (gpu, trained), local, sfm = newest(), result("plush-draft") or {}, result("sfm")
    most = max((run["n_photos"] for run in sfm["figures"]["sets"].values()), default=0) if sfm else 0
    chosen, speed, compressed = GPU[EXPECTED_PRESET], trained["speed"], local["figures"]
    found = [
        Input("start of an instance", f"{prices.START_S} s", "assumed", "image and data are downloaded; billed"),
        Input(
            "SfM of 50 / 200 / 1,000 photos",
            " / ".join(f"{sfm_s(n) or 0:,.0f} s" for n in PHOTOS) if sfm else "not measured",
            "computed",
            f"sfm.json ({sfm['date']}): CPU seconds of up to {most} photos, scaled to 8 vCPU, extrapolated"
            if sfm
            else "`python -m benchmarks sfm`",
        ),
        Input(
            f"a training iteration on an {gpu}",
            f"{speed['ms_per_iteration']:.2f} ms",
            "measured",
            f"{trained['name']}.json ({trained['date']}): {speed['gaussians']:,} Gaussians, 1200x900 pixels",
        ),
        Input(
            "training on a T4",
            f"{train_s(EXPECTED_PRESET):,.0f} s",
            "computed",
            f"{chosen.max_iterations:,} iterations at {chosen.long_side} pixels, at most {chosen.budget_s:,.0f} s, and "
            f"{EVALUATION_S} s around them; scaled by kernel and data sheets (benchmarks/gpus.py)",
        ),
        Input(
            "compression of 30,000 Gaussians",
            f"{compressed['compress_s']:.1f} s",
            "measured",
            f"plush-draft.json ({local['date']}), 2 cores",
        ),
        Input(
            f"compression of {chosen.max_gaussians:,} Gaussians",
            f"{compress_s(EXPECTED_PRESET):.0f} s",
            "computed",
            "scaled by the number of Gaussians; the instance's additional cores are not counted",
        ),
        Input("training on Spot", f"{SPARE_SHARE:.0%} of the on-demand price", "assumed", "AWS: up to 90 % less"),
    ]
    settings = default_settings()
    for stage in STAGE_NAMES:
        machine = settings.stage(stage).instance_type
        price = prices.price_usd_per_hour(settings, machine)
        kind = "assumed" if machine in prices.ASSUMED else "published"
        source = f"{prices.TABLE_DATE}, us-east-1; {prices.ASSUMED.get(machine, prices.TABLE_SOURCE)}"
        found.append(Input(machine, f"{price} USD/h", kind, source))
    return found


def inputs_table() -> str:
    rows = [f"| {one.name} | {one.value} | {one.kind} | {one.source} |" for one in inputs()]
    return "\n".join(["| input | value | kind | source |", "|---|---|---|---|", *rows])


def expected_table(settings: Settings) -> str:
    """The expected cost by number of photos, compared with the goal."""
    lines = [
        "| photos | SfM | training | compression | on-demand | Spot | of 2.73 | goal ≤ 0.55 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for photos in PHOTOS:
        seconds = expected_seconds(photos)
        if seconds is None:
            return "Not measured: benchmarks/results/sfm.json is missing (`python -m benchmarks sfm`)."
        costs = usd(settings, seconds)
        lines.append(f"| {photos:,} | {priced(costs)} |")
        margin = room(settings, photos, costs, seconds["sfm"])
    return "\n".join([*lines, "", margin])


def room(settings: Settings, photos: int, costs: dict[str, float], seconds: float) -> str:
    """By how much SfM, the least certain of the stages, may be wrong before the goal is missed on-demand."""
    price_s = prices.price_usd_per_hour(settings, settings.stage("sfm").instance_type) / 3600
    most = seconds + (GOAL - sum(costs.values())) / price_s - prices.START_S
    limit = f"as long as SfM takes less than {most:,.0f} s after its instance has started"
    return f"{photos:,} photos meet the goal on-demand {limit}."


def priced(costs: dict[str, float]) -> str:
    """Cells of a table: stages, sums, share of the peer, goal."""
    total, spare = sum(costs.values()), with_spare(costs)
    met = "met" if total <= GOAL else "met with Spot" if spare <= GOAL else "missed"
    stages = " | ".join(f"{costs[stage]:.2f}" for stage in STAGE_NAMES)
    return f"{stages} | {total:.2f} | {spare:.2f} | {total / PEER_USD:.0%} to {spare / PEER_USD:.0%} | {met}"


def table(settings: Settings) -> str:
    """The estimate by preset and number of photos, compared with the peer."""
    lines = [
        "| preset | photos | SfM | training | compression | on-demand | Spot | of 2.73 | goal ≤ 0.55 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for preset in PRESETS:
        for photos in PHOTOS:
            lines.append(f"| {preset} | {photos:,} | {priced(stage_costs(settings, preset, photos))} |")
    return "\n".join(lines)


def example(settings: Settings, preset: str = "standard", photos: int = 200) -> str:
    """The formula with its numbers for one scene."""
    estimate = prices.estimate(settings, JobOptions.model_validate({"preset": preset}), photos)
    lines = []
    for stage in STAGE_NAMES:
        machine = settings.stage(stage).instance_type
        price, seconds = prices.price_usd_per_hour(settings, machine), estimate.seconds[stage]
        cost = prices.cost_usd(settings, machine, seconds)
        lines.append(f"{stage:<9}{machine:<16}{seconds:6.0f} s × {price:.3f} USD/h / 3600 = {cost:.4f} USD")
    return "\n".join(["```", *lines, f"{'sum':<44}{estimate.usd:>14.4f} USD", "```"])


def parts() -> dict[str, str]:
    """What the page has between its marks."""
    settings = default_settings()
    return {
        "expected": expected_table(settings),
        "inputs": inputs_table(),
        "table": table(settings),
        "example": example(settings),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the parts into docs/cost.md")
    page = PAGE.read_text(encoding="utf-8")
    write = parser.parse_args().write
    print(*parts().values(), sep="\n\n")
    if write:
        PAGE.write_text(filled(page, parts()), encoding="utf-8")


if __name__ == "__main__":
    main()
