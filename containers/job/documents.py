"""The JSON documents that stages write and others parse: one type each, and the only way to write and to read them.

A field has no default, so that whoever writes a document must give all of it; one that older documents lack has what
it was then. Names carry units; where a key of old has
none, its description says the unit. Schemas for readers in other languages: events/schemas/.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    RootModel,
    TypeAdapter,
    ValidationError,
)

from job.errors import StageError

AnyDocument = TypeVar("AnyDocument", bound=BaseModel)

Seconds = Annotated[float, Field(ge=0, description="seconds of wall time")]
Count = Annotated[int, Field(ge=0)]
PsnrDb = Annotated[float, Field(description="peak signal-to-noise ratio in dB")]
Ssim = Annotated[float, Field(description="structural similarity, at most 1")]
Text = Annotated[str, Field(min_length=1)]
Versions = Annotated[dict[str, str], Field(description="version of each library by its name")]
Point = Annotated[list[float], Field(min_length=3, max_length=3, description="x, y, z in the scene frame")]
Gain = Annotated[list[float], Field(min_length=3, max_length=3, description="red, green, blue: factors of a render")]
Rgb = Annotated[list[float], Field(min_length=3, max_length=3, description="red, green, blue in 0..1")]
HeldoutKind = Literal["test", "validation"]
StragglerReason = Literal["exposure", "pose", "light", "background", "unknown"]


class Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")


def write_document(path: Path, document: BaseModel) -> None:
    """Replace the file at once: a reader sees the old one or the new one, never half of it."""
    write_json_atomically(path, document.model_dump(by_alias=True))


def write_json_atomically(path: Path, value: Any) -> None:
    """A reader sees the old file or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value), encoding="utf-8")
    temporary.replace(path)


def read_document(path: Path, model: type[AnyDocument]) -> AnyDocument:
    """A document of an earlier stage; keys that this version does not know are passed by.

    Raises StageError BAD_INPUT naming the file, and the field that is missing or wrong.
    """
    try:
        return model.model_validate(json.loads(path.read_text(encoding="utf-8")), extra="ignore")
    except FileNotFoundError:
        raise StageError("BAD_INPUT", f"The stage before left no {path.name}. Run it again.") from None
    except ValidationError as error:
        problem = describe_problems(error)
        raise StageError("BAD_INPUT", f"{path.name} of the stage before {problem}. Run it again.") from None
    except ValueError as error:
        raise StageError("BAD_INPUT", f"{path.name} of the stage before is not JSON ({error}). Run it again.") from None


def describe_problems(error: ValidationError) -> str:
    """``has no a, b`` for missing fields, otherwise the first wrong field and what was expected of it."""
    problems = [(".".join(map(str, one["loc"])) or "its top", one) for one in error.errors()]
    missing = sorted({where for where, one in problems if one["type"] == "missing"})
    if missing:
        return f"has no {', '.join(missing)}"
    where, first = problems[0]
    return f"is wrong at {where}: {first['msg']} (it holds {first['input']!r:.80})"


# progress.json of every stage


class ProgressJson(Document):
    """How far a running stage is."""

    stage: Text
    step: int
    total: int = Field(description="steps of this unit of work")
    unit: str = Field(description="what a step is, as 'photos' or 'iterations'")
    started_at: float = Field(description="start of the stage, seconds since 1970")
    eta_s: float | None = Field(description="seconds left of this unit of work")
    message: str


# Written by sfm


class Origin(Document):
    """The origin of the scene frame on Earth (WGS 84)."""

    lat_deg: float
    lon_deg: float
    alt_m: float


class SceneJson(Document):
    """scene.json: the frame of the reconstructed scene, and how the reconstruction went."""

    units: Literal["metres", "arbitrary"] = Field(description="unit of length in the scene frame")
    georeferenced: bool
    origin: Origin | None = Field(description="null unless georeferenced")
    enu_from_scene: list[list[float]] | None = Field(
        description="4 x 4, from the scene frame to east, north, up at the origin, metres; null unless georeferenced"
    )
    gps_residual_m: float | None = Field(ge=0, description="median over the photos that have a GPS position")
    photos: Count
    registered: Count
    points: Count = Field(description="sparse points")
    reprojection_error_px: float = Field(ge=0)
    center: Point = Field(description="centroid of the camera centres, in the scene frame")
    radius: float = Field(description="median distance of the camera centres from center, in units of the scene")
    matcher: str
    settings: str = Field(description="'fast', or 'strong' when the photos needed it")
    gravity: str = Field(description="where 'down' comes from")
    seconds: Seconds
    versions: Versions


class PhotoRow(Document):
    """One uploaded file: registered, or why not."""

    name: Text = Field(description="as uploaded, with its folders")
    image: str | None = Field(description="its undistorted image below the output of sfm")
    registered: bool
    code: str | None
    reason: str | None


class PhotosJson(RootModel[list[PhotoRow]]):
    """photos.json: one row for each uploaded file."""


