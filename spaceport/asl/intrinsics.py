"""Intrinsic functions: States.Format, States.JsonToString and States.MathAdd; the loader refuses the others by name.

States Language spec, "Intrinsic Functions" and Appendix B; Step Functions developer guide, "Intrinsic functions for
JSONPath states".
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from spaceport.asl.errors import INTRINSIC_FAILURE, StateError, not_supported
from spaceport.asl.paths import Context, Path, compile_path

Expression = Callable[[Any, Context], Any]

CALL = re.compile(r"([A-Za-z0-9._]+)\((.*)\)", re.DOTALL)
ARGUMENT = re.compile(
    r"\s*(?:'(?P<string>[^'\\]*)'|(?P<path>\$(?:\['[^']*'\]|[^,'\s])*)|(?P<number>-?\d+(\.\d+)?))\s*(,|$)"
)
INT32 = range(-(2**31), 2**31)


@dataclass(frozen=True, slots=True)
class Call:
    """One invocation; an argument that is no path is a literal text or number."""

    name: str
    arguments: tuple[Path | str | int | float, ...]

    @property
    def paths(self) -> list[Path]:
        return [argument for argument in self.arguments if isinstance(argument, Path)]


def parse_intrinsic(text: str) -> Call:
    """The invocation. Raises ValueError with what is wrong."""
    match = CALL.fullmatch(text)
    if match is None:
        raise ValueError(f"'{text}' is neither a path nor an intrinsic function")
    call = Call(match[1], tuple(_arguments(text, match[2]))) if match[1] in FUNCTIONS else None
    if call is None:
        raise ValueError(not_supported(f"the intrinsic function {match[1]}"))
    given, wanted = len(call.arguments), FUNCTIONS[call.name][1]
    if call.name == "States.Format":
        template = call.arguments[0] if call.arguments else None
        if not isinstance(template, str):
            raise ValueError(f"'{text}': the first argument of States.Format must be a string")
        if set("{}") & set(template.replace("{}", "")):
            raise ValueError(f"'{text}': " + not_supported("a brace beside the {} of States.Format"))
        wanted = 1 + template.count("{}")
    if given != wanted:
        raise ValueError(f"'{text}': {call.name} takes {wanted} arguments here, not {given}")
    return call


def _arguments(text: str, inner: str) -> list[Path | str | int | float]:
    found: list[Path | str | int | float] = []
    at = 0
    while at < len(inner):
        match = ARGUMENT.match(inner, at)
        if match is None:
            raise ValueError(f"'{text}': " + not_supported(f"the argument '{inner[at:].strip()}'"))
        if match["string"] is not None:
            found.append(match["string"])
        else:
            found.append(compile_path(match["path"]) if match["path"] else json.loads(match["number"]))
        at = match.end()
    return found


def compile_intrinsic(text: str) -> Expression:
    """A function of input and context. Raises ValueError; the function raises StateError States.IntrinsicFailure."""
    call = parse_intrinsic(text)
    function = FUNCTIONS[call.name][0]

    def evaluate(data: Any, context: Context) -> Any:
        return function(*[part.find(data, context) if isinstance(part, Path) else part for part in call.arguments])

    return evaluate


def _format(template: str, *values: Any) -> str:
    pieces = template.split("{}")
    text = pieces[0]
    for piece, value in zip(pieces[1:], values, strict=True):
        if isinstance(value, (dict, list)):
            raise _failure("States.Format", "a value must not be an array or an object")
        text += (value if isinstance(value, str) else json.dumps(value)) + piece
    return text


def _json_to_string(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _math_add(first: Any, second: Any) -> int:
    total = _integer(first) + _integer(second)
    if total not in INT32:
        raise _failure("States.MathAdd", f"{total} is outside -2147483648…2147483647")
    return total


def _integer(value: Any) -> int:
    """``value`` rounded to the nearest integer, as AWS does; the range is that of a 32-bit integer."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _failure("States.MathAdd", f"'{value}' is not a number")
    rounded = math.floor(value + 0.5)
    if rounded not in INT32:
        raise _failure("States.MathAdd", f"{rounded} is outside -2147483648…2147483647")
    return rounded


def _failure(name: str, reason: str) -> StateError:
    return StateError(INTRINSIC_FAILURE, f"{name}: {reason}")


# Function and number of arguments; States.Format takes one more for each {} of its template.
FUNCTIONS: dict[str, tuple[Callable[..., Any], int]] = {
    "States.Format": (_format, 1),
    "States.JsonToString": (_json_to_string, 1),
    "States.MathAdd": (_math_add, 2),
}
