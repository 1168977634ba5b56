"""The 18 intrinsic functions: parsing an invocation once, evaluating it many times.

States Language spec, "Intrinsic Functions" and Appendix B; Step Functions developer guide, "Intrinsic functions for
JSONPath states".
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import random as random_module
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from spaceport.asl.errors import INTRINSIC_FAILURE, StateError
from spaceport.asl.paths import Path, Scope, compile_path

Expression = Callable[[Any, Scope], Any]

NAME = re.compile(r"[A-Za-z0-9._]+")
NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
WORDS = {"null": None, "true": True, "false": False}
ESCAPABLE = "'{}\\"
MAX_NESTING = 10
MAX_RANGE_ITEMS = 1000
MAX_TEXT_CHARACTERS = 10_000
INT32 = range(-(2**31), 2**31)
HASHES = {"MD5": "md5", "SHA-1": "sha1", "SHA-256": "sha256", "SHA-384": "sha384", "SHA-512": "sha512"}


@dataclass(frozen=True, slots=True)
class Literal:
    """A literal argument; ``raw`` keeps a string's escapes: States.Format must tell ``{}`` from ``\\{\\}``."""

    value: Any
    raw: str | None = None


@dataclass(frozen=True, slots=True)
class Call:
    name: str
    arguments: tuple[Argument, ...]


Argument = Literal | Path | Call


def failure(name: str, reason: str) -> StateError:
    return StateError(INTRINSIC_FAILURE, f"{name}: {reason}")


