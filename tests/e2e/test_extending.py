"""The worked examples of docs/extending.md, carried out on a copy of the tree."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from base import aws
from spaceport.aws.eventbridge import EventBus
from spaceport.base.clock import VirtualClock
from spaceport.stack.sam import read_template, transform
from spaceport.stack.template import Rule, Target
from tests.extending import PAGE, Tree, read_example
from tests.unit.cloud import JOB, Cloud, add_job, cloud
from tests.unit.notify_calls import fail, finished, succeed

__all__ = ["cloud"]
pytestmark = pytest.mark.slow


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree.copied(tmp_path / "copy")


def test_a_new_option(tree):
    """It is in the schema, the page of options, the command line and the request to the stage, which obeys it."""
    example = read_example("A new option", PAGE.read_text())
    assert len(example.touched) <= 3
    tree.change(example)
    tree.python("-m", "deploy.contracts")
    schema = json.loads((tree.root / "events/schemas/job.schema.json").read_text())
    assert "poster_quality" in schema["properties"]
    assert "`poster_quality`" in (tree.root / "docs/options.md").read_text()
    assert "--poster-quality" in tree.python("-m", "spaceport.cli", "run", "--help")
    program = "from uploads.options import *; print(JobOptions(poster_quality=60).for_stage('compress'))"
    assert "'poster_quality': '60'" in tree.python("-c", program)
    tree.test("tests/containers/test_poster_quality.py", "tests/unit/test_contracts.py")


RUN = """
import json
from pathlib import Path
from spaceport import local_run
from spaceport.jobs.runner import ProcessRunner
from tests.unit.local_stages import write_photos, write_stages
outcome = local_run.run(write_photos(Path("photos")), Path("out"), {}, lambda event: None,
                        runner=ProcessRunner(write_stages(Path("stand-ins").resolve())))
print(json.dumps({"status": outcome.status, "files": [path.name for path in Path("out").iterdir()]}))
"""


def test_a_new_stage(tree):
    """Every place has it, its program measures, its state runs in order, and its file is among a run's results."""
    example = read_example("A new stage", PAGE.read_text())
    assert len({path for path in example.touched if not path.startswith("containers/measure/")}) <= 10
    tree.change(example)
    # Stands in for `make lock`, which asks a registry: training needs all that measuring needs.
    requirements = tree.root / "containers/requirements"
    (requirements / "measure.txt").write_text((requirements / "train.txt").read_text())
    tree.python("-m", "deploy.contracts")
    tree.python("-m", "deploy.limits")
    in_memory = "tests/unit/test_engine_in_memory.py::"
    tree.test(
        *("tests/containers/test_measure.py", "tests/unit/test_contracts.py", "tests/unit/test_stages_declared.py"),
        *(in_memory + "test_half_an_hour_passes_in_no_time", in_memory + "test_order_inputs_and_outputs_of_all_states"),
    )
    ended = json.loads(tree.python("-c", RUN).splitlines()[-1])
    assert ended["status"] == "SUCCEEDED"
    assert "measurements.json" in ended["files"]


class Webhook:
    """A chat on this machine."""

    def __init__(self) -> None:
        webhook, self.texts = self, []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                webhook.texts.append(json.loads(body)["text"])
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None: ...

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def webhook():
    chat = Webhook()
    yield chat
    chat.server.shutdown()
    chat.server.server_close()


def succeeds(cloud: Cloud) -> None:
    finished(cloud)
    succeed(cloud)


def fails(cloud: Cloud) -> None:
    add_job()
    fail(cloud)


@pytest.mark.parametrize(
    ("end", "line"),
    [
        (succeeds, f"my-house is ready: https://pages.example.net/my-house/{JOB}/index.html"),
        (fails, "my-house failed: Only 3 photos"),
    ],
)
def test_a_new_receiver_of_events(tree, cloud, webhook, monkeypatch, end, line):
    """The real notify function sends the event; the bus matches it with the receiver's rule and calls its function."""
    example = read_example("A new receiver of events", PAGE.read_text())
    (path,) = example.touched
    tree.change(example)
    template = transform(read_template(tree.root / path), {"WebhookUrl": webhook.url}, tree.root, "us-east-1")
    resources = template["Resources"].values()
    (function,) = (r["Properties"] for r in resources if r["Type"] == "AWS::Lambda::Function")
    (rule,) = (r["Properties"] for r in resources if r["Type"] == "AWS::Events::Rule")
    assert [target["Arn"] for target in rule["Targets"]] == [{"Fn::GetAtt": ["PostFunction", "Arn"]}]

    def call(_: Target, event: dict[str, Any]) -> None:
        module: dict[str, Any] = {}
        exec(function["Code"]["ZipFile"], module)
        module[function["Handler"].partition(".")[2]](event, None)

    monkeypatch.setenv("WEBHOOK_URL", webhook.url)
    clock = VirtualClock()
    bus = EventBus(
        clock, [Rule("SceneEnded", "rule", "arn", rule["EventPattern"], None, (Target("arn"),))], call,
        iter("abcdefgh").__next__, "123456789012", "us-east-1",
    )  # fmt: skip
    monkeypatch.setattr(aws, "events", lambda: BusClient(bus))
    bus.put("aws.s3", "Object Created", {"scene": "no scene has ended"})
    end(cloud)
    while clock.run_next():
        pass
    (text,) = webhook.texts
    assert text.startswith(line)


class BusClient:
    """boto3's client of the embedded bus."""

    def __init__(self, bus: EventBus) -> None:
        self.bus = bus

    def put_events(self, **request: Any) -> dict[str, Any]:
        return self.bus.call("PutEvents", request)
