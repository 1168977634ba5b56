"""Lambda on one machine: a warm process per function (``LambdaProcesses``), or calls here (``InProcessLambdas``).

Both give a function what AWS gives it: the template's environment, AWS_LAMBDA_* names, an endpoint and throw-away
credentials, and nothing of the user's own AWS configuration.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import boto3

from spaceport.aws import lambda_worker
from spaceport.aws.lambda_worker import Context, Handler, call_handler, error_answer, load_handler
from spaceport.base.clock import Clock
from spaceport.stack.template import Function, Stack

ASYNC_RETRY_DELAYS_S = (60.0, 120.0)  # Lambda developer guide, "Error handling for asynchronous invocation"
START_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class LambdaResult:
    """Answer of an invocation: ``payload``, or ``error`` with errorType, errorMessage, requestId and stackTrace."""

    payload: Any = None
    error: dict[str, Any] | None = None


OnDone = Callable[[LambdaResult], None]


class Lambdas(Protocol):
    """Calls functions."""

    def invoke(self, function: Function, event: Any, on_done: OnDone) -> None:
        """Call the function with a copy of ``event``; ``on_done`` is called once, from any thread."""
        ...

    def close(self) -> None: ...


def environment(function: Function, stack: Stack, endpoint_url: str) -> dict[str, str]:
    """The whole environment of a function's process."""
    return {
        **{name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR") if name in os.environ},
        "HOME": "/tmp",
        "AWS_REGION": stack.region,
        "AWS_DEFAULT_REGION": stack.region,
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_ENDPOINT_URL": endpoint_url,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_LAMBDA_FUNCTION_NAME": function.name,
        "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(function.memory_mb),
        "AWS_LAMBDA_LOG_GROUP_NAME": f"/aws/lambda/{function.name}",
        "AWS_LAMBDA_LOG_STREAM_NAME": "local",
        "AWS_EXECUTION_ENV": f"AWS_Lambda_python{sys.version_info.major}.{sys.version_info.minor}",
        "AWS_XRAY_SDK_ENABLED": "false",
        "POWERTOOLS_TRACE_DISABLED": "true",
        "LAMBDA_TASK_ROOT": str(function.code),
        "_HANDLER": function.handler,
        **function.environment,
    }


def invoke_async(
    lambdas: Lambdas, clock: Clock, function: Function, event: Any, on_dropped: Callable[[Function, LambdaResult], None]
) -> None:
    """An asynchronous invocation: an error is tried again after 1 and 3 minutes, then ``on_dropped`` is told."""
    delays = list(ASYNC_RETRY_DELAYS_S[: function.async_retries])

    def attempt() -> None:
        lambdas.invoke(function, event, on_clock)

    def on_clock(result: LambdaResult) -> None:
        clock.call_soon(lambda: done(result))

    def done(result: LambdaResult) -> None:
        if result.error is None:
            return
        if delays:
            clock.call_later(delays.pop(0), attempt)
        else:
            on_dropped(function, result)

    attempt()


class LambdaProcesses:
    """One warm process per function, forked from a parent that has imported the common libraries already."""

    def __init__(self, stack: Stack, endpoint_url: str, logs: Path | None) -> None:
        self.stack = stack
        self.endpoint_url = endpoint_url
        self.logs = logs
        if logs:
            logs.mkdir(parents=True, exist_ok=True)
        self._parent_lock = threading.Lock()
        self._parent, self._requests = self._start_parent()
        self._functions = {function.name: _FunctionThread(self, function) for function in stack.functions}

    def warm(self) -> None:
        """Start all workers now, instead of each at its first event."""
        for thread in self._functions.values():
            thread.warm()

    def invoke(self, function: Function, event: Any, on_done: OnDone) -> None:
        self._functions[function.name].submit(json.dumps(event), on_done)

    def close(self) -> None:
        """End all processes. Invocations that still run end with Runtime.ExitError."""
        for thread in self._functions.values():
            thread.close()
        self._requests.close()
        self._parent.kill()
        self._parent.wait()

    def _start_parent(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        ours, theirs = socket.socketpair()
        function = self.stack.functions[0] if self.stack.functions else None
        base = environment(function, self.stack, self.endpoint_url) if function else {}
        log = (self.logs / "lambda.log").open("ab") if self.logs else subprocess.DEVNULL
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", lambda_worker.__file__, str(theirs.fileno())],
                env=base,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the engine, which decides what ends
            )
        finally:
            theirs.close()
            if not isinstance(log, int):
                log.close()
        return process, ours

    def start_worker(self, function: Function) -> tuple[socket.socket, int]:
        """A new process of ``function``: its channel and process id. Raises RuntimeError when it does not come up."""
        ours, theirs = socket.socketpair()
        specification = {
            "name": function.name,
            "arn": function.arn,
            "handler": function.handler,
            "code": str(function.code),
            "memory_mb": function.memory_mb,
            "timeout_s": function.timeout_s,
            "environment": environment(function, self.stack, self.endpoint_url),
            "log": str(self.logs / f"{function.logical_id}.log") if self.logs else os.devnull,
        }
        with self._parent_lock, theirs:
            socket.send_fds(self._requests, [json.dumps(specification).encode()], [theirs.fileno()])
        ours.settimeout(START_TIMEOUT_S)
        line = _read_line(ours)
        if line is None:
            raise RuntimeError(f"the process of {function.name} did not start; see {specification['log']}")
        return ours, json.loads(line)["pid"]


class _FunctionThread:
    """Feeds one function's process, one event at a time, and replaces it when it died or was too slow."""

    def __init__(self, owner: LambdaProcesses, function: Function) -> None:
        self.owner = owner
        self.function = function
        self._events: queue.SimpleQueue[tuple[str, OnDone] | None] = queue.SimpleQueue()
        self._channel: socket.socket | None = None
        self._pid = 0
        self._closed = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=f"lambda-{function.logical_id}", daemon=True)
        self._thread.start()

    def submit(self, event: str, on_done: OnDone) -> None:
        self._events.put((event, on_done))

    def warm(self) -> None:
        self._events.put(("", lambda _result: None))

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._kill()
        self._events.put(None)
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while (item := self._events.get()) is not None:
            event, on_done = item
            try:
                result = self._invoke(event) if event else self._only_start()
            except (OSError, RuntimeError) as error:
                result = _as_result(error_answer("Runtime.ExitError", str(error), ""))
            on_done(result)

    def _only_start(self) -> LambdaResult:
        self._ensure_worker()
        return LambdaResult()

    def _ensure_worker(self) -> socket.socket:
        if self._channel is None:
            channel, pid = self.owner.start_worker(self.function)
            with self._lock:
                self._channel, self._pid = channel, pid
                if self._closed:
                    self._kill()
                    raise RuntimeError("the engine is closing")
        assert self._channel is not None
        return self._channel

    def _invoke(self, event: str) -> LambdaResult:
        request_id = str(uuid.uuid4())
        channel = self._ensure_worker()
        channel.settimeout(self.function.timeout_s)
        try:
            channel.sendall(f'{{"request_id": "{request_id}", "event": {event}}}\n'.encode())
            line = _read_line(channel)
        except TimeoutError:
            self._replace()
            message = f"RequestId: {request_id} Error: Task timed out after {self.function.timeout_s:.2f} seconds"
            return _as_result(error_answer("Sandbox.Timedout", message, request_id))
        except OSError:
            line = None
        if line is None:
            self._replace()
            message = f"RequestId: {request_id} Error: Runtime exited without providing a reason"
            return _as_result(error_answer("Runtime.ExitError", message, request_id))
        return _as_result(json.loads(line))

    def _replace(self) -> None:
        with self._lock:
            self._kill()

    def _kill(self) -> None:
        if self._channel is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            self._channel.close()
            self._channel = None


