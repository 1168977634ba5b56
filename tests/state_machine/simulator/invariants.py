"""What must hold when everything has come to rest, whatever happened on the way."""

from __future__ import annotations

import json
from typing import Any

from base.stages import STAGE_NAMES
from tests.state_machine.simulator.fakes import plain
from tests.state_machine.simulator.plan import Fault
from tests.state_machine.simulator.world import OUTPUTS, World, fits

# A job that nobody waits for is found by the next sweep; a sweep that was itself struck leaves it to the one after.
GRACE_S = 700.0


def check(world: World) -> list[str]:
    """Every violation, as a sentence; empty when all is well."""
    found = list(world.violations)
    jobs = {pk[4:]: row for pk, row in world.table.rows.items() if pk.startswith("JOB#")}
    executions = {arn.rpartition(":")[2]: arn for arn in world.started()}
    if not jobs and world.plan.photos:
        found.append("the upload has made no job")
    if world.plan.jobs is not None and len(jobs) != world.plan.jobs:
        found.append(f"the uploads have made {len(jobs)} jobs, not {world.plan.jobs}")
    for job_id in jobs.keys() | executions.keys():
        found += _job(world, job_id, jobs.get(job_id, {}), executions.get(job_id, ""))
    found += _table(world)
    found += _stages(world)
    found += _photos(world, jobs)
    for channel, _, text in world.messages.sent:
        if not any(job_id in plain(text) for job_id in jobs):
            found.append(f"a message to {channel} is about no job")
    return found


def _job(world: World, job_id: str, row: dict[str, Any], execution: str) -> list[str]:
    found = []
    at, status = world.ended.get(execution, (0.0, "RUNNING" if execution else "NEVER STARTED"))
    if status not in ("SUCCEEDED", "FAILED", "ABORTED", "TIMED_OUT"):
        return [f"{job_id}: the execution is {status} for ever"]
    found += _status(world, job_id, row, execution, status)
    found += _messages(world, job_id, row)
    found += _events(world, job_id, row)
    found += _results(world, job_id, row)
    found += _billing(world, job_id, at)
    found += _costs(world, job_id, row)
    return found


def _status(world: World, job_id: str, row: dict[str, Any], execution: str, status: str) -> list[str]:
    """The row says what the execution says, and both say what happened."""
    found = []
    row_status, code = row.get("status"), (row.get("failure") or {}).get("code")
    allowed: dict[str, tuple[str, ...]] = {
        "SUCCEEDED": ("SUCCEEDED",),
        "FAILED": ("FAILED",),
        # Whoever stops an execution may come too late: the job has ended in its row already.
        "ABORTED": ("ABORTED", "FAILED", "SUCCEEDED"),
        "TIMED_OUT": ("FAILED", "SUCCEEDED"),
    }
    # An answer above 256 KiB cannot be caught; where Notify gives it, the job has succeeded all the same. So it has
    # when Notify fails afterwards and DynamoDB then does not say so (docs/architecture.md, "Known limits").
    unheard = any(isinstance(part, Fault) and part.where == "FailUnlessDone" and part.count > 4 for part in world.hit)
    too_large = world.errors.get(execution) == "States.DataLimitExceeded"
    beyond_catch = row_status == "SUCCEEDED" and (too_large or unheard)
    if row_status not in allowed[status] and not beyond_catch:
        found.append(f"{job_id}: the execution is {status}, its row {row_status}")
    if status == "ABORTED" and execution not in world.aborted:
        found.append(f"{job_id}: ABORTED, but nobody aborted it")
    if row_status == "SUCCEEDED":
        if code:
            found.append(f"{job_id}: SUCCEEDED with the failure {code}")
    elif row_status == "ABORTED":
        if code != "EXECUTION_ABORTED":
            found.append(f"{job_id}: ABORTED for the reason {code}")
    elif not world.causes:
        found.append(f"{job_id}: FAILED ({code}) although nothing fatal has happened")
    elif code not in world.causes:
        found.append(f"{job_id}: the reason is {code}, but what happened is {sorted(set(world.causes))}")
    one_job = len(world.started()) == 1  # else it may have happened to another
    if status == "SUCCEEDED" and world.causes and one_job and not world.may_survive:
        found.append(f"{job_id}: SUCCEEDED in spite of {sorted(set(world.causes))}")
    if "ended_at" not in row:
        found.append(f"{job_id}: the row does not say when it ended")
    return found


def _messages(world: World, job_id: str, row: dict[str, Any]) -> list[str]:
    """Exactly one; one more for each redrive, and for each call cut off between sending and marking (decision 0004).

    What each one says was compared with the row when it was sent (``World._told``).
    """
    texts = [plain(text) for _, _, text in world.messages.sent if job_id in plain(text)]
    if not texts:
        return [f"{job_id}: the user has not been told"]
    found = []
    if len(texts) > 1 + world.redrives + world.unmarked["message", job_id]:
        found.append(f"{job_id}: the user has been told {len(texts)} times")
    if not fits(row, job_id, texts[-1]):
        found.append(f"{job_id}: the last message does not say what the row says: {row.get('status')}")
    if "message_sent_at" not in row:
        found.append(f"{job_id}: the message is not marked as sent")
    return found


