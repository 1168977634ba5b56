# Longer than 400 lines: the faults are one table, read from top to bottom.
"""The faults: where each can strike, and the plan that makes it strike there. For table and seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from base.stages import STAGE_NAMES, find_stage
from spaceport.stack.root import TEMPLATE
from spaceport.stack.template import load_stack
from tests.state_machine.simulator.plan import STAGE_OF, Act, Delivery, Fate, Fault, Plan

if TYPE_CHECKING:
    from tests.state_machine.simulator.world import World

ALWAYS = 99
STEPS = range(1, 41)  # numbers of a function's calls to AWS; more than any of them makes, which the table checks
KIB = 1024
# The functions that events call, by the rule that calls them: rows of the table beside the states.
EVENT_CALLS = {
    "object created": "IngestFunctionObjectCreated",
    "processing job changed": "CheckStatusFunctionProcessingJobChanged",
    "training job changed": "CheckStatusFunctionTrainingJobChanged",
    "sweep of tasks": "CheckStatusFunctionSweep",
    "sweep of jobs": "NotifyFunctionSweep",
    "execution ended": "NotifyFunctionExecutionEnded",
}
SYNCHRONOUS = ("Settle", "Validate", *STAGE_OF, "Notify", "NotifyFailure")
BEFORE_CLOSING = ("Settle", "UploadComplete?", "WholeSeconds", "QuietPeriod")
DIRECT = ("RecordFailure", "FailUnlessDone")  # DynamoDB without a function
TOO_FEW = {"ExitMessage": "TOO_FEW_PHOTOS: Too few. Take more."}
BAD_STAGE = Fate(600, "Failed", TOO_FEW, code="TOO_FEW_PHOTOS")


@dataclass
class Parts:
    """What a fault adds to a plan.

    ``step``: it strikes at that call of the function; there are as many variants as the function makes calls.
    ``proof(world)``: whether it has struck, where more is needed than that each kind of its parts has.
    """

    faults: tuple[Fault, ...] = ()
    fates: dict[tuple[str, int], Fate] = field(default_factory=dict)
    acts: tuple[Act, ...] = ()
    deliveries: dict[tuple[str, int], Delivery] = field(default_factory=dict)
    lost_sweeps: tuple[float, float] = (0, 0)
    timeout_s: int | None = None
    possible: tuple[str, ...] = ()
    jobs: int | None = None
    step: int = 0
    proof: Callable[[World], bool] | None = None

    def have_struck(self, world: World) -> bool:
        """Whether these parts, and not those that only lead to the state, have happened in the run."""
        if self.proof is not None:
            return self.proof(world)
        if not all(_is_hit(world, act) for act in self.acts):
            return False
        if self.lost_sweeps[1] and not _is_hit(world, self.lost_sweeps):
            return False
        groups = (self.faults, self.fates.values(), self.deliveries.values())
        return all(any(_is_hit(world, part) for part in group) for group in groups if group)


def _is_hit(world: World, part: object) -> bool:
    return any(item is part for item in world.hit)


def _all_hit(*parts: object) -> Callable[[World], bool]:
    return lambda world: all(_is_hit(world, part) for part in parts)


@dataclass(frozen=True)
class Kind:
    """``parts(state)`` yields the variants of the fault there; ``reason(state)`` says why it cannot happen there."""

    name: str
    parts: Callable[[str], Iterator[Parts]]
    reason: Callable[[str], str]


def plan_of(state: str, *parts: Parts) -> Plan:
    """A plan in which ``state`` is reached and all parts happen."""
    plan = Plan()
    for part in (way_to(state), *parts):
        plan = replace(
            plan,
            faults=plan.faults + part.faults,
            fates={**plan.fates, **part.fates},
            acts=plan.acts + part.acts,
            deliveries={**plan.deliveries, **part.deliveries},
            lost_sweeps=part.lost_sweeps if part.lost_sweeps[1] else plan.lost_sweeps,
            timeout_s=part.timeout_s or plan.timeout_s,
            possible=plan.possible + part.possible,
            jobs=part.jobs if part.jobs is not None else plan.jobs,
        )
    return plan


def way_to(state: str) -> Parts:
    """What must go wrong so that an execution comes to a state of the failure route."""
    if state in ("RecordFailure", "NotifyFailure", "Failed", "execution ended"):
        return Parts(fates={("sfm", 0): BAD_STAGE})
    if state == "MalformedAnswer":
        return Parts((Fault("Validate", "answer", value={}, code="INTERNAL_ERROR"),))
    if state == "FailUnlessDone":
        return Parts(fates={("compress", 0): Fate(files=False, code="OUTPUT_MISSING")})
    return Parts()


# ---- calls of functions


def _fault(state: str, kind: str, name: str = "", **more: Any) -> Fault:
    """Of the call in this row. A job's first event says that it runs; its end is what the rows are about."""
    return Fault(EVENT_CALLS.get(state, state), kind, name, first=1 if state.endswith("job changed") else 0, **more)


