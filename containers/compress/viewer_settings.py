"""settings.json: what supersplat-viewer is told, its version 2 (``dist/settings.d.ts`` of the package)."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel

from job.documents import Document, Point


class ViewerDocument(Document):
    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True)


class CameraPose(ViewerDocument):
    """In the viewer's frame, which is the scene's turned by 180 degrees about z."""

    position: Point
    target: Point
    fov: float = Field(description="degrees, of the long side")


class ViewerCamera(ViewerDocument):
    initial: CameraPose


class KeyframeValues(ViewerDocument):
    position: list[float] = Field(description="x, y, z of each keyframe")
    target: list[float] = Field(description="x, y, z of each keyframe")
    fov: list[float] = Field(description="degrees, of each keyframe")


class Keyframes(ViewerDocument):
    times: list[int] = Field(description="in frames")
    values: KeyframeValues


class AnimationTrack(ViewerDocument):
    name: str
    duration: int = Field(description="seconds")
    frame_rate: int = Field(description="frames per second")
    loop_mode: Literal["none", "repeat", "pingpong"]
    interpolation: Literal["step", "spline"]
    smoothness: float
    keyframes: Keyframes


class Background(ViewerDocument):
    color: list[float] = Field(description="red, green, blue in 0..1")


class ViewerSettings(ViewerDocument):
    """Complete settings: the viewer fills nothing in."""

    version: Literal[2]
    tonemapping: str
    high_precision_rendering: bool
    background: Background
    post_effect_settings: dict[str, dict[str, bool | int | float | list[int]]]
    anim_tracks: list[AnimationTrack]
    cameras: list[ViewerCamera]
    annotations: list[str]
    start_mode: Literal["default", "animTrack", "annotation"]
