"""Paths, payload templates and intrinsic functions over shapes: what they yield, and what could make them fail."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from jsonpath_ng import Child, Root, Slice
from jsonpath_ng.jsonpath import Wildcard

from spaceport.asl.errors import StateError
from spaceport.asl.intrinsics import (
    HASHES,
    INT32,
    MAX_RANGE_ITEMS,
    MAX_TEXT_CHARACTERS,
    Argument,
    Call,
    Literal,
    compile_intrinsic,
    parse_intrinsic,
)
from spaceport.asl.paths import Path, Scope, compile_path, compile_reference_path
from tests.state_machine.pathproof.findings import Report
from tests.state_machine.pathproof.shapes import (
    INF,
    WHOLE_NUMBER,
    Array,
    Number,
    Object,
    Shape,
    Text,
    array_of,
    closed_object,
    find,
    join,
    number,
    of_json,
    repeated,
    size,
    size_as_text,
    text,
    unknown,
)

NOT_CAUGHT = "a path that finds nothing is States.Runtime, which no Retry and no Catch sees"
NUMBER_CHARACTERS = 32


@dataclass(frozen=True)
class Env:
    """What an expression in one state may read, and where its findings go.

    ``routes``: how the state is entered, with the shape of each way, to say which of them lacks a field; only where
    ``data`` is the state's whole input.
    """

    data: Shape
    context: Shape
    report: Report
    routes: list[tuple[str, Shape]] = field(default_factory=list)

    def over(self, data: Shape) -> Env:
        """The same for another input, such as a Task's result."""
        return self if data is self.data else replace(self, data=data, routes=[])


def read(env: Env, where: str, value: Any, reference: bool = False) -> Shape:
    """A path in the field ``where``."""
    path = parse_path(env.report, where, value, reference)
    return unknown(INF) if path is None else _read_path(env, where, path)


def parse_path(report: Report, where: str, value: Any, reference: bool = False) -> Path | None:
    """``value`` as a path, or None after reporting why it is none."""
    if not isinstance(value, str):
        report("path", where, repr(value), "must be a path, as a string")
        return None
    try:
        return compile_reference_path(value) if reference else compile_path(value)
    except ValueError as error:
        report("context" if value.startswith("$$") else "path", where, value, str(error))
        return None


def _read_path(env: Env, where: str, path: Path) -> Shape:
    root = env.context if path.of_context else env.data
    found, trouble = find(root, path.keys)
    if trouble and path.of_context:
        env.report("context", where, path.text, f"the Context Object does not have it in this state: {trouble}")
    elif trouble:
        env.report("path", where, path.text, f"{trouble}{_lacking_routes(env, path)}; {NOT_CAUGHT}")
    return found if path.rest is None else _read_many(env, where, path, found)


def _lacking_routes(env: Env, path: Path) -> str:
    return on_the_way([label for label, shape in env.routes if find(shape, path.keys)[1] is not None])


def on_the_way(labels: list[str]) -> str:
    """The ways into a state that a finding is about, as part of its reason."""
    shown = [*labels[:4], *(["…"] if len(labels) > 4 else [])]
    return f" (on the way {', '.join(shown)})" if labels else ""


def _read_many(env: Env, where: str, path: Path, found: Shape) -> Shape:
    """``[*]`` and ``[a:b]`` of what surely is an array select a list, maybe an empty one; all else may find nothing."""
    rest = path.rest
    last = rest.right if isinstance(rest, Child) and isinstance(rest.left, Root) else None
    if not isinstance(last, (Slice, Wildcard)) or not found.only("array"):
        env.report("path", where, path.text, f"may select nothing, which cannot be ruled out; {NOT_CAUGHT}")
    array = found.array or Array(None, 0, INF, INF)
    return Shape(array=replace(array, least=array.least if isinstance(last, Wildcard) else 0))


def expression(env: Env, where: str, value: Any) -> Shape:
    """A path or an intrinsic function, as ``name.$`` has it."""
    if not isinstance(value, str) or value.startswith("$"):
        return read(env, where, value)
    try:
        return _call(env, where, parse_intrinsic(value))
    except ValueError as error:
        env.report("intrinsic", where, value, str(error))
        return unknown(INF)


