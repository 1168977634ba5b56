"""What a job will cost and has cost. SageMaker bills seconds of a machine at an hourly price."""

from __future__ import annotations

from dataclasses import dataclass

from failures import failure
from options import JobOptions
from settings import STAGES, Settings, Stage

# USD per hour, on demand, us-east-1. Not read from AWS's own page and not from a bill: the parameter PricesUsdPerHour
# replaces them. The volume is not included (about 1 % of the machine).
TABLE_DATE = "2026-11"
TABLE_SOURCE = "figures that public projects publish"
TABLE_USD_PER_HOUR = {
    "ml.c6i.xlarge": 0.204,
    "ml.c6i.2xlarge": 0.408,
    "ml.c6i.4xlarge": 0.816,
    "ml.c6i.8xlarge": 1.632,
    "ml.g4dn.xlarge": 0.736,
    "ml.g5.xlarge": 1.408,
    "ml.g5.2xlarge": 1.515,
    "ml.g5.4xlarge": 2.03,
    "ml.g6.xlarge": 1.127,
}
ANY_INSTANCE = "*"

# Billed seconds per stage, rounded up on purpose: an estimate that is too low would break the promise of max_cost_usd.
START_S = 180  # image pull and data download, billed
TRAIN_S = {"draft": 300, "standard": 1200, "high": 3600}
# About twice what benchmarks/results/sfm.json lets expect for 1,000 photos, a tenth more than for 2,000 (MaxPhotos).
SFM_S_PER_PHOTO = {"draft": 1.5, "standard": 4.0, "high": 6.0}
COMPRESS_S = 300


@dataclass(frozen=True)
class Estimate:
    usd: float
    seconds: dict[str, float]
    basis: str


def price_usd_per_hour(settings: Settings, instance_type: str) -> float:
    """Price of a machine: the parameter's, else the table's. Raises the failure BAD_PRICE for a machine without one."""
    overrides = dict(entry.split("=", 1) for entry in settings.prices_usd_per_hour.split(",") if entry)
    given = overrides.get(instance_type, overrides.get(ANY_INSTANCE))
    if given is not None:
        return float(given)
    if instance_type not in TABLE_USD_PER_HOUR:
        raise failure("BAD_PRICE", f"no price is known for {instance_type}: name it in the parameter PricesUsdPerHour")
    return TABLE_USD_PER_HOUR[instance_type]


def cost_usd(settings: Settings, instance_type: str, billable_s: float) -> float:
    return round(price_usd_per_hour(settings, instance_type) * billable_s / 3600, 6)


def estimate(settings: Settings, options: JobOptions, photos: int) -> Estimate:
    """Cost of the stages from ``options.start_at`` on, for this many photos, without any saving by spare capacity."""
    all_seconds: dict[Stage, float] = {
        "sfm": START_S + SFM_S_PER_PHOTO[options.preset] * photos,
        "train": START_S + TRAIN_S[options.preset],
        "compress": START_S + COMPRESS_S,
    }
    stages = STAGES[STAGES.index(options.start_at) :]
    limits = {stage: settings.stage(stage) for stage in stages}
    seconds = {stage: min(all_seconds[stage], limits[stage].max_runtime_s) for stage in stages}
    usd = sum(cost_usd(settings, limits[stage].instance_type, seconds[stage]) for stage in stages)
    return Estimate(round(usd, 4), {str(stage): s for stage, s in seconds.items()}, basis(settings))


def basis(settings: Settings) -> str:
    """Where the prices come from, for the report."""
    source = (
        "prices set for this installation"
        if settings.prices_usd_per_hour
        else f"list prices of us-east-1 as of {TABLE_DATE}"
    )
    return f"billed seconds at {source}"
