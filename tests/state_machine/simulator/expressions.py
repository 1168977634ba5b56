"""DynamoDB's condition and update expressions, as far as the control plane uses them, compiled once per text.

Anything outside the grammar is refused, so that a new expression cannot be taken for one that means something else.
Checked against moto on the same calls (test_faults_simulator.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

Row = dict[str, Any]
Names = dict[str, str]
Values = dict[str, Any]
Condition = Callable[[Row, Names, Values], bool]

TOKEN = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*|[#:][A-Za-z0-9_]+|<>|<=|>=|[=<>(),.+])")
WORDS = {"AND", "OR", "NOT", "IN", "SET", "REMOVE", "ADD"}
ABSENT = object()


class ExpressionError(Exception):
    """What DynamoDB answers as ValidationException."""


def tokens(text: str) -> list[str]:
    found, at = [], 0
    while at < len(text.rstrip()):
        match = TOKEN.match(text, at)
        if match is None:
            raise ExpressionError(f"cannot read {text[at:]!r}")
        found.append(match[1])
        at = match.end()
    return found


class Reader:
    """A recursive-descent reader of one expression."""

    def __init__(self, text: str) -> None:
        self.words = tokens(text)
        self.at = 0

    def peek(self) -> str:
        return self.words[self.at] if self.at < len(self.words) else ""

    def take(self, expected: str = "") -> str:
        word = self.peek()
        if expected and word != expected:
            raise ExpressionError(f"expected {expected!r}, found {word!r}")
        self.at += 1
        return word

    # condition := and (OR and)* ; and := not (AND not)*

    def condition(self) -> Condition:
        parts = [self._and()]
        while self.peek() == "OR":
            self.take()
            parts.append(self._and())
        return parts[0] if len(parts) == 1 else lambda row, n, v: any(part(row, n, v) for part in parts)

    def _and(self) -> Condition:
        parts = [self._not()]
        while self.peek() == "AND":
            self.take()
            parts.append(self._not())
        return parts[0] if len(parts) == 1 else lambda row, n, v: all(part(row, n, v) for part in parts)

    def _not(self) -> Condition:
        if self.peek() == "NOT":
            self.take()
            inner = self._not()
            return lambda row, n, v: not inner(row, n, v)
        if self.peek() == "(":
            self.take()
            inner = self.condition()
            self.take(")")
            return inner
        return self._test()

    def _test(self) -> Condition:
        if self.peek() in ("attribute_exists", "attribute_not_exists"):
            wanted = self.take() == "attribute_exists"
            self.take("(")
            path = self.path()
            self.take(")")
            return lambda row, n, v: (find(row, path, n) is not ABSENT) == wanted
        if self.peek() == "contains":
            self.take()
            self.take("(")
            holder = self.operand()
            self.take(",")
            wanted_item = self.operand()
            self.take(")")
            return lambda row, n, v: holder(row, n, v) is not ABSENT and wanted_item(row, n, v) in holder(row, n, v)
        left = self.operand()
        operator = self.take()
        if operator == "IN":
            self.take("(")
            options = [self.operand()]
            while self.peek() == ",":
                self.take()
                options.append(self.operand())
            self.take(")")
            return lambda row, n, v: any(compare("=", left(row, n, v), option(row, n, v)) for option in options)
        right = self.operand()
        return lambda row, n, v: compare(operator, left(row, n, v), right(row, n, v))

    def path(self) -> tuple[str, ...]:
        parts = [self.take()]
        while self.peek() == ".":
            self.take()
            parts.append(self.take())
        if any(part in WORDS or part[0] in ":(),<>=" for part in parts):
            raise ExpressionError(f"not a path: {'.'.join(parts)}")
        return tuple(parts)

    def operand(self) -> Callable[[Row, Names, Values], Any]:
        if self.peek().startswith(":"):
            name = self.take()
            return lambda row, n, v: _value(v, name)
        if self.peek() == "if_not_exists":
            self.take()
            self.take("(")
            path = self.path()
            self.take(",")
            default = self.operand()
            self.take(")")

            def choose(row: Row, n: Names, v: Values) -> Any:
                found = find(row, path, n)
                return default(row, n, v) if found is ABSENT else found

            return choose
        path = self.path()
        return lambda row, n, v: find(row, path, n)


def _value(values: Values, name: str) -> Any:
    if name not in values:
        raise ExpressionError(f"{name} is not among ExpressionAttributeValues")
    return values[name]


def resolve(part: str, names: Names) -> str:
    if not part.startswith("#"):
        return part
    if part not in names:
        raise ExpressionError(f"{part} is not among ExpressionAttributeNames")
    return names[part]


def find(row: Row, path: tuple[str, ...], names: Names) -> Any:
    value: Any = row
    for part in path:
        key = resolve(part, names)
        if not isinstance(value, dict) or key not in value:
            return ABSENT
        value = value[key]
    return value


def compare(operator: str, left: Any, right: Any) -> bool:
    """A missing attribute, or values of two types, compare as false (but <> as true), as in DynamoDB."""
    if left is ABSENT or right is ABSENT:
        return operator == "<>" and left is not right
    if isinstance(left, str) != isinstance(right, str):
        return operator == "<>"
    tests: dict[str, Callable[[], bool]] = {
        "=": lambda: left == right,
        "<>": lambda: left != right,
        "<": lambda: left < right,
        "<=": lambda: left <= right,
        ">": lambda: left > right,
        ">=": lambda: left >= right,
    }
    if operator not in tests:
        raise ExpressionError(f"unknown comparison {operator!r}")
    return tests[operator]()


@lru_cache(maxsize=512)
def compile_condition(text: str) -> Condition:
    reader = Reader(text)
    condition = reader.condition()
    if reader.peek():
        raise ExpressionError(f"left over: {reader.peek()!r} in {text!r}")
    return condition


@lru_cache(maxsize=512)
def compile_update(text: str) -> tuple[list[tuple[tuple[str, ...], Any]], list[tuple[str, ...]]]:
    """(assignments, removals) of an update expression."""
    reader = Reader(text)
    sets: list[tuple[tuple[str, ...], Any]] = []
    removals: list[tuple[str, ...]] = []
    while reader.peek():
        clause = reader.take()
        if clause not in ("SET", "REMOVE", "ADD"):
            raise ExpressionError(f"unknown clause {clause!r} in {text!r}")
        while True:
            path = reader.path()
            if clause == "SET":
                reader.take("=")
                sets.append((path, reader.operand()))
            elif clause == "ADD":
                sets.append((path, _added(path, reader.operand())))
            else:
                removals.append(path)
            if reader.peek() != ",":
                break
            reader.take(",")
    return sets, removals


def _added(path: tuple[str, ...], amount: Callable[[Row, Names, Values], Any]) -> Callable[[Row, Names, Values], Any]:
    """ADD: a number to a number, or elements to a set; what is not there counts as 0 or as the empty set."""

    def add(row: Row, n: Names, v: Values) -> Any:
        before, more = find(row, path, n), amount(row, n, v)
        if before is ABSENT:
            return more
        return before | more if isinstance(before, set) else before + more

    return add


def update(row: Row, text: str, names: Names, values: Values) -> list[str]:
    """Change ``row`` in place, all operands read before; returns the top-level attributes that were named."""
    sets, removals = compile_update(text)
    found = [(path, operand(row, names, values)) for path, operand in sets]
    touched = [tuple(resolve(part, names) for part in path) for path in [p for p, _ in sets] + removals]
    if len(set(touched)) != len(touched):
        raise ExpressionError(f"two document paths overlap in {text!r}")
    for path, value in found:
        if value is ABSENT:
            raise ExpressionError(f"an operand of {text!r} refers to an attribute that does not exist")
        _parent(row, path, names)[resolve(path[-1], names)] = value
    for path in removals:
        _parent(row, path, names).pop(resolve(path[-1], names), None)
    return [path[0] for path in touched]


def _parent(row: Row, path: tuple[str, ...], names: Names) -> Row:
    holder = row if len(path) == 1 else find(row, path[:-1], names)
    if not isinstance(holder, dict):
        raise ExpressionError("The document path provided in the update expression is invalid for update")
    return holder


@lru_cache(maxsize=512)
def placeholders(*texts: str) -> frozenset[str]:
    """All #names and :values; DynamoDB refuses those that are given and not used."""
    return frozenset(word for text in texts for word in tokens(text) if word[0] in "#:")
