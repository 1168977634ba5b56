"""Choice rules over shapes: what is known where a rule holds and where it does not, and which variable may be missing.

Tests in And and Or are made one after the other, and no further than needed; so IsPresent guards what comes after it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from tests.state_machine.pathproof.expressions import Env, parse_path, read, surely, surely_timestamp
from tests.state_machine.pathproof.shapes import INF, Number, Shape, join, refine

Narrow = Callable[[Shape], Shape]
TYPE_TESTS = {"IsNull": "null", "IsNumeric": "number", "IsString": "text", "IsBoolean": "boolean"}
COMPARED_TYPES = {"String": "text", "Numeric": "number", "Boolean": "boolean", "Timestamp": "text"}


class Branches(NamedTuple):
    """The input where the rule holds, and where it does not."""

    holds: Shape
    fails: Shape


def branch(env: Env, where: str, rule: Any) -> Branches:
    """Evaluate ``rule`` on ``env.data``, reporting each Variable that need not be there."""
    if not isinstance(rule, dict):
        env.report("definition", where, repr(rule), "a choice rule must be an object")
        return Branches(env.data, env.data)
    if isinstance(rule.get("And"), list) and rule["And"]:
        return _sequence(env, f"{where}.And", rule["And"], goes_on_when_true=True)
    if isinstance(rule.get("Or"), list) and rule["Or"]:
        return _sequence(env, f"{where}.Or", rule["Or"], goes_on_when_true=False)
    if "Not" in rule:
        inner = branch(env, f"{where}.Not", rule["Not"])
        return Branches(inner.fails, inner.holds)
    return _test(env, where, rule)


def _sequence(env: Env, where: str, rules: list[Any], goes_on_when_true: bool) -> Branches:
    """And goes on while its rules hold, Or while they fail; what stops it early is joined."""
    current, stopped = env.data, None
    for at, rule in enumerate(rules):
        # The routes describe the whole input, which is what the first test sees; later ones see less of it.
        inner = branch(replace(env, data=current, routes=env.routes if at == 0 else []), f"{where}[{at}]", rule)
        on, off = (inner.holds, inner.fails) if goes_on_when_true else (inner.fails, inner.holds)
        current = on
        stopped = off if stopped is None else join(stopped, off)
    assert stopped is not None
    return Branches(current, stopped) if goes_on_when_true else Branches(stopped, current)


def _test(env: Env, where: str, rule: dict[str, Any]) -> Branches:
    tests = [name for name in rule if name not in ("Variable", "Next", "Comment")]
    variable = f"{where}.Variable"
    path = parse_path(env.report, variable, rule.get("Variable"))
    if path is None or len(tests) != 1:
        return Branches(env.data, env.data)
    name, value = tests[0], rule[tests[0]]
    if name == "IsPresent":
        present = env.data if path.of_context or path.rest else refine(env.data, path.keys, _same)
        return Branches(present, env.data) if value is True else Branches(env.data, present)
    read(env, variable, rule["Variable"])
    if name.endswith("Path"):
        _read_operand(env, f"{where}.{name}", name, value)
    if path.of_context or path.rest is not None:
        return Branches(env.data, env.data)
    holds, fails = _narrowed(name, value)
    return Branches(refine(env.data, path.keys, holds), refine(env.data, path.keys, fails))


def _read_operand(env: Env, where: str, name: str, value: Any) -> None:
    other = read(env, where, value)
    kind = next(kind for kind in COMPARED_TYPES if name.startswith(kind))
    if kind == "Timestamp":
        surely_timestamp(env, where, other, str(value))
    else:
        surely(env, where, other, COMPARED_TYPES[kind], str(value))


def _same(shape: Shape) -> Shape:
    return shape


def _narrowed(name: str, value: Any) -> tuple[Narrow, Narrow]:
    """What the variable is where the test holds, and where it fails."""
    if name in TYPE_TESTS:
        kind = TYPE_TESTS[name]
        pair = (lambda shape: _keep(shape, kind)), (lambda shape: _drop(shape, kind))
        return pair if value is True else (pair[1], pair[0])
    if name == "IsTimestamp":
        return (_as_timestamp, _same) if value is True else (_same, _as_timestamp)
    if name == "StringMatches" or name.startswith("String"):
        return (lambda shape: _keep(shape, "text")), _same
    if name.startswith("Timestamp"):
        return _as_timestamp, _same
    if name.startswith("Boolean"):
        return (lambda shape: _keep(shape, "boolean")), _same
    return _narrowed_number(name, value)


def _narrowed_number(name: str, value: Any) -> tuple[Narrow, Narrow]:
    if name.endswith("Path") or isinstance(value, bool) or not isinstance(value, (int, float)):
        return (lambda shape: _keep(shape, "number")), _same
    # "Less than" keeps its bound: the range is closed, and a little too wide is never wrong.
    ranges = {
        "NumericEquals": ((value, value), (-INF, INF)),
        "NumericLessThan": ((-INF, value), (value, INF)),
        "NumericLessThanEquals": ((-INF, value), (value, INF)),
        "NumericGreaterThan": ((value, INF), (-INF, value)),
        "NumericGreaterThanEquals": ((value, INF), (-INF, value)),
    }
    holds, fails = ranges.get(name, ((-INF, INF), (-INF, INF)))
    return (lambda shape: _within(_keep(shape, "number"), *holds)), (lambda shape: _within(shape, *fails))


def _keep(shape: Shape, kind: str) -> Shape:
    return Shape(**{kind: getattr(shape, kind)})


def _drop(shape: Shape, kind: str) -> Shape:
    nothing: Any = False if kind in ("null", "boolean") else None
    return replace(shape, **{kind: nothing})


def _as_timestamp(shape: Shape) -> Shape:
    return Shape(text=replace(shape.text, timestamp=True)) if shape.text else Shape()


def _within(shape: Shape, low: float, high: float) -> Shape:
    part = shape.number
    if part is None:
        return shape
    low, high = max(part.low, low), min(part.high, high)
    narrowed: Number | None = replace(part, low=low, high=high) if low <= high else None
    return replace(shape, number=narrowed)
