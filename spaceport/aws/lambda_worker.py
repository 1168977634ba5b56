"""The far side of a function: a process that imports a handler once and calls it for each event.

``python -P lambda_worker.py FD`` is the parent of all workers: it imports what every handler needs and forks a worker
for each request on the socket FD. It imports nothing of spaceport and ``-P`` keeps its folder out of the search path,
so handlers find installed packages alone. A worker talks JSON lines on a socket of its own and ends when that is
closed. Error shapes are those of AWS's Python runtime (Lambda developer guide, "Lambda function errors in Python").
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PRELOADED = ("boto3", "aws_lambda_powertools", "pydantic", "ulid", "jinja2")
PRELOADED_CLIENTS = ("s3", "dynamodb", "sagemaker", "stepfunctions", "sesv2", "sns")
RESPONSE_LIMIT_BYTES = 6 * 1024 * 1024
MESSAGE_LIMIT_BYTES = 1 << 20

Handler = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Context:
    """The context object of the Python runtime."""

    function_name: str
    invoked_function_arn: str
    memory_limit_in_mb: int
    aws_request_id: str
    deadline: float  # time.monotonic()
    function_version: str = "$LATEST"

    @property
    def log_group_name(self) -> str:
        return f"/aws/lambda/{self.function_name}"

    @property
    def log_stream_name(self) -> str:
        return "local"

    def get_remaining_time_in_millis(self) -> int:
        return max(0, round((self.deadline - time.monotonic()) * 1000))


def error_answer(error_type: str, message: str, request_id: str, trace: list[str] | None = None) -> dict[str, Any]:
    """The payload of a failed invocation."""
    answer: dict[str, Any] = {"errorMessage": message, "errorType": error_type, "requestId": request_id}
    return {"error": {**answer, "stackTrace": trace or []}}


def load_handler(handler: str) -> Handler:
    """The callable that ``module.attribute`` names. Raises ImportError or AttributeError."""
    module, _, attribute = handler.rpartition(".")
    return getattr(importlib.import_module(module.replace("/", ".")), attribute)


def call_handler(handler: Handler, event: Any, context: Context) -> dict[str, Any]:
    """``{"payload": result}`` or ``{"error": {...}}``. What is not an Exception ends the process, as it does on AWS."""
    request_id = context.aws_request_id
    try:
        result = handler(event, context)
    except Exception as error:  # noqa: BLE001 - the runtime turns every exception of the handler into an answer
        frames = traceback.format_list(traceback.extract_tb(error.__traceback__)[1:])
        traceback.print_exc()
        return error_answer(type(error).__name__, str(error), request_id, frames)
    try:
        text = json.dumps(result)
    except (TypeError, ValueError) as error:
        return error_answer("Runtime.MarshalError", f"Unable to marshal response: {error}", request_id)
    if len(text.encode()) > RESPONSE_LIMIT_BYTES:
        message = f"Response payload size exceeded maximum allowed payload size ({RESPONSE_LIMIT_BYTES} bytes)."
        return error_answer("Function.ResponseSizeTooLarge", message, request_id)
    return {"payload": json.loads(text)}


def serve(channel: socket.socket, specification: dict[str, Any]) -> None:
    """Answer invocations on ``channel`` until it is closed."""
    handler: Handler | None = None
    problem: tuple[str, str] | None = None
    try:
        handler = load_handler(specification["handler"])
    except ImportError as error:
        module = specification["handler"].rpartition(".")[0]
        problem = ("Runtime.ImportModuleError", f"Unable to import module '{module}': {error}")
    except AttributeError:
        problem = ("Runtime.HandlerNotFound", f"Handler '{specification['handler']}' missing")
    except Exception as error:  # noqa: BLE001 - an error while importing is an answer to the invocation
        traceback.print_exc()
        problem = (type(error).__name__, str(error))
    with channel.makefile("rw", encoding="utf-8") as lines:
        for line in lines:
            request = json.loads(line)
            if handler is None:
                assert problem is not None
                answer = error_answer(*problem, request["request_id"])
            else:
                context = Context(
                    specification["name"],
                    specification["arn"],
                    specification["memory_mb"],
                    request["request_id"],
                    time.monotonic() + specification["timeout_s"],
                )
                answer = call_handler(handler, request["event"], context)
            sys.stdout.flush()
            sys.stderr.flush()
            lines.write(json.dumps(answer) + "\n")
            lines.flush()


def become_worker(channel: socket.socket, specification: dict[str, Any]) -> None:
    """Turn a fork of the parent into the process of one function."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(specification["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.environ.clear()
    os.environ.update(specification["environment"])
    sys.path.insert(0, specification["code"])
    os.chdir(specification["code"])
    _send(channel, {"pid": os.getpid()})
    serve(channel, specification)


def preload() -> None:
    """Import what handlers import, and parse the service descriptions that their clients need."""
    for name in PRELOADED:
        with contextlib.suppress(ImportError):  # a handler that needs it will say so
            importlib.import_module(name)
    import boto3

    for service in PRELOADED_CLIENTS:
        boto3.client(service)  # type: ignore[call-overload]
    boto3.resource("dynamodb")


def run_parent(requests: socket.socket) -> None:
    """Fork a worker for each ``(specification, file descriptor)`` until the socket is closed."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the workers
    preload()
    while True:
        data, descriptors, _flags, _address = socket.recv_fds(requests, MESSAGE_LIMIT_BYTES, 1)
        if not data:
            return
        channel = socket.socket(fileno=descriptors[0])
        if os.fork() == 0:
            requests.close()
            status = 1
            try:
                become_worker(channel, json.loads(data))
                status = 0
            except SystemExit as error:
                status = error.code if isinstance(error.code, int) else 1
            finally:
                os._exit(status)
        channel.close()


def _send(channel: socket.socket, message: dict[str, Any]) -> None:
    channel.sendall(json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    run_parent(socket.socket(fileno=int(sys.argv[1])))