def _calls_function(state: str) -> str:
    if state in SYNCHRONOUS or state in EVENT_CALLS:
        return ""
    return "the state calls DynamoDB itself, no function" if state in DIRECT else "the state calls nothing"


def _fatal(state: str, code: str) -> str:
    """The code that a lost call makes the job fail with; empty where something else still does the work."""
    return "" if state in EVENT_CALLS or state in ("NotifyFailure", "RecordFailure") else code


def _error(name: str, count: int, code: str = "") -> Callable[[str], Iterator[Parts]]:
    def parts(state: str) -> Iterator[Parts]:
        fatal = _fatal(state, code) if count == ALWAYS or code == "INTERNAL_ERROR" else ""
        struck = 3 if state in EVENT_CALLS and count == ALWAYS else count
        yield Parts((_fault(state, "error", name, count=struck, code=fatal),))

    return parts


def _direct_error(name: str, count: int) -> Callable[[str], Iterator[Parts]]:
    def parts(state: str) -> Iterator[Parts]:
        yield Parts((Fault(state, "error", name, count=count),))

    return parts


def _crashes(after: bool, name: str) -> Callable[[str], Iterator[Parts]]:
    def parts(state: str) -> Iterator[Parts]:
        for at in STEPS:
            yield Parts((_fault(state, "crash", name, at=at, after=after),), step=at)

    return parts


def _at_the_end(state: str) -> Iterator[Parts]:
    yield Parts((_fault(state, "crash", "Sandbox.Timedout", at=0),))


def _service(name: str) -> Callable[[str], Iterator[Parts]]:
    def parts(state: str) -> Iterator[Parts]:
        for at in STEPS:
            yield Parts((_fault(state, "service", name, at=at),), step=at)

    return parts


def _pauses(state: str) -> Iterator[Parts]:
    for at in STEPS:
        yield Parts((_fault(state, "pause", at=at, seconds=45),), step=at)


def _silence(state: str) -> Iterator[Parts]:
    code = "" if state in (*STAGE_OF, "Notify") else _fatal(state, "STAGE_TIMEOUT")
    yield Parts((_fault(state, "silence", code=code),))


MALFORMED: tuple[Any, ...] = (
    None, [], "yes", 7, {}, {"complete": "true"}, {"complete": None, "wait_s": "7"}, {"complete": False, "wait_s": 0},
    {"complete": False, "wait_s": -1}, {"complete": False, "wait_s": 1e9}, {"complete": False, "wait_s": 0.5},
    {"start_at": 5}, {"start_at": "publish"}, {"start_at": ["sfm"]},
)  # fmt: skip


def _malformed(state: str) -> Iterator[Parts]:
    fatal = "INTERNAL_ERROR" if state in ("Settle", "Validate") else ""
    for value in MALFORMED:
        waits = state == "Settle" and value == {"complete": False, "wait_s": 0.5}  # is rounded
        yield Parts((_fault(state, "answer", value=value, code="" if waits else fatal),))


def _too_large(state: str) -> Iterator[Parts]:
    fatal = "INTERNAL_ERROR" if state in ("Settle", "Validate") else ""
    yield Parts((_fault(state, "answer", value={"text": "x" * 300 * KIB}, code=fatal),))


def _answer_is_read(state: str) -> str:
    if state in EVENT_CALLS:
        return "nobody reads the answer of an asynchronous call"
    return _calls_function(state)


# ---- stages


def _is_stage(state: str) -> str:
    if state in EVENT_CALLS:
        return "an event starts no stage; see the stages' rows"
    return "" if state in STAGE_OF else "no SageMaker job is started and no token is given out in this state"


