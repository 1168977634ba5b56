"""JSON Schemas of the documents that stages write, for readers in any language: events/schemas/."""

from __future__ import annotations

import json

from pydantic import BaseModel

from compress.viewer_settings import ViewerSettings
from job.documents import Metrics, PhotosJson, ProgressJson, Report, SceneJson

FOLDER = "events/schemas"
DOCUMENTS: dict[str, type[BaseModel]] = {
    "metrics": Metrics,
    "photos": PhotosJson,
    "progress": ProgressJson,
    "report": Report,
    "scene": SceneJson,
    "settings": ViewerSettings,
}


def documents() -> dict[str, str]:
    """{path below the repository: text} of every schema."""
    return {f"{FOLDER}/{name}.schema.json": schema(model) for name, model in DOCUMENTS.items()}


def schema(model: type[BaseModel]) -> str:
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps(dialect | model.model_json_schema(), indent=2) + "\n"