def template(env: Env, where: str, value: Any) -> Shape:
    """A payload template."""
    if isinstance(value, list):
        return array_of([template(env, f"{where}[{at}]", item) for at, item in enumerate(value)])
    if not isinstance(value, dict):
        return of_json(value)
    fields: dict[str, Shape] = {}
    for name, part in value.items():
        if name.endswith(".$"):
            fields[name.removesuffix(".$")] = expression(env, f"{where}.{name}", part)
        else:
            fields[name] = template(env, f"{where}.{name}", part)
    return closed_object(fields)


def surely(env: Env, where: str, shape: Shape, type_name: str, what: str) -> bool:
    """Report unless ``shape`` is of ``type_name`` on every route."""
    if shape.only(type_name):
        return True
    kinds = " or ".join(shape.types()) or "nothing"
    env.report("type", where, what, f"must surely be of type {type_name}, but may be {kinds}")
    return False


def surely_timestamp(env: Env, where: str, shape: Shape, what: str) -> None:
    """Report unless ``shape`` is surely a timestamp of the States Language."""
    if surely(env, where, shape, "text", what) and not (shape.text and shape.text.timestamp):
        env.report("type", where, what, "must surely be a timestamp; guard it by IsTimestamp")


def whole_number(env: Env, where: str, shape: Shape, what: str, low: float, high: float) -> None:
    """Report unless ``shape`` is surely an integer from ``low`` to ``high``."""
    if not surely(env, where, shape, "number", what):
        return
    part = shape.number or Number()
    if not part.whole:
        reason = "may have a fraction, and no rule of a Choice can rule that out; States.MathAdd(…, 0) rounds"
        env.report("type", where, what, reason)
    if part.low < low or part.high > high:
        env.report("type", where, what, f"must be from {low} to {high}, but may be from {part.low} to {part.high}")


def _call(env: Env, where: str, call: Call) -> Shape:
    if all(isinstance(argument, Literal) for argument in call.arguments) and call.name not in _NOT_CONSTANT:
        return _constant(env, where, call)
    arguments = [_argument(env, where, argument) for argument in call.arguments]
    problems: list[str] = []
    result = _RESULTS[call.name](call, arguments, problems)
    for problem in problems:
        env.report("intrinsic", where, call.name, f"{problem}; States.IntrinsicFailure")
    return result


def _constant(env: Env, where: str, call: Call) -> Shape:
    try:
        return of_json(compile_intrinsic(_source(call))(None, Scope()))
    except StateError as error:
        env.report("intrinsic", where, call.name, f"always fails: {error.cause}")
        return unknown(INF)


def _source(call: Call) -> str:
    """A call of literals, written again."""
    return f"{call.name}({', '.join(_literal(part) for part in call.arguments if isinstance(part, Literal))})"


def _literal(part: Literal) -> str:
    if part.raw is not None:
        return f"'{part.raw}'"
    words = {None: "null", True: "true", False: "false"}
    return words[part.value] if part.value is None or isinstance(part.value, bool) else repr(part.value)


def _argument(env: Env, where: str, argument: Argument) -> Shape:
    if isinstance(argument, Literal):
        return of_json(argument.value)
    return _read_path(env, where, argument) if isinstance(argument, Path) else _call(env, where, argument)


# ---- the functions: the call, the shapes of its arguments, a list for what may fail -> the shape of the result

Result = Callable[[Call, list[Shape], list[str]], Shape]


def _needs(problems: list[str], call: Call, at: int, shape: Shape, type_name: str) -> bool:
    if shape.only(type_name):
        return True
    kinds = " or ".join(shape.types()) or "nothing"
    problems.append(f"argument {at + 1} of {call.name} must surely be of type {type_name}, but may be {kinds}")
    return False


def _array_argument(problems: list[str], call: Call, at: int, shape: Shape) -> Array:
    _needs(problems, call, at, shape, "array")
    return shape.array or Array(None, 0, INF, INF)


def _text_argument(problems: list[str], call: Call, at: int, shape: Shape, most: float = INF) -> Text:
    _needs(problems, call, at, shape, "text")
    part = shape.text or Text(INF, INF)
    if part.characters > most:
        problems.append(f"argument {at + 1} of {call.name} may have more than {most} characters")
    return part


