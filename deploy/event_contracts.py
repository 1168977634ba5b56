"""JSON Schemas of our own events and of the rows that functions write, and the tables of docs/events.md.

`make contracts` writes them. Needs functions/ on PYTHONPATH.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaValue

from notifications import bus
from table.rows import JobRow
from uploads.photos import Manifest, RejectedFile

ROOT = Path(__file__).resolve().parents[1]
PAGE = "docs/events.md"
DIALECT = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
BEGIN, END = "<!-- BEGIN fields, written by make contracts -->\n", "<!-- END fields -->\n"
# Documents that are no events, by the name of their schema.
DOCUMENTS: dict[str, tuple[str, TypeAdapter[Any]]] = {
    "manifest": ("work/<job id>/manifest.json", TypeAdapter(Manifest)),
    "rejected": ("work/<job id>/rejected.json", TypeAdapter(list[RejectedFile])),
    "job-row": ("row JOB#<job id> of the job table", TypeAdapter(JobRow)),
}
# Keys that EventBridge puts around the detail of any event.
ENVELOPE = {
    "version": {"type": "string"},
    "id": {"type": "string"},
    "account": {"type": "string"},
    "time": {"type": "string", "format": "date-time"},
    "region": {"type": "string"},
    "resources": {"type": "array", "items": {"type": "string"}},
}


def documents() -> dict[str, str]:
    """{path below the repository: text} of every written file."""
    schemas = {name: {"title": title} | adapter.json_schema() for name, (title, adapter) in DOCUMENTS.items()}
    schemas |= {file_name(kind): event_schema(kind) for kind in bus.EVENTS}
    texts = {
        f"events/schemas/{name}.schema.json": json.dumps(DIALECT | schema, indent=2) + "\n"
        for name, schema in schemas.items()
    }
    return texts | {PAGE: with_tables((ROOT / PAGE).read_text(encoding="utf-8"))}


def file_name(detail_type: str) -> str:
    """SceneFailed -> scene-failed"""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", detail_type).lower()


def event_schema(detail_type: str) -> JsonSchemaValue:
    """Schema of the whole event, as a target of a rule gets it."""
    detail = TypeAdapter(bus.EVENTS[detail_type]).json_schema()
    definitions = detail.pop("$defs", {})
    return {
        "title": detail_type,
        "type": "object",
        "properties": {
            **ENVELOPE,
            "source": {"const": bus.SOURCE},
            "detail-type": {"const": detail_type},
            "detail": detail,
        },
        "required": ["source", "detail-type", "detail"],
        "$defs": definitions,
    }


def with_tables(page: str) -> str:
    """The page with what stands between its markers written anew."""
    before, _, rest = page.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"{PAGE} has no {BEGIN.strip()} and {END.strip()}")
    return before + BEGIN + "\n" + "\n".join(section(kind) for kind in bus.EVENTS) + "\n" + END + after


def section(detail_type: str) -> str:
    """Heading, fields and sample of one event."""
    schema, name = event_schema(detail_type), file_name(detail_type)
    detail = schema["properties"]["detail"]
    sample = json.loads((ROOT / f"events/{name}.json").read_text(encoding="utf-8"))["detail"]
    lines = [
        f"### {detail_type}",
        "",
        " ".join(detail["description"].split()),
        "",
        "| field of `detail` | type | what it is |",
        "|---|---|---|",
        *fields(detail, schema["$defs"]),
        "",
        f"Sample: [{name}.json](../events/{name}.json). "
        f"Schema: [{name}.schema.json](../events/schemas/{name}.schema.json).",
        "",
        "```json",
        json.dumps(sample, indent=2),
        "```",
        "",
    ]
    return "\n".join(lines)


def fields(schema: JsonSchemaValue, definitions: dict[str, JsonSchemaValue], prefix: str = "") -> list[str]:
    """Rows of the table, those of nested objects after their own."""
    rows = []
    for name, found in schema["properties"].items():
        inner = definitions[found["$ref"].rpartition("/")[2]] if "$ref" in found else found
        allowed = [inner["const"]] if "const" in inner else inner.get("enum", [])
        kind = " or ".join(f'`"{value}"`' for value in allowed) or inner["type"]
        may_lack = "" if name in schema["required"] else " (may be missing)"
        text = found.get("description", inner.get("description", ""))
        rows.append(f"| `{prefix}{name}` | {kind}{may_lack} | {' '.join(text.split())} |")
        if "properties" in inner:
            rows += fields(inner, definitions, f"{prefix}{name}.")
    return rows
