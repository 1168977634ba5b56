"""Rows SCENE#: the upload that a scene collects. Every change that can race is conditional."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from base import aws
from table import store
from table.rows import SceneRow

REJECTION_DAYS = 30


class Arrival(NamedTuple):
    """What an object meant: ``opened`` a new upload, ``joined`` the one that is collecting, or came ``late``."""

    kind: Literal["opened", "joined", "late"]
    job_id: str


def scene_key(scene: str) -> dict[str, str]:
    return {"pk": f"SCENE#{scene}"}


def get_scene(scene: str) -> SceneRow | None:
    row: SceneRow | None = store.get(scene_key(scene))
    return row


def note_object(scene: str, at: str, new_job_id: str) -> Arrival:
    """Record that an object of the scene was created at ``at`` (ISO). Events may come twice, late and in any order.

    The row has `settling` while an upload collects; `sealed_at` says when the last one was closed. An object that
    is not younger than that was already there when Validate listed the folder, so its event starts nothing, and
    belongs to no upload that has been opened since.
    """
    for _ in range(5):
        joined = store.update(
            scene_key(scene),
            "SET last_object_at = :at",
            {":at": at},
            "attribute_exists(settling) AND last_object_at < :at",
        )
        row = get_scene(scene) or SceneRow(pk="")
        if not joined and row.get("sealed_at", "") >= at:
            return Arrival("late", "")
        if joined or "settling" in row:
            if row.get("first_object_at", at) > at:
                store.update(
                    scene_key(scene),
                    "SET first_object_at = :at",
                    {":at": at},
                    "attribute_exists(settling) AND first_object_at > :at "
                    "AND (attribute_not_exists(sealed_at) OR sealed_at < :at)",
                )
            return Arrival("joined", row.get("job_id", ""))
        opened = store.update(
            scene_key(scene),
            "SET job_id = :job, settling = :yes, first_object_at = :at, last_object_at = :at",
            {":job": new_job_id, ":yes": True, ":at": at},
            "attribute_not_exists(settling) AND (attribute_not_exists(sealed_at) OR sealed_at < :at)",
        )
        if opened:
            return Arrival("opened", new_job_id)
    raise RuntimeError(f"the row of scene {scene!r} changed five times in a row; the event is delivered again")


def note_options(scene: str, at: str) -> None:
    """Record that the scene's job.json was created then.

    Called before `note_object`, so that a ready upload need not wait.
    """
    store.update(
        scene_key(scene), "SET options_at = :at", {":at": at}, "attribute_not_exists(options_at) OR options_at < :at"
    )


def seal_upload(scene: str, job_id: str, last_object_at: str) -> bool:
    """Close the upload, unless an object has come since ``last_object_at`` was read, or that second is not over.

    From here on new objects are a new upload.
    """
    return store.update(
        scene_key(scene),
        "SET sealed_at = :sealed REMOVE settling",
        {":sealed": last_second_before(aws.now()), ":job": job_id, ":seen": last_object_at},
        "job_id = :job AND attribute_exists(settling) AND last_object_at = :seen AND last_object_at <= :sealed",
    )


def last_second_before(epoch_s: float) -> str:
    """The last second that was over then, as ISO 8601; an upload that is closed is closed as of it.

    Event times have whole seconds. Of an object of the closing second nobody can tell whether it came before Validate
    listed the folder: it opens the next upload, because processing a photo twice is better than losing it.
    """
    return aws.timestamp(math.floor(epoch_s) - 1)


def release_scene(scene: str, job_id: str, ended_at: str) -> None:
    """The job ended then: the scene has no running job, and an upload that it was still collecting is closed."""
    store.update(
        scene_key(scene),
        "SET sealed_at = :ended REMOVE settling, job_id",
        {":ended": last_second_before(aws.epoch_s(ended_at)), ":job": job_id},
        "job_id = :job AND attribute_exists(settling)",
    )
    store.update(scene_key(scene), "REMOVE job_id", {":job": job_id}, "job_id = :job")


def claim_rejection(scene: str) -> bool:
    """True once a day for a folder whose name is no scene name, so that a thousand photos in it make one message."""
    today = aws.timestamp()[:10]
    return store.update(
        scene_key(scene),
        "SET rejected_on = :today, expires_at = :expires",
        {":today": today, ":expires": store.expires_at(REJECTION_DAYS)},
        "attribute_not_exists(rejected_on) OR rejected_on < :today",
    )