def _is_training(state: str) -> str:
    if state in STAGE_OF and not find_stage(STAGE_OF[state]).is_training:
        return "processing jobs run on machines that are not taken away"
    return _is_stage(state)


def _fate(*fates: Fate) -> Callable[[str], Iterator[Parts]]:
    """The attempts 0, 1, ... of the stage meet ``fates``."""

    def parts(state: str) -> Iterator[Parts]:
        yield Parts(fates={(STAGE_OF[state], attempt): fate for attempt, fate in enumerate(fates)})

    return parts


def _failed(reason: str, code: str = "") -> Callable[[str], Iterator[Parts]]:
    def parts(state: str) -> Iterator[Parts]:
        if find_stage(STAGE_OF[state]).is_training:
            more: dict[str, Any] = {"FailureReason": f"AlgorithmError: {reason}, exit code: 1"}
        else:
            more = {"FailureReason": "AlgorithmError: See job logs for more information", "ExitMessage": reason}
        yield Parts(fates={(STAGE_OF[state], 0): Fate(status="Failed", more=more, code=code)})

    return parts


def _service_failed(reason: str, code: str, count: int = 1) -> Callable[[str], Iterator[Parts]]:
    def parts(state: str) -> Iterator[Parts]:
        fate = Fate(status="Failed", more={"FailureReason": reason}, code=code, seconds=120)
        yield Parts(fates={(STAGE_OF[state], attempt): fate for attempt in range(count)})

    return parts


def _no_files(state: str) -> Iterator[Parts]:
    """The stage program promises its files by exit status 0; what SfM promised is read by the program of Train."""
    yield Parts(fates={(STAGE_OF[state], 0): Fate(files=False, code="" if state == "SfM" else "OUTPUT_MISSING")})


@cache
def _max_runtime_s() -> dict[str, int]:
    """By stage, as template.yaml has it."""
    environment = load_stack(TEMPLATE).function("StartJobFunction").environment
    return {name: int(environment[f"{name.upper()}_MAX_RUNTIME_S"]) for name in STAGE_NAMES}


def _max_runtime(state: str) -> Iterator[Parts]:
    limit_s = _max_runtime_s()[STAGE_OF[state]]
    more = {"SecondaryStatus": "MaxRuntimeExceeded"} if state == "Train" else {}
    yield Parts(fates={(STAGE_OF[state], 0): Fate(limit_s, "Stopped", more, code="STAGE_TIMEOUT")})


def _token(kind: str, code: str, **values: Any) -> Callable[[str], Iterator[Parts]]:
    def parts(state: str) -> Iterator[Parts]:
        # Nonsense is not read before somebody needs the stage's files; after Compress that is Notify.
        late = kind == "send_success" and state == "Compress"
        yield Parts(acts=(Act(state, kind, 200, values=values, code="OUTPUT_MISSING" if late else code),))

    return parts


def _no_sweeps(state: str) -> Iterator[Parts]:
    fate = Fate(5 * 3600, code="")
    yield Parts(fates={(STAGE_OF[state], 0): fate}, lost_sweeps=(0, 6 * 3600), possible=("STAGE_LOST",))


def _refused(code: str, message: str, fatal: str, count: int) -> Callable[[str], Iterator[Parts]]:
    fates = (Fate(refusal=(code, message), code=fatal),) * count
    return _fate(*fates)


# ---- events


def _deliver(*delays_s: float) -> Callable[[str], Iterator[Parts]]:
    """All events of the stage's jobs are delivered like this."""

    def parts(state: str) -> Iterator[Parts]:
        kinds = [f"{STAGE_OF[state]} {status}" for status in ("InProgress", "Completed")]
        deliveries = {(kind, number): Delivery(delays_s) for kind in kinds for number in range(15)}
        yield Parts(deliveries=deliveries, proof=_all_hit(*(deliveries[kind, 0] for kind in kinds)))

    return parts


def _wrong_order(state: str) -> Iterator[Parts]:
    """That the job runs is told after it has ended."""
    stage = STAGE_OF[state]
    late = Delivery((Fate().seconds + 700,))

    def proof(world: World) -> bool:
        order = [status for name, status in world.delivered if f"-{stage}-" in name]
        return order.index("Completed") < order.index("InProgress")

    yield Parts(deliveries={(f"{stage} InProgress", 0): late}, proof=proof)


def _early_event(state: str) -> Iterator[Parts]:
    yield Parts((Fault(state, "early"),))


