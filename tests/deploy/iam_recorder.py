"""A pytest plugin that writes down every AWS call of the handlers: `pytest -p tests.deploy.iam_recorder …`.

Calls are taken where botocore makes them, and, for the stand-ins that tests and the simulator of faults put into
functions/base/aws.py, where a handler calls those. The result, at $SPACEPORT_IAM_CALLS:
[[handler, service, operation, parameters, error code, test], …].
"""

from __future__ import annotations

import functools
import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakSet

import boto3.resources.base
import botocore.client
import pytest
from botocore.exceptions import ClientError

from base import aws, settings
from tests.state_machine.simulator import code as simulator

HANDLERS = ("ingest", "settle", "validate", "start_job", "check_status", "notify")
CLIENTS = ("s3", "sagemaker", "stepfunctions", "sns", "sesv2", "events", "table")
KEPT_PARAMETERS = (
    *("Bucket", "Key", "Prefix", "CopySource", "TableName", "IndexName", "RoleArn", "TopicArn", "TrainingJobName"),
    *("ProcessingJobName", "stateMachineArn", "Tags", "FromEmailAddress", "Entries", "Delete"),
)
OWN_SENDER = "SENDER_EMAIL"  # in the place of the address that the function's environment names
# Methods of boto3 that are not operations of the service, by the operation that they make.
METHODS = {"Copy": "CopyObject", "Paginate": "ListObjectsV2"}
POSITIONS = {"Copy": ("CopySource", "Bucket", "Key")}
calls: dict[str, list[Any]] = {}
now: dict[str, Any] = {"handler": "", "test": "", "settings": settings}
of_functions: WeakSet[botocore.client.BaseClient] = WeakSet()  # a test may call AWS too while a handler runs
make_api_call = botocore.client.BaseClient._make_api_call


def by_evidence(test: str) -> tuple[bool, str]:
    """Order of tests in the page: one of a function says more than a run of the simulator."""
    return not test.startswith("test_functions_"), test


def record(service: str, operation: str, parameters: dict[str, Any], error: str = "") -> None:
    if not now["handler"]:
        return
    kept = {name: parameters[name] for name in KEPT_PARAMETERS if name in parameters}
    if "Entries" in kept:
        kept["Entries"] = sorted({entry["Source"] for entry in kept["Entries"]})
    if "FromEmailAddress" in kept and kept["FromEmailAddress"] == now["settings"].settings().sender_email:
        kept["FromEmailAddress"] = OWN_SENDER  # it differs from test to test
    if "Tags" in kept:
        kept["Tags"] = bool(kept["Tags"])
    if "Delete" in kept:
        kept["Delete"] = [item["Key"] for item in kept["Delete"]["Objects"]]
    entry = [now["handler"], service, operation, kept, error]
    key = json.dumps(entry, sort_keys=True, default=str)
    if key not in calls or by_evidence(now["test"]) < by_evidence(calls[key][-1]):
        calls[key] = [*entry, now["test"]]


def recorded_api_call(client: Any, operation: str, parameters: dict[str, Any]) -> Any:
    if client not in of_functions:
        return make_api_call(client, operation, parameters)
    service = client.meta.service_model.service_name
    try:
        answer = make_api_call(client, operation, parameters)
    except ClientError as error:
        record(service, operation, parameters, error.response["Error"]["Code"])
        raise
    record(service, operation, parameters)
    return answer


class StandIn:
    """What a test has put in the place of a client; its calls are recorded by the name of the client."""

    def __init__(self, service: str, target: Any) -> None:
        self._service, self._target = service, target

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if not callable(value):
            return value

        def call(*arguments: Any, **parameters: Any) -> Any:
            operation = "".join(part.capitalize() for part in name.split("_"))
            named = {**dict(zip(POSITIONS.get(operation, ()), arguments, strict=False)), **parameters}
            operation = METHODS.get(operation, operation)
            try:
                answer = value(*arguments, **parameters)
            except ClientError as error:
                record(self._service, operation, named, error.response["Error"]["Code"])
                raise
            except BaseException:  # the simulator cuts functions off; the call had been made
                record(self._service, operation, named)
                raise
            record(self._service, operation, named)
            return answer

        return (lambda *_: self) if name == "get_paginator" else call


def watched(name: str, maker: Callable[..., Any]) -> Callable[..., Any]:
    def made(*arguments: Any) -> Any:
        client = maker(*arguments)
        if isinstance(client, boto3.resources.base.ServiceResource):
            of_functions.add(client.meta.client)
        elif isinstance(client, botocore.client.BaseClient):
            of_functions.add(client)
        else:
            return StandIn(name, client)
        return client

    return made


def watched_handler(
    name: str, handler: Callable[..., Any], aws: ModuleType = aws, settings: ModuleType = settings
) -> Callable[..., Any]:
    @functools.wraps(handler)
    def call(event: Any, context: Any) -> Any:
        outer = now["handler"]
        now.update(handler=name, settings=settings)
        if outer:  # the simulator's engine calls the next function inside of the call that lets it go on
            try:
                return handler(event, context)
            finally:
                now["handler"] = outer
        makers = {client: getattr(aws, client) for client in CLIENTS}
        wrapped = {client: watched(client, maker) for client, maker in makers.items()}
        for client, maker in wrapped.items():
            setattr(aws, client, maker)
        try:
            return handler(event, context)
        finally:
            now["handler"] = ""
            for client, maker in makers.items():
                if getattr(aws, client) is wrapped[client]:  # a test may have replaced it meanwhile
                    setattr(aws, client, maker)

    return call


def watched_code(load: Callable[[Path], simulator.Code]) -> Callable[[Path], simulator.Code]:
    """The simulator imports the functions once more, for itself."""

    def loaded(root: Path) -> simulator.Code:
        code = load(root)
        for arn, function in code.functions.items():
            name = function.handler.partition(".")[0]
            modules = code.modules["base.aws"], code.modules["base.settings"]
            code.handlers[arn] = watched_handler(name, code.handlers[arn], *modules)
        return code

    return loaded


def pytest_sessionstart(session: pytest.Session) -> None:
    for name in HANDLERS:
        module = importlib.import_module(name)
        module.handler = watched_handler(name, module.handler)  # type: ignore[attr-defined]
    simulator._load = watched_code(simulator._load)
    botocore.client.BaseClient._make_api_call = recorded_api_call  # type: ignore[method-assign]


def pytest_runtest_setup(item: pytest.Item) -> None:
    now["test"] = f"{item.path.stem}::{item.name.partition('[')[0]}"


def pytest_sessionfinish(session: pytest.Session) -> None:
    Path(os.environ["SPACEPORT_IAM_CALLS"]).write_text(json.dumps(list(calls.values()), default=str))
