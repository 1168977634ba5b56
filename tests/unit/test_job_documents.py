"""The documents that stages hand on: every field is asked for, what is wrong is named, and the schemas are current."""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
from pydantic import BaseModel

from deploy.document_contracts import documents
from job import StageError
from job.documents import Document, Metrics, PhotosJson, SceneJson, read_document, write_document
from tests.synthetic import make_gaussians, make_views, metrics_json, photos_json, scene_json

ROOT = Path(__file__).parents[2]
SAMPLES: dict[str, tuple[type[BaseModel], typing.Any]] = {
    "scene.json": (SceneJson, scene_json(9, 30)),
    "photos.json": (PhotosJson, photos_json(make_views(9))),
    "metrics.json": (Metrics, metrics_json(make_gaussians(8, 1), make_views(9))),
}


def keys(value: typing.Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of every key in a JSON value; lists by their first element, and not those that name libraries."""
    if isinstance(value, dict) and path[-1:] != ("versions",):
        for key, inner in value.items():
            yield (*path, key)
            yield from keys(inner, (*path, key))
    if isinstance(value, list) and value:
        yield from keys(value[0], (*path, 0))


@pytest.mark.parametrize(
    ("name", "path"), [(name, path) for name, (_, value) in SAMPLES.items() for path in keys(value)], ids=str
)
def test_a_document_without_one_of_its_fields_is_refused(
    tmp_path: Path, name: str, path: tuple[str | int, ...]
) -> None:
    model, value = SAMPLES[name]
    damaged = json.loads(json.dumps(value))
    holder = damaged
    for step in path[:-1]:
        holder = holder[step]
    del holder[path[-1]]
    (tmp_path / name).write_text(json.dumps(damaged))
    with pytest.raises(StageError) as error:
        read_document(tmp_path / name, model)
    assert error.value.code == "BAD_INPUT"
    assert error.value.reason == f"{name} of the stage before has no {'.'.join(map(str, path))}. Run it again."


@pytest.mark.parametrize("name", SAMPLES)
def test_a_document_comes_back_as_it_was_and_fits_its_schema(tmp_path: Path, name: str) -> None:
    model, value = SAMPLES[name]
    write_document(tmp_path / name, model.model_validate(value))
    assert json.loads((tmp_path / name).read_text()) == value
    assert read_document(tmp_path / name, model) == model.model_validate(value)
    jsonschema.validate(value, json.loads(documents()[f"events/schemas/{name.replace('.json', '.schema.json')}"]))


def test_a_wrong_value_is_named(tmp_path: Path) -> None:
    value = metrics_json(make_gaussians(8, 1), make_views(9))
    value["heldout"][0]["psnr"] = "good"
    (tmp_path / "metrics.json").write_text(json.dumps(value))
    with pytest.raises(StageError, match=r"metrics\.json .* wrong at heldout\.0\.psnr: .* number .*'good'"):
        read_document(tmp_path / "metrics.json", Metrics)


def test_a_key_of_a_later_version_is_passed_by(tmp_path: Path) -> None:
    (tmp_path / "scene.json").write_text(json.dumps(scene_json(9, 30) | {"mood": "sunny"}))
    assert read_document(tmp_path / "scene.json", SceneJson).registered == 9


def test_no_field_can_be_forgotten_by_its_writer() -> None:
    assert not [
        f"{model.__name__}.{name}"
        for model in Document.__subclasses__()
        for name, field in model.model_fields.items()
        if not field.is_required()
    ]


@pytest.mark.parametrize("path", documents())
def test_schemas_are_current(path: str) -> None:
    assert (ROOT / path).read_text() == documents()[path], "out of date, run make contracts"
