"""The figures of report.json that messages and metrics show (all of it: events/schemas/report.schema.json)."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic.functional_validators import ModelWrapValidatorHandler as Check


class Figures(BaseModel):
    """Other keys are passed by, and a wrong value counts as a missing one: the message goes out without the figure."""

    model_config = ConfigDict(strict=True, frozen=True)

    @field_validator("*", mode="wrap")
    @classmethod
    def default_when_wrong(cls, value: Any, check: Check[Any], info: ValidationInfo) -> Any:
        try:
            return check(value)
        except ValidationError:
            return cls.model_fields[str(info.field_name)].get_default(call_default_factory=True)


class PhotoFigures(Figures):
    total: int | None = None
    registered: int | None = None


class TrainingFigures(Figures):
    psnr: float | None = None  # dB, on photos held back
    gaussians: int | None = None
    stop_reason: str | None = None


class CompressionFigures(Figures):
    ply_bytes: int | None = None
    sog_bytes: int | None = None


class ReportSummary(Figures):
    photos: PhotoFigures = Field(default_factory=PhotoFigures)
    training: TrainingFigures = Field(default_factory=TrainingFigures)
    compression: CompressionFigures = Field(default_factory=CompressionFigures)


def summary_of(body: bytes) -> ReportSummary:
    """The figures in the text of a report.json; none in a text that is no JSON object."""
    try:
        return ReportSummary.model_validate_json(body)
    except ValidationError:
        return ReportSummary()