def _another_photo(state: str) -> Iterator[Parts]:
    """In the same second (events have whole seconds), and later."""
    for delay_s in (0.3, 5.0):
        yield Parts(acts=(Act(state, "upload", delay_s),))


def _second_upload(state: str) -> Iterator[Parts]:
    """Three photos, and between them an old event of the upload before: soon, and when that one is over a day old."""
    for first_s in (5.0, 26 * 3600.0):
        photos = tuple(Act(state, "upload", first_s + at_s, values={"n": at_s}) for at_s in (0, 30, 75))
        yield Parts(acts=(*photos, Act(state, "old_object", first_s + 5)), jobs=2)


def _upload_is_closed(state: str) -> str:
    if state in EVENT_CALLS:
        return _is_state(state)
    return "the first upload is not closed yet" if state in BEFORE_CLOSING else ""


def _late_event(state: str) -> Iterator[Parts]:
    """The event of the end of the stage's job comes again, hours after everything is over."""
    yield Parts(deliveries={(f"{STAGE_OF[state]} Completed", 0): Delivery((1.0, 50_000.0))})


# ---- the execution from outside


def _is_state(state: str) -> str:
    if state in EVENT_CALLS:
        return "it belongs to no state of an execution; see the states' rows"
    if state in ("Succeeded", "Failed"):
        return "the execution ends in the moment in which it comes here"
    return ""


def _moments(state: str) -> Iterator[tuple[tuple[Fault, ...], float, int]]:
    """(faults that let time pass in the state, seconds after it was entered, number of the call) to abort at.

    Just after the state was entered, while a stage's job runs or DynamoDB does not answer, and while the state's
    function is at work: a pause of 20 s at each of its calls.
    """
    yield (), 0, 0
    if state in STAGE_OF:
        yield (), 100, 0
    if state in DIRECT:
        yield (Fault(state, "silence"),), 30, 0
    if state in SYNCHRONOUS:
        for at in STEPS:
            yield (Fault(state, "pause", at=at, seconds=20),), 10, at


def _was_aborted_in(state: str, *parts: object) -> Callable[[World], bool]:
    return lambda world: _all_hit(*parts)(world) and world.aborted_in == state


def _aborted(state: str) -> Iterator[Parts]:
    for faults, delay_s, at in _moments(state):
        abort = Act(state, "abort", delay_s)
        yield Parts(faults, acts=(abort,), step=at, proof=_was_aborted_in(state, abort, *faults))


def _redriven(state: str) -> Iterator[Parts]:
    """Later and at once, with the abort's event and without: the message has gone out before the redrive or has not."""
    for redrive_s, delivery in ((1, Delivery()), (3000, Delivery(()))):
        acts = (Act(state, "abort", 0), Act(state, "redrive", redrive_s))
        yield Parts(acts=acts, deliveries={("status", 0): delivery}, proof=_was_aborted_in(state, *acts))
    for faults, delay_s, at in _moments(state):
        acts = (Act(state, "abort", delay_s), Act(state, "redrive", 2000))
        yield Parts(faults, acts=acts, step=at, proof=_was_aborted_in(state, *acts, *faults))


def _aborted_unnoticed(state: str) -> Iterator[Parts]:
    yield Parts(acts=(Act(state, "abort", 0),), deliveries={("status", n): Delivery(()) for n in range(5)})


# Seconds after the first photo in which a state is the current one; a stage's job takes 1500 s where nothing else is
# said, and calls at which nothing strikes take no time.
TIMES_S = {"Settle": 10, "QuietPeriod": 30, "Validate": 70, "RecordFailure": 670, "NotifyFailure": 670}
TIMES_S |= {state: 300 + 1500 * number for number, state in enumerate(STAGE_OF)}
TIMES_S |= dict.fromkeys(("Notify", "FailUnlessDone"), 70 + 1500 * len(STAGE_OF))


def _takes_time(state: str) -> str:
    if state in EVENT_CALLS or state in ("Succeeded", "Failed"):
        return _is_state(state)
    return "" if state in TIMES_S else "no time passes in this state; the limit comes in the one before or after it"


def _timed_out(state: str) -> Iterator[Parts]:
    """The limit of the execution falls into the state, whose call is slowed down."""
    faults: tuple[Fault, ...] = ()
    if state in SYNCHRONOUS and state not in STAGE_OF:
        faults = (Fault(state, "pause", seconds=40),)
    elif state in DIRECT:
        faults = (Fault(state, "silence"),)
    yield Parts(faults, timeout_s=TIMES_S[state], proof=lambda world: world.timed_out_in == state)