def _integer_argument(problems: list[str], call: Call, at: int, shape: Shape) -> tuple[float, float]:
    """The range; numbers with a fraction are rounded, so it may be half wider."""
    _needs(problems, call, at, shape, "number")
    part = shape.number or Number()
    low, high = (part.low, part.high) if part.whole else (_whole(part.low, math.floor), _whole(part.high, math.ceil))
    if low < INT32.start or high >= INT32.stop:
        problems.append(f"argument {at + 1} of {call.name} may lie outside of 32-bit integers")
    return max(low, INT32.start), min(high, INT32.stop - 1)


def _whole(value: float, rounding: Callable[[float], int]) -> float:
    return value if abs(value) == INF else rounding(value)


def _format(call: Call, arguments: list[Shape], problems: list[str]) -> Shape:
    head = call.arguments[0]
    if not isinstance(head, Literal):
        problems.append("the template of States.Format is not a constant, so its {} cannot be counted")
    characters = float(len(str(head.value))) if isinstance(head, Literal) else INF
    size_bytes = size(arguments[0])
    for at, shape in enumerate(arguments[1:], start=1):
        if shape.array or shape.object:
            problems.append(f"argument {at + 1} of States.Format may be an array or an object")
        characters += max(shape.text.characters if shape.text else 0, NUMBER_CHARACTERS)
        size_bytes += max(shape.text.size_bytes if shape.text else 0, NUMBER_CHARACTERS)
    return Shape(text=Text(characters, size_bytes))


def _string_to_json(_call: Call, arguments: list[Shape], problems: list[str]) -> Shape:
    problems.append("the text need not be JSON: causes and answers may be plain text, empty or cut off")
    return unknown(arguments[0].text.size_bytes if arguments[0].text else INF)


def _json_to_string(_call: Call, arguments: list[Shape], _problems: list[str]) -> Shape:
    return Shape(text=Text(size(arguments[0]), size_as_text(arguments[0])))


def _array(_call: Call, arguments: list[Shape], _problems: list[str]) -> Shape:
    return array_of(arguments)


def _array_partition(call: Call, arguments: list[Shape], problems: list[str]) -> Shape:
    array = _array_argument(problems, call, 0, arguments[0])
    low, _ = _integer_argument(problems, call, 1, arguments[1])
    if low < 1:
        problems.append("the chunk size of States.ArrayPartition may be less than 1")
    chunk = Shape(array=replace(array, least=0))
    return Shape(array=Array(chunk, min(array.least, 1), array.most, 3 * array.size_bytes))


def _array_contains(call: Call, arguments: list[Shape], problems: list[str]) -> Shape:
    _array_argument(problems, call, 0, arguments[0])
    return Shape(boolean=True)


def _array_range(call: Call, arguments: list[Shape], problems: list[str]) -> Shape:
    first, last, (least, most) = (_integer_argument(problems, call, at, shape) for at, shape in enumerate(arguments))
    if least < 1 and most > -1:
        problems.append("the step of States.ArrayRange may be 0")
    step = max(1.0, min(abs(least), abs(most)))
    if max(last[1] - first[0], first[1] - last[0]) / step + 1 > MAX_RANGE_ITEMS:
        problems.append(f"States.ArrayRange may make more than {MAX_RANGE_ITEMS} elements")
    return repeated(number(INT32.start, INT32.stop - 1, whole=True), 0, MAX_RANGE_ITEMS)


def _array_get_item(call: Call, arguments: list[Shape], problems: list[str]) -> Shape:
    array = _array_argument(problems, call, 0, arguments[0])
    low, high = _integer_argument(problems, call, 1, arguments[1])
    if low < 0 or high >= array.least:
        problems.append(f"the index of States.ArrayGetItem may lie outside: {array.least} elements are certain")
    return array.items if array.items is not None else unknown(array.size_bytes)


def _array_length(call: Call, arguments: list[Shape], problems: list[str]) -> Shape:
    array = _array_argument(problems, call, 0, arguments[0])
    return number(array.least, min(array.most, array.size_bytes), whole=True)


def _array_unique(call: Call, arguments: list[Shape], problems: list[str]) -> Shape:
    array = _array_argument(problems, call, 0, arguments[0])
    return Shape(array=replace(array, least=min(array.least, 1)))


def _base64_encode(call: Call, arguments: list[Shape], problems: list[str]) -> Shape:
    part = _text_argument(problems, call, 0, arguments[0], MAX_TEXT_CHARACTERS)
    return text(4 * (min(part.characters, MAX_TEXT_CHARACTERS) * 4 / 3 + 1), plain=True)


