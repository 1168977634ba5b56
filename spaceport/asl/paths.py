"""JSONPath as the Amazon States Language uses it: paths, reference paths, and writing a result at a reference path.

jsonpath-ng parses; the steps up to the first one that can match several nodes are walked here, because a missing field
must be an error and not an empty result. States Language spec, "Paths", "Reference Paths" and "Using InputPath,
Parameters, ResultSelector, ResultPath and OutputPath".
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from jsonpath_ng import Child, Descendants, Fields, Index, JSONPath, Root, Slice
from jsonpath_ng.exceptions import JSONPathError
from jsonpath_ng.ext import parse as parse_jsonpath
from jsonpath_ng.ext.filter import Filter
from jsonpath_ng.jsonpath import Wildcard

from spaceport.asl.errors import DATA_LIMIT_EXCEEDED, RESULT_PATH_MATCH_FAILURE, RUNTIME, StateError

DATA_LIMIT_BYTES = 262_144
QUOTED_INPUT_CHARACTERS = 500

# Step Functions developer guide, "Accessing execution data from the Context object". None: any path below is allowed.
CONTEXT_FIELDS: dict[str, Any] = {
    "Execution": {"Id": {}, "Input": None, "Name": {}, "RoleArn": {}, "StartTime": {}, "RedriveCount": {}},
    "State": {"EnteredTime": {}, "Name": {}, "RetryCount": {}},
    "StateMachine": {"Id": {}, "Name": {}},
    "Task": {"Token": {}},
    "Map": {"Item": {"Index": {}, "Value": None}},
}


@dataclass(slots=True)
class Scope:
    """What an expression may read besides its input: the Context Object, unique ids and random numbers in [0, 1)."""

    context: dict[str, Any] = field(default_factory=dict)
    new_uuid: Callable[[], str] | None = None
    random: Callable[[], float] | None = None


@dataclass(frozen=True, slots=True)
class Path:
    """A compiled path: ``keys`` lead to one node, ``rest`` (if any) selects a list of nodes below it."""

    text: str
    of_context: bool
    keys: tuple[str | int, ...]
    rest: JSONPath | None

    def find(self, data: Any, scope: Scope) -> Any:
        """The value in ``data``, or in the Context Object for ``$$``. Raises States.Runtime when nothing is there."""
        root = scope.context if self.of_context else data
        node: Any = root
        for key in self.keys:
            try:
                if not isinstance(node, list if isinstance(key, int) else dict):
                    raise self._not_found(root)
                node = node[key]  # type: ignore[index]
            except LookupError:
                raise self._not_found(root) from None
        if self.rest is None:
            return node
        if isinstance(_first_step(self.rest), (Slice, Index, Filter)) and not isinstance(node, list):
            raise self._not_found(root)
        return [match.value for match in self.rest.find(node)]

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
    body = text[1:] if of_context else text
    if body[1:2] not in ("", ".", "["):
        raise ValueError(f"'{text}' reads a variable; variables (Assign) are not implemented")
    try:
        steps = _steps(parse_jsonpath(body))
    except JSONPathError as error:
        raise ValueError(f"'{text}' is not a path that is implemented: {error}") from error
    keys: list[str | int] = []
    while steps and (key := _single_key(steps[0])) is not None:
        keys.append(key)
        steps.pop(0)
    if of_context:
        _check_context_path(text, keys)
    return Path(text, of_context, tuple(keys), _join(steps) if steps else None)


def compile_reference_path(text: str, context_allowed: bool = True) -> Path:
    """A path that can only mean one node. Raises ValueError with the reason."""
    path = compile_path(text)
    if path.rest is not None or any(isinstance(key, int) and key < 0 for key in path.keys):
        raise ValueError(
            f"'{text}' is not a reference path: it may match several nodes (no '..', '*', ',', ':', '?', '@')"
        )
    if path.of_context and not context_allowed:
        raise ValueError(f"'{text}' must not begin with '$$': the Context Object cannot be written")
    return path


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


def _steps(node: JSONPath) -> list[Any]:
    """The path as a list of steps; a Descendants step is a one-element tuple around what it looks for."""
    if isinstance(node, Root):
        return []
    if isinstance(node, Child):
        return [*_steps(node.left), *_allowed(node.right)]
    if isinstance(node, Descendants):
        return [*_steps(node.left), tuple(_allowed(node.right))]
    raise JSONPathError(f"'{node}' is not part of the States Language")


def _allowed(node: JSONPath) -> list[JSONPath]:
    if isinstance(node, (Fields, Index, Slice, Wildcard, Filter)):
        return [node]
    raise JSONPathError(f"'{node}' is not part of the States Language")


def _single_key(step: Any) -> str | int | None:
    if isinstance(step, Fields) and len(step.fields) == 1 and step.fields[0] != "*":
        return str(step.fields[0])
    if isinstance(step, Index) and len(step.indices) == 1:
        return int(step.indices[0])
    return None


def _join(steps: list[Any]) -> JSONPath:
    path: JSONPath = Root()
    for step in steps:
        path = Descendants(path, step[0]) if isinstance(step, tuple) else Child(path, step)
    return path


def _first_step(path: JSONPath) -> JSONPath:
    while not isinstance(path.left, Root):
        path = path.left
    return path.right if isinstance(path, Child) else path


def _check_context_path(text: str, keys: list[str | int]) -> None:
    fields: dict[str, Any] | None = CONTEXT_FIELDS
    for key in keys:
        if fields is None:
            return
        if key not in fields:
            known = ", ".join(fields) or "nothing below"
            raise ValueError(f"'{text}': the Context Object has no '{key}' there; known: {known}")
        fields = fields[str(key)]
