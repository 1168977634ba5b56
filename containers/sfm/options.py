"""What the options and presets of the SfM stage mean."""

from __future__ import annotations

from enum import StrEnum

from job.options import SfmOptions


class Matcher(StrEnum):
    AUTO = "auto"
    EXHAUSTIVE = "exhaustive"
    SEQUENTIAL = "sequential"
    SPATIAL = "spatial"
    RETRIEVAL = "retrieval"  # by likeness, with positions where there are some


# Poses come from the middle octaves: above 1600 px features cost time and hardly move the poses. `high` keeps
# more pixels because training shows them.
LONG_SIDE_PX = {"draft": 1600, "standard": 1600, "high": 3200}


def long_side_px(options: SfmOptions) -> int:
    return options.max_image_long_side or LONG_SIDE_PX[options.preset]