def _events(world: World, job_id: str, row: dict[str, Any]) -> list[str]:
    """As messages: other systems hear of the end, and of no other one."""
    details = [json.loads(entry["Detail"]) for entry in world.messages.events]
    own = [detail for detail in details if detail["job_id"] == job_id]
    if not own:
        return [f"{job_id}: other systems have not been told"]
    found = []
    if len(own) > 1 + world.redrives + world.unmarked["event", job_id]:
        found.append(f"{job_id}: other systems have been told {len(own)} times")
    if (own[-1]["status"], own[-1].get("failure")) != (row.get("status"), row.get("failure")):
        found.append(f"{job_id}: the row says {row.get('status')}, the event {own[-1]}")
    if "announced_at" not in row:
        found.append(f"{job_id}: the event is not marked as sent")
    return found


def _photos(world: World, jobs: dict[str, dict[str, Any]]) -> list[str]:
    """Every photo is in a job's manifest or list of rejected files, or its user has heard why not.

    A job without a manifest has told its user why: that stands for the files of its upload, and for all that was there
    when it looked, or ended.
    """
    layout, objects = world.code.modules["base.layout"], world.s3.objects
    seen: set[str] = set()
    without: set[str] = set()  # jobs that have ended and have no manifest
    told_until_s: dict[str, float] = {}
    for job_id, row in jobs.items():
        manifest, rejected = layout.manifest_key(job_id), layout.rejected_key(job_id)
        if manifest in objects:
            names = [*json.loads(objects[manifest])[1:], *(entry["name"] for entry in json.loads(objects[rejected]))]
            seen |= {layout.uploads_prefix(row["scene"]) + name for name in names}
        elif "ended_at" in row:
            without.add(job_id)
            until_s = world.s3.modified.get(rejected, world.last_ends_s.get(job_id, 0))
            told_until_s[row["scene"]] = max(told_until_s.get(row["scene"], 0), until_s)
    found = []
    for key in (objects.keys() & world.s3.modified) - seen:  # the other ones were put there without an event
        place = layout.split_upload_key(key)
        if place is None or layout.suffix(key) not in layout.PHOTO_SUFFIXES or not layout.starts_a_job(place[1]):
            continue
        if not world.belongs[key] & without and world.s3.modified[key] > told_until_s.get(place[0], 0):
            found.append(f"{key} is in no job, and nobody has been told")
    return found


def _results(world: World, job_id: str, row: dict[str, Any]) -> list[str]:
    prefix = f"results/{row.get('scene')}/{job_id}/"
    there = {key.removeprefix(prefix) for key in world.s3.objects if key.startswith(prefix)}
    if row.get("status") != "SUCCEEDED":
        return [f"{job_id}: {row.get('status')}, but results/ holds {sorted(there)}"] if there else []
    promised = {*OUTPUTS["compress"], "scene.ply"}
    found = [] if there == promised else [f"{job_id}: SUCCEEDED, but results/ holds {sorted(there)}"]
    order = [key for key in world.published if key.startswith(prefix)]
    if set(order[: order.index(prefix + "index.html")] if prefix + "index.html" in order else order) < {
        prefix + name for name in promised - {"index.html"}
    }:
        found.append(f"{job_id}: the page was there before what it shows")
    return found


def _billing(world: World, job_id: str, ended_at: float) -> list[str]:
    """Nothing runs long after the execution, or after the attempt that replaced it."""
    found = []
    names = [name for name in world.sagemaker.created if job_id.rpartition("-")[2].lower() in name]
    for index, name in enumerate(names):
        job = world.sagemaker.jobs[name]
        status, end = world.sagemaker.status(name), job.get(f"{world.sagemaker.kind(name)}EndTime")
        if end is None or status not in ("Completed", "Failed", "Stopped"):
            found.append(f"{name} is still {status}")
            continue
        deadline = ended_at
        if index + 1 < len(names):
            deadline = min(deadline, world.sagemaker.jobs[names[index + 1]]["CreationTime"].timestamp())
        deadline = max(deadline, job["CreationTime"].timestamp(), world.sweeps_back_at())
        if end.timestamp() > deadline + GRACE_S:
            found.append(f"{name} was billed for {end.timestamp() - deadline:.0f} s after it was of no use")
    return found


def _costs(world: World, job_id: str, row: dict[str, Any]) -> list[str]:
    """The row has the cost of every SageMaker job."""
    counted = {result["job_name"] for result in row.get("results", {}).values()} | set(row.get("interrupted", {}))
    names = {name for name in world.sagemaker.created if job_id.rpartition("-")[2].lower() in name}
    return [f"{job_id}: the row does not say what {name} has cost" for name in sorted(names - counted)]


def _table(world: World) -> list[str]:
    found = [f"{pk} is still open" for pk, row in world.table.rows.items() if "open" in row]
    for pk, row in world.table.rows.items():
        if pk.startswith("SCENE#") and ("settling" in row or "job_id" in row):
            found.append(f"{pk} is not free")
        if pk.startswith("JOB#") and "message_claimed_until" in row:
            found.append(f"{pk} is still claimed for a message")
    return found


def _stages(world: World) -> list[str]:
    """Stages start in order, and no name is used for two attempts."""
    found = []
    for ulid in {name.split("-")[1] for name in world.sagemaker.created}:
        names = [name for name in world.sagemaker.created if f"-{ulid}-" in name]
        stages = [STAGE_NAMES.index(name.split("-")[-2]) for name in names]
        if stages != sorted(stages):
            found.append(f"stages were started as {names}")
        if len(set(names)) != len(names):
            found.append(f"a name was used twice: {names}")
    tokens = [
        row["task_token"]
        for row in world.table.rows.values()
        if row.get("status") not in (None, "REJECTED") and "task_token" in row
    ]
    if len(set(tokens)) != len(tokens):
        found.append("two jobs were started for one token")
    return found
