"""Why a job failed: raise it with a stable code, and read it back from whatever text a service made of it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

TRANSIENT = "Spaceport.Transient"  # the only error name that the state machine retries by itself
REASON_LIMIT = 1024

# What to do, for codes whose reason does not say so itself.
ADVICE = {
    "ARCHIVE_CHANGED": "Upload everything again, job.json last.",
    "ARCHIVE_DAMAGED": "Make the archive anew and upload it again, or upload the photos themselves.",
    "ARCHIVE_ENCRYPTED": "Make the archive anew without a password, or upload the photos themselves.",
    "ARCHIVE_NESTED": "Unpack the inner archive and upload its photos, or upload it beside the outer one.",
    "ARCHIVE_TOO_LARGE": "Upload the photos themselves, as single files.",
    "ARCHIVE_UNSAFE": "Make an archive that holds nothing but the photos, or upload the photos themselves.",
    "ARCHIVE_UNSUPPORTED": 'Make the archive anew with plain "zip" compression, or upload the photos themselves.',
    "BAD_OPTION": "Correct job.json and upload it again.",
    "COST_LIMIT": "Raise max_cost_usd in job.json, or choose the preset draft.",
    "COST_LIMIT_OF_SERVICE": "Upload fewer photos or choose the preset draft, or raise the parameter MaxUsdPerScene.",
    "DAILY_COST_LIMIT": "Upload job.json again tomorrow (UTC), or raise the parameter MaxUsdPerDay.",
    "EXECUTION_ABORTED": "Upload job.json again to start a new job.",
    "EXECUTION_TIMED_OUT": "Upload job.json again; if it happens twice, tell whoever runs the service.",
    "IMAGE_BROKEN": "Whoever runs the service should build and push the container images again.",
    "INTERNAL_ERROR": "Try again; if it happens twice, tell whoever runs the service.",
    "NO_CAPACITY": "Try again later.",
    "NO_PHOTOS": "Upload the photos as JPEG, PNG, TIFF or WebP files.",
    "OUT_OF_MEMORY": "Use fewer or smaller photos, or a larger instance type.",
    "QUOTA_EXCEEDED": "Try again when other jobs have ended, or ask for a higher limit under Service Quotas.",
    "REUSE_JOB": "Choose another reuse_job, or start at sfm.",
    "SAGEMAKER_INTERNAL": "Try again later.",
    "SAGEMAKER_REJECTED": "Whoever runs the service should check the images, the instance types and the role.",
    "NOT_STARTED": "Upload job.json again to start a new job.",
    "SERVICE_BUSY": "Try again later.",
    "STAGE_INTERRUPTED": "Try again later.",
    "STAGE_LOST": "Try again; if it happens twice, tell whoever runs the service.",
    "STAGE_STOPPED": "Upload job.json again to start a new job.",
    "STAGE_TIMEOUT": "Use fewer photos or the preset draft, or raise the stage's maximum run time.",
    "TOO_FEW_PHOTOS": "Upload more photos of the same scene, taken with much overlap.",
    "TOO_MANY_PHOTOS": "Upload fewer photos, or raise the parameter MaxPhotos.",
    "UNSUPPORTED_INPUT": "Take single pictures from the video and upload those.",
    "UPLOAD_NEVER_ENDS": 'Upload a job.json with "ready": true when everything is there.',
}

# Errors that Step Functions or Lambda make themselves.
SERVICE_ERRORS = {
    "States.Timeout": ("STAGE_TIMEOUT", "A step took longer than it may."),
    "States.HeartbeatTimeout": ("STAGE_LOST", "A stage gave no sign of life for half an hour."),
    "Lambda.TooManyRequestsException": ("NO_CAPACITY", "Too many functions ran at the same time in this account."),
}

_CODE_AT_START = re.compile(r"\s*(?:[A-Z][A-Za-z]+Error:\s*)?([A-Z][A-Z0-9_]{3,}):\s+(.+)", re.DOTALL)
_CODE_INSIDE = re.compile(r"(?:^|[\s:,])([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+):\s+(.+)", re.DOTALL)
_EXIT_CODE = re.compile(r",?\s*exit code:?\s*\d+\s*$", re.IGNORECASE)


class FailureRecord(TypedDict):
    """Why a job failed, as it is stored and sent."""

    code: Annotated[str, Field(description="stable, upper case, such as TOO_FEW_PHOTOS")]
    reason: Annotated[str, Field(description="one plain text for the user")]
    advice: Annotated[str, Field(description="what to do, or empty where the reason says it")]


@dataclass(frozen=True)
class Failure:
    """code: stable, upper case. reason: one plain text. advice: what to do, or empty where the reason says it."""

    code: str
    reason: str
    advice: str = ""

    def as_dict(self) -> FailureRecord:
        return {"code": self.code, "reason": self.reason, "advice": self.advice}


class JobFailure(Exception):
    """Ends a job. Its text is ``CODE: reason``, as stage programs write it; raise what ``failure`` returns."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason


