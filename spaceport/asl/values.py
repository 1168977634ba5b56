"""The values a frame sees: the Context Object, effective input, limits and the input of branches."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

from spaceport.asl.errors import RUNTIME, StateError
from spaceport.asl.frames import Frame, Progress
from spaceport.asl.model import MAX_SECONDS, Branch
from spaceport.asl.paths import Context, Path, check_size, quote


class Values:
    """Reads an execution's progress; changes nothing but the cache of a Map's items."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def context(self, frame: Frame, token: str | None = None, item: dict[str, Any] | None = None) -> Context:
        """The Context Object as this frame sees it (developer guide, "Accessing execution data …")."""
        started, state = self.progress.started, frame.state
        context: Context = {
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
        return context

    def map_item(self, frame: Frame) -> dict[str, Any] | None:
        """The item of the innermost Map around ``frame``."""
        inner: Frame | None = frame
        while inner is not None and inner.parent is not None:
            if inner.parent.state.kind == "Map":
                return {"Index": inner.index, "Value": self.items(inner.parent)[inner.index]}
            inner = inner.parent
        return None

    def wait_until(self, frame: Frame) -> float:
        state = frame.state
        seconds = state.seconds
        if isinstance(seconds, Path):
            seconds = seconds.find(frame.input, self.context(frame))
        if isinstance(seconds, bool) or not isinstance(seconds, int) or not 0 <= seconds <= MAX_SECONDS:
            raise StateError(RUNTIME, f"The wait state '{state.name}' cannot wait '{quote(seconds)}' seconds")
        return frame.entered_at + seconds

    def items(self, frame: Frame) -> list[Any]:
        """The array a Map works on; read once per attempt."""
        if frame.items is None:
            items = frame.state.items_path.find(frame.input, self.context(frame))
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
        return len(self.items(frame)), frame.state.max_concurrency or math.inf

    def branch_input(self, frame: Frame, index: int) -> tuple[Branch, Any]:
        """Branch number ``index`` of a Parallel or Map, and its input (Parameters or ItemSelector applied)."""
        state = frame.state
        if state.kind == "Parallel":
            context, branch, data = self.context(frame), state.branches[index], frame.input
        else:
            item = self.items(frame)[index]
            context = self.context(frame, item={"Index": index, "Value": item})
            branch, data = state.branches[0], item
        if state.parameters is not None:
            data = state.parameters(frame.input, context)
        check_size(data, f"input of branch {index} of the state '{state.name}'")
        return branch, data


def timestamp_text(at: float) -> str:
    """Seconds since the epoch as the Context Object writes them: 2019-03-26T20:14:13.192Z."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
