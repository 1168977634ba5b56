"""What follows from the declared options of a job: its JSON Schema, the models of the stage programs, and a page."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from base.stages import STAGES, StageName
from uploads.options import For, JobOptions, NotLocal, Since, StageValues, Unit, find_mark, names_for

CONSTRAINTS = ("ge", "gt", "le", "lt", "min_length", "max_length", "pattern", "allow_inf_nan")
SOURCE = "functions/uploads/options.py"
MODELS_HEAD = f'''"""The options of each stage program. Written by `make contracts` from {SOURCE}; do not edit.

A program is given text: numbers are parsed, an empty text is an option that is not given, an unknown one is an error.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class StageOptions(BaseModel):
    """What the options of all stages have in common."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)

    @model_validator(mode="before")
    @classmethod
    def without_empty(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {{key: value for key, value in values.items() if not isinstance(value, str) or value.strip()}}
'''
PAGE_HEAD = f"""# Options

Written by `make contracts` from {SOURCE}; do not edit.

## Of a job
Keys of `uploads/<scene>/job.json`, which is checked strictly: an unknown key or a value outside its limits fails the
job with `BAD_OPTION` before anything is paid. All are optional. A number that is not given is the preset's
(`containers/train/presets.py`, `containers/sfm/options.py`). "stages" are those whose programs are given the option.
JSON Schema: `events/schemas/job.schema.json`. `spaceport run` takes the same options as flags.

| option | value | unit | default | stages | since | `spaceport run` | meaning |
|---|---|---|---|---|---|---|---|
"""
VALUES_HEAD = """
## Of a stage program
Beside the options of its stage, a program is given these. No key of job.json sets them.

| name | value | unit | default | stages | meaning |
|---|---|---|---|---|---|
"""


def job_schema() -> str:
    """events/schemas/job.schema.json. Keys that begin with x- are ours: unit, stages, since, not-local."""
    schema = JobOptions.model_json_schema()
    for name, field in JobOptions.model_fields.items():
        schema["properties"][name] = _property(schema["properties"][name], field)
    schema |= {"title": "job.json", "dependentRequired": {"reuse_job": ["start_at"]}}
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema, indent=2) + "\n"


def _property(found: dict[str, Any], field: FieldInfo) -> dict[str, Any]:
    found = {key: value for key, value in found.items() if key not in ("title", "anyOf")} | _nullable(found)
    if found.get("default", ...) is None:
        del found["default"]
    unit, since, away = find_mark(field, Unit), find_mark(field, Since), find_mark(field, NotLocal)
    found |= {"x-unit": unit.name} if unit else {}
    found |= {"x-stages": list(stages_of(field)), "x-since": since.version if since else ""}
    return found | ({"x-not-local": away.reason} if away else {})


def _nullable(found: dict[str, Any]) -> dict[str, Any]:
    """``anyOf`` a type and null as one type."""
    if "anyOf" not in found:
        return {}
    kind = dict(found["anyOf"][0])
    more = {"enum": [*kind["enum"], None]} if "enum" in kind else {}
    return kind | {"type": [kind["type"], "null"]} | more


def stage_models() -> str:
    """containers/job/options.py: one model for each stage."""
    return MODELS_HEAD + "".join(_model(stage.name) for stage in STAGES)


def _model(stage: StageName) -> str:
    lines = ["", "", f"class {stage.capitalize()}Options(StageOptions):"]
    for name, field in fields_for(stage):
        lines += [f"    # {field.description}", f"    {name}: {type_text(field.annotation)} = {_default_text(field)}"]
    return "\n".join(lines) + "\n"


def _default_text(field: FieldInfo) -> str:
    limits = [f"{name}={_literal(value)}" for name, value in constraints(field).items()]
    default = _literal(field.default)
    return f"Field({', '.join([default, *limits])})" if limits else default


def _literal(value: object) -> str:
    if isinstance(value, str):
        return json.dumps(value)
    return f"{value:_}" if isinstance(value, int) and not isinstance(value, bool) else repr(value)


def type_text(annotation: Any) -> str:
    if get_origin(annotation) in (Union, types.UnionType):
        return " | ".join(type_text(part) for part in get_args(annotation))
    if get_origin(annotation) is Literal:
        return f"Literal[{', '.join(_literal(value) for value in get_args(annotation))}]"
    return "None" if annotation is type(None) else str(annotation.__name__)


def constraints(field: FieldInfo) -> dict[str, Any]:
    return {
        name: getattr(mark, name)
        for mark in field.metadata
        for name in CONSTRAINTS
        if getattr(mark, name, None) is not None
    }


def stages_of(field: FieldInfo) -> tuple[StageName, ...]:
    mark = find_mark(field, For)
    return mark.stages if mark else ()


def fields_for(stage: StageName) -> Iterator[tuple[str, FieldInfo]]:
    fields = {**StageValues.model_fields, **JobOptions.model_fields}
    for name in names_for(stage, StageValues, JobOptions):
        yield name, fields[name]


def options_page() -> str:
    """docs/options.md."""
    return PAGE_HEAD + _rows(JobOptions) + VALUES_HEAD + _rows(StageValues)


def _rows(model: type[BaseModel]) -> str:
    text = ""
    for name, field in model.model_fields.items():
        unit, since = find_mark(field, Unit), find_mark(field, Since)
        default = "" if field.default in (None, "") else f"`{json.dumps(field.default)}`"
        cells = [
            f"`{name}`",
            _value_words(field),
            unit.name if unit else "",
            default,
            ", ".join(stages_of(field)) or "none",
        ]
        cells += [since.version if since else "", flag(name, field)] if model is JobOptions else []
        text += f"| {' | '.join([*cells, str(field.description)])} |\n"
    return text


def flag(name: str, field: FieldInfo) -> str:
    away, dashes = find_mark(field, NotLocal), name.replace("_", "-")
    if away:
        return f"no: {away.reason}"
    return f"`--{dashes}`, `--no-{dashes}`" if type_text(field.annotation).startswith("bool") else f"`--{dashes}`"


def _value_words(field: FieldInfo) -> str:
    limits, kind = constraints(field), type_text(field.annotation).removesuffix(" | None")
    if kind.startswith("Literal"):
        values = [
            value
            for part in (field.annotation, *get_args(field.annotation))
            if get_origin(part) is Literal
            for value in get_args(part)
        ]
        return ", ".join(f"`{value}`" for value in values)
    words = {
        "int": "integer",
        "float": "number",
        "bool": "`true`, `false`",
        "str": "text",
        "datetime": "ISO 8601 time",
    }[kind]
    if "ge" in limits:
        words += f", {limits['ge']:,} to {limits['le']:,}" if "le" in limits else f", at least {limits['ge']:,}"
    if "gt" in limits:
        words += f", more than {limits['gt']:,}"
    if "max_length" in limits:
        words += f", {limits.get('min_length', 0)} to {limits['max_length']} characters"
    return words + (f", like `{limits['pattern']}`" if "pattern" in limits else "")
