"""Where an execution stands, rebuilt from its journal: ``Progress.apply`` is the only place that changes it.

Running and resuming share this code: a running execution applies each record right after the journal has it, a resumed
one applies all of them first. So what an interrupted execution does next depends on its journal alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spaceport.asl.model import Branch, Machine, State
from spaceport.base.clock import Timer

# What a frame waits for, or does next.
RUN, TASK, BACKOFF, RESULT, FAILED, MOVE, DONE, DEAD = (
    "run",
    "task",
    "backoff",
    "result",
    "failed",
    "move",
    "done",
    "dead",
)


@dataclass(slots=True)
class TaskRun:
    """One attempt of a Task state that was handed to its resource."""

    payload: Any
    token: str | None
    scheduled_at: float
    heartbeat_at: float
    submitted: bool = False


class Frame:
    """One line of control: the execution itself, a branch of Parallel or an iteration of Map; in one state at a time.

    Branches start in order of their index, so ``children`` has no gaps; ``ended_children`` of them are done.
    """

    __slots__ = (
        "attempts_by_retrier",
        "branch",
        "children",
        "due_at",
        "ended_children",
        "entered_at",
        "failure",
        "heartbeat_timer",
        "id",
        "index",
        "input",
        "items",
        "next",
        "output",
        "parent",
        "phase",
        "result",
        "retry_count",
        "state",
        "task",
        "timers",
        "version",
    )

    def __init__(self, frame_id: str, branch: Branch, parent: Frame | None, index: int) -> None:
        self.id = frame_id
        self.branch = branch
        self.parent = parent
        self.index = index
        self.version = 0  # changes with the phase; what was started for an older version is ignored
        self.timers: list[Timer] = []
        self.heartbeat_timer: Timer | None = None
        self.state: State = branch.states[branch.start_at]
        self.phase = RUN
        self.input: Any = None
        self.entered_at = 0.0
        self.next: str | None = None
        self.output: Any = None
        self.clear_visit()

    def clear_visit(self) -> None:
        """Forget what belongs to one visit of a state."""
        self.retry_count = 0
        self.attempts_by_retrier: dict[int, int] = {}
        self.clear_attempt()

    def clear_attempt(self) -> None:
        """Forget what belongs to one attempt; a retry starts the state again with the same input."""
        self.task: TaskRun | None = None
        self.result: Any = None
        self.failure: tuple[str, str | None] = ("", None)
        self.due_at = 0.0
        self.items: list[Any] | None = None
        self.children: dict[int, Frame] = {}
        self.ended_children = 0


class Progress:
    """The state of one execution. ``tokens`` has every token ever given out; a closed one maps to None."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.root = Frame("", machine.root, None, 0)
        self.frames: dict[str, Frame] = {"": self.root}
        self.tokens: dict[str, Frame | None] = {}
        self.event_count = 0
        self.started: dict[str, Any] = {}
        self.redriven_at: list[float] = []
        self.renewed_at: list[float] = []
        self.finished: dict[str, Any] | None = None
        self.notified: set[str] = set()

    @property
    def status(self) -> str:
        return self.finished["status"] if self.finished else "RUNNING"

    def apply(self, record: dict[str, Any]) -> None:
        """Take ``record`` into account. Nothing but memory changes; timers of what ended are cancelled."""
        getattr(self, "_" + record["type"])(record)

    def _started(self, record: dict[str, Any]) -> None:
        self.started = record
        self.event_count += 1

    def _entered(self, record: dict[str, Any]) -> None:
        frame = self._frame(record["frame"])
        self._leave(frame)
        frame.clear_visit()
        frame.state = frame.branch.states[record["state"]]
        frame.input = record["input"]
        frame.entered_at = record["at"]
        frame.next = None
        frame.phase = RUN

    def _scheduled(self, record: dict[str, Any]) -> None:
        frame = self._change(record, TASK)
        token = record["token"]
        frame.task = TaskRun(record["payload"], token, record["at"], record["at"])
        if token is not None:
            self.tokens[token] = frame

    def _submitted(self, record: dict[str, Any]) -> None:
        task = self.frames[record["frame"]].task
        self.event_count += 1
        if task is not None:
            task.submitted = True

    def _heartbeat(self, record: dict[str, Any]) -> None:
        task = self.frames[record["frame"]].task
        if task is not None:
            task.heartbeat_at = record["at"]

    def _succeeded(self, record: dict[str, Any]) -> None:
        self._change(record, RESULT).result = record["result"]

    def _failed(self, record: dict[str, Any]) -> None:
        self._change(record, FAILED).failure = (record["error"], record["cause"])

    def _retry(self, record: dict[str, Any]) -> None:
        frame = self._change(record, BACKOFF)
        frame.clear_attempt()
        frame.retry_count += 1
        retrier = record["retrier"]
        frame.attempts_by_retrier[retrier] = frame.attempts_by_retrier.get(retrier, 0) + 1
        frame.due_at = record["due_at"]

    def _exited(self, record: dict[str, Any]) -> None:
        frame = self._change(record, DONE if record["next"] is None else MOVE)
        frame.output = record["output"]
        frame.next = record["next"]
        if frame.next is None and frame.parent is not None:
            frame.parent.ended_children += 1

    def _finished(self, record: dict[str, Any]) -> None:
        self.event_count += 1
        self.finished = record
        self._kill(self.root)

    def _redriven(self, record: dict[str, Any]) -> None:
        """Stand again before the state that had not succeeded, with its input; its retries are counted anew."""
        self.event_count += 1
        self.finished = None
        self.notified.clear()
        self.redriven_at.append(record["at"])
        self.root.version += 1
        self.root.clear_visit()
        self.root.phase = RUN if self.root.next is None else MOVE

    def _renewed(self, record: dict[str, Any]) -> None:
        """Limits count from here: nobody could work on the tasks before, as no engine ran."""
        self.renewed_at.append(record["at"])
        for frame in self.frames.values():
            if frame.task is not None:
                frame.task.scheduled_at = frame.task.heartbeat_at = record["at"]

    def _notified(self, record: dict[str, Any]) -> None:
        self.notified.add(record["status"])

    def _frame(self, frame_id: str) -> Frame:
        frame = self.frames.get(frame_id)
        if frame is None:
            parent_id, _, index = frame_id.rpartition("/")
            parent = self.frames[parent_id]
            branches = parent.state.branches
            branch = branches[int(index)] if parent.state.kind == "Parallel" else branches[0]
            frame = Frame(frame_id, branch, parent, int(index))
            parent.children[frame.index] = frame
            self.frames[frame_id] = frame
        return frame

    def _change(self, record: dict[str, Any], phase: str) -> Frame:
        frame = self.frames[record["frame"]]
        self._leave(frame)
        frame.phase = phase
        return frame

    def _leave(self, frame: Frame) -> None:
        """End what the frame's present phase keeps open: timers, the task's token, branches."""
        self.event_count += 1
        frame.version += 1
        for timer in frame.timers:
            timer.cancel()
        frame.timers.clear()
        if frame.heartbeat_timer is not None:
            frame.heartbeat_timer.cancel()
            frame.heartbeat_timer = None
        if frame.task is not None and frame.task.token is not None:
            self.tokens[frame.task.token] = None
        for child in frame.children.values():
            self._kill(child)
            del self.frames[child.id]
        frame.children = {}
        frame.ended_children = 0

    def _kill(self, frame: Frame) -> None:
        self._leave(frame)
        self.event_count -= 1
        frame.phase = DEAD
