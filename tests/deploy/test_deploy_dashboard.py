"""Alarms and the dashboard: their metrics are emitted, and what they name exists."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from tests.deploy.environments import ROOT
from tests.unit.cloud import load_template


def test_every_alarm_tells_somebody_and_is_in_the_runbook():
    runbook = (ROOT / "docs/runbook.md").read_text()
    alarms = {n: r for n, r in load_template()["Resources"].items() if r["Type"] == "AWS::CloudWatch::Alarm"}
    assert len(alarms) >= 6
    for name, alarm in alarms.items():
        assert alarm["Properties"]["AlarmActions"] == [{"Ref": "MessageTopic"}], name
        assert f"### {name}" in runbook, f"docs/runbook.md has no section {name}"


# Dimensions of the services' metrics, by their guides.
OF_AWS = {"AWS/States": {"StateMachineArn"}, "AWS/Lambda": {"FunctionName"}, "AWS/SQS": {"QueueName"}}
OF_DIMENSION = {
    "StateMachineArn": "AWS::Serverless::StateMachine",
    "FunctionName": "AWS::Serverless::Function",
    "QueueName": "AWS::SQS::Queue",
}
Metric = tuple[str, str, dict[str, str]]  # namespace, name, dimensions


def emitted() -> dict[str, set[str]]:
    """Dimensions of each metric that a function emits; metrics.add_metric gives it the service alone."""
    code = "\n".join(file.read_text() for file in (ROOT / "functions").rglob("*.py"))
    found = {
        name: {"service"} for call in re.findall(r"add_metric\((.*?),", code) for name in re.findall(r'"(\w+)"', call)
    }
    found |= {name: {"service", more} for more, name in re.findall(r'count_by\("(\w+)", .*?, "(\w+)", M', code)}
    return found


def expanded(metrics: list[list]) -> Iterator[Metric]:
    """A widget's metrics with what "." and "..." repeat from the line above."""
    above: list[str] = []
    for line in metrics:
        words = [word for word in line if not isinstance(word, dict)]
        if not words:
            continue  # an expression
        if words[0] == "...":
            words = above[: len(above) - len(words) + 1] + words[1:]
        words = [above[at] if word == "." else word for at, word in enumerate(words)]
        above = words
        yield words[0], words[1], dict(zip(words[2::2], words[3::2], strict=True))


def dashboard() -> list[dict]:
    body = load_template()["Resources"]["Dashboard"]["Properties"]["DashboardBody"]["Fn::Sub"]
    return json.loads(body)["widgets"]


def metrics_of_alarms() -> list[Metric]:
    found = []
    for resource in load_template()["Resources"].values():
        if resource["Type"] == "AWS::CloudWatch::Alarm":
            alarm = resource["Properties"]
            dimensions = {one["Name"]: one["Value"] for one in alarm["Dimensions"]}
            found.append((alarm["Namespace"], alarm["MetricName"], dimensions))
    return found


def test_metrics_of_alarms_and_dashboard_are_emitted_with_their_dimensions():
    shown = [metric for widget in dashboard() for metric in expanded(widget["properties"]["metrics"])]
    ours = emitted()
    for namespace, name, dimensions in shown + metrics_of_alarms():
        wanted = ours.get(name) if namespace == "Spaceport" else OF_AWS[namespace]
        assert wanted is not None, f"no function emits the metric {name}"
        assert set(dimensions) == wanted, f"{namespace} {name}"
    assert len({name for namespace, name, _ in shown if namespace == "Spaceport"}) >= 8


def test_what_the_dashboard_names_exists():
    """The value of a dimension is a name of this stack's, of the kind that the dimension is of."""
    template = load_template()
    shown = [metric for widget in dashboard() for metric in expanded(widget["properties"]["metrics"])]
    queues = set()
    for _, metric, dimensions in shown:
        for dimension, value in dimensions.items():
            named = re.fullmatch(r"\$\{(\w+)(?:\.QueueName)?\}", value)
            if dimension == "service":
                assert value == "${JobPrefix}", metric
            elif dimension in OF_DIMENSION:
                assert named and template["Resources"][named[1]]["Type"] == OF_DIMENSION[dimension], (metric, value)
                queues |= {named[1]} if dimension == "QueueName" else set()
    dead = {name for name, resource in template["Resources"].items() if resource["Type"] == "AWS::SQS::Queue"}
    assert queues == dead, "every queue of lost events is shown"


def test_searches_of_the_dashboard_name_all_dimensions():
    """A SEARCH with a schema that lacks a dimension of the metric finds nothing and says nothing."""
    ours, searches = emitted(), re.findall(r"SEARCH\('(\{.*?\}) MetricName=\\\"(\w+)", json.dumps(dashboard()))
    searches = [(schema, name.strip("\\")) for schema, name in searches]
    assert searches
    for schema, name in searches:
        assert set(schema.strip("{}").split(",")) == {"Spaceport", *ours[name]}


def test_widgets_do_not_overlap():
    cells = [
        (x, y)
        for widget in dashboard()
        for x in range(widget["x"], widget["x"] + widget["width"])
        for y in range(widget["y"], widget["y"] + widget["height"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