class Parser:
    """Recursive descent over one invocation; every error is a ValueError with the column."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def invocation(self) -> Call:
        call = self._call(1)
        if self.at != len(self.text):
            raise self._error("text after the closing parenthesis")
        return call

    def _call(self, depth: int) -> Call:
        if depth > MAX_NESTING:
            raise self._error(f"more than {MAX_NESTING} nested intrinsic functions")
        match = NAME.match(self.text, self.at)
        name = match.group() if match else ""
        if name not in FUNCTIONS:
            raise self._error(f"'{name}' is not an intrinsic function that is implemented")
        self.at += len(name)
        self._expect("(")
        arguments: list[Argument] = []
        self._skip_spaces()
        if not self._accept(")"):
            arguments.append(self._argument(depth))
            while not self._accept(")"):
                self._expect(",")
                arguments.append(self._argument(depth))
        call = Call(name, tuple(arguments))
        self._check(call)
        return call

    def _check(self, call: Call) -> None:
        least, most = FUNCTIONS[call.name][1]
        if not least <= len(call.arguments) <= most:
            wanted = str(least) if least == most else f"{least} to {most}" if most < math.inf else f"at least {least}"
            raise self._error(f"{call.name} takes {wanted} arguments, not {len(call.arguments)}")
        if call.name == "States.Format" and isinstance(template := call.arguments[0], Literal):
            if template.raw is None:
                raise self._error("the first argument of States.Format must be a string")
            places = len(split_template(template.raw)) - 1
            if places != len(call.arguments) - 1:
                raise self._error(f"States.Format has {places} '{{}}' and {len(call.arguments) - 1} values")

    def _argument(self, depth: int) -> Argument:
        self._skip_spaces()
        head = self.text[self.at : self.at + 1]
        if head == "'":
            argument: Argument = self._string()
        elif head == "$":
            argument = self._path()
        elif self.text.startswith("States.", self.at):
            argument = self._call(depth + 1)
        else:
            argument = self._number_or_word()
        self._skip_spaces()
        return argument

    def _string(self) -> Literal:
        start = self.at + 1
        end = start
        while end < len(self.text) and self.text[end] != "'":
            end += 2 if self.text[end] == "\\" else 1
        if end >= len(self.text):
            raise self._error("a string without its closing apostrophe")
        raw = self.text[start:end]
        try:
            pieces = split_template(raw)
        except ValueError as error:
            raise self._error(str(error)) from error
        self.at = end + 1
        return Literal("{}".join(pieces), raw)

    def _path(self) -> Path:
        start, brackets, quoted = self.at, 0, False
        while self.at < len(self.text):
            char = self.text[self.at]
            if char == "'" and brackets:
                quoted = not quoted
            elif not quoted and char in "[(":
                brackets += 1
            elif not quoted and char in "])" and brackets:
                brackets -= 1
            elif not quoted and not brackets and char in ",)":
                break
            self.at += 1
        return compile_path(self.text[start : self.at].strip())

    def _number_or_word(self) -> Literal:
        for word, value in WORDS.items():
            if re.compile(rf"{word}\b").match(self.text, self.at):
                self.at += len(word)
                return Literal(value)
        match = NUMBER.match(self.text, self.at)
        if match is None:
            raise self._error(
                "expected a string in apostrophes, a number, true, false, null, a path or a States. function"
            )
        self.at = match.end()
        return Literal(json.loads(match.group()))

    def _expect(self, char: str) -> None:
        if not self._accept(char):
            raise self._error(f"expected '{char}'")

    def _accept(self, char: str) -> bool:
        found = self.text.startswith(char, self.at)
        self.at += found
        return found

    def _skip_spaces(self) -> None:
        while self.text.startswith(" ", self.at):
            self.at += 1

    def _error(self, reason: str) -> ValueError:
        return ValueError(f"'{self.text}', column {self.at + 1}: {reason}")


def split_template(raw: str) -> list[str]:
    """The pieces of ``raw`` between its ``{}``, escapes resolved.

    Raises ValueError on a lone brace or backslash (spec, "Intrinsic Functions", rule 6).
    """
    pieces, piece, at = [], "", 0
    while at < len(raw):
        char = raw[at]
        if char == "\\":
            if raw[at + 1 : at + 2] not in ESCAPABLE or at + 1 == len(raw):
                raise ValueError(f"open escape backslash in '{raw}'; only \\' \\{{ \\}} and \\\\ can be escaped")
            piece += raw[at + 1]
            at += 2
        elif raw.startswith("{}", at):
            pieces.append(piece)
            piece = ""
            at += 2
        elif char in "{}":
            raise ValueError(f"'{char}' in '{raw}' must be escaped with a backslash")
        else:
            piece += char
            at += 1
    return [*pieces, piece]


def parse_intrinsic(text: str) -> Call:
    """The invocation as a tree. Raises ValueError with what is wrong and the column."""
    return Parser(text).invocation()


def compile_intrinsic(text: str) -> Expression:
    """A function of input and scope. Raises ValueError; the function raises StateError States.IntrinsicFailure."""
    return _compile_call(parse_intrinsic(text))


def paths_of(argument: Argument) -> list[Path]:
    """Every path in an invocation."""
    if isinstance(argument, Path):
        return [argument]
    return [path for part in argument.arguments for path in paths_of(part)] if isinstance(argument, Call) else []


def uses_random(argument: Argument) -> bool:
    """Whether States.MathRandom is called without a seed."""
    if not isinstance(argument, Call):
        return False
    unseeded = argument.name == "States.MathRandom" and len(argument.arguments) == 2
    return unseeded or any(uses_random(part) for part in argument.arguments)


def _compile_call(call: Call) -> Expression:
    function = FUNCTIONS[call.name][0]
    arguments = [_compile_argument(argument) for argument in call.arguments]
    if call.name == "States.Format" and isinstance(call.arguments[0], Literal):
        raw = call.arguments[0].raw
        arguments[0] = lambda _data, _scope: raw
    return lambda data, scope: function(scope, *[argument(data, scope) for argument in arguments])


def _compile_argument(argument: Argument) -> Expression:
    if isinstance(argument, Literal):
        value = argument.value
        return lambda _data, _scope: value
    return argument.find if isinstance(argument, Path) else _compile_call(argument)


def _format(_scope: Scope, template: Any, *values: Any) -> str:
    if not isinstance(template, str):
        raise failure("States.Format", "the template is not a string")
    try:
        pieces = split_template(template)
    except ValueError as error:
        raise failure("States.Format", str(error)) from error
    if len(pieces) - 1 != len(values):
        raise failure("States.Format", f"the template has {len(pieces) - 1} '{{}}' but there are {len(values)} values")
    text = pieces[0]
    for piece, value in zip(pieces[1:], values, strict=True):
        if isinstance(value, (dict, list)):
            raise failure("States.Format", "a value must not be an array or an object")
        text += (value if isinstance(value, str) else json.dumps(value)) + piece
    return text


def _string_to_json(_scope: Scope, text: Any) -> Any:
    if text is None or not isinstance(text, str):
        raise failure("States.StringToJson", "the argument is not a string")
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except ValueError as error:
        raise failure("States.StringToJson", f"the argument is not JSON: {error}") from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _json_to_string(_scope: Scope, value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _array(_scope: Scope, *values: Any) -> list[Any]:
    return list(values)


def _array_partition(_scope: Scope, array: Any, size: Any) -> list[Any]:
    items, step = _list("States.ArrayPartition", array), _integer("States.ArrayPartition", size)
    if step < 1:
        raise failure("States.ArrayPartition", "the chunk size must be a positive integer")
    return [items[at : at + step] for at in range(0, len(items), step)]


def _array_contains(_scope: Scope, array: Any, value: Any) -> bool:
    return any(same_json(item, value) for item in _list("States.ArrayContains", array))


def _array_range(_scope: Scope, first: Any, last: Any, step: Any) -> list[int]:
    name = "States.ArrayRange"
    start, end, by = _integer(name, first), _integer(name, last), _integer(name, step)
    if by == 0:
        raise failure(name, "the increment must not be zero")
    items = range(start, end + (1 if by > 0 else -1), by)
    if len(items) > MAX_RANGE_ITEMS:
        raise failure(name, f"more than {MAX_RANGE_ITEMS} elements")
    return list(items)


def _array_get_item(_scope: Scope, array: Any, index: Any) -> Any:
    items, at = _list("States.ArrayGetItem", array), _integer("States.ArrayGetItem", index)
    if not 0 <= at < len(items):
        raise failure("States.ArrayGetItem", f"index {at} is outside an array of {len(items)} elements")
    return items[at]


def _array_length(_scope: Scope, array: Any) -> int:
    return len(_list("States.ArrayLength", array))


def _array_unique(_scope: Scope, array: Any) -> list[Any]:
    unique: list[Any] = []
    for item in _list("States.ArrayUnique", array):
        if not any(same_json(item, kept) for kept in unique):
            unique.append(item)
    return unique


def _base64_encode(_scope: Scope, text: Any) -> str:
    return base64.b64encode(_text("States.Base64Encode", text).encode()).decode()


def _base64_decode(_scope: Scope, text: Any) -> str:
    try:
        return base64.b64decode(_text("States.Base64Decode", text), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise failure("States.Base64Decode", f"the argument is not Base64 of UTF-8 text: {error}") from error


def _hash(_scope: Scope, text: Any, algorithm: Any) -> str:
    if algorithm not in HASHES:
        raise failure("States.Hash", f"'{algorithm}' is none of {', '.join(HASHES)}")
    return hashlib.new(HASHES[algorithm], _text("States.Hash", text).encode(), usedforsecurity=False).hexdigest()


def _json_merge(_scope: Scope, first: Any, second: Any, deep: Any) -> dict[str, Any]:
    if not isinstance(first, dict) or not isinstance(second, dict):
        raise failure("States.JsonMerge", "the first two arguments must be objects")
    if deep is not False:
        raise failure("States.JsonMerge", "the third argument must be false: only shallow merging is supported")
    return {**first, **second}


def _math_random(scope: Scope, start: Any, end: Any, seed: Any = None) -> int:
    first, last = _integer("States.MathRandom", start), _integer("States.MathRandom", end)
    if first >= last:
        raise failure("States.MathRandom", "the start must be smaller than the end")
    if seed is not None:
        draw = random_module.Random(_integer("States.MathRandom", seed)).random()
    elif scope.random is not None:
        draw = scope.random()
    else:
        raise failure("States.MathRandom", "this interpreter was given no source of random numbers")
    return first + int(draw * (last - first))


def _math_add(_scope: Scope, first: Any, second: Any) -> int:
    total = _integer("States.MathAdd", first) + _integer("States.MathAdd", second)
    if total not in INT32:
        raise failure("States.MathAdd", f"{total} is outside -2147483648…2147483647")
    return total


def _string_split(_scope: Scope, text: Any, delimiters: Any) -> list[str]:
    if not isinstance(text, str) or not isinstance(delimiters, str):
        raise failure("States.StringSplit", "both arguments must be strings")
    if not delimiters:
        return [text] if text else []
    return [part for part in re.split(f"[{re.escape(delimiters)}]", text) if part]


def _uuid(scope: Scope) -> str:
    if scope.new_uuid is None:
        raise failure("States.UUID", "this interpreter was given no source of unique ids")
    return scope.new_uuid()


def same_json(first: Any, second: Any) -> bool:
    """Equality of JSON values: unlike Python's, true is not 1."""
    if isinstance(first, bool) != isinstance(second, bool):
        return False
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(same_json, first, second))
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(same_json(first[key], second[key]) for key in first)
    return bool(first == second)