def _notifier(count: int) -> Callable[[str], Iterator[Parts]]:
    """Something fatal happens in the state, and the functions that should tell it fail."""

    def parts(state: str) -> Iterator[Parts]:
        cause = way_to_fail(state)
        calls = [
            Fault(where, "crash", at=3, count=count) for where in ("NotifyFailure", EVENT_CALLS["execution ended"])
        ]
        yield Parts(cause.faults + tuple(calls), cause.fates, cause.acts, proof=_all_hit(*calls))

    return parts


def _deaf(state: str) -> Iterator[Parts]:
    """From the one that the state sends on; the sweeps of the next twenty minutes fail as well."""
    fault = Fault(state, "deaf", seconds=1200)
    yield Parts((fault,), proof=lambda world: sum(item is fault for item in world.hit) > 3)


def _mute(count: int) -> Callable[[str], Iterator[Parts]]:
    def parts(state: str) -> Iterator[Parts]:
        yield Parts((_fault(state, "mute", count=count),))

    return parts


def _tells_user(state: str) -> str:
    return "" if state in ("Notify", "NotifyFailure") else "no message is sent here on the usual way"


def way_to_fail(state: str) -> Parts:
    if state in STAGE_OF:
        return Parts(fates={(STAGE_OF[state], 0): BAD_STAGE})
    if state in ("Settle", "Validate"):
        return Parts((Fault(state, "error", "KeyError", count=1, code="INTERNAL_ERROR"),))
    if state == "Notify":
        return Parts(fates={("compress", 0): Fate(files=False, code="OUTPUT_MISSING")})
    if state in ("UploadComplete?", "WholeSeconds", "QuietPeriod"):
        return Parts((Fault("Settle", "answer", value={}, code="INTERNAL_ERROR"),))
    if state == "StartAt?":
        return Parts((Fault("Validate", "answer", value={}, code="INTERNAL_ERROR"),))
    return Parts()


def _can_fail(state: str) -> str:
    if state == "Succeeded":
        return "nothing is left to be told"
    if state == "Failed":
        return "the notifier has been called before"
    return _is_state(state) if state != "MalformedAnswer" else ""


def _is_direct(state: str) -> str:
    return "" if state in DIRECT else "the state does not call DynamoDB itself"


