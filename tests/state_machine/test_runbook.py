"""The runbook has an entry for every alarm of the template and for nothing else, and its commands do what they say."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from deploy.limits import DEFINITION, ROOT, TEMPLATE, read_template

PAGE = (ROOT / "docs/runbook.md").read_text(encoding="utf-8")
RESOURCES = read_template(TEMPLATE)["Resources"]
WATCHERS = ("AWS::CloudWatch::Alarm", "AWS::CloudWatch::CompositeAlarm", "AWS::Budgets::Budget")
ALARMS = [name for name, resource in RESOURCES.items() if resource["Type"] in WATCHERS]
QUEUES = [name for name, resource in RESOURCES.items() if resource["Type"] == "AWS::SQS::Queue"]
ENTRIES = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", PAGE.split("## How to")[0], flags=re.DOTALL | re.MULTILINE))


def test_alarms_and_entries_are_the_same():
    assert sorted(ENTRIES) == sorted(ALARMS)
    assert len(re.findall("^### ", PAGE.split("## How to")[0], flags=re.MULTILINE)) == len(ENTRIES)


@pytest.mark.parametrize("name", ALARMS)
def test_an_entry_says_what_it_means_and_what_to_do(name):
    means, do = ENTRIES[name].index("**Means**"), ENTRIES[name].index("**Do**")
    assert means < do
    if RESOURCES[name]["Type"] == "AWS::CloudWatch::Alarm":
        assert "docs/runbook.md" in RESOURCES[name]["Properties"]["AlarmDescription"]


@pytest.mark.parametrize("queue", QUEUES)
def test_the_entry_of_a_queue_says_how_to_redrive(queue):
    entry = ENTRIES[f"{queue}Alarm"]
    function = queue.replace("DeadLetters", "Function")
    assert f"`{queue}`" in entry and function in entry and "**Redrive**" in entry
    assert f"`{queue.removesuffix('DeadLetters')}`" in commands(whole=True)
    assert function in RESOURCES and queue in RESOURCES


def commands(whole=False):
    section = PAGE.split("### Send lost events again\n")[1].split("\n### ")[0]
    return section if whole else re.search(r"```sh\n(.*?)```", section, flags=re.DOTALL)[1]


EVENT = {"source": "aws.s3", "detail": {"object": {"key": "uploads/house/it's 1.jpg"}}}
# Lambda developer guide, "Capturing records of asynchronous invocations"; EventBridge user guide, "Dead-letter queues".
BODIES = {
    "of a function": {
        "version": "1.0",
        "requestContext": {"condition": "RetriesExhausted", "approximateInvokeCount": 3},
        "requestPayload": EVENT,
        "responsePayload": {"errorType": "ValueError", "errorMessage": "m"},
    },
    "of a rule": EVENT,
}


@pytest.mark.parametrize("kind", BODIES)
def test_the_event_is_taken_out_of_the_message(kind, tmp_path):
    message = {"MessageId": "1", "ReceiptHandle": "a/b+c=", "Body": json.dumps(BODIES[kind])}
    (tmp_path / "message.json").write_text(json.dumps(message))
    event, handle = re.findall(r"python3 -c '(.*?)'", commands())
    run = lambda code: subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path, text=True)  # noqa: E731
    assert json.loads(run(event)) == EVENT
    assert run(handle).strip() == "a/b+c="


def test_the_commands_are_shell():
    subprocess.run(["sh", "-n"], input=commands(), text=True, check=True)


def test_a_throttled_function_is_tried_for_the_two_minutes_that_docs_quotas_promises():
    assert "for two minutes" in (ROOT / "docs/quotas.md").read_text(encoding="utf-8")
    for name, state in json.loads(DEFINITION.read_text(encoding="utf-8"))["States"].items():
        retriers = [r for r in state.get("Retry", []) if "Lambda.TooManyRequestsException" in r["ErrorEquals"]]
        if "Function" in json.dumps(state.get("Resource", "")) or "HeartbeatSeconds" in state:
            (retry,) = retriers
            waits = [retry["IntervalSeconds"] * retry["BackoffRate"] ** n for n in range(retry["MaxAttempts"])]
            assert sum(waits) >= 120, name
