"""The stages, from statemachine/stages.json, which `make contracts` writes from functions/base/stages.py."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from spaceport.stack.root import ROOT

STAGES_FILE = ROOT / "statemachine" / "stages.json"


@dataclass(frozen=True)
class StageEntry:
    name: str
    state: str  # in statemachine/pipeline.asl.json
    kind: str  # of its SageMaker job: processing or training
    title: str  # what a person sees while it runs

    @property
    def is_training(self) -> bool:
        return self.kind == "training"

    def parameter(self, suffix: str) -> str:
        """Name of the stage's parameter in template.yaml that ends so: SfmImageUri for "ImageUri"."""
        return self.name.capitalize() + suffix


def read_stages(path: Path = STAGES_FILE) -> tuple[StageEntry, ...]:
    fields = StageEntry.__dataclass_fields__
    rows = json.loads(path.read_text(encoding="utf-8"))["stages"]
    return tuple(StageEntry(**{name: row[name] for name in fields}) for row in rows)


STAGES = read_stages()
STAGE_NAMES = tuple(stage.name for stage in STAGES)
