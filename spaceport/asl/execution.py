# Longer than 400 lines: one class drives one execution, and its phases call each other.
"""One execution of a state machine: each step is written to the journal, applied, and then acted upon.

States Language spec for what a state does; Step Functions developer guide, "Handling errors in Step Functions
workflows", where AWS says more than the spec. Known differences: docs/asl-differences.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from threading import RLock
from typing import Any

from spaceport.asl.errors import (
    HEARTBEAT_TIMEOUT,
    NO_CHOICE_MATCHED,
    RUNTIME,
    TIMEOUT,
    StateError,
    error_matches,
)
from spaceport.asl.frames import BACKOFF, DONE, FAILED, MOVE, RESULT, RUN, TASK, Frame, Progress
from spaceport.asl.journal import Journal
from spaceport.asl.model import MAX_SECONDS, Machine
from spaceport.asl.paths import Context, assign, check_size
from spaceport.asl.tasks import TaskError, TaskResult, Tasks
from spaceport.asl.tokens import task_token
from spaceport.asl.values import Values
from spaceport.base.clock import Clock, Timer

MAX_HISTORY_EVENTS = 25_000


@dataclass(slots=True)
class Shared:
    """Shared by all executions. ``lock`` is held while an execution changes, and never while foreign code runs."""

    clock: Clock
    tasks: Tasks
    new_id: Callable[[], str]
    random: Callable[[], float] | None
    lock: RLock


class Execution:
    """Drives one execution. ``on_status(execution, status)`` is called after the status is in the journal."""

    def __init__(
        self, shared: Shared, machine: Machine, journal: Journal, on_status: Callable[[Execution, str], None]
    ) -> None:
        self.shared = shared
        self.journal = journal
        self.progress = Progress(machine)
        self.values = Values(self.progress)
        self._on_status = on_status
        self._deadline: Timer | None = None
        self._phases: dict[str, Callable[[Frame], None]] = {
            RUN: self._run,
            TASK: self._watch_task,
            BACKOFF: self._wait_for_retry,
            RESULT: self._use_result,
            FAILED: self._handle_failure,
            MOVE: self._move,
            DONE: self._end_frame,
        }

    # ---- life

    def start(self, started: dict[str, Any]) -> None:
        """Begin; ``started`` is the first record, without type and time."""
        self._record("started", **started)
        self._on_status(self, "RUNNING")
        self._watch_machine()
        self._enter(self.progress.root, self.progress.machine.root.start_at, started["input"])

    def resume(self, records: list[dict[str, Any]]) -> None:
        """Stand where the journal ends, and go on."""
        for record in records:
            self.progress.apply(record)
        if self.progress.finished is not None:
            return
        self._watch_machine()
        root = self.progress.root
        if root.version == 0:  # the journal ends before the first state was entered
            self._enter(root, self.progress.machine.root.start_at, self.progress.started["input"])
            return
        for frame in list(self.progress.frames.values()):
            self._later(frame)

    def renew_limits(self) -> None:
        """Count the limits of the machine and of tasks from now on. For a resumed execution, before the clock runs."""
        self._record("renewed")
        if self._deadline is not None:
            self._deadline.cancel()
        self._watch_machine()

    def redrive(self) -> None:
        """Go on after an end without success, at the state that was not done with."""
        self._record("redriven")
        self._on_status(self, "RUNNING")
        self._watch_machine()
        self._later(self.progress.root)

    def finish(self, status: str, output: Any = None, error: str | None = None, cause: str | None = None) -> None:
        """Close the execution: SUCCEEDED, FAILED, TIMED_OUT or ABORTED."""
        self._record("finished", status=status, output=output, error=error, cause=cause)
        if self._deadline is not None:
            self._deadline.cancel()
        self._on_status(self, status)

    def mark_notified(self, status: str) -> None:
        """The status change was handed over; a resumed execution does not repeat it."""
        self._record("notified", status=status)

    # ---- tasks that answer by token

    def task_succeeded(self, frame: Frame, result: Any) -> None:
        self._record_frame("succeeded", frame, result=result)
        self._later(frame)

    def task_failed(self, frame: Frame, error: str, cause: str | None) -> None:
        self._record_failure(frame, error, cause)
        self._later(frame)

    def task_heartbeat(self, frame: Frame) -> None:
        self._record_frame("heartbeat", frame)
        self._watch_heartbeat(frame)

    # ---- machinery

    def _now(self) -> float:
        return self.shared.clock.now().timestamp()

    def _record(self, event: str, **fields: Any) -> None:
        record = {"type": event, "at": self._now(), **fields}
        self.journal.append(record)
        self.progress.apply(record)

    def _record_frame(self, event: str, frame: Frame, **fields: Any) -> None:
        state = frame.state
        place = {"frame": frame.id, "state": state.name, "kind": state.kind, "resource": state.resource}
        self._record(event, **place, **fields)

    def _record_failure(self, frame: Frame, error: str, cause: str | None) -> None:
        self._record_frame("failed", frame, error=error, cause=cause, in_task=frame.phase == TASK)

    def _later(self, frame: Frame) -> None:
        self.shared.clock.call_soon(self._unless_moved_on(frame, lambda frame: self._phases[frame.phase](frame)))

    def _at(self, due_at: float, frame: Frame, act: Callable[[Frame], None]) -> Timer:
        return self.shared.clock.call_later(due_at - self._now(), self._unless_moved_on(frame, act))

    def _unless_moved_on(self, frame: Frame, act: Callable[[Frame], None]) -> Callable[[], None]:
        version = frame.version

        def run() -> None:
            with self.shared.lock:
                if frame.version == version and self.progress.finished is None:
                    try:
                        act(frame)
                    except StateError as error:
                        self._fail(frame, error.error, error.cause)

        return run

    def _watch_machine(self) -> None:
        timeout_s = self.progress.machine.timeout_s
        if timeout_s is not None:
            begins = [self.progress.started["at"], *self.progress.redriven_at, *self.progress.renewed_at]
            due_at = max(begins) + timeout_s
            self._deadline = self.shared.clock.call_later(due_at - self._now(), self._machine_timed_out)

    def _machine_timed_out(self) -> None:
        with self.shared.lock:
            if self.progress.finished is None:
                self.finish("TIMED_OUT")

    # ---- from state to state

    def _enter(self, frame: Frame, name: str, data: Any) -> None:
        self._enter_by_id(frame.id, frame.branch.states[name].kind, name, data)
        self._run(frame)

    def _enter_by_id(self, frame_id: str, kind: str, name: str, data: Any) -> None:
        self._record("entered", frame=frame_id, state=name, kind=kind, input=data)

    def _move(self, frame: Frame) -> None:
        if self.progress.event_count >= MAX_HISTORY_EVENTS - 1:
            cause = f"The execution reached the maximum number of history events ({MAX_HISTORY_EVENTS})."
            self.finish("FAILED", error=RUNTIME, cause=cause)
            return
        self._enter(frame, str(frame.next), frame.output)

    def _run(self, frame: Frame) -> None:
        try:
            run: Callable[[Frame, Context], None] = getattr(self, f"_run_{frame.state.kind.lower()}")
            run(frame, self.values.context(frame))
        except StateError as error:
            self._fail(frame, error.error, error.cause)

    def _leave(self, frame: Frame, output: Any, target: str | None = None) -> None:
        """Go on to ``target``, or to the state's Next, or end the frame."""
        check_size(output, f"output of the state '{frame.state.name}'")
        self._exit(frame, output, target or frame.state.next)

    def _exit(self, frame: Frame, output: Any, target: str | None) -> None:
        self._record_frame("exited", frame, output=output, next=target)
        if target is None:
            self._end_frame(frame)
        else:
            self._later(frame)  # not at once: a loop of Pass states must not keep others from running

    def _end_frame(self, frame: Frame) -> None:
        if frame.parent is None:
            self.finish("SUCCEEDED", output=frame.output)
        else:
            self._advance_branches(frame.parent)

    # ---- failure

    def _fail(self, frame: Frame, error: str, cause: str | None) -> None:
        self._record_failure(frame, error, cause)
        self._handle_failure(frame)

    def _handle_failure(self, frame: Frame) -> None:
        """Retry, or catch, or hand the error to the state around this one (spec, "Errors")."""
        error, cause = frame.failure
        if error == RUNTIME:
            self.finish("FAILED", error=error, cause=cause)
            return
        if self._retry(frame, error):
            return
        for catcher in frame.state.catchers:
            if error_matches(catcher.errors, error):
                self._catch(frame, catcher.next, catcher.result_keys)
                return
        self._give_up(frame, error, cause)

    def _give_up(self, frame: Frame, error: str, cause: str | None) -> None:
        if frame.parent is None:
            self.finish("FAILED", error=error or None, cause=cause)
        else:
            self._fail(frame.parent, error, cause)

    def _retry(self, frame: Frame, error: str) -> bool:
        for index, retrier in enumerate(frame.state.retriers):
            if error_matches(retrier.errors, error):
                done = frame.attempts_by_retrier.get(index, 0)
                if done >= retrier.max_attempts:
                    return False
                due_at = self._now() + retrier.delay_s(done, self.shared.random)
                self._record_frame("retry", frame, retrier=index, due_at=due_at)
                self._wait_for_retry(frame)
                return True
        return False

    def _wait_for_retry(self, frame: Frame) -> None:
        frame.timers.append(self._at(frame.due_at, frame, self._run))

    def _catch(self, frame: Frame, target: str, result_keys: tuple[str | int, ...] | None) -> None:
        error, cause = frame.failure
        error_output = {"Error": error} if cause is None else {"Error": error, "Cause": cause}
        try:
            output = frame.input if result_keys is None else assign(frame.input, result_keys, error_output)
            check_size(output, f"error output of the state '{frame.state.name}'")
        except StateError as worse:
            self._give_up(frame, worse.error, worse.cause)
            return
        self._exit(frame, output, target)

    # ---- Task

    def _run_task(self, frame: Frame, context: Context) -> None:
        state = frame.state
        token = self.shared.new_id() if state.waits_for_token else None
        if token is not None:
            token = task_token(self.progress.started["execution_arn"], token)
            context = self.values.context(frame, token)
        payload = frame.input if state.parameters is None else state.parameters(frame.input, context)
        check_size(payload, f"input of the state '{state.name}' after Parameters")
        self._record_frame("scheduled", frame, payload=payload, token=token)
        self._watch_task(frame)

    def _watch_task(self, frame: Frame) -> None:
        """Set the limits of a task that is in the journal, and start it unless its start call has already returned."""
        task, timeout_s = frame.task, frame.state.timeout_s
        assert task is not None
        self._watch_heartbeat(frame)  # first: where both limits have passed meanwhile, the earlier one counts
        if timeout_s < MAX_SECONDS:
            due_at = task.scheduled_at + timeout_s
            frame.timers.append(self._at(due_at, frame, partial(self._fail, error=TIMEOUT, cause=None)))
        if not task.submitted:
            left_s = task.scheduled_at + timeout_s - self._now()
            self.shared.clock.call_soon(partial(self._invoke, frame, frame.version, left_s))

    def _watch_heartbeat(self, frame: Frame) -> None:
        task, heartbeat_s = frame.task, frame.state.heartbeat_s
        if heartbeat_s is None or task is None:
            return
        if frame.heartbeat_timer is not None:
            frame.heartbeat_timer.cancel()
        due_at = task.heartbeat_at + heartbeat_s
        frame.heartbeat_timer = self._at(due_at, frame, partial(self._fail, error=HEARTBEAT_TIMEOUT, cause=None))

    def _invoke(self, frame: Frame, version: int, timeout_s: float) -> None:
        with self.shared.lock:
            task = frame.task
            if frame.version != version or task is None or self.progress.finished is not None:
                return
            resource, payload = frame.state.resource, json.loads(json.dumps(task.payload))

        def on_done(result: TaskResult) -> None:
            self.shared.clock.call_soon(partial(self._task_done, frame, version, result))

        self.shared.tasks.invoke(resource, payload, on_done, timeout_s)

    def _task_done(self, frame: Frame, version: int, result: TaskResult) -> None:
        with self.shared.lock:
            task = frame.task
            if frame.version != version or task is None or task.submitted or self.progress.finished is not None:
                return
            if isinstance(result, TaskError):
                self._fail(frame, result.error, result.cause)
            elif frame.state.waits_for_token:
                self._record_frame("submitted", frame)
            else:
                self._accept_output(frame, result.output)

    def _accept_output(self, frame: Frame, output: Any) -> None:
        try:
            text = check_size(output, f"result of the task in state '{frame.state.name}'")
        except StateError as error:
            self._fail(frame, error.error, error.cause)
            return
        self._record_frame("succeeded", frame, result=json.loads(text))
        self._use_result(frame)

    def _use_result(self, frame: Frame) -> None:
        """ResultSelector and ResultPath (spec, "Input and Output Processing")."""
        state, result = frame.state, frame.result
        try:
            if state.result_selector is not None:
                result = state.result_selector(result, self.values.context(frame))
            output = frame.input if state.result_keys is None else assign(frame.input, state.result_keys, result)
            self._leave(frame, output)
        except StateError as error:
            self._fail(frame, error.error, error.cause)

    # ---- Pass, Wait, Choice, Succeed, Fail

    def _run_pass(self, frame: Frame, context: Context) -> None:
        state = frame.state
        data = frame.input if state.parameters is None else state.parameters(frame.input, context)
        result = data if state.result is None else state.result[0]
        self._leave(frame, frame.input if state.result_keys is None else assign(frame.input, state.result_keys, result))

    def _run_wait(self, frame: Frame, _context: Context) -> None:
        done = partial(self._leave, output=frame.input)
        frame.timers.append(self._at(self.values.wait_until(frame), frame, done))

    def _run_choice(self, frame: Frame, context: Context) -> None:
        state = frame.state
        target = next((target for rule, target in state.choices if rule(frame.input, context)), state.default)
        if target is None:
            raise StateError(
                NO_CHOICE_MATCHED, f"No choice rule of the state '{state.name}' matched, and it has no Default"
            )
        self._leave(frame, frame.input, target)

    def _run_succeed(self, frame: Frame, _context: Context) -> None:
        self._leave(frame, frame.input)

    def _run_fail(self, frame: Frame, _context: Context) -> None:
        self._fail(frame, frame.state.error or "", frame.state.cause)

    # ---- Parallel and Map

    def _run_parallel(self, frame: Frame, _context: Context) -> None:
        self._advance_branches(frame)

    def _run_map(self, frame: Frame, _context: Context) -> None:
        self.values.items(frame)
        self._advance_branches(frame)

    def _advance_branches(self, frame: Frame) -> None:
        """Start the branches that may run now; join when all have ended."""
        if frame.phase not in (RUN, BACKOFF):
            return
        try:
            total, limit = self.values.branch_limits(frame)
            while len(frame.children) < total and len(frame.children) - frame.ended_children < limit:
                self._start_branch(frame, len(frame.children))
        except StateError as error:
            self._fail(frame, error.error, error.cause)
            return
        if frame.ended_children == total:
            result = [frame.children[index].output for index in range(total)]
            self._record_frame("succeeded", frame, result=result)
            self._use_result(frame)

    def _start_branch(self, frame: Frame, index: int) -> None:
        branch, data = self.values.branch_input(frame, index)
        child_id = f"{frame.id}/{index}"
        self._enter_by_id(child_id, branch.states[branch.start_at].kind, branch.start_at, data)
        self._later(self.progress.frames[child_id])
