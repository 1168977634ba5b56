"""Mistakes planted into copies of the functions, the definition and the template; the simulator must find each."""

from __future__ import annotations

from dataclasses import dataclass

from tests.state_machine.simulator import invariants, schedules
from tests.state_machine.simulator.catalog import CATALOG, plan_of
from tests.state_machine.simulator.code import Code, Edit, load
from tests.state_machine.simulator.world import World

ASL = "statemachine/pipeline.asl.json"
CATCH = (
    '"Catch": [{ "ErrorEquals": ["States.ALL"], "ResultPath": "$.error", "Next": "RecordFailure" }],\n      "Next": '
)
PUT_TASK = "        if not tasks.put_task(name, job_id, stage, number, token):\n            continue\n"
START = '        created = start(job, stage, name, event["execution_arn"])\n'
SEND = "        channel = mails.send("
RELEASE = "        jobs.release_message(job_id)\n        raise\n"
UNPUBLISH = '    bucket = job["bucket"]\n    keys = ['
FINISH = '    stage, job_id = task["stage"], task["job_id"]\n    if verdict'
RECORD = 'message_sent_at, message_claimed_until, announced_at",\n        "ExpressionAttributeNames"'
LOWER = (
    'first_object_at > :at "\n'
    '                    "AND (attribute_not_exists(sealed_at) OR sealed_at < :at)"'
)  # fmt: skip


@dataclass(frozen=True)
class Bug:
    """``where``: cells (state, fault) to look at first, before the seeds. ``also``: edits that belong to it."""

    name: str
    edit: Edit
    where: tuple[tuple[str, str], ...] = ()
    also: tuple[Edit, ...] = ()


