"""Payload templates: Parameters, ResultSelector and ItemSelector. States Language spec, "Payload Template"."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from spaceport.asl.intrinsics import Expression, compile_intrinsic, parse_intrinsic
from spaceport.asl.paths import Path, compile_path

Report = Callable[[str, str], None]  # field within the template, reason


def compile_expression(text: str) -> Expression:
    """A path or an intrinsic function as a function of input and context. Raises ValueError."""
    return compile_path(text).find if text.startswith("$") else compile_intrinsic(text)


def compile_template(template: Any, report: Report) -> Expression | None:
    """A function that builds the payload, or None after reporting each problem."""
    if not isinstance(template, dict):
        report("", "a payload template must be an object")
        return None
    problems = 0

    def count(field: str, reason: str) -> None:
        nonlocal problems
        problems += 1
        report(field, reason)

    build = _compile(template, "", count)
    return build if problems == 0 else None


def _compile(value: Any, where: str, report: Report) -> Expression:
    if isinstance(value, dict):
        return _compile_object(value, where, report)
    if isinstance(value, list):
        parts = [_compile(item, f"{where}[{i}]", report) for i, item in enumerate(value)]
        if any(_is_dynamic(item) for item in value):
            return lambda data, context: [part(data, context) for part in parts]
    return lambda _data, _context: value


def _compile_object(template: dict[str, Any], where: str, report: Report) -> Expression:
    fields: list[tuple[str, Expression]] = []
    for name, value in template.items():
        here = f"{where}.{name}" if where else name
        plain = name.removesuffix(".$")
        if plain == name:
            fields.append((name, _compile(value, here, report)))
            continue
        if plain in template:
            report(here, f"'{plain}' and '{name}' would be the same field")
        if not isinstance(value, str):
            report(here, "must be a path or an intrinsic function, as a string")
            continue
        try:
            fields.append((plain, compile_expression(value)))
        except ValueError as error:
            report(here, str(error))
    if not _is_dynamic(template):
        return lambda _data, _context: template
    return lambda data, context: {name: build(data, context) for name, build in fields}


def _is_dynamic(value: Any) -> bool:
    if isinstance(value, dict):
        return any(name.endswith(".$") or _is_dynamic(part) for name, part in value.items())
    return isinstance(value, list) and any(_is_dynamic(part) for part in value)


def expressions_in(value: Any) -> Iterator[str]:
    """The text of every path and intrinsic function in a template."""
    if isinstance(value, dict):
        for name, part in value.items():
            if name.endswith(".$") and isinstance(part, str):
                yield part
            else:
                yield from expressions_in(part)
    elif isinstance(value, list):
        for part in value:
            yield from expressions_in(part)


def paths_in(template: Any) -> list[Path]:
    """Every path in a template; texts that do not parse are left out (compile_template reports them)."""
    return [path for text in expressions_in(template) for path in _paths_of(text)]


def context_paths_in(template: Any) -> list[Path]:
    """Every ``$$`` path in a template."""
    return [path for path in paths_in(template) if path.of_context]


def _paths_of(text: str) -> list[Path]:
    try:
        return [compile_path(text)] if text.startswith("$") else parse_intrinsic(text).paths
    except ValueError:
        return []
