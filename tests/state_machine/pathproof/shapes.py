"""What is certain about a JSON value: its possible types, the fields an object surely has, ranges, the most bytes.

A Shape is a union of parts, one per JSON type; a missing part means "never of this type". ``join`` is the least upper
bound: what holds on both of two routes. Sizes are bytes of compact JSON in UTF-8, as Step Functions counts them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from spaceport.asl.choice import parse_timestamp

INF = math.inf
NUMBER_BYTES = 32  # the longest number that Step Functions itself writes
WORST_BYTES_PER_CHARACTER = 6  # a control character is written as six bytes, \u0001
WORST_QUOTED_TWICE = 7  # and as \\u0001 in a string that holds JSON
MAX_DEPTH = 12
MAX_NODES = 300  # an input that holds itself twice in a loop would double with every round

Keys = tuple[str | int, ...]


@dataclass(frozen=True)
class Number:
    low: float = -INF
    high: float = INF
    whole: bool = False  # surely written without fraction and exponent; no guard of a Choice can prove that
    size_bytes: float = NUMBER_BYTES


@dataclass(frozen=True)
class Text:
    characters: float
    size_bytes: float  # with its quotes and escapes
    timestamp: bool = False


@dataclass(frozen=True)
class Array:
    items: Shape | None  # None: elements nothing is known about
    least: int
    most: float
    size_bytes: float


@dataclass(frozen=True)
class Field:
    shape: Shape
    certain: bool = True
    counted: bool = True  # False: its bytes are already part of the object's rest_bytes


@dataclass(frozen=True)
class Object:
    """``rest_bytes``: room for fields that are not named in ``fields``; 0 means that there are none."""

    fields: Mapping[str, Field] = field(default_factory=dict)
    rest_bytes: float = 0


@dataclass(frozen=True)
class Shape:
    null: bool = False
    boolean: bool = False
    number: Number | None = None
    text: Text | None = None
    array: Array | None = None
    object: Object | None = None

    def types(self) -> list[str]:
        return [name for name in ("null", "boolean", "number", "text", "array", "object") if getattr(self, name)]

    def only(self, name: str) -> bool:
        """Whether the value is surely of the type ``name``."""
        return self.types() == [name]

    @cached_property
    def nodes(self) -> int:
        """How many shapes this one is made of."""
        inside = [part.shape for part in self.object.fields.values()] if self.object else []
        if self.array and self.array.items is not None:
            inside.append(self.array.items)
        return 1 + sum(part.nodes for part in inside)

    @cached_property
    def size_bytes(self) -> float:
        """The most bytes the value can take."""
        sizes: list[float] = [4 if self.null else 0, 5 if self.boolean else 0]
        sizes += [part.size_bytes for part in (self.number, self.text, self.array) if part]
        if self.object:
            counted = [(name, part.shape) for name, part in self.object.fields.items() if part.counted]
            named = sum(_json_bytes(name) + 2 + shape.size_bytes for name, shape in counted)
            sizes.append(2 + named + self.object.rest_bytes)
        return max(sizes)


EMPTY_OBJECT = Shape(object=Object())
WHOLE_NUMBER = Shape(number=Number(low=-(2**31), high=2**31 - 1, whole=True))


def unknown(size_bytes: float) -> Shape:
    """Any JSON value of at most ``size_bytes``."""
    return Shape(
        null=True,
        boolean=True,
        number=Number(size_bytes=size_bytes),
        text=Text(size_bytes, size_bytes),
        array=Array(None, 0, INF, size_bytes),
        object=Object({}, size_bytes),
    )


def text(characters: float, timestamp: bool = False, plain: bool = False) -> Shape:
    """A string of at most ``characters``; ``plain``: of ASCII characters that JSON does not escape."""
    size_bytes = 2 + characters * (1 if plain or timestamp else WORST_BYTES_PER_CHARACTER)
    return Shape(text=Text(characters, size_bytes, timestamp))


def number(low: float = -INF, high: float = INF, whole: bool = False) -> Shape:
    return Shape(number=Number(low, high, whole))


def closed_object(fields: Mapping[str, Shape], maybe: Mapping[str, Shape] | None = None) -> Shape:
    """An object with exactly ``fields``, and possibly ``maybe``."""
    named = {name: Field(shape) for name, shape in fields.items()}
    named |= {name: Field(shape, certain=False) for name, shape in (maybe or {}).items()}
    return Shape(object=Object(named))


def array_of(items: list[Shape]) -> Shape:
    """An array with exactly these elements (their order is not kept)."""
    joined = items[0] if items else None
    for item in items[1:]:
        joined = join(joined, item) if joined is not None else item
    return Shape(array=Array(joined, len(items), len(items), 2 + sum(size(item) + 1 for item in items)))


def repeated(item: Shape, least: int, most: float) -> Shape:
    """An array of ``least`` to ``most`` elements like ``item``."""
    return Shape(array=Array(item, least, most, 2 + (most * (size(item) + 1) if most else 0)))


def of_json(value: Any) -> Shape:
    """The exact shape of a constant."""
    if value is None:
        return Shape(null=True)
    if isinstance(value, bool):
        return Shape(boolean=True)
    if isinstance(value, (int, float)):
        return Shape(number=Number(value, value, isinstance(value, int), _json_bytes(value)))
    if isinstance(value, str):
        return Shape(text=Text(len(value), _json_bytes(value), parse_timestamp(value) is not None))
    if isinstance(value, list):
        return array_of([of_json(item) for item in value])
    return closed_object({str(name): of_json(part) for name, part in value.items()})


def _json_bytes(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())


def size(shape: Shape) -> float:
    """The most bytes the value can take."""
    return shape.size_bytes


def size_as_text(shape: Shape) -> float:
    """The most bytes that States.JsonToString of the value can take, with its quotes."""
    return 2 + _quoted(shape)


def _quoted(shape: Shape) -> float:
    sizes: list[float] = [4 if shape.null else 0, 5 if shape.boolean else 0]
    if shape.number:
        sizes.append(shape.number.size_bytes)
    if shape.text:
        sizes.append(4 + min(WORST_QUOTED_TWICE * shape.text.characters, 2 * shape.text.size_bytes))
    if shape.array:
        sizes.append(2 * shape.array.size_bytes)
    if shape.object:
        counted = [(name, part) for name, part in shape.object.fields.items() if part.counted]
        named = sum(2 * _json_bytes(name) + 2 + _quoted(part.shape) for name, part in counted)
        sizes.append(2 + named + 2 * shape.object.rest_bytes)
    return max(sizes)


def join(one: Shape, two: Shape) -> Shape:
    """What holds for a value that came one way or the other."""
    if one is two:
        return one
    return Shape(
        one.null or two.null,
        one.boolean or two.boolean,
        _join_numbers(one.number, two.number),
        _join_texts(one.text, two.text),
        _join_arrays(one.array, two.array),
        _join_objects(one.object, two.object),
    )


def _join_numbers(one: Number | None, two: Number | None) -> Number | None:
    if one is None or two is None:
        return one or two
    low, high = min(one.low, two.low), max(one.high, two.high)
    return Number(low, high, one.whole and two.whole, max(one.size_bytes, two.size_bytes))


def _join_texts(one: Text | None, two: Text | None) -> Text | None:
    if one is None or two is None:
        return one or two
    size_bytes = max(one.size_bytes, two.size_bytes)
    return Text(max(one.characters, two.characters), size_bytes, one.timestamp and two.timestamp)


def _join_arrays(one: Array | None, two: Array | None) -> Array | None:
    if one is None or two is None:
        return one or two
    if one.most == 0:
        items = two.items
    elif two.most == 0:
        items = one.items
    else:
        items = None if one.items is None or two.items is None else join(one.items, two.items)
    least, most = min(one.least, two.least), max(one.most, two.most)
    return Array(items, least, most, max(one.size_bytes, two.size_bytes))


def _join_objects(one: Object | None, two: Object | None) -> Object | None:
    if one is None or two is None:
        return one or two
    fields: dict[str, Field] = {}
    for name in [*one.fields, *(name for name in two.fields if name not in one.fields)]:
        a, b = one.fields.get(name), two.fields.get(name)
        if a and b:
            fields[name] = Field(join(a.shape, b.shape), a.certain and b.certain, a.counted or b.counted)
            continue
        here, other = (a, two) if a else (b, one)
        assert here is not None
        shape = join(here.shape, unknown(other.rest_bytes)) if other.rest_bytes else here.shape
        fields[name] = Field(shape, certain=False, counted=here.counted)
    return Object(fields, max(one.rest_bytes, two.rest_bytes))


def simplify(shape: Shape) -> Shape:
    """``shape``, with its most complicated parts forgotten where it is made of too many."""
    if shape.nodes <= MAX_NODES:
        return shape
    return Shape(
        shape.null,
        shape.boolean,
        shape.number,
        shape.text,
        replace(shape.array, items=None) if shape.array else None,
        Object({name: _forgotten(part) for name, part in shape.object.fields.items()}, shape.object.rest_bytes)
        if shape.object
        else None,
    )


def _forgotten(part: Field) -> Field:
    return replace(part, shape=unknown(size(part.shape))) if part.shape.nodes > MAX_NODES // 10 else part


def widen(old: Shape, new: Shape, depth: int = 0) -> Shape:
    """``join``, but what still grows goes to its limit at once, so that a loop comes to rest."""
    if depth > MAX_DEPTH:
        return unknown(INF)
    both = join(old, new)
    parts: dict[str, Any] = {}
    if both.number and old.number:
        low = both.number.low if both.number.low >= old.number.low else -INF
        high = both.number.high if both.number.high <= old.number.high else INF
        size_bytes = _grown(old.number.size_bytes, both.number.size_bytes)
        parts["number"] = replace(both.number, low=low, high=high, size_bytes=size_bytes)
    if both.text and old.text:
        characters = _grown(old.text.characters, both.text.characters)
        parts["text"] = replace(
            both.text, characters=characters, size_bytes=_grown(old.text.size_bytes, both.text.size_bytes)
        )
    if both.array and old.array:
        items = both.array.items
        if items is not None and old.array.items is not None:
            items = widen(old.array.items, items, depth + 1)
        most, size_bytes = _grown(old.array.most, both.array.most), _grown(old.array.size_bytes, both.array.size_bytes)
        parts["array"] = replace(both.array, items=items, most=most, size_bytes=size_bytes)
    if both.object and old.object:
        fields = {}
        for name, part in both.object.fields.items():
            before = old.object.fields.get(name)
            fields[name] = replace(part, shape=widen(before.shape if before else part.shape, part.shape, depth + 1))
        parts["object"] = Object(fields, _grown(old.object.rest_bytes, both.object.rest_bytes))
    return replace(both, **parts)


def _grown(old: float, new: float) -> float:
    return new if new <= old else INF


def find(shape: Shape, keys: Keys) -> tuple[Shape, str | None]:
    """The shape at ``keys``, and why it may not be there (None: it surely is)."""
    problem: str | None = None
    for at, key in enumerate(keys):
        place = path_text(keys[:at])
        if isinstance(key, int):
            shape, trouble = _find_element(shape, key, place)
        else:
            shape, trouble = _find_field(shape, key, place)
        problem = problem or trouble
    return shape, problem


def _find_field(shape: Shape, name: str, place: str) -> tuple[Shape, str | None]:
    if shape.object is None:
        return unknown(INF), f"'{place}' is never an object but {_either(shape)}"
    trouble = None if shape.only("object") else f"'{place}' need not be an object: it may be {_either(shape)}"
    part = shape.object.fields.get(name)
    if part is None:
        if shape.object.rest_bytes == 0:
            return unknown(INF), trouble or f"'{place}' has no field '{name}'; it has {_names(shape.object)}"
        return unknown(shape.object.rest_bytes), trouble or f"nothing says that '{place}' has a field '{name}'"
    if not part.certain:
        trouble = trouble or f"'{place}' has the field '{name}' only sometimes"
    return part.shape, trouble


def _find_element(shape: Shape, index: int, place: str) -> tuple[Shape, str | None]:
    if shape.array is None:
        return unknown(INF), f"'{place}' is never an array but {_either(shape)}"
    item = shape.array.items if shape.array.items is not None else unknown(shape.array.size_bytes)
    if not shape.only("array"):
        return item, f"'{place}' need not be an array: it may be {_either(shape)}"
    if not 0 <= index < shape.array.least:
        return item, f"'{place}' surely has {shape.array.least} elements, so [{index}] may not be there"
    return item, None


def _either(shape: Shape) -> str:
    return " or ".join(shape.types()) or "nothing at all"


def _names(part: Object) -> str:
    return ", ".join(part.fields) or "no field at all"


def path_text(keys: Keys) -> str:
    return "$" + "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)


def assign(shape: Shape, keys: Keys, value: Shape, place: Keys = ()) -> tuple[Shape, str | None]:
    """``shape`` with ``value`` written at ``keys`` as ResultPath does, and why that may fail (None: it cannot)."""
    if not keys:
        return value, None
    key, rest = keys[0], keys[1:]
    here = path_text(place)
    if isinstance(key, int):
        element, trouble = _find_element(shape, key, here)
        inner, deeper = assign(element, rest, value, (*place, key))
        array = shape.array or Array(None, 0, INF, INF)
        items = None if array.items is None else join(array.items, inner)
        changed = replace(array, items=items, size_bytes=array.size_bytes + size(inner))
        return Shape(array=changed), trouble or deeper
    trouble = None
    if not shape.only("object"):
        trouble = f"'{here}' need not be an object (it may be {_either(shape)}), so no field '{key}' can be put into it"
    part = shape.object or Object()
    existing = part.fields.get(key)
    base = EMPTY_OBJECT
    if existing is not None:
        base = existing.shape if existing.certain else join(existing.shape, EMPTY_OBJECT)
    elif part.rest_bytes:
        base = join(unknown(part.rest_bytes), EMPTY_OBJECT)
    inner, deeper = assign(base, rest, value, (*place, key))
    return Shape(object=Object({**part.fields, key: Field(inner)}, part.rest_bytes)), trouble or deeper


def refine(shape: Shape, keys: Keys, narrow: Callable[[Shape], Shape]) -> Shape:
    """``shape`` where the value at ``keys`` is known to be there and to be ``narrow`` of what it was.

    What contradicts all that is known (dead code) leaves ``shape`` as it is: less precise, but never wrong.
    """
    if not keys:
        narrowed = narrow(shape)
        return narrowed if narrowed.types() else shape
    key, rest = keys[0], keys[1:]
    if isinstance(key, int):
        if shape.array is None or key < 0 or shape.array.most <= key:
            return shape
        return Shape(array=replace(shape.array, least=max(shape.array.least, key + 1)))
    if shape.object is None:
        return shape
    part = shape.object.fields.get(key)
    if part is None:
        if shape.object.rest_bytes == 0:
            return shape
        part = Field(unknown(shape.object.rest_bytes), counted=False)
    changed = Field(refine(part.shape, rest, narrow), True, part.counted)
    return Shape(object=replace(shape.object, fields={**shape.object.fields, key: changed}))


def contains(shape: Shape, value: Any) -> bool:
    """Whether ``value`` is one of the values that ``shape`` stands for; what the soundness tests ask."""
    if _json_bytes(value) > size(shape):
        return False
    if value is None:
        return shape.null
    if isinstance(value, bool):
        return shape.boolean
    if isinstance(value, (int, float)):
        part = shape.number
        return part is not None and part.low <= value <= part.high and (isinstance(value, int) or not part.whole)
    if isinstance(value, str):
        return (
            shape.text is not None
            and len(value) <= shape.text.characters
            and (not shape.text.timestamp or parse_timestamp(value) is not None)
        )
    if isinstance(value, list):
        array = shape.array
        if array is None or not array.least <= len(value) <= array.most:
            return False
        return array.items is None or all(contains(array.items, item) for item in value)
    return shape.object is not None and _contains_object(shape.object, value)


def _contains_object(part: Object, value: dict[str, Any]) -> bool:
    if any(known.certain and name not in value for name, known in part.fields.items()):
        return False
    for name, inner in value.items():
        if name in part.fields:
            if not contains(part.fields[name].shape, inner):
                return False
        elif _json_bytes(inner) > part.rest_bytes:
            return False
    return True
