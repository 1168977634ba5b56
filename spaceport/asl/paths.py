"""JSONPath as the embedded engine reads it (``$``, fields, indices, ``$$``), and writing a result at a path.

Each path means one node. Slices, filters, wildcards and ``..`` are refused, so every path is a reference path of the
States Language spec ("Paths", "Reference Paths").
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from spaceport.asl.errors import DATA_LIMIT_EXCEEDED, RESULT_PATH_MATCH_FAILURE, RUNTIME, StateError, not_supported

DATA_LIMIT_BYTES = 262_144
QUOTED_INPUT_CHARACTERS = 500
STEP = re.compile(r"\.([^\W\d][\w-]*)|\['([^'\\]+)'\]|\[(\d+)\]")

Context = dict[str, Any]  # the Context Object

# Step Functions developer guide, "Accessing execution data from the Context object". None: any path below is allowed.
CONTEXT_FIELDS: dict[str, Any] = {
    "Execution": {"Id": {}, "Input": None, "Name": {}, "RoleArn": {}, "StartTime": {}, "RedriveCount": {}},
    "State": {"EnteredTime": {}, "Name": {}, "RetryCount": {}},
    "StateMachine": {"Id": {}, "Name": {}},
    "Task": {"Token": {}},
    "Map": {"Item": {"Index": {}, "Value": None}},
}


@dataclass(frozen=True, slots=True)
class Path:
    """A compiled path: ``keys`` lead to one node."""

    text: str
    of_context: bool
    keys: tuple[str | int, ...]

    def find(self, data: Any, context: Context) -> Any:
        """The value in ``data``, or in the Context Object for ``$$``. Raises States.Runtime when nothing is there."""
        root = context if self.of_context else data
        node: Any = root
        for key in self.keys:
            try:
                if not isinstance(node, list if isinstance(key, int) else dict):
                    raise self._not_found(root)
                node = node[key]  # type: ignore[index]
            except LookupError:
                raise self._not_found(root) from None
        return node

    def _not_found(self, root: Any) -> StateError:
        where = "Context Object" if self.of_context else f"input '{quote(root)}'"
        return StateError(RUNTIME, f"The JSONPath '{self.text}' could not be found in the {where}")


def quote(data: Any) -> str:
    """``data`` as JSON for a message, cut to a readable length."""
    text = json.dumps(data, ensure_ascii=False)
    return text if len(text) <= QUOTED_INPUT_CHARACTERS else text[:QUOTED_INPUT_CHARACTERS] + "…"


@lru_cache(maxsize=4096)
def compile_path(text: str) -> Path:
    """``$…`` (of the input) or ``$$…`` (of the Context Object). Raises ValueError with the reason."""
    if not text.startswith("$"):
        raise ValueError(f"'{text}' is not a path: it must begin with '$'")
    of_context = text.startswith("$$")
    keys: list[str | int] = []
    at = 2 if of_context else 1
    while at < len(text):
        step = STEP.match(text, at)
        if step is None:
            raise ValueError(not_supported(f"'{text[at:]}' in the path '{text}'"))
        field, quoted, index = step.groups()
        keys.append(int(index) if index else field or quoted)
        at = step.end()
    if of_context:
        _check_context_path(text, keys)
    return Path(text, of_context, tuple(keys))


def compile_result_path(text: str) -> tuple[str | int, ...]:
    """The keys of a path into the input. Raises ValueError with the reason."""
    path = compile_path(text)
    if path.of_context:
        raise ValueError(f"'{text}' must not begin with '$$': the Context Object cannot be written")
    return path.keys


def assign(data: Any, keys: tuple[str | int, ...], value: Any) -> Any:
    """``data`` with ``value`` at ``keys``, missing objects made on the way; ``data`` itself is not changed.

    Spec, "Using InputPath, Parameters, ResultSelector, ResultPath and OutputPath" and "Runtime Errors": raises
    States.ResultPathMatchFailure where the way leads through something that is neither an object nor an array element
    that exists.
    """
    if not keys:
        return value
    key, rest = keys[0], keys[1:]
    if isinstance(key, int):
        if not isinstance(data, list) or not 0 <= key < len(data):
            raise StateError(RESULT_PATH_MATCH_FAILURE, f"ResultPath: there is no element [{key}] in '{quote(data)}'")
        changed = list(data)
        changed[key] = assign(data[key], rest, value)
        return changed
    if not isinstance(data, dict):
        raise StateError(RESULT_PATH_MATCH_FAILURE, f"ResultPath: cannot put a field '{key}' into '{quote(data)}'")
    return {**data, key: assign(data.get(key, {}), rest, value)}


def check_size(data: Any, what: str) -> str:
    """``data`` as JSON text.

    Raises States.DataLimitExceeded above 262,144 bytes of UTF-8, and States.Runtime when it is not JSON.
    """
    try:
        text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        size_bytes = len(text) if text.isascii() else len(text.encode())
    except (TypeError, ValueError) as error:
        raise StateError(RUNTIME, f"The {what} is not JSON: {error}") from error
    if size_bytes > DATA_LIMIT_BYTES:
        limit = f"exceeds the maximum number of bytes service limit ({DATA_LIMIT_BYTES})"
        cause = f"The {what} has {size_bytes} bytes, which {limit}."
        raise StateError(DATA_LIMIT_EXCEEDED, cause)
    return text


def _check_context_path(text: str, keys: list[str | int]) -> None:
    fields: dict[str, Any] | None = CONTEXT_FIELDS
    for key in keys:
        if fields is None:
            return
        if key not in fields:
            known = ", ".join(fields) or "nothing below"
            raise ValueError(f"'{text}': the Context Object has no '{key}' there; known: {known}")
        fields = fields[str(key)]
