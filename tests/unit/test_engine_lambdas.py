"""Function processes: environment, error shapes, time limit, death; and asynchronous invocation."""

import json
import os
import subprocess
import sys
import threading
import time
from datetime import timedelta

import pytest

from spaceport.aws.lambdas import LambdaProcesses, LambdaResult, invoke_async
from spaceport.base.clock import DEFAULT_START, VirtualClock
from spaceport.stack.template import Function, Stack

HANDLER = """
import os, sys, time
import neighbour
def handler(event, context):
    print("said", event)
    if event == "raise":
        raise neighbour.Special("it broke")
    if event == "sleep":
        time.sleep(30)
    if event == "die":
        os._exit(3)
    if event == "exit":
        sys.exit(1)
    if event == "set":
        return {1}
    if event == "large":
        return "x" * 6_400_000
    neighbour.calls += 1
    return {"environment": dict(os.environ), "calls": neighbour.calls, "path": sys.path, "cwd": os.getcwd(),
            "left_ms": context.get_remaining_time_in_millis(), "name": context.function_name,
            "arn": context.invoked_function_arn, "id": context.aws_request_id}
"""


@pytest.fixture(scope="module")
def functions(tmp_path_factory):
    os.environ["AWS_PROFILE"] = "private"
    code = tmp_path_factory.mktemp("code")
    (code / "app.py").write_text(HANDLER)
    (code / "neighbour.py").write_text("calls = 0\nclass Special(Exception): pass\n")
    (code / "broken.py").write_text("import nothing_like_this\n")
    (code / "fails.py").write_text("raise ValueError('at import')\n")

    def made(name, handler):
        environment = {"OWN": name, "AWS_ENDPOINT_URL": "http://127.0.0.1:1"}
        return Function(
            name, f"s-{name}", f"arn:aws:lambda:::function:s-{name}", handler, code, environment, 2.0, 128, 2
        )

    handlers = {"A": "app.handler", "B": "app.handler", "Broken": "broken.handler", "Fails": "fails.handler"}
    stack = Stack("s", "us-east-1", "123456789012", {}, functions=[made(n, h) for n, h in handlers.items()])
    stack.functions.append(made("Missing", "app.nothing"))
    logs = tmp_path_factory.mktemp("logs")
    processes = LambdaProcesses(stack, "http://127.0.0.1:1", logs)

    def call(name, event):
        done, results = threading.Event(), []
        processes.invoke(stack.function(name), event, lambda result: (results.append(result), done.set()))
        assert done.wait(60)
        return results[0]

    call.logs = logs
    yield call
    processes.close()
    del os.environ["AWS_PROFILE"]


def test_a_process_stays_warm_and_sees_only_its_own_environment(functions):
    first, second = functions("A", {}).payload, functions("A", {}).payload
    assert second["calls"] == first["calls"] + 1
    other = functions("B", {}).payload
    assert (other["calls"], other["environment"]["OWN"]) == (1, "B")
    environment = first["environment"]
    assert "AWS_PROFILE" not in environment
    assert environment["AWS_LAMBDA_FUNCTION_NAME"] == "s-A"
    assert environment["AWS_CONFIG_FILE"] == os.devnull
    assert 0 < first["left_ms"] <= 2000
    assert (first["name"], first["arn"]) == ("s-A", "arn:aws:lambda:::function:s-A")
    assert first["path"][0] == first["cwd"]


def test_a_handler_finds_its_own_code_and_installed_packages_alone(functions):
    """Wherever spaceport itself is: in a checkout, or in the very folder of the other packages."""
    program = "import json, sys; print(json.dumps(sys.path))"
    plain = subprocess.run([sys.executable, "-I", "-c", program], env={}, capture_output=True, text=True, check=True)
    path = functions("A", {}).payload["path"]
    assert path[1:] == json.loads(plain.stdout)


def test_an_exception_is_reported_with_type_and_trace(functions):
    error = functions("A", "raise").error
    assert (error["errorType"], error["errorMessage"]) == ("Special", "it broke")
    assert "app.py" in error["stackTrace"][0] and error["requestId"]
    assert "said raise" in (functions.logs / "A.log").read_text()


@pytest.mark.parametrize(
    ("event", "error_type", "text"),
    [
        ("sleep", "Sandbox.Timedout", "Task timed out after 2.00 seconds"),
        ("die", "Runtime.ExitError", "exited"),
        ("exit", "Runtime.ExitError", "exited"),
        ("set", "Runtime.MarshalError", "not JSON serializable"),
        ("large", "Function.ResponseSizeTooLarge", "maximum"),
    ],
)
def test_other_failures_and_the_next_call_works(functions, event, error_type, text):
    error = functions("A", event).error
    assert error["errorType"] == error_type and text in error["errorMessage"]
    assert functions("A", {}).payload["name"] == "s-A"


@pytest.mark.parametrize(
    ("name", "error_type", "text"),
    [
        (
            "Broken",
            "Runtime.ImportModuleError",
            "Unable to import module 'broken': No module named 'nothing_like_this'",
        ),
        ("Missing", "Runtime.HandlerNotFound", "Handler 'app.nothing' missing"),
        ("Fails", "ValueError", "at import"),
    ],
)
def test_a_handler_that_cannot_be_loaded(functions, name, error_type, text):
    error = functions(name, {}).error
    assert (error["errorType"], error["errorMessage"]) == (error_type, text)


def test_closing_ends_a_running_call(tmp_path):
    (tmp_path / "app.py").write_text("import time\ndef handler(event, context): time.sleep(60)\n")
    function = Function("A", "s-A", "arn", "app.handler", tmp_path, {}, 60.0, 128, 2)
    processes = LambdaProcesses(Stack("s", "us-east-1", "123456789012", {}, functions=[function]), "http://x", tmp_path)
    results = []
    processes.invoke(function, {}, results.append)
    while processes._functions["s-A"]._channel is None:
        time.sleep(0.01)
    processes.close()
    assert results[0].error["errorType"] == "Runtime.ExitError"


class Failing:
    def __init__(self, clock, failures):
        self.clock, self.failures, self.calls = clock, failures, []

    def invoke(self, function, event, on_done):
        self.calls.append(self.clock.now() - DEFAULT_START)
        failed = len(self.calls) <= self.failures
        on_done(LambdaResult(error={"errorType": "E"}) if failed else LambdaResult("ok"))


@pytest.mark.parametrize(("failures", "minutes", "dropped"), [(0, [0], 0), (1, [0, 1], 0), (3, [0, 1, 3], 1)])
def test_asynchronous_calls_are_repeated_after_one_and_two_minutes(failures, minutes, dropped):
    clock, given_up = VirtualClock(), []
    lambdas = Failing(clock, failures)
    function = Function("A", "a", "arn", "app.handler", None, {}, 3.0, 128, 2)
    invoke_async(lambdas, clock, function, {}, lambda function, result: given_up.append(result))
    clock.run_until_idle()
    assert lambdas.calls == [timedelta(minutes=m) for m in minutes]
    assert len(given_up) == dropped
