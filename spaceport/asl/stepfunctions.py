"""The Step Functions API over the interpreter: machines, executions, task tokens, and going on from a journal."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache, partial
from threading import RLock
from typing import Any

from spaceport.asl.definition import load
from spaceport.asl.execution import Execution, Shared
from spaceport.asl.frames import Frame
from spaceport.asl.history import describe, history_events, status_change_detail
from spaceport.asl.journal import Journal, JournalError, MemoryJournal
from spaceport.asl.model import Machine
from spaceport.asl.paths import DATA_LIMIT_BYTES
from spaceport.asl.tasks import Tasks
from spaceport.asl.tokens import execution_of_token
from spaceport.base.clock import Clock

MACHINE_ARN = re.compile(r"arn:aws[a-z-]*:states:[a-z0-9-]+:\d{12}:stateMachine:[A-Za-z0-9_-]{1,80}")
# API reference, StartExecution: what a name must not contain.
FORBIDDEN_IN_NAME = re.compile(r"[\s<>{}\[\]?*\"#%\\^|~`$&,;:/\x00-\x1f\x7f-\x9f]")
MAX_NAME_CHARACTERS = 80
MAX_ERROR_CHARACTERS = 256
REDRIVE_S = 14 * 86_400  # API reference, RedriveExecution
MAX_CAUSE_CHARACTERS = 32_768
STATUSES = ("RUNNING", "SUCCEEDED", "FAILED", "TIMED_OUT", "ABORTED")


class ApiError(Exception):
    """An API call that AWS would refuse; ``code`` is the AWS error code, the text says what was wrong."""

    code = "InternalServerError"


class ValidationException(ApiError):
    """A parameter outside its limits."""

    code = "ValidationException"


class InvalidArn(ApiError):
    code = "InvalidArn"


class InvalidName(ApiError):
    code = "InvalidName"


class InvalidExecutionInput(ApiError):
    code = "InvalidExecutionInput"


class StateMachineAlreadyExists(ApiError):
    code = "StateMachineAlreadyExists"


class StateMachineDoesNotExist(ApiError):
    code = "StateMachineDoesNotExist"


class ExecutionAlreadyExists(ApiError):
    code = "ExecutionAlreadyExists"


class ExecutionDoesNotExist(ApiError):
    code = "ExecutionDoesNotExist"


class ExecutionNotRedrivable(ApiError):
    """The execution runs, has succeeded, or ended too long ago; or it stands in a Parallel or Map state."""

    code = "ExecutionNotRedrivable"


class InvalidToken(ApiError):
    """The text is no task token."""

    code = "InvalidToken"


class InvalidOutput(ApiError):
    """The output of SendTaskSuccess is not JSON."""

    code = "InvalidOutput"


class TaskDoesNotExist(ApiError):
    """No task was ever given this token."""

    code = "TaskDoesNotExist"


class TaskTimedOut(ApiError):
    """The task of this token is closed: answered, timed out, failed, or its execution ended."""

    code = "TaskTimedOut"


class StepFunctions:
    """State machines and their executions, driven by ``clock``. Every method may be called from any thread.

    ``journal_factory(execution_arn)`` gives each execution its journal (default: MemoryJournal); ``ids()`` returns
    strings that are unique for ever (default: random UUIDs; task tokens are made of them); ``random()`` in [0, 1) is
    needed for JitterStrategy FULL; ``on_status_change(detail)`` gets the detail of each 'Step
    Functions Execution Status Change' event, on the clock's thread, at least once, after it is in the journal.
    """

    def __init__(
        self,
        clock: Clock,
        tasks: Tasks,
        journal_factory: Callable[[str], Journal] | None = None,
        ids: Callable[[], str] | None = None,
        on_status_change: Callable[[dict[str, Any]], None] | None = None,
        random: Callable[[], float] | None = None,
    ) -> None:
        self._lock = RLock()
        self._shared = Shared(clock, tasks, ids or (lambda: str(uuid.uuid4())), random, self._lock)
        self._journal_factory = journal_factory or (lambda _arn: MemoryJournal())
        self._on_status_change = on_status_change
        self._machines: dict[str, tuple[Machine, str | None]] = {}
        self._executions: dict[str, Execution] = {}

    # ---- machines

    def create_state_machine(self, arn: str, definition: dict[str, Any], role_arn: str | None = None) -> None:
        """Load ``definition``.

        Raises DefinitionError with every problem, InvalidArn, and StateMachineAlreadyExists when the machine is there
        with another definition (with the same one nothing happens).
        """
        if not MACHINE_ARN.fullmatch(arn):
            raise InvalidArn(
                f"'{arn}' is not the ARN of a state machine (arn:aws:states:REGION:ACCOUNT:stateMachine:NAME)"
            )
        machine = self._load(definition)
        with self._lock:
            known = self._machines.get(arn)
            if known is not None and known[0].definition != machine.definition:
                raise StateMachineAlreadyExists(f"'{arn}' exists with another definition")
            self._machines.setdefault(arn, (machine, role_arn))

    def _load(self, definition: Any) -> Machine:
        has_random = self._shared.random is not None
        try:
            return _load_text(json.dumps(definition), has_random)
        except (TypeError, ValueError):
            return load(definition, has_random)  # not JSON: the loader says where

    def _machine(self, arn: str) -> tuple[Machine, str | None]:
        if arn not in self._machines:
            raise StateMachineDoesNotExist(f"State Machine Does Not Exist: '{arn}'")
        return self._machines[arn]

    # ---- executions

    def start_execution(self, machine_arn: str, name: str | None = None, input: str = "{}") -> str:
        """Start (``input`` is JSON text) and return the execution ARN.

        The same name and input again, while it runs, return the same ARN (API reference: "StartExecution is idempotent
        for STANDARD workflows"). Raises StateMachineDoesNotExist, InvalidName, InvalidExecutionInput,
        ExecutionAlreadyExists.
        """
        with self._lock:
            machine, role_arn = self._machine(machine_arn)
            name = self._shared.new_id() if name is None else name
            _check_name(name)
            data = _parse(input, InvalidExecutionInput)
            arn = execution_arn(machine_arn, name)
            existing = self._executions.get(arn)
            if existing is not None:
                progress = existing.progress
                if progress.finished is None and progress.started["input"] == data:
                    return arn
                raise ExecutionAlreadyExists(f"Execution Already Exists: '{arn}'")
            execution = Execution(self._shared, machine, self._journal_factory(arn), self._status_changed)
            self._executions[arn] = execution
            execution.start(
                {
                    "execution_arn": arn,
                    "machine_arn": machine_arn,
                    "name": name,
                    "role_arn": role_arn or f"arn:aws:iam::{machine_arn.split(':')[4]}:role/state-machine",
                    "definition": machine.definition,
                    "input": data,
                }
            )
            return arn

    def describe_execution(self, arn: str) -> dict[str, Any]:
        """As boto3: executionArn, stateMachineArn, name, status, startDate, stopDate, input, output, error, cause.

        Raises ExecutionDoesNotExist.
        """
        with self._lock:
            return describe(self._execution(arn).progress)

    def list_executions(self, machine_arn: str, status: str | None = None) -> list[dict[str, Any]]:
        """Newest first: executionArn, stateMachineArn, name, status, startDate, stopDate."""
        if status is not None and status not in STATUSES:
            raise ValidationException(f"'{status}' is none of {', '.join(STATUSES)}")
        names = ("executionArn", "stateMachineArn", "name", "status", "startDate", "stopDate")
        with self._lock:
            self._machine(machine_arn)
            found = [
                {key: value for key, value in describe(execution.progress).items() if key in names}
                for execution in self._executions.values()
                if execution.progress.started["machine_arn"] == machine_arn
                and status in (None, execution.progress.status)
            ]
        return sorted(found, key=lambda item: item["startDate"], reverse=True)

    def get_execution_history(self, arn: str) -> list[dict[str, Any]]:
        """History events in AWS's shape, oldest first. Raises ExecutionDoesNotExist."""
        with self._lock:
            return history_events(self._execution(arn).journal.read())

    def stop_execution(self, arn: str, error: str | None = None, cause: str | None = None) -> datetime:
        """Abort, and return the stop date. An execution that is closed stays as it is."""
        _check_error(error, cause)
        with self._lock:
            execution = self._execution(arn)
            if execution.progress.finished is None:
                execution.finish("ABORTED", error=error, cause=cause)
            assert execution.progress.finished is not None
            return datetime.fromtimestamp(execution.progress.finished["at"], UTC)

    def redrive_execution(self, arn: str) -> datetime:
        """Go on at the state that had not succeeded, with the same input and definition, and return the date.

        A Fail state fails again (developer guide, "Restarting state machine executions with redrive", table of states).
        Raises ExecutionDoesNotExist, ExecutionNotRedrivable.
        """
        with self._lock:
            execution = self._execution(arn)
            progress, now = execution.progress, self._shared.clock.now()
            if progress.finished is None or progress.finished["status"] == "SUCCEEDED":
                raise ExecutionNotRedrivable(f"Execution is {progress.status} and cannot be redriven")
            if now.timestamp() - progress.finished["at"] > REDRIVE_S:
                raise ExecutionNotRedrivable("Execution has exceeded its redrivable period of 14 days")
            if progress.root.state.kind in ("Parallel", "Map"):
                raise ExecutionNotRedrivable(f"redrive of a {progress.root.state.kind} state is not played locally")
            execution.redrive()
            return now

    def _execution(self, arn: str) -> Execution:
        if arn not in self._executions:
            raise ExecutionDoesNotExist(f"Execution Does Not Exist: '{arn}'")
        return self._executions[arn]

    # ---- task tokens

    def send_task_success(self, token: str, output: str) -> None:
        """``output`` is JSON text. Raises InvalidOutput, InvalidToken, TaskDoesNotExist, TaskTimedOut.

        When this returns, the answer is in the journal.
        """
        with self._lock:
            execution, frame = self._open_task(token)
            execution.task_succeeded(frame, _parse(output, InvalidOutput))

    def send_task_failure(self, token: str, error: str | None = None, cause: str | None = None) -> None:
        """Raises InvalidToken, TaskDoesNotExist, TaskTimedOut."""
        _check_error(error, cause)
        with self._lock:
            execution, frame = self._open_task(token)
            execution.task_failed(frame, error or "", cause)

    def send_task_heartbeat(self, token: str) -> None:
        """Starts HeartbeatSeconds anew. Raises InvalidToken, TaskDoesNotExist, TaskTimedOut."""
        with self._lock:
            execution, frame = self._open_task(token)
            execution.task_heartbeat(frame)

    def _open_task(self, token: str) -> tuple[Execution, Frame]:
        arn = execution_of_token(token)
        if arn is None:
            raise InvalidToken("Invalid Token: 'Invalid token'")
        execution = self._executions.get(arn)
        if execution is None or token not in execution.progress.tokens:
            raise TaskDoesNotExist("Task does not exist: no task was given this token")
        frame = execution.progress.tokens[token]
        if frame is None:
            raise TaskTimedOut("Task Timed Out: 'Provided task does not exist anymore'")
        return execution, frame

    # ---- going on

    def resume(self, journal: Journal) -> str:
        """Take over the execution a journal describes; go on with it if it was running. Returns the execution ARN.

        The definition is the one the execution was started with. Raises JournalError when the journal is empty or does
        not begin with the start of an execution, and ExecutionAlreadyExists when the execution is already here.
        """
        records = journal.read()
        if not records or records[0].get("type") != "started":
            raise JournalError("the journal does not begin with the start of an execution; there is nothing to resume")
        started = records[0]
        arn: str = started["execution_arn"]
        with self._lock:
            if arn in self._executions:
                raise ExecutionAlreadyExists(f"Execution Already Exists: '{arn}'")
            machine = self._machine_as_started(started)
            execution = Execution(self._shared, machine, journal, self._status_changed)
            self._executions[arn] = execution
            execution.resume(records)
            for status in ("RUNNING", execution.progress.status):
                if status not in execution.progress.notified:
                    self._status_changed(execution, status)
        return arn

    def renew_limits(self, arn: str) -> None:
        """Count the limits of a resumed execution, and of its tasks, from now on: the time without an engine is not
        counted. Called before the clock runs; of no effect on an execution that has ended.
        """
        with self._lock:
            execution = self._execution(arn)
            if execution.progress.finished is None:
                execution.renew_limits()

    def _machine_as_started(self, started: dict[str, Any]) -> Machine:
        known = self._machines.get(started["machine_arn"])
        if known is not None and known[0].definition == started["definition"]:
            return known[0]
        machine = self._load(started["definition"])
        self._machines.setdefault(started["machine_arn"], (machine, started["role_arn"]))
        return machine

    # ---- status changes

    def _status_changed(self, execution: Execution, status: str) -> None:
        if self._on_status_change is not None:
            redrives = len(execution.progress.redriven_at)
            self._shared.clock.call_soon(partial(self._deliver, execution, status, redrives))

    def _deliver(self, execution: Execution, status: str, redrives: int) -> None:
        """Outside the lock, as the receiver may call back; noted afterwards: a crash repeats and never loses."""
        assert self._on_status_change is not None
        with self._lock:
            if status in execution.progress.notified or redrives != len(execution.progress.redriven_at):
                return
            detail = status_change_detail(execution.progress, status)
        self._on_status_change(detail)
        with self._lock:
            execution.mark_notified(status)


def execution_arn(machine_arn: str, name: str) -> str:
    """The ARN of the execution ``name``: arn:aws:states:REGION:ACCOUNT:execution:MACHINE:NAME."""
    return f"{machine_arn.replace(':stateMachine:', ':execution:')}:{name}"


@lru_cache(maxsize=64)
def _load_text(text: str, has_random: bool) -> Machine:
    """A machine never changes, so one is enough for all engines of a simulation."""
    return load(json.loads(text), has_random)


def _parse(text: str, problem: type[ApiError]) -> Any:
    if not isinstance(text, str):
        raise problem(f"expected JSON text, not {type(text).__name__}")
    if len(text.encode()) > DATA_LIMIT_BYTES:
        raise ValidationException(f"the JSON text has more than {DATA_LIMIT_BYTES} bytes")

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except ValueError as error:
        raise problem(f"Invalid JSON: {error}") from error


def _check_name(name: str) -> None:
    if not 0 < len(name) <= MAX_NAME_CHARACTERS:
        raise InvalidName(f"Invalid Name: '{name}': a name has 1 to {MAX_NAME_CHARACTERS} characters, not {len(name)}")
    if FORBIDDEN_IN_NAME.search(name):
        raise InvalidName(f"Invalid Name: '{name}': no white space, control characters or <>{{}}[]?*\"#%\\^|~`$&,;:/")


def _check_error(error: str | None, cause: str | None) -> None:
    if error is not None and len(error) > MAX_ERROR_CHARACTERS:
        raise ValidationException(f"error has {len(error)} characters, at most {MAX_ERROR_CHARACTERS} are allowed")
    if cause is not None and len(cause) > MAX_CAUSE_CHARACTERS:
        raise ValidationException(f"cause has {len(cause)} characters, at most {MAX_CAUSE_CHARACTERS} are allowed")