def _list(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise failure(name, "the first argument is not an array")
    return value


def _integer(name: str, value: Any) -> int:
    """AWS rounds a non-integer to the nearest integer; the range is that of a 32-bit integer."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise failure(name, f"'{value}' is not a number")
    rounded = math.floor(value + 0.5)
    if rounded not in INT32:
        raise failure(name, f"{rounded} is outside -2147483648…2147483647")
    return rounded


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise failure(name, "the first argument is not a string")
    if len(value) > MAX_TEXT_CHARACTERS:
        raise failure(name, f"the first argument has more than {MAX_TEXT_CHARACTERS} characters")
    return value


FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[int, float]]] = {
    "States.Format": (_format, (1, math.inf)),
    "States.StringToJson": (_string_to_json, (1, 1)),
    "States.JsonToString": (_json_to_string, (1, 1)),
    "States.Array": (_array, (0, math.inf)),
    "States.ArrayPartition": (_array_partition, (2, 2)),
    "States.ArrayContains": (_array_contains, (2, 2)),
    "States.ArrayRange": (_array_range, (3, 3)),
    "States.ArrayGetItem": (_array_get_item, (2, 2)),
    "States.ArrayLength": (_array_length, (1, 1)),
    "States.ArrayUnique": (_array_unique, (1, 1)),
    "States.Base64Encode": (_base64_encode, (1, 1)),
    "States.Base64Decode": (_base64_decode, (1, 1)),
    "States.Hash": (_hash, (2, 2)),
    "States.JsonMerge": (_json_merge, (3, 3)),
    "States.MathRandom": (_math_random, (2, 3)),
    "States.MathAdd": (_math_add, (2, 2)),
    "States.StringSplit": (_string_split, (2, 2)),
    "States.UUID": (_uuid, (0, 0)),
}
