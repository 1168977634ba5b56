"""The environment that template.yaml gives the functions, by name and type. Nothing else reads os.environ."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel, ConfigDict

from base.stages import STAGE_NAMES, StageName


class StageSettings(BaseModel):
    """The machine of one stage. Each field is a variable in capitals that begins with the stage: <STAGE>_ROLE_ARN."""

    model_config = ConfigDict(frozen=True)

    image_uri: str
    instance_type: str
    volume_gb: int
    max_runtime_s: int
    role_arn: str


class Settings(BaseModel):
    """Each field but `stages` is the environment variable of the same name in capitals."""

    model_config = ConfigDict(frozen=True)

    table_name: str
    topic_arn: str
    state_machine_arn: str = ""  # only ingest has it: the state machine itself refers to the other functions
    job_prefix: str
    quiet_period_s: int
    min_photos: int
    max_photos: int
    max_usd_per_scene: float
    max_usd_per_day: float
    kms_key_arn: str  # empty: keys that AWS manages
    stages: dict[StageName, StageSettings]
    use_spot: bool
    spot_wait_s: int
    prices_usd_per_hour: str
    sender_email: str
    result_base_url: str

    def stage(self, name: StageName) -> StageSettings:
        return self.stages[name]


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Raises pydantic.ValidationError that names each missing or wrong variable."""

    def given(model: type[BaseModel], prefix: str = "") -> dict[str, Any]:
        names = {name: prefix + name.upper() for name in model.model_fields}
        return {name: environment[key] for name, key in names.items() if key in environment}

    stages = {stage: given(StageSettings, f"{stage.upper()}_") for stage in STAGE_NAMES}
    return Settings.model_validate({**given(Settings), "stages": stages})


@cache
def settings() -> Settings:
    """The settings of this function; raises as ``read_settings`` does."""
    return read_settings(os.environ)
