"""The options of a job: uploads/<scene>/job.json, checked strictly so that a typing error costs nothing.

Each option is declared here and nowhere else. `make contracts` writes from it the JSON Schema of job.json, the models
that the stage programs read their options with, and docs/options.md; the command line is made from the schema.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from base.failures import failure
from base.stages import STAGE_NAMES, StageName

SIZE_LIMIT_BYTES = 64 * 1024
Mark = TypeVar("Mark")


class For:
    """The stages whose programs are given the option."""

    def __init__(self, *stages: StageName) -> None:
        self.stages = stages


@dataclass(frozen=True)
class Since:
    """The first version of Spaceport that knows the option."""

    version: str


@dataclass(frozen=True)
class Unit:
    name: str


@dataclass(frozen=True)
class NotLocal:
    """The option makes no sense for `spaceport run`."""

    reason: str


EVERY_STAGE = For(*STAGE_NAMES)


class JobOptions(BaseModel):
    """The keys of job.json. All are optional; a number that is not given is the preset's."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    email: Annotated[
        str | None,
        Field(
            max_length=254,
            pattern=r"^[^\s@<>,;]+@[^\s@<>,;]+\.[^\s@<>,;]+$",
            description="Address that is told when the job has ended.",
        ),
        Since("0.1"),
        For(),
    ] = None
    title: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=120,
            description="Shown above the scene; the scene's name otherwise.",
            json_schema_extra={"pattern": r"^[^\x00-\x1f\x7f-\x9f]*$"},  # near to what `printable` allows
        ),
        Since("0.1"),
        For("compress"),
    ] = None
    preset: Annotated[
        Literal["draft", "standard", "high"],
        Field(description="How much time to spend, and what every number is that is not given."),
        Since("0.1"),
        For("sfm", "train"),
    ] = "standard"
    max_gaussians: Annotated[
        int | None,
        Field(ge=1_000, le=5_000_000, description="Hard cap on the number of Gaussians (gsplat: cap_max)."),
        Since("0.1"),
        For("train"),
    ] = None
    max_iterations: Annotated[
        int | None,
        Field(ge=10, le=200_000, description="Hard cap on training iterations."),
        Since("0.1"),
        For("train"),
    ] = None
    max_image_long_side: Annotated[
        int | None,
        Field(ge=320, le=8_192, description="Photos whose long side is longer are reduced to it."),
        Unit("pixels"),
        Since("0.1"),
        For("sfm", "train"),
    ] = None
    sh_degree: Annotated[
        int | None,
        Field(ge=0, le=3, description="Degree of the spherical harmonics, which make colour depend on the view."),
        Since("0.1"),
        For("train"),
    ] = None
    background: Annotated[
        Literal["black", "white", "auto"] | None,
        Field(description="What lies behind the Gaussians; black unless given, auto looks at the photos' margins."),
        Since("0.1"),
        For("train"),
    ] = None
    max_training_seconds: Annotated[
        float | None,
        Field(ge=1, le=1_000_000, description="Time that the training loop may take."),
        Unit("seconds"),
        Since("0.1"),
        For("train"),
    ] = None
    test_photos: Annotated[
        bool | None,
        Field(description="Keep every 8th photo out of the training, to measure with; off unless it is asked for."),
        Since("0.1"),
        For("train"),
    ] = None
    matcher: Annotated[
        Literal["auto", "exhaustive", "sequential", "spatial"] | None,
        Field(description="Which photos are compared with which; auto unless it is given."),
        Since("0.1"),
        For("sfm"),
    ] = None
    start_at: Annotated[
        StageName,
        Field(description="First stage that runs; what those before it would make is taken from reuse_job."),
        Since("0.1"),
        For(),
        NotLocal("`spaceport resume` goes on with a run"),
    ] = "sfm"
    reuse_job: Annotated[
        str | None,
        Field(
            pattern=r"^[a-z0-9][a-z0-9-]{0,39}-[0-9A-Z]{26}$",
            description="Earlier job of the same scene whose results are used; needs start_at.",
        ),
        Since("0.1"),
        For(),
        NotLocal("`spaceport resume` goes on with a run"),
    ] = None
    max_cost_usd: Annotated[
        float | None,
        Field(gt=0, allow_inf_nan=False, description="What the job may cost; the training is shortened to keep it."),
        Unit("USD"),
        Since("0.1"),
        For(),
    ] = None
    ready: Annotated[
        bool,
        Field(description="The upload is complete: do not wait for more photos."),
        Since("0.1"),
        For(),
        NotLocal("all photos are there"),
    ] = False

    @field_validator("title", "email")
    @classmethod
    def printable(cls, value: str | None) -> str | None:
        """Titles go into mail headers and pages: no line breaks or other control characters."""
        if value is not None and not value.isprintable():
            raise ValueError("must not contain line breaks or control characters")
        return value

    @model_validator(mode="after")
    def reuse_fits_start(self) -> JobOptions:
        if (self.start_at != "sfm") != (self.reuse_job is not None):
            raise ValueError(
                "'start_at' (train or compress) and 'reuse_job' (the job whose results are used) need each other"
            )
        return self

    def for_stage(self, stage: StageName) -> dict[str, str]:
        """The options that the stage's program knows, as text; only those that were given."""
        given = {name: getattr(self, name) for name in names_for(stage, JobOptions)}
        return {name: str(value) for name, value in given.items() if value is not None}


