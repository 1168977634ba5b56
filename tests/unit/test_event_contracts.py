"""Events on the bus and rows that functions write: types, samples, schemas and docs/events.md agree."""

import json
import re
from pathlib import Path
from typing import get_args, get_type_hints

import jsonschema
import pytest
import yaml

import notify
from base import aws
from deploy import event_contracts
from deploy.event_contracts import documents, event_schema, file_name
from notifications import bus
from notifications.report import Figures, ReportSummary, summary_of
from spaceport.aws.eventbridge import compile_pattern
from table import jobs
from tests.unit.cloud import JOB, add_job, cloud
from tests.unit.notify_calls import fail, finished, succeed

__all__ = ["cloud"]
ROOT = Path(__file__).parents[2]
SCHEMAS = ROOT / "events/schemas"
PAGE = (ROOT / event_contracts.PAGE).read_text()
KINDS = ("SceneSucceeded", "SceneFailed")


def sample(kind):
    return json.loads((ROOT / f"events/{file_name(kind)}.json").read_text())


def published(name):
    return json.loads((SCHEMAS / f"{name}.schema.json").read_text())


def outdated():
    return {path for path, text in documents().items() if (ROOT / path).read_text() != text}


def unknown_keys(value, schema, definitions):
    """Keys of ``value``, also in objects inside it, that the schema does not name."""
    schema = definitions[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    found = {key for key in value if key not in schema["properties"]}
    for key, inner in value.items():
        if isinstance(inner, dict) and key not in found:
            found |= unknown_keys(inner, schema["properties"][key], definitions)
    return found


def check_event(kind, event):
    """The event fits its published schema, and the schema names all of it."""
    schema = published(file_name(kind))
    jsonschema.validate(event, schema)
    assert not unknown_keys(event, schema, schema["$defs"])


class Bus:
    """Takes events as EventBridge would deliver them."""

    def __init__(self):
        self.events = []

    def put_events(self, Entries):
        self.events += [
            {"source": e["Source"], "detail-type": e["DetailType"], "detail": json.loads(e["Detail"])} for e in Entries
        ]
        return {"FailedEntryCount": 0, "Entries": [{}]}


@pytest.fixture
def taken(monkeypatch):
    one = Bus()
    monkeypatch.setattr(aws, "events", lambda: one)
    return one.events


@pytest.mark.parametrize("path", documents())
def test_what_is_written_is_current(path):
    assert (ROOT / path).read_text() == documents()[path], "out of date, run make contracts"


def test_every_event_is_declared_documented_and_has_a_sample():
    sent = get_args(get_type_hints(bus._put)["detail_type"])
    assert set(bus.EVENTS) == set(sent) == set(KINDS) == set(re.findall(r"^### (\w+)$", PAGE, re.MULTILINE))


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_true(kind):
    event = sample(kind)
    check_event(kind, event)
    assert set(event["detail"]) == set(event_schema(kind)["properties"]["detail"]["properties"]), "shows every field"


def test_events_that_are_sent_fit_their_schemas(cloud, taken):
    finished(cloud)
    assert succeed(cloud)["status"] == "SUCCEEDED"
    (event,) = taken
    check_event("SceneSucceeded", event)
    assert set(event["detail"]) == {"job_id", "scene", "status", "result_url", "cost_usd"}


@pytest.mark.parametrize("with_upload", [True, False])
def test_failures_that_are_sent_fit_their_schema(cloud, taken, with_upload):
    if with_upload:
        add_job()
    fail(cloud)
    (event,) = taken
    check_event("SceneFailed", event)
    assert event["detail"]["failure"]["code"] == "TOO_FEW_PHOTOS"
    assert ("scene" in event["detail"]) == with_upload


def test_rows_fit_their_schema(cloud, taken):
    finished(cloud, stage="sfm", interrupted={"spaceport-x-sfm-0": {"stage": "sfm", "cost_usd": 1}})
    jobs.set_checked(JOB, {"photos": 20, "rejected": 0, "estimated_usd": 1.5, "estimated_s": {"sfm": 300.0}})
    succeed(cloud)
    schema = published("job-row")
    row = jobs.get_job(JOB)
    for result in row["results"].values():  # of which the test's job has a part
        result |= {"job_name": "spaceport-x", "seconds": 60.5, "billable_seconds": 61}
    jsonschema.validate(row, schema)
    assert not {key for key in row if key not in schema["properties"]}


# Planted omissions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_leaving_out_an_event_is_seen(monkeypatch, kind):
    monkeypatch.setattr(bus, "EVENTS", {name: type_ for name, type_ in bus.EVENTS.items() if name != kind})
    assert outdated() == {event_contracts.PAGE}
    with pytest.raises(AssertionError):
        test_every_event_is_declared_documented_and_has_a_sample()


@pytest.mark.parametrize(
    ("kind", "field"), [(kind, field) for kind in KINDS for field in bus.EVENTS[kind].__annotations__]
)
def test_leaving_out_a_field_is_seen(monkeypatch, kind, field):
    monkeypatch.delitem(bus.EVENTS[kind].__annotations__, field)
    assert outdated() == {event_contracts.PAGE, f"events/schemas/{file_name(kind)}.schema.json"}
    with pytest.raises(AssertionError):
        test_samples_are_true(kind)


# docs/events.md ------------------------------------------------------------------------------------------------------


def block(language, number=0):
    return re.findall(rf"```{language}\n(.*?)```", PAGE.partition(event_contracts.END)[2], re.DOTALL)[number]


def test_the_pages_rules_take_every_event():
    declared = yaml.safe_load(block("yaml"))["Resources"]["SceneReceiver"]["Properties"]["Events"]["SceneEnded"]
    by_command = json.loads(re.search(r"--event-pattern '(.*)'", block("sh"))[1])
    for pattern in (declared["Properties"]["Pattern"], by_command):
        assert all(compile_pattern(pattern).matches(sample(kind)) for kind in KINDS)


def test_the_pages_receiver_understands_every_event():
    names = {}
    exec(block("python"), names)
    success, failure = (names["handler"](sample(kind), None) for kind in KINDS)
    assert "my-house is ready for 0.74 USD: https://" in success
    assert "my-house has no result (TOO_FEW_PHOTOS): Only 5" in failure


# report.json ---------------------------------------------------------------------------------------------------------


def read_fields(model, schema, definitions, path=()):
    """(path, is in the schema) of every figure that is read."""
    schema = definitions[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    for name, found in model.model_fields.items():
        inner = found.annotation
        there = name in schema["properties"]
        if there and isinstance(inner, type) and issubclass(inner, Figures):
            yield from read_fields(inner, schema["properties"][name], definitions, (*path, name))
        else:
            yield ".".join((*path, name)), there


def test_figures_that_are_read_are_those_of_the_report():
    schema = published("report")
    read = dict(read_fields(ReportSummary, schema, schema["$defs"]))
    assert len(read) == 7 and all(read.values()), read


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b'"text"', b"[" * 100_000, b"null"])
def test_what_is_no_report_has_no_figures(body):
    assert summary_of(body) == ReportSummary()


def test_a_wrong_figure_does_not_hide_the_others():
    summary = summary_of(b'{"photos": [], "training": {"psnr": "good", "gaussians": 7, "new": 1}, "compression": null}')
    assert summary.training.gaussians == 7
    assert summary.training.psnr is None and summary.photos.total is None
    assert notify.mails.figures(summary, 1) == [("Gaussians", "7"), ("Cost", "1.00 USD")]
