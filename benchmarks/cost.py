"""What a scene costs, for docs/cost.md: python benchmarks/cost.py (prints the tables of that page).

Not measured on AWS: the seconds are those that the functions estimate with before a job is paid (functions/prices.py,
rounded up on purpose), the prices are its table. The comparison is with the direct peer's published figure.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "functions")]

import prices  # noqa: E402
from options import JobOptions  # noqa: E402
from settings import STAGES, Settings  # noqa: E402
from spaceport.template import load_stack  # noqa: E402

PHOTOS = (50, 200, 1000)
PRESETS = ("draft", "standard", "high")
# aws-solutions-library-samples, guidance for 3D Gaussian splats, README: 273.00 USD of SageMaker for 100 scenes.
PEER_USD = 2.73
GOAL = PEER_USD / 5
# SageMaker publishes no list of spare-capacity prices and promises "up to 90 %"; this share is an assumption.
SPARE_SHARE = 0.4


def default_settings() -> Settings:
    """The settings that template.yaml gives the functions by default."""
    environment = load_stack(ROOT / "template.yaml").function("ValidateFunction").environment
    names = {name: name.upper() for name in Settings.model_fields}
    return Settings.model_validate({name: environment[key] for name, key in names.items() if key in environment})


def stage_costs(settings: Settings, preset: str, photos: int) -> dict[str, float]:
    """USD by stage, on demand."""
    estimate = prices.estimate(settings, JobOptions.model_validate({"preset": preset}), photos)
    return {s: prices.cost_usd(settings, settings.stage(s).instance_type, estimate.seconds[s]) for s in STAGES}


def with_spare(costs: dict[str, float]) -> float:
    """USD of a scene whose training ran on spare capacity."""
    return costs["sfm"] + SPARE_SHARE * costs["train"] + costs["compress"]


def table(settings: Settings) -> str:
    """The estimate by preset and number of photos, compared with the peer."""
    lines = [
        "| preset | photos | SfM | training | compression | on demand | spare capacity | of 2.73 | goal ≤ 0.55 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for preset in PRESETS:
        for photos in PHOTOS:
            costs = stage_costs(settings, preset, photos)
            total, spare = sum(costs.values()), with_spare(costs)
            met = "met" if total <= GOAL else "met with spare capacity" if spare <= GOAL else "missed"
            stages = " | ".join(f"{costs[stage]:.2f}" for stage in STAGES)
            lines.append(
                f"| {preset} | {photos:,} | {stages} | {total:.2f} | {spare:.2f} | {total / PEER_USD:.0%} to "
                f"{spare / PEER_USD:.0%} | {met} |"
            )
    return "\n".join(lines)


def example(settings: Settings, preset: str = "standard", photos: int = 200) -> str:
    """The formula with its numbers for one scene."""
    estimate = prices.estimate(settings, JobOptions.model_validate({"preset": preset}), photos)
    lines = []
    for stage in STAGES:
        machine = settings.stage(stage).instance_type
        price, seconds = prices.price_usd_per_hour(settings, machine), estimate.seconds[stage]
        cost = prices.cost_usd(settings, machine, seconds)
        lines.append(f"{stage:<9}{machine:<16}{seconds:6.0f} s × {price:.3f} USD/h / 3600 = {cost:.4f} USD")
    return "\n".join([*lines, f"{'sum':<44}{estimate.usd:>14.4f} USD"])


if __name__ == "__main__":
    print(table(default_settings()) + "\n\n" + example(default_settings()))
