"""Options of the SfM stage and what the presets mean."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field, field_validator


class Preset(StrEnum):
    DRAFT = "draft"
    STANDARD = "standard"
    HIGH = "high"


class Matcher(StrEnum):
    AUTO = "auto"
    EXHAUSTIVE = "exhaustive"
    SEQUENTIAL = "sequential"
    SPATIAL = "spatial"
    RETRIEVAL = "retrieval"  # by likeness, with positions where there are some


# Poses come from the middle octaves: above 1600 px features cost time and hardly move the poses. `high` keeps
# more pixels because training shows them.
LONG_SIDE_PX = {Preset.DRAFT: 1600, Preset.STANDARD: 1600, Preset.HIGH: 3200}


class Options(BaseModel):
    """Options by name, as strings from the environment; an empty string means "the preset's"."""

    model_config = ConfigDict(extra="forbid")

    job_id: str = "local"
    scene: str = "scene"
    preset: Preset = Preset.STANDARD
    matcher: Matcher = Matcher.AUTO
    max_image_long_side: int | None = Field(None, ge=320, le=8192)

    @field_validator("preset", "matcher", "max_image_long_side", mode="before")
    @classmethod
    def empty_is_default(cls, value: object, info: object) -> object:
        if value != "":
            return value
        return cls.model_fields[info.field_name].default  # type: ignore[attr-defined]

    @property
    def long_side_px(self) -> int:
        return self.max_image_long_side or LONG_SIDE_PX[self.preset]
