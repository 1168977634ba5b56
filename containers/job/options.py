"""The options of each stage program. Written by `make contracts` from functions/uploads/options.py; do not edit.

A program is given text: numbers are parsed, an empty text is an option that is not given, an unknown one is an error.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class StageOptions(BaseModel):
    """What the options of all stages have in common."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)

    @model_validator(mode="before")
    @classmethod
    def without_empty(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in values.items() if not isinstance(value, str) or value.strip()}


class SfmOptions(StageOptions):
    # Names the job in the report.
    job_id: str = "local"
    # The title where none is given.
    scene: str = ""
    # How much time to spend, and what every number is that is not given.
    preset: Literal["draft", "standard", "high"] = "standard"
    # Photos whose long side is longer are reduced to it.
    max_image_long_side: int | None = Field(None, ge=320, le=8_192)
    # Which photos are compared with which; auto unless it is given.
    matcher: Literal["auto", "exhaustive", "sequential", "spatial"] | None = None


class TrainOptions(StageOptions):
    # Names the job in the report.
    job_id: str = "local"
    # The title where none is given.
    scene: str = ""
    # What the limit leaves for all attempts of the training.
    max_training_usd: float | None = Field(None, gt=0, allow_inf_nan=False)
    # Price of the stage's machine.
    price_usd_per_hour: float = Field(0.0, ge=0, allow_inf_nan=False)
    # Compensate differences in exposure where the photos have them. Not set by the pipeline.
    exposure: Literal["auto", "off"] = "auto"
    # GPUs that are used; all that there are otherwise. Not set by the pipeline.
    max_gpus: int | None = Field(None, ge=1)
    # How much time to spend, and what every number is that is not given.
    preset: Literal["draft", "standard", "high"] = "standard"
    # Hard cap on the number of Gaussians (gsplat: cap_max).
    max_gaussians: int | None = Field(None, ge=1_000, le=5_000_000)
    # Hard cap on training iterations.
    max_iterations: int | None = Field(None, ge=10, le=200_000)
    # Photos whose long side is longer are reduced to it.
    max_image_long_side: int | None = Field(None, ge=320, le=8_192)
    # Degree of the spherical harmonics, which make colour depend on the view.
    sh_degree: int | None = Field(None, ge=0, le=3)
    # What lies behind the Gaussians; black unless given, auto looks at the photos' margins.
    background: Literal["black", "white", "auto"] | None = None
    # Time that the training loop may take.
    max_training_seconds: float | None = Field(None, ge=1, le=1_000_000)
    # Keep every 8th photo out of the training, to measure with; off unless it is asked for.
    test_photos: bool | None = None


class CompressOptions(StageOptions):
    # Names the job in the report.
    job_id: str = "local"
    # The title where none is given.
    scene: str = ""
    # Price of the stage's machine.
    price_usd_per_hour: float = Field(0.0, ge=0, allow_inf_nan=False)
    # When the job began, ISO 8601.
    created_at: datetime | None = None
    # Cost of the stages before.
    spent_usd: float = Field(0.0, ge=0, allow_inf_nan=False)
    # What the job was estimated to cost.
    estimated_usd: float | None = Field(None, ge=0, allow_inf_nan=False)
    # Where the prices come from, in words.
    cost_basis: str = ""
    # Shown above the scene; the scene's name otherwise.
    title: str | None = Field(None, min_length=1, max_length=120)