class StageValues(BaseModel):
    """What a stage program is given beside options of job.json, by the service or by whoever runs a stage alone."""

    job_id: Annotated[str, Field(description="Names the job in the report."), EVERY_STAGE] = "local"
    scene: Annotated[str, Field(description="The title where none is given."), EVERY_STAGE] = ""
    max_training_usd: Annotated[
        float | None,
        Field(gt=0, allow_inf_nan=False, description="What the limit leaves for all attempts of the training."),
        Unit("USD"),
        For("train"),
    ] = None
    price_usd_per_hour: Annotated[
        float,
        Field(ge=0, allow_inf_nan=False, description="Price of the stage's machine."),
        Unit("USD per hour"),
        For("train", "compress"),
    ] = 0.0
    exposure: Annotated[
        Literal["auto", "off"],
        Field(description="Compensate differences in exposure where the photos have them. Not set by the pipeline."),
        For("train"),
    ] = "auto"
    max_gpus: Annotated[
        int | None,
        Field(ge=1, description="GPUs that are used; all that there are otherwise. Not set by the pipeline."),
        For("train"),
    ] = None
    created_at: Annotated[datetime | None, Field(description="When the job began, ISO 8601."), For("compress")] = None
    spent_usd: Annotated[
        float, Field(ge=0, allow_inf_nan=False, description="Cost of the stages before."), Unit("USD"), For("compress")
    ] = 0.0
    estimated_usd: Annotated[
        float | None,
        Field(ge=0, allow_inf_nan=False, description="What the job was estimated to cost."),
        Unit("USD"),
        For("compress"),
    ] = None
    cost_basis: Annotated[str, Field(description="Where the prices come from, in words."), For("compress")] = ""


def find_mark(field: FieldInfo, kind: type[Mark]) -> Mark | None:
    """What a declaration says of this kind (For, Since, Unit, NotLocal); None where it says nothing."""
    return next((mark for mark in field.metadata if isinstance(mark, kind)), None)


def names_for(stage: StageName, *models: type[BaseModel]) -> list[str]:
    """Names of the options and values that a stage's program is given."""
    found = ((name, find_mark(field, For)) for model in models for name, field in model.model_fields.items())
    return [name for name, mark in found if mark is not None and stage in mark.stages]


def parse_options(body: bytes) -> JobOptions:
    """The options in the text of a job.json. Raises the failure BAD_OPTION that names each wrong key."""
    if len(body) > SIZE_LIMIT_BYTES:
        raise failure("BAD_OPTION", f"job.json has {len(body):,} bytes; {SIZE_LIMIT_BYTES:,} are allowed")
    try:
        return check_options(_read_object(body))
    except RecursionError as error:  # of the parser, or of the words that describe a wrong value
        raise failure("BAD_OPTION", "job.json has too many brackets inside each other to be read") from error


def _read_object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body.decode("utf-8-sig"))
    except ValueError as error:
        raise failure("BAD_OPTION", f"job.json is not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise failure("BAD_OPTION", 'job.json must hold one JSON object, such as {"preset": "draft"}')
    return value


def check_options(value: dict[str, Any]) -> JobOptions:
    """The options in a JSON object. Raises the failure BAD_OPTION that names each wrong key."""
    try:
        return JobOptions.model_validate(value)
    except ValidationError as error:
        problems = "; ".join(_describe(problem) for problem in error.errors()[:5])
        raise failure("BAD_OPTION", f"job.json: {problems}") from error


def find_email(body: bytes) -> str | None:
    """The address in a job.json that is otherwise wrong; None when there is no valid one."""
    try:
        return JobOptions.model_validate({"email": json.loads(body.decode("utf-8-sig"))["email"]}).email
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _describe(problem: Any) -> str:
    name = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, list(JobOptions.model_fields), n=1)
        hint = f", did you mean '{near[0]}'?" if near else f"; known are {', '.join(JobOptions.model_fields)}"
        return f"the option '{name[:60]}' is unknown{hint}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"'{name}': {message} (got {str(problem['input'])[:60]!r})" if name else message