def _base64_decode(call: Call, arguments: list[Shape], problems: list[str]) -> Shape:
    problems.append("the text need not be Base64")
    part = _text_argument(problems, call, 0, arguments[0], MAX_TEXT_CHARACTERS)
    return text(part.characters)


def _hash(call: Call, arguments: list[Shape], problems: list[str]) -> Shape:
    _text_argument(problems, call, 0, arguments[0], MAX_TEXT_CHARACTERS)
    algorithm = call.arguments[1]
    if not isinstance(algorithm, Literal) or algorithm.value not in HASHES:
        problems.append(f"the algorithm of States.Hash must be a constant, one of {', '.join(HASHES)}")
    return text(128, plain=True)


def _json_merge(call: Call, arguments: list[Shape], problems: list[str]) -> Shape:
    for at in (0, 1):
        _needs(problems, call, at, arguments[at], "object")
    deep = call.arguments[2]
    if not isinstance(deep, Literal) or deep.value is not False:
        problems.append("the third argument of States.JsonMerge must be the constant false")
    first, second = (shape.object or Object({}, INF) for shape in arguments[:2])
    fields = dict(first.fields)
    for name, part in second.fields.items():
        before = fields.get(name)
        kept = join(before.shape, part.shape) if before else part.shape
        if part.certain:
            fields[name] = part
        else:
            certain = before is not None and before.certain
            fields[name] = replace(part, shape=kept, certain=certain, counted=True)
    if second.rest_bytes:  # any field of the first may be replaced by one that nothing is known about
        for name in set(first.fields) - set(second.fields):
            widened = join(fields[name].shape, unknown(second.rest_bytes))
            fields[name] = replace(fields[name], shape=widened, counted=True)
    if first.rest_bytes:  # and a field that the second has only sometimes may come from the rest of the first
        for name, part in second.fields.items():
            if not part.certain and name not in first.fields:
                fields[name] = replace(fields[name], shape=join(part.shape, unknown(first.rest_bytes)))
    return Shape(object=Object(fields, first.rest_bytes + second.rest_bytes))


def _math_random(call: Call, arguments: list[Shape], problems: list[str]) -> Shape:
    ranges = [_integer_argument(problems, call, at, shape) for at, shape in enumerate(arguments)]
    (low, start_high), (end_low, high) = ranges[:2]
    if start_high >= end_low:
        problems.append("the start of States.MathRandom may not be smaller than its end")
    return number(low, high, whole=True)


def _math_add(call: Call, arguments: list[Shape], problems: list[str]) -> Shape:
    ranges = [_integer_argument(problems, call, at, shape) for at, shape in enumerate(arguments)]
    low, high = sum(low for low, _ in ranges), sum(high for _, high in ranges)
    if low < INT32.start or high >= INT32.stop:
        problems.append("the sum of States.MathAdd may lie outside of 32-bit integers; guard it by a Choice")
        return WHOLE_NUMBER
    return number(low, high, whole=True)


def _string_split(call: Call, arguments: list[Shape], problems: list[str]) -> Shape:
    part = _text_argument(problems, call, 0, arguments[0])
    _text_argument(problems, call, 1, arguments[1])
    piece = Shape(text=Text(part.characters, part.size_bytes))
    return Shape(array=Array(piece, 0, part.characters, 4 * part.size_bytes + 2))


def _uuid(_call: Call, _arguments: list[Shape], _problems: list[str]) -> Shape:
    return text(36, plain=True)


_NOT_CONSTANT = {"States.UUID", "States.MathRandom"}
_RESULTS: dict[str, Result] = {
    "States.Format": _format,
    "States.StringToJson": _string_to_json,
    "States.JsonToString": _json_to_string,
    "States.Array": _array,
    "States.ArrayPartition": _array_partition,
    "States.ArrayContains": _array_contains,
    "States.ArrayRange": _array_range,
    "States.ArrayGetItem": _array_get_item,
    "States.ArrayLength": _array_length,
    "States.ArrayUnique": _array_unique,
    "States.Base64Encode": _base64_encode,
    "States.Base64Decode": _base64_decode,
    "States.Hash": _hash,
    "States.JsonMerge": _json_merge,
    "States.MathRandom": _math_random,
    "States.MathAdd": _math_add,
    "States.StringSplit": _string_split,
    "States.UUID": _uuid,
}
