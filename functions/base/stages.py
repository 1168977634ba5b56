"""The stages of the pipeline in the order in which they run: the one table that everything else reads.

`make contracts` writes it as statemachine/stages.json for the programs outside the functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

StageName = Literal["sfm", "train", "compress"]

UPLOAD = "photos"  # the input channel of the photos that Validate has accepted; any other is named like a stage
WHOLE_OUTPUT = "*"


@dataclass(frozen=True)
class Stage:
    """One SageMaker job of the pipeline: ``python3 -m <name>`` in the image ``<JobPrefix>-<name>``."""

    name: StageName
    state: str  # in statemachine/pipeline.asl.json
    kind: Literal["processing", "training"]
    title: str  # what a person sees while it runs
    reads: tuple[str, ...]  # input channels: the photos, or the output of stages before it
    writes: tuple[str, ...]  # files in its output that later stages or the published result cannot do without
    publishes: tuple[str, ...]  # files of its output that are copied to results/
    # Billed seconds of the work by preset, rounded up on purpose: an estimate that is too low would break the promise
    # of max_cost_usd. The start of the machine is not included.
    seconds_per_job: Mapping[str, float] = field(hash=False)
    seconds_per_photo: Mapping[str, float] = field(hash=False, default_factory=dict)

    @property
    def is_training(self) -> bool:
        return self.kind == "training"


STAGES = (
    Stage(
        name="sfm",
        state="SfM",
        kind="processing",
        title="Find camera positions",
        reads=(UPLOAD,),
        writes=("scene.json",),
        publishes=(),
        seconds_per_job={"draft": 0, "standard": 0, "high": 0},
        # About twice what benchmarks/results/sfm.json lets expect for 1,000 photos, a tenth more than for 2,000
        # (MaxPhotos).
        seconds_per_photo={"draft": 1.5, "standard": 4.0, "high": 6.0},
    ),
    Stage(
        name="train",
        state="Train",
        kind="training",
        title="Train Gaussians",
        reads=("sfm",),
        writes=("scene.ply",),
        publishes=("scene.ply",),
        seconds_per_job={"draft": 120, "standard": 1200, "high": 3600},  # time budgets of containers/train/presets.py
    ),
    Stage(
        name="compress",
        state="Compress",
        kind="processing",
        title="Compress and build the page",
        reads=("sfm", "train"),
        writes=("index.html", "report.json", "scene.sog"),
        publishes=(WHOLE_OUTPUT,),
        seconds_per_job={"draft": 300, "standard": 300, "high": 300},
    ),
)
STAGE_NAMES: tuple[StageName, ...] = tuple(stage.name for stage in STAGES)


def find_stage(name: str) -> Stage:
    """The stage of this name. Raises KeyError where there is none."""
    for stage in STAGES:
        if stage.name == name:
            return stage
    raise KeyError(name)


def stages_before(name: StageName) -> tuple[StageName, ...]:
    return STAGE_NAMES[: STAGE_NAMES.index(name)]
