"""The environment that template.yaml gives the functions, by name and type. Nothing else reads os.environ."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from typing import Literal

from pydantic import BaseModel, ConfigDict

Stage = Literal["sfm", "train", "compress"]
STAGES: tuple[Stage, ...] = ("sfm", "train", "compress")


@dataclass(frozen=True)
class StageSettings:
    """The machine of one stage."""

    image_uri: str
    instance_type: str
    volume_gb: int
    max_runtime_s: int
    role_arn: str


class Settings(BaseModel):
    """Each field is the environment variable of the same name in capitals."""

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
    sfm_role_arn: str
    train_role_arn: str
    compress_role_arn: str
    kms_key_arn: str  # empty: keys that AWS manages
    sfm_image_uri: str
    train_image_uri: str
    compress_image_uri: str
    sfm_instance_type: str
    train_instance_type: str
    compress_instance_type: str
    sfm_volume_gb: int
    train_volume_gb: int
    compress_volume_gb: int
    sfm_max_runtime_s: int
    train_max_runtime_s: int
    compress_max_runtime_s: int
    use_spot: bool
    spot_wait_s: int
    prices_usd_per_hour: str
    sender_email: str
    result_base_url: str

    def stage(self, stage: Stage) -> StageSettings:
        return StageSettings(
            image_uri=getattr(self, f"{stage}_image_uri"),
            instance_type=getattr(self, f"{stage}_instance_type"),
            volume_gb=getattr(self, f"{stage}_volume_gb"),
            max_runtime_s=getattr(self, f"{stage}_max_runtime_s"),
            role_arn=getattr(self, f"{stage}_role_arn"),
        )


@cache
def settings() -> Settings:
    """The settings of this function; raises pydantic.ValidationError that names each missing or wrong variable."""
    names = {name: name.upper() for name in Settings.model_fields}
    return Settings.model_validate({name: os.environ[key] for name, key in names.items() if key in os.environ})
