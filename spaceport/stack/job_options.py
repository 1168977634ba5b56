"""The options of a job that a run on this machine takes, from events/schemas/job.schema.json."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from typing import Any

from spaceport.stack.root import ROOT

SCHEMA_FILE = ROOT / "events" / "schemas" / "job.schema.json"


@dataclass(frozen=True)
class JobOption:
    name: str
    kind: type[str] | type[int] | type[float] | type[bool]
    choices: tuple[str, ...]  # empty where any text will do
    minimum: float | None
    maximum: float | None
    default: Any
    help: str

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


@cache
def schema() -> dict[str, Any]:
    read: dict[str, Any] = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    return read


def local_options() -> list[JobOption]:
    """All but those that make no sense on one machine (``NotLocal`` where they are declared)."""
    return [_option(name, one) for name, one in schema()["properties"].items() if "x-not-local" not in one]


def _option(name: str, declared: dict[str, Any]) -> JobOption:
    kinds = {"string": str, "integer": int, "number": float, "boolean": bool}
    types = declared["type"] if isinstance(declared["type"], list) else [declared["type"]]
    unit = f" In {declared['x-unit']}." if "x-unit" in declared else ""
    return JobOption(
        name=name,
        kind=next(kinds[kind] for kind in types if kind != "null"),
        choices=tuple(value for value in declared.get("enum", []) if value is not None),
        minimum=declared.get("minimum"),
        maximum=declared.get("maximum"),
        default=declared.get("default"),
        help=declared["description"] + unit,
    )


def first_problem(options: dict[str, Any]) -> tuple[str, str] | None:
    """(name, what is wrong) of the first option that job.json would be refused for; None when there is none."""
    import jsonschema

    for name, value in options.items():
        if isinstance(value, float) and not math.isfinite(value):
            return name, f"{value} is not a number"
        checker = jsonschema.Draft202012Validator(schema()["properties"][name])
        error = next(iter(checker.iter_errors(value)), None)
        if error:
            shown = f"{value!r} is not valid: {schema()['properties'][name]['description']}"
            return name, shown if error.validator == "pattern" else error.message
    return None