BUGS = (
    Bug("the token is stored after the job is created",
        ("functions/start_job.py", PUT_TASK + START, START + PUT_TASK)),
    Bug("the message is marked before it is sent",
        ("functions/notify.py", SEND, "        jobs.mark_message_sent(job_id)\n" + SEND),
        (("NotifyFailure", "cut off before each of its calls"),)),
    Bug("a stage starts whatever the row says",
        ("functions/table/jobs.py", '"#status IN (:settling, :running) OR ended_at = :ended"',
         '"attribute_exists(pk) OR #status IN (:settling, :running) OR ended_at = :ended"'),
        (("SfM", "execution aborted"), ("Train", "execution aborted"))),
    Bug("a stopped job counts as running",
        ("functions/stages/verdicts.py", 'if status in ("InProgress", "Stopping"):',
         'if status in ("InProgress", "Stopping", "Stopped"):'),
        (("SfM", "job Stopped by hand"),)),
    Bug("a retry uses the job name of the first attempt",
        ("functions/start_job.py", "job_id, stage, number)\n        # The", "job_id, stage, 0)\n        # The"),
        (("SfM", "CapacityError once"),)),
    Bug("a Catch without ResultPath",
        (ASL, CATCH + '"Train"', CATCH.replace('"ResultPath": "$.error", ', "") + '"Train"'),
        (("SfM", "job Failed with a reason"),)),
    Bug("the notifier swallows errors of sending",
        ("functions/notify.py", RELEASE, '        jobs.mark_message_sent(job_id)\n        return {"status": "?"}\n'),
        (("Notify", "SES and SNS refuse once"),)),
    Bug("the sweep ignores tasks whose event was lost",
        ("functions/check_status.py", "names = tasks.open_task_names()", "names: list[str] = []"),
        (("Train", "event lost"),)),
    Bug("the sweep ignores jobs whose execution has ended",
        ("functions/notify.py", "job_ids = jobs.open_job_ids()", "job_ids: list[str] = []"),
        (("Train", "execution aborted, its event lost"),)),
    Bug("a job that nobody waits for is not stopped",
        ("functions/check_status.py", '    sagemaker_jobs.stop(task["stage"], name)\n', ""),
        (("SfM", "execution aborted"),),
        (("functions/notify.py", 'stopped = sagemaker_jobs.stop(task["stage"], job["job_name"])', "stopped = False"),)),
    Bug("the task is closed before the state machine has its answer",
        ("functions/check_status.py", FINISH,
         FINISH.replace("\n    if", "\n    tasks.close_task(name, verdict.status.upper())\n    if")),
        (("processing job changed", "cut off before each of its calls"),)),
    Bug("a fault of SageMaker is not tried again",
        ("functions/stages/verdicts.py", '(("InternalServerError",), TRANSIENT,', '(("InternalServerError",), "",'),
        (("Compress", "InternalServerError once"),)),
    Bug("a busy service is not tried again",
        ("functions/base/service_errors.py", "            if is_transient(error):", "            if not error:"),
        (("Validate", "each of its calls throttled"),)),
    Bug("half a result stays published",
        ("functions/notifications/results.py", UNPUBLISH, "    return\n" + UNPUBLISH),
        (("Notify", "execution aborted"), ("Notify", "Lambda.ServiceException always"))),
    Bug("a failed job ends as a success",
        (ASL, '"Next": "Failed" }],\n      "Next": "Failed"', '"Next": "Failed" }],\n      "Next": "Succeeded"'),
        (("SfM", "job Failed with a reason"),)),
    Bug("a message that was sent is sent again",
        ("functions/table/jobs.py", '"attribute_not_exists(message_sent_at) AND #status', '"#status'),
        (("SfM", "job Failed with a reason"),),
        (("functions/notify.py", '"sent before" if "message_sent_at" in job else send_once(job)', "send_once(job)"),)),
    Bug("a stranger's job is taken for the own one",
        ("functions/start_job.py", "if not created and task and", "if created is None and task and"),
        (("Train", "create: name in use by a stranger"),)),
    Bug("a lost answer of Notify turns success into failure",
        (ASL, '"#status <> :succeeded"', '"#status <> :succeeded OR #status <> :failed"'),
        (("Notify", "answer never comes"),)),
    Bug("the task is closed while its job may just be created",
        ("functions/notify.py", '        logger.info("stopped the running stage"',
         '        tasks.close_task(job["job_name"], "STOPPED")\n        logger.info("stopped the running stage"'),
        (("SfM", "execution aborted"),)),
    Bug("a cancelled job is told as a fault of the service",
        ("functions/notify.py", "None if failed_before else ENDED_FROM_OUTSIDE.get(status)", "None"),
        (("QuietPeriod", "execution aborted"),)),
    Bug("a redriven job publishes nothing",
        ("functions/notify.py", 'execution.get("redriveCount", 0) > 0', "False"),
        (("Notify", "execution aborted, then redriven"),)),
    Bug("a redriven stage does not ask whether it is awaited",
        ("functions/start_job.py", "and not is_awaited(token)", ""),
        (("Train", "execution aborted, then redriven"),)),
    Bug("the end of a redriven job is not told",
        ("functions/table/jobs.py", '"#open = :open REMOVE failure, raw_error, ended_at, message_sent_at, ',
         '"#open = :open REMOVE failure, raw_error, ended_at, '),
        (("Train", "execution aborted, then redriven"),)),
    Bug("a late event of an upload makes the next one older than it is",
        ("functions/table/scenes.py", 'if not joined and row.get("sealed_at", "") >= at:',
         'if "settling" not in row and row.get("sealed_at", "") >= at:'),
        (("Train", "another upload comes, with an old event"),),
        (("functions/table/scenes.py", LOWER, LOWER.partition(' "\n')[0] + '"'),)),
    Bug("an upload is closed before its last second is over",
        ("functions/table/scenes.py", "aws.timestamp(math.floor(epoch_s) - 1)", "aws.timestamp(epoch_s)"),
        (("Validate", "another photo comes"),)),
    Bug("the event for other systems is lost with the call that should send it",
        ("functions/notify.py", 'announced = "announced_at" in job\n', 'announced = channel == "sent before"\n'),
        (("NotifyFailure", "cut off after each of its calls"),)),
    Bug("a job is closed although the bus refused its event",
        ("functions/notify.py", "    if not is_announced(job):", "    if not job:"),
        (("NotifyFailure", "the bus refuses events for twenty minutes"),),
        (("functions/notify.py", '"SUCCEEDED" and announced:', '"SUCCEEDED":'),)),
    Bug("what was told before a redrive counts for the failure after it",
        (ASL, RECORD, RECORD.replace("message_sent_at, ", "")),
        (("RecordFailure", "execution aborted, then redriven"),)),
    Bug("the cost of a job that nobody waits for is forgotten",
        ("functions/check_status.py", '    logger.warning("stopped a job that nobody',
         '    tasks.close_task(name, "ABANDONED")\n    logger.warning("stopped a job that nobody'),
        (("SfM", "execution aborted"), ("SfM", "execution aborted, its event lost"))),
)  # fmt: skip


def find(bug: Bug, seeds: int = 200) -> str:
    """The first violation and where it was found; empty when the simulator is blind to the bug."""
    code = load((bug.edit, *bug.also))
    kinds = {kind.name: kind for kind in CATALOG}
    for state, fault in bug.where:
        for parts in kinds[fault].parts(state):
            violation = _violation(code, World(code, plan_of(state, parts)))
            if violation:
                return f"{state} / {fault}: {violation}"
    for seed in range(seeds):
        violation = _violation(code, World(code, schedules.draw(seed, schedules.all_places(code))))
        if violation:
            return f"seed {seed}: {violation}"
    return ""


def _violation(code: Code, world: World) -> str:
    return next(iter(invariants.check(world.run())), "")
