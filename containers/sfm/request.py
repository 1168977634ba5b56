"""What the stage asks of the mapping program, and what that answers: two files of JSON, written and read by type."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from job.documents import Origin, Point, Versions
from sfm.exif import PhotoInfo
from sfm.options import Matcher


class MapModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")


class MapPhoto(MapModel):
    """A photo that was prepared for mapping."""

    name: str  # as uploaded, with its folders
    image: str  # name in the prepared folder
    width_px: int
    height_px: int
    info: PhotoInfo


class MapRequest(MapModel):
    photos: list[MapPhoto]
    prepared: Path  # the folder of the photos' images
    work: Path
    output: Path
    answer: Path
    matcher: Matcher
    long_side_px: int  # of the undistorted images, at most


class Rejection(MapModel):
    """Why a photo was not registered, or why nothing came of the photos at all."""

    code: str
    reason: str


class MapResult(MapModel):
    """The reconstruction, in the scene frame."""

    images: dict[str, str]  # path below the output by prepared name, of the registered photos
    unregistered: dict[str, Rejection]  # by prepared name
    georeferenced: bool
    origin: Origin | None
    gps_residual_m: float | None
    gravity: str
    points: int
    reprojection_error_px: float
    center: Point
    radius: float
    matcher: Matcher
    settings: str
    versions: Versions


class MapAnswer(MapModel):
    """One of the two."""

    result: MapResult | None = None
    error: Rejection | None = None