JSON_CAUSE = '{"code": "NOT_ENOUGH_LIGHT", "reason": "It is too dark. Take photos by day."}'
SECOND_REASON = "NOT_SHARP: The photos are blurred. Hold still."
CATALOG: tuple[Kind, ...] = (
    Kind("Lambda.ServiceException once", _error("Lambda.ServiceException", 1), _calls_function),
    Kind("Lambda.AWSLambdaException once", _error("Lambda.AWSLambdaException", 1), _calls_function),
    Kind("Lambda.SdkClientException once", _error("Lambda.SdkClientException", 1), _calls_function),
    Kind("Lambda.Unknown once", _error("Lambda.Unknown", 1), _calls_function),
    Kind("Runtime.ExitError once", _error("Runtime.ExitError", 1), _calls_function),
    Kind("unexpected exception once", _error("KeyError", 1, "INTERNAL_ERROR"), _calls_function),
    Kind("Lambda.ServiceException always",
         _error("Lambda.ServiceException", ALWAYS, "INTERNAL_ERROR"), _calls_function),
    Kind("throttled once", _error("Lambda.TooManyRequestsException", 1), _calls_function),
    Kind("throttled always", _error("Lambda.TooManyRequestsException", ALWAYS, "NO_CAPACITY"), _calls_function),
    Kind("cut off before each of its calls", _crashes(False, "Sandbox.Timedout"), _calls_function),
    Kind("cut off after each of its calls", _crashes(True, "Lambda.Unknown"), _calls_function),
    Kind("cut off at the end, answer lost", _at_the_end, _calls_function),
    Kind("each of its calls throttled", _service("ThrottlingException"), _calls_function),
    Kind("each of its calls refused with 503", _service("ServiceUnavailable"), _calls_function),
    Kind("slow: 45 s at each of its calls", _pauses, _calls_function),
    Kind("answer never comes", _silence, lambda s: "" if s in DIRECT else _answer_is_read(s)),
    Kind("malformed answer (14 kinds)", _malformed, _answer_is_read),
    Kind("answer of 300 KiB", _too_large, _answer_is_read),
    Kind("SES and SNS refuse once", _mute(1), _tells_user),
    Kind("SES and SNS refuse ten times", _mute(10), _tells_user),
    Kind("the bus refuses events for twenty minutes", _deaf, _tells_user),
    Kind("DynamoDB refuses once", _direct_error("DynamoDB.InternalServerErrorException", 1), _is_direct),
    Kind("DynamoDB refuses always", _direct_error("DynamoDB.InternalServerErrorException", ALWAYS), _is_direct),
    Kind("SendTaskFailure with JSON",
         _token("send_failure", "NOT_ENOUGH_LIGHT", error="X", cause=JSON_CAUSE), _is_stage),
    Kind("SendTaskFailure with text", _token("send_failure", "INTERNAL_ERROR", error="Oops", cause="broke"), _is_stage),
    Kind("SendTaskFailure with nothing", _token("send_failure", "INTERNAL_ERROR"), _is_stage),
    Kind("SendTaskFailure with an empty cause",
         _token("send_failure", "INTERNAL_ERROR", error="Oops", cause=""), _is_stage),
    Kind("SendTaskFailure with 32 KiB",
         _token("send_failure", "INTERNAL_ERROR", error="E" * 256, cause="\u00e9\"" * 16 * KIB), _is_stage),
    Kind("SendTaskSuccess with nonsense", _token("send_success", "INTERNAL_ERROR", output="[7]"), _is_stage),
    Kind("heartbeat lost", _no_sweeps, _is_stage),
    Kind("job Failed with a reason", _failed(SECOND_REASON, "NOT_SHARP"), _is_stage),
    Kind("job Failed without a reason", _failed("", "INTERNAL_ERROR"), _is_stage),
    Kind("job Failed with 'exit code: 137'", _failed("exit code: 137", "OUT_OF_MEMORY"), _is_stage),
    Kind("InternalServerError once", _service_failed("InternalServerError: try again", ""), _is_stage),
    Kind("InternalServerError always",
         _service_failed("InternalServerError: try again", "SAGEMAKER_INTERNAL", 14), _is_stage),
    Kind("CapacityError once", _service_failed("CapacityError: no machine", ""), _is_stage),
    Kind("job Stopped by hand", _fate(Fate(300, "Stopped", code="STAGE_STOPPED")), _is_stage),
    Kind("job at its maximum run time", _max_runtime, _is_stage),
    Kind("spot interrupted, then resumed", _fate(Fate(1200, interrupted_s=400)), _is_training),
    Kind("job Completed without its files", _no_files, _is_stage),
    Kind("create: quota once", _refused("ResourceLimitExceeded", "limit", "", 1), _is_stage),
    Kind("create: quota always", _refused("ResourceLimitExceeded", "limit", "QUOTA_EXCEEDED", 14), _is_stage),
    Kind("create: throttled once", _refused("ThrottlingException", "slow down", "", 1), _is_stage),
    Kind("create: invalid", _refused("ValidationException", "no such role", "SAGEMAKER_REJECTED", 14), _is_stage),
    Kind("create: name in use by a stranger", _fate(Fate(name_taken=True)), _is_stage),
    Kind("event lost", _deliver(), _is_stage),
    Kind("event three times", _deliver(1.0, 1.0, 40.0), _is_stage),
    Kind("event five hours late", _deliver(18_000.0), _is_stage),
    Kind("event before the token is stored", _early_event, _is_stage),
    Kind("event again after the end", _late_event, _is_stage),
    Kind("events in wrong order", _wrong_order, _is_stage),
    Kind("execution aborted", _aborted, _is_state),
    Kind("execution aborted, its event lost", _aborted_unnoticed, _is_state),
    Kind("execution aborted, then redriven", _redriven, _is_state),
    Kind("execution timed out", _timed_out, _takes_time),
    Kind("fails here, notifier cut off once", _notifier(1), _can_fail),
    Kind("fails here, notifier cut off always", _notifier(ALWAYS), _can_fail),
    Kind("another photo comes", _another_photo, _is_state),
    Kind("another upload comes, with an old event", _second_upload, _upload_is_closed),
)  # fmt: skip
