"""What a job will cost and has cost. SageMaker bills seconds of a machine at an hourly price."""

from __future__ import annotations

import math
from dataclasses import dataclass

from base.failures import JobFailure, failure
from base.settings import Settings
from base.stages import STAGES, Stage, find_stage, stages_before
from table.rows import JobRow
from uploads.options import JobOptions

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
    "ml.g4dn.12xlarge": 4.89,
    "ml.g5.xlarge": 1.408,
    "ml.g5.2xlarge": 1.515,
    "ml.g5.4xlarge": 2.03,
    "ml.g5.12xlarge": 7.09,
    "ml.g6.xlarge": 1.127,
}
# Of these no figures were found that agree: what EC2 asks and a share more, as of the other machines.
ASSUMED = {
    **dict.fromkeys(
        ("ml.c6i.xlarge", "ml.c6i.2xlarge", "ml.c6i.4xlarge", "ml.c6i.8xlarge"), "EC2's price and 20 % more"
    ),
    "ml.g4dn.12xlarge": "EC2's price and 25 % more",
}
ANY_INSTANCE = "*"

# Billed seconds beside those of the stages' own table (base/stages.py).
START_S = 180  # image pull and data download, billed
AROUND_TRAINING_S = 60  # loading before it and measuring after it (containers/train/stage.py)
# A job whose limit pays no more of its training than this is refused; its result would not be what was asked for.
LEAST_SHARE = 1 / 3
LEAST_SHARE_LATER = 1 / 10  # the same once its cameras are paid, which may have cost more than was counted
# What an interrupted training has cost beyond what the next one goes on from: start, loading, and up to the checkpoint.
INTERRUPTION_S = START_S + AROUND_TRAINING_S + 60


@dataclass(frozen=True)
class Estimate:
    usd: float
    seconds: dict[str, float]
    basis: str
    shortened: bool = False  # the training is shorter than the options want it


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


def training_s(options: JobOptions) -> float:
    """Seconds that the training loop may take, as the options want it."""
    return options.max_training_seconds or find_stage("train").seconds_per_job[options.preset]


def estimate(settings: Settings, options: JobOptions, photos: int, train_s: float | None = None) -> Estimate:
    """Cost of the stages from ``options.start_at`` on, for this many photos, without any saving by spare capacity.

    ``train_s``: seconds of the training loop, if not those that the options want.
    """
    skipped = stages_before(options.start_at)
    seconds: dict[str, float] = {}
    usd = 0.0
    for stage in STAGES:
        if stage.name not in skipped:
            machine = settings.stage(stage.name)
            seconds[stage.name] = min(_stage_s(stage, options, photos, train_s), machine.max_runtime_s)
            usd += cost_usd(settings, machine.instance_type, seconds[stage.name])
    return Estimate(round(usd, 4), seconds, basis(settings), shortened=train_s is not None)


def _stage_s(stage: Stage, options: JobOptions, photos: int, train_s: float | None) -> float:
    """Billed seconds that a stage is counted with, the start of its machine included."""
    seconds = START_S + stage.seconds_per_photo.get(options.preset, 0) * photos
    if not stage.is_training:
        return seconds + stage.seconds_per_job[options.preset]
    return seconds + AROUND_TRAINING_S + (training_s(options) if train_s is None else train_s)


def limit_usd(settings: Settings, options: JobOptions) -> float:
    """What the whole job may cost: job.json can only lower what the installation allows."""
    return min(options.max_cost_usd or math.inf, settings.max_usd_per_scene)


def within_limit(settings: Settings, options: JobOptions, photos: int) -> Estimate:
    """The estimate of a job that keeps its limit, with as much of the training as that pays.

    Raises COST_LIMIT or COST_LIMIT_OF_SERVICE when that is less than a third (docs/decisions/0008).
    """
    limit, whole = limit_usd(settings, options), estimate(settings, options, photos)
    if whole.usd <= limit:
        return whole
    least_s = LEAST_SHARE * training_s(options)
    least = estimate(settings, options, photos, least_s)
    if least.usd > limit:
        needed = f", {least.usd:.2f} USD with a third of the training" if least.usd < whole.usd else ""
        raise above_limit(settings, options, f"The job would cost about {whole.usd:.2f} USD{needed}")
    more_s = (limit - least.usd) / price_usd_per_hour(settings, settings.stage("train").instance_type) * 3600
    return estimate(settings, options, photos, math.floor(least_s + more_s - 1))  # one less: sums are rounded


def spent_usd(job: JobRow) -> float:
    """What a job (its row) has cost, interrupted attempts included."""
    attempts = [*job.get("results", {}).values(), *job.get("interrupted", {}).values()]
    return sum(float(attempt["cost_usd"]) for attempt in attempts)


def training_usd(settings: Settings, options: JobOptions, job: JobRow) -> float | None:
    """What the limit leaves for the training of this job (its row), machine start not included; None if that is free.

    It holds for all attempts together, because each goes on from the checkpoint of the one before. Spot jobs are
    counted at the on-demand price: the saving is not known in advance. Raises COST_LIMIT or COST_LIMIT_OF_SERVICE when
    nothing useful is left.
    """
    price = price_usd_per_hour(settings, settings.stage("train").instance_type)
    if not price:
        return None
    limit = limit_usd(settings, options)
    after = 0.0
    for stage in STAGES[STAGES.index(find_stage("train")) + 1 :]:
        seconds = _stage_s(stage, options, job.get("photos", 0), None)
        after += cost_usd(settings, settings.stage(stage.name).instance_type, seconds)
    interruption = cost_usd(settings, settings.stage("train").instance_type, INTERRUPTION_S)
    tried = [float(one["cost_usd"]) for one in job.get("interrupted", {}).values() if one["stage"] == "train"]
    spent = spent_usd(job) - sum(tried) + sum(min(cost, interruption) for cost in tried)
    left = limit - spent - after - price * START_S / 3600
    if left < price * (AROUND_TRAINING_S + LEAST_SHARE_LATER * training_s(options)) / 3600:
        reason = f"The job has cost {spent_usd(job):.2f} USD, too much to go on with training"
        again = f'. Start a job with a higher limit, "start_at": "train" and "reuse_job": "{job["job_id"]}"'
        raise above_limit(settings, options, reason, again)
    return left


def above_limit(settings: Settings, options: JobOptions, reason: str, advice: str = "") -> JobFailure:
    """The failure to raise, which names the limit that was the lower one."""
    own = options.max_cost_usd
    if own is not None and own <= settings.max_usd_per_scene:
        return failure("COST_LIMIT", f"{reason}; job.json allows {own:.2f} USD{advice}")
    return failure(
        "COST_LIMIT_OF_SERVICE",
        f"{reason}; this service allows {settings.max_usd_per_scene:.2f} USD per scene{advice}",
    )


def basis(settings: Settings) -> str:
    """Where the prices come from, for the report."""
    source = (
        "prices set for this installation"
        if settings.prices_usd_per_hour
        else f"list prices of us-east-1 as of {TABLE_DATE}"
    )
    return f"Billed seconds at {source}."
