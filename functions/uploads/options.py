"""The options of a job: uploads/<scene>/job.json, checked strictly so that a typing error costs nothing."""

from __future__ import annotations

import difflib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from base.failures import failure
from base.stages import StageName

SIZE_LIMIT_BYTES = 64 * 1024


class JobOptions(BaseModel):
    """All keys are optional; a missing number is the preset's."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    email: Annotated[str, Field(max_length=254, pattern=r"^[^\s@<>,;]+@[^\s@<>,;]+\.[^\s@<>,;]+$")] | None = None
    title: Annotated[str, Field(min_length=1, max_length=120)] | None = None
    preset: Literal["draft", "standard", "high"] = "standard"
    max_gaussians: Annotated[int, Field(ge=1_000, le=5_000_000)] | None = None
    max_iterations: Annotated[int, Field(ge=10, le=200_000)] | None = None
    max_image_long_side: Annotated[int, Field(ge=320, le=8_192)] | None = None  # pixels
    sh_degree: Annotated[int, Field(ge=0, le=3)] | None = None
    max_training_seconds: Annotated[float, Field(ge=1, le=1_000_000)] | None = None
    test_photos: bool | None = None  # keep every 8th photo out of the training, to measure with
    matcher: Literal["auto", "exhaustive", "sequential", "spatial"] | None = None
    start_at: StageName = "sfm"
    reuse_job: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}-[0-9A-Z]{26}$")] | None = None
    max_cost_usd: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    ready: bool = False

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
        """The options that the stage program knows (docs/contracts.md, "Stage programs"), as text.

        Only those that were given.
        """
        names = {
            "sfm": ("matcher", "max_image_long_side"),
            "train": (
                *("max_gaussians", "max_iterations", "max_image_long_side", "sh_degree"),
                *("max_training_seconds", "test_photos"),
            ),
            "compress": ("title",),
        }[stage]
        given = {name: getattr(self, name) for name in ("preset", *names)}
        return {name: str(value) for name, value in given.items() if value is not None}


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