# Written by train


class HeldoutRow(Document):
    """Quality on one photo that was kept out of training, the render at the photo's exposure."""

    name: Text
    psnr: PsnrDb
    ssim: Ssim
    psnr_fitted: PsnrDb = Field(description="dB, after a gain and an offset per channel were fitted to the photo")
    gain: Gain = Field(description="red, green, blue: what a render is multiplied with to have the photo's exposure")


class StragglerRow(Document):
    """A photo that the model fits much worse than the others."""

    name: Text
    psnr: PsnrDb
    below_db: float = Field(ge=0, description="below the median of the photos it was compared with")
    reason: StragglerReason
    detail: str


class ExposureSummary(Document):
    """Whether the photos differ in brightness."""

    spread: float = Field(ge=0, description="standard deviation of the natural logarithm of the photos' gains")
    compensated: bool


class CurvePoint(Document):
    """Quality on the photos kept out, at one moment of the training."""

    iteration: int
    seconds: Seconds
    psnr: PsnrDb
    gaussians: Count


class Metrics(Document):
    """metrics.json: how the training went and how good the model is."""

    seconds: Seconds = Field(description="wall time of the whole stage, in this attempt")
    training_seconds: Seconds = Field(description="of the training loop, over all attempts")
    iterations: Count
    stop_reason: str = Field(description="'time_budget', 'max_iterations', 'plateau' or 'cost_limit'")
    saved_seconds: Seconds = Field(description="what stopping at a plateau saved of the training loop")
    rollbacks: Count = Field(description="how often the training diverged and went back to its best state")
    device: str
    engine: str
    preset: str
    gaussians: Count
    sh_degree: int = Field(ge=0, le=3)
    background_rgb: Rgb = Field(description="what lies behind the Gaussians, in 0..1")
    image_width: int = Field(description="of the photos as trained with, pixels")
    image_height: int = Field(description="of the photos as trained with, pixels")
    psnr: PsnrDb = Field(description="dB, mean over heldout")
    psnr_median: PsnrDb = Field(description="dB, median over heldout")
    ssim: Ssim = Field(description="mean over heldout")
    psnr_fitted: PsnrDb = Field(description="dB, mean over heldout")
    train_psnr: PsnrDb = Field(description="dB, mean over some of the photos of the training")
    heldout: list[HeldoutRow]
    heldout_are: HeldoutKind = Field(
        description="test: no part of the training saw them; validation: measured just before they joined it"
    )
    stragglers: list[StragglerRow]
    exposure: ExposureSummary
    curve: list[CurvePoint]
    versions: Versions


# Written by compress


class RejectedPhoto(Document):
    name: Text
    reason: Text


class ReportPhotos(Document):
    total: Count
    registered: Count
    rejected: list[RejectedPhoto]


class ReportSfm(Document):
    seconds: Seconds
    points: Count
    reprojection_error_px: float = Field(ge=0)
    georeferenced: bool
    gps_residual_m: float | None = Field(ge=0)


class ReportStraggler(Document):
    name: Text
    below_db: float = Field(ge=0)
    reason: StragglerReason
    detail: str


class ReportTraining(Document):
    seconds: Seconds
    iterations: Count
    stop_reason: str
    saved_seconds: Seconds
    rollbacks: Count
    device: str
    gaussians: int = Field(ge=1)
    sh_degree: int = Field(ge=0, le=3)
    background_rgb: Rgb = Field(description="what lies behind the Gaussians, in 0..1")
    psnr: float | None = Field(description="dB, on the photos of heldout_are")
    ssim: float | None
    train_psnr: float | None = Field(description="dB")
    heldout_are: HeldoutKind
    exposure: ExposureSummary
    heldout_photos: Count
    stragglers: list[ReportStraggler]


class ReportCompression(Document):
    seconds: Seconds
    ply_bytes: int = Field(ge=1)
    sog_bytes: int = Field(ge=1)
    ratio: float = Field(gt=0)
    psnr_vs_uncompressed: PsnrDb
    psnr: float | None = Field(
        description="dB, published scene on the held-out photos. It has seen them in the cool-down when "
        "training.heldout_are is validation; training.psnr is of before that."
    )
    ssim: float | None = Field(description="As psnr.")


class ReportCost(Document):
    estimated_usd: float | None = Field(ge=0)
    actual_usd: float = Field(ge=0)
    basis: str


def require_zone(text: str) -> str:
    TypeAdapter(AwareDatetime).validate_python(text)
    return text


class Report(Document):
    """report.json of one job: what went in, what came out, how good it is and what it cost."""

    job_id: Text
    title: Text
    created_at: Annotated[str, AfterValidator(require_zone)] = Field(json_schema_extra={"format": "date-time"})
    photos: ReportPhotos
    sfm: ReportSfm
    training: ReportTraining
    compression: ReportCompression
    cost: ReportCost
    versions: Versions
