"""The values a frame sees: the Context Object, effective input, limits and the input of branches."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from spaceport.asl.choice import parse_timestamp
from spaceport.asl.errors import RUNTIME, StateError
from spaceport.asl.frames import Frame, Progress
from spaceport.asl.model import MAX_SECONDS, Branch
from spaceport.asl.paths import Path, Scope, check_size, quote


class Values:
    """Reads an execution's progress; changes nothing but the cache of a Map's items."""

    def __init__(self, new_id: Callable[[], str], random: Callable[[], float] | None, progress: Progress) -> None:
        self.new_id = new_id
        self.random = random
        self.progress = progress

    def scope(self, frame: Frame, token: str | None = None, item: dict[str, Any] | None = None) -> Scope:
        """The Context Object as this frame sees it (developer guide, "Accessing execution data …")."""
        started, state = self.progress.started, frame.state
        context: dict[str, Any] = {
            "Execution": {
                "Id": started["execution_arn"],
                "Input": started["input"],
                "Name": started["name"],
                "RoleArn": started["role_arn"],
                "StartTime": timestamp_text(started["at"]),
                "RedriveCount": len(self.progress.redriven_at),
            },
            "State": {
                "EnteredTime": timestamp_text(frame.entered_at),
                "Name": state.name,
                "RetryCount": frame.retry_count,
            },
            "StateMachine": {"Id": started["machine_arn"], "Name": started["machine_arn"].rpartition(":")[2]},
        }
        if token is not None:
            context["Task"] = {"Token": token}
        item = item if item is not None else self.map_item(frame)
        if item is not None:
            context["Map"] = {"Item": item}
        return Scope(context, self.new_id, self.random)

    def map_item(self, frame: Frame) -> dict[str, Any] | None:
        """The item of the innermost Map around ``frame``."""
        inner: Frame | None = frame
        while inner is not None and inner.parent is not None:
            if inner.parent.state.kind == "Map":
                return {"Index": inner.index, "Value": self.items(inner.parent)[inner.index]}
            inner = inner.parent
        return None

    def effective_input(self, frame: Frame, scope: Scope) -> Any:
        path = frame.state.input_path
        return {} if path is None else path.find(frame.input, scope)

    def task_limits(self, frame: Frame, scope: Scope) -> tuple[float, float | None]:
        """TimeoutSeconds and HeartbeatSeconds; paths are applied to the input after InputPath."""
        timeout_s = self._positive_seconds(frame, "TimeoutSecondsPath", frame.state.timeout_s, scope)
        if frame.state.heartbeat_s is None:
            return timeout_s, None
        return timeout_s, self._positive_seconds(frame, "HeartbeatSecondsPath", frame.state.heartbeat_s, scope)

    def _positive_seconds(self, frame: Frame, name: str, value: int | Path, scope: Scope) -> float:
        if isinstance(value, int):
            return value
        found = value.find(self.effective_input(frame, scope), scope)
        if isinstance(found, bool) or not isinstance(found, int) or not 0 < found <= MAX_SECONDS:
            reason = (
                f"The {name} of the state '{frame.state.name}' must select a positive integer, not '{quote(found)}'"
            )
            raise StateError(RUNTIME, reason)
        return found

    def wait_until(self, frame: Frame, data: Any, scope: Scope) -> float:
        state = frame.state
        if state.timestamp is not None:
            text = state.timestamp.find(data, scope) if isinstance(state.timestamp, Path) else state.timestamp
            moment = parse_timestamp(text)
            if moment is None:
                raise StateError(RUNTIME, f"The wait state '{state.name}' has no timestamp but '{quote(text)}'")
            return moment.timestamp()
        seconds = state.seconds.find(data, scope) if isinstance(state.seconds, Path) else state.seconds
        if isinstance(seconds, bool) or not isinstance(seconds, int) or not 0 <= seconds <= MAX_SECONDS:
            raise StateError(RUNTIME, f"The wait state '{state.name}' cannot wait '{quote(seconds)}' seconds")
        return frame.entered_at + seconds

    def items(self, frame: Frame) -> list[Any]:
        """The array a Map works on; read once per attempt."""
        if frame.items is None:
            scope = self.scope(frame)
            items = frame.state.items_path.find(self.effective_input(frame, scope), scope)
            if not isinstance(items, list):
                raise StateError(
                    RUNTIME,
                    f"The ItemsPath of the state '{frame.state.name}' must select an array, not '{quote(items)}'",
                )
            frame.items = items
        return frame.items

    def branch_limits(self, frame: Frame) -> tuple[int, float]:
        if frame.state.kind == "Parallel":
            return len(frame.state.branches), math.inf
        limit = frame.state.max_concurrency
        if isinstance(limit, Path):
            scope = self.scope(frame)
            limit = limit.find(self.effective_input(frame, scope), scope)
            if isinstance(limit, bool) or not isinstance(limit, int) or limit < 0:
                reason = f"The MaxConcurrencyPath of the state '{frame.state.name}' must select a non-negative integer"
                raise StateError(RUNTIME, reason)
        return len(self.items(frame)), limit or math.inf

    def branch_input(self, frame: Frame, index: int) -> tuple[Branch, Any]:
        """Branch number ``index`` of a Parallel or Map, and its input (Parameters or ItemSelector applied)."""
        state = frame.state
        if state.kind == "Parallel":
            scope = self.scope(frame)
            branch, data = state.branches[index], self.effective_input(frame, scope)
        else:
            item = self.items(frame)[index]
            scope = self.scope(frame, item={"Index": index, "Value": item})
            branch, data = state.branches[0], item
        if state.parameters is not None:
            effective = self.effective_input(frame, scope)
            data = state.parameters(effective, scope)
        check_size(data, f"input of branch {index} of the state '{state.name}'")
        return branch, data


def timestamp_text(at: float) -> str:
    """Seconds since the epoch as the Context Object writes them: 2019-03-26T20:14:13.192Z."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