def _read_line(channel: socket.socket) -> bytes | None:
    """One line, or None when the other side is gone. The time limit of the socket holds for the whole line."""
    limit_s = channel.gettimeout()
    deadline = None if limit_s is None else time.monotonic() + limit_s
    chunks: list[bytes] = []
    while True:
        if deadline is not None:
            channel.settimeout(max(0.001, deadline - time.monotonic()))
        chunk = channel.recv(1 << 16)
        if not chunk:
            return None
        chunks.append(chunk)
        if chunk.endswith(b"\n"):
            return b"".join(chunks)


def _as_result(answer: dict[str, Any]) -> LambdaResult:
    return LambdaResult(answer.get("payload"), answer.get("error"))


@dataclass
class _Loaded:
    """A handler with the modules of its bundle, kept apart from the same modules of other functions."""

    handler: Handler
    modules: dict[str, ModuleType]


class InProcessLambdas:
    """Functions called in this process, on the caller's thread, one at a time; for tests and simulation.

    Each function has its own copy of the modules in its bundle, as processes would. Copies are kept for later engines
    of the same process whose environment is the same. ``on_load(function, modules)`` is called for each, so that a
    test may replace a module's clock or identifiers; ``session`` is what ``boto3.client`` uses inside handlers.
    """

    _loaded: dict[tuple[str, str, tuple[tuple[str, str], ...]], _Loaded] = {}  # noqa: RUF012 - shared on purpose

    def __init__(
        self,
        stack: Stack,
        endpoint_url: str,
        session: boto3.Session,
        on_load: Callable[[Function, dict[str, ModuleType]], None] | None = None,
    ) -> None:
        self.stack = stack
        self.endpoint_url = endpoint_url
        self.session = session
        self.on_load = on_load
        self._mine: dict[str, _Loaded] = {}
        self._count = 0

    def invoke(self, function: Function, event: Any, on_done: OnDone) -> None:
        self._count += 1
        request_id = f"00000000-0000-4000-8000-{self._count:012d}"
        variables = environment(function, self.stack, self.endpoint_url)
        with self._inside(function, variables):
            try:
                loaded = self._load(function, variables)
                context = Context(
                    function.name,
                    function.arn,
                    function.memory_mb,
                    request_id,
                    time.monotonic() + function.timeout_s,
                )
                answer = call_handler(loaded.handler, copy.deepcopy(event), context)
            except SystemExit as error:
                answer = error_answer("Runtime.ExitError", f"Error: Runtime exited with {error.code}", request_id)
        on_done(_as_result(answer))

    def close(self) -> None:
        """Nothing runs between calls."""

    @contextlib.contextmanager
    def _inside(self, function: Function, variables: dict[str, str]) -> Iterator[None]:
        """Environment, import path, boto3 session and modules as the function's own process would have them."""
        before_environment, before_path = dict(os.environ), list(sys.path)
        before_session = boto3.DEFAULT_SESSION
        names = {path.stem for path in function.code.iterdir() if path.suffix == ".py" or path.is_dir()}
        before_modules = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] in names}
        if function.name in self._mine:
            sys.modules.update(self._mine[function.name].modules)
        os.environ.clear()
        os.environ.update(variables)
        sys.path.insert(0, str(function.code))
        boto3.DEFAULT_SESSION = self.session
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before_environment)
            sys.path[:] = before_path
            boto3.DEFAULT_SESSION = before_session
            own = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] in names}
            if function.name in self._mine:
                self._mine[function.name].modules.update(own)
            sys.modules.update(before_modules)

    def _load(self, function: Function, variables: dict[str, str]) -> _Loaded:
        if function.name in self._mine:
            return self._mine[function.name]
        names = {path.stem for path in function.code.iterdir() if path.suffix == ".py" or path.is_dir()}
        key = (str(function.code), function.handler, tuple(sorted(variables.items())))
        loaded = self._loaded.get(key)
        if loaded is None:
            importlib.invalidate_caches()
            handler = load_handler(function.handler)
            modules = {name: module for name, module in sys.modules.items() if name.split(".")[0] in names}
            loaded = self._loaded[key] = _Loaded(handler, modules)
        sys.modules.update(loaded.modules)
        self._mine[function.name] = loaded
        if self.on_load:
            self.on_load(function, loaded.modules)
        return loaded