@cache
def _class_named(name: str) -> type[JobFailure]:
    # Each code gets an exception class of the same name: Lambda reports it as the error that Retry and Catch match.
    return type(name, (JobFailure,), {})


def failure(code: str, reason: str) -> JobFailure:
    """An exception to raise: it ends the job with this code and reason."""
    return _class_named(code)(code, reason)


def transient(code: str, reason: str) -> JobFailure:
    """An exception to raise: the state machine tries the step again; the code and reason count when it gives up."""
    return _class_named(TRANSIENT)(code, reason)


def parse(state_error: Any) -> Failure:
    """Code, reason and advice of what a Catch has written (``{"Error", "Cause"}``), or of anything else. Never raises.

    The cause may be our own JSON (check_status), a Lambda's ``errorMessage`` envelope, a stage's ``CODE: sentence``,
    plain text of a service, or nothing.
    """
    error, cause = ("", state_error)
    if isinstance(state_error, dict):
        error, cause = str(state_error.get("Error") or ""), state_error.get("Cause", "")
        if not error and not cause:
            cause = state_error
    code, reason = _read(error, cause, depth=0)
    reason = " ".join(reason.split())[:REASON_LIMIT]
    return Failure(code, reason, "" if _says_what_to_do(reason) else ADVICE.get(code, ""))


def _read(error: str, cause: Any, depth: int) -> tuple[str, str]:
    """(code, reason) from an error name and a cause of any form; envelopes are opened from outside in."""
    value = _decoded(cause)
    if isinstance(value, dict) and depth < 5:
        code, reason = value.get("code"), value.get("reason")
        if isinstance(code, str) and isinstance(reason, str) and code and reason.strip():
            return code, reason
        if "errorMessage" in value or "errorType" in value:
            return _read(str(value.get("errorType") or error), value.get("errorMessage") or "", depth + 1)
        if "Cause" in value or "Error" in value:
            return _read(str(value.get("Error") or error), value.get("Cause") or "", depth + 1)
    text = next((text for text in (value, cause) if isinstance(text, str)), None)
    return _read_text(error, json.dumps(value, default=str) if text is None else text)


def _read_text(error: str, text: str) -> tuple[str, str]:
    found = stage_reason(text) or SERVICE_ERRORS.get(error)
    if found:
        return found
    if re.fullmatch(r"[A-Z][A-Z0-9_]{3,62}", error) and text:
        return error, text
    if "Task timed out after" in text:
        return "INTERNAL_ERROR", "A function of the service took too long."
    detail = text[:300] or "no details were given"
    return "INTERNAL_ERROR", f"Something went wrong inside the service ({error or 'unknown error'}: {detail})"


def _decoded(cause: Any) -> Any:
    if isinstance(cause, str) and cause.lstrip()[:1] in ("{", '"'):
        try:
            return json.loads(cause)
        except (ValueError, RecursionError):
            return cause
    return "" if cause is None else cause


def stage_reason(text: str) -> tuple[str, str] | None:
    """(code, reason) of a stage's ``CODE: sentence``, with what SageMaker puts around it.

    None when there is no code in it.
    """
    bare = _EXIT_CODE.sub("", text)
    match = _CODE_AT_START.match(bare) or _CODE_INSIDE.search(bare)
    return (match[1], match[2].strip()) if match else None


def _says_what_to_do(reason: str) -> bool:
    unquoted = re.sub(r"'[^']*'|\"[^\"]*\"", "", reason)  # names of files may hold anything
    return re.search(r"[.!?]\s+\S", unquoted) is not None
