"""The stack of template.yaml on one machine: deploys it, and connects what AWS connects.

``LocalCloud(work_dir, ...)`` keeps everything below ``work_dir`` and can go on there after any kind of end.
``LocalCloud(None, ...)`` keeps nothing: functions run in this process, and with a virtual clock and a stand-in for the
jobs a whole day passes in milliseconds.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import botocore.exceptions

from spaceport.asl.api import StatesApi
from spaceport.asl.journal import FileJournal, Journal, MemoryJournal
from spaceport.asl.stepfunctions import StepFunctions
from spaceport.asl.tasks import TaskError, TaskOk, TaskResult, wrap_lambda_result
from spaceport.asl.watched import WatchedJournal
from spaceport.aws.endpoint import (
    IN_PROCESS_URL,
    AwsApplication,
    HttpServer,
    JsonService,
    in_process_session,
    use_in_process,
)
from spaceport.aws.eventbridge import EventBus
from spaceport.aws.lambdas import InProcessLambdas, LambdaProcesses, LambdaResult, Lambdas, invoke_async
from spaceport.aws.mail import Outbox
from spaceport.aws.storage import Storage
from spaceport.base.clock import Clock
from spaceport.base.durable import sync_folder
from spaceport.jobs.runner import ProcessRunner, Runner
from spaceport.jobs.sagemaker import SageMaker, in_thread
from spaceport.stack.root import CONTAINERS, TEMPLATE
from spaceport.stack.template import ACCOUNT_ID, REGION, Function, Stack, Target, load_stack

LAMBDA_INVOKE = "arn:aws:states:::lambda:invoke"
OPTIMIZED = {"dynamodb": "DynamoDB", "sns": "SNS", "events": "EventBridge"}  # service: prefix of its error names
Listener = Callable[[dict[str, Any]], None]


@dataclass(eq=False)
class LocalCloud:
    """The deployed ``template`` with ``parameters``. Use as a context manager; one at a time in a process.

    ``listener`` gets dicts with ``type`` and ``time`` (seconds since 1970) from any thread: state_entered,
    state_resumed (entered under an earlier engine) and state_exited (state, execution, the latter with failed),
    task_started (state, execution) for each try, retry_waited_for (state, execution, error, wait_s), progress
    (state, job_name and the fields of progress.json), mail (to, path), log (text), execution_ended (execution,
    status). ``runner`` replaces the processes of the jobs. ``take_over`` continues what an earlier engine left in
    ``work_dir``; nothing happens before the clock runs. ``on_load`` see InProcessLambdas. ``schedule_period_s`` is for
    tests on the real clock: every schedule of the template then runs that often (seconds), so that a sweep need not be
    waited for five minutes.
    """

    work_dir: Path | None
    parameters: dict[str, str]
    clock: Clock
    listener: Listener = lambda event: None
    _: KW_ONLY
    template: Path = TEMPLATE
    runner: Runner | None = None
    jobs_dir: Path | None = None
    mail_dir: Path | None = None
    duplicate_events: bool = False
    schedule_period_s: float | None = None
    ids: Callable[[], str] = lambda: str(uuid.uuid4())
    on_load: Callable[[Function, dict[str, ModuleType]], None] | None = None
    take_over: bool = False

    def __post_init__(self) -> None:
        self._sequence = itertools.count()
        self._closers = contextlib.ExitStack()
        self._pending = 0
        self._idle = threading.Condition()
        self.stack: Stack = load_stack(self.template, self.parameters)
        self.bucket = self.stack.buckets[0].name
        self.machine_arn = self.stack.state_machines[0].arn
        self._stage_states = dict(_stage_states(self.stack.state_machines[0].definition))
        try:
            self._start()
        except BaseException:
            self._closers.close()
            raise

    def _start(self) -> None:
        work = self.work_dir
        if work:
            for name in ("rows", "executions", "sagemaker"):
                (work / name).mkdir(parents=True, exist_ok=True)
            sync_folder(work)
            sync_folder(work.parent)
        self.storage = Storage(work, ACCOUNT_ID, REGION)
        self._closers.callback(self.storage.close)
        self.outbox = Outbox(self.mail_dir, self.stack.topics, self.clock, self._on_mail)
        self.bus = EventBus(
            self.clock,
            self.stack.rules,
            self._deliver,
            self.ids,
            ACCOUNT_ID,
            REGION,
            self.duplicate_events,
            self.schedule_period_s,
        )
        self._closers.callback(self.bus.close)
        self.sagemaker = SageMaker(
            self.clock,
            self.storage,
            self.runner or ProcessRunner(CONTAINERS),
            self.bus.put,
            jobs_dir=(self.jobs_dir or work / "jobs") if work else None,
            records_dir=work / "sagemaker" if work else None,
            logs=self._folder("logs"),
            on_progress=self._on_progress,
            background=in_thread if work else _at_once,
        )
        self._closers.callback(self.sagemaker.close)
        self.step_functions = StepFunctions(
            self.clock, self, self._journal, self.ids, on_status_change=self._on_status_change
        )
        services: dict[str, JsonService] = {
            "SageMaker": self.sagemaker,
            "AWSEvents": self.bus,
            "AWSStepFunctions": StatesApi(self.step_functions),
        }
        self.application = AwsApplication(self.storage, services, self.outbox)
        self.application.on_fault = lambda text: self.notify("log", text=f"a service failed: {text}", fault=True)
        use_in_process(self.application)
        self._closers.callback(use_in_process, None)
        self._deploy()
        self.lambdas: Lambdas = self._start_lambdas()
        self._closers.callback(self.lambdas.close)
        self.storage.on_created = self._on_object_created
        self.bus.start_schedules()
        if self.take_over:
            self._take_over()

    def _folder(self, name: str) -> Path | None:
        if self.work_dir is None:
            return None
        folder = self.work_dir / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _deploy(self) -> None:
        for bucket in self.stack.buckets:
            self.storage.create_bucket(bucket.name)
        for table in self.stack.tables:
            self.client("dynamodb").create_table(**table.properties)
        for topic in self.stack.topics:
            self.client("sns").create_topic(Name=topic.name)
        for machine in self.stack.state_machines:
            for resource in _task_resources(machine.definition):
                self._check_resource(resource)
            self.step_functions.create_state_machine(machine.arn, machine.definition, machine.role_arn)
        if self.take_over:
            self.storage.load()

    def _start_lambdas(self) -> Lambdas:
        if self.work_dir is None:
            return InProcessLambdas(self.stack, IN_PROCESS_URL, in_process_session(), self.on_load)
        server = HttpServer(self.application)
        self._closers.callback(server.close)
        processes = LambdaProcesses(self.stack, server.url, self._folder("logs"))
        processes.warm()
        return processes

    def __enter__(self) -> LocalCloud:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End processes and server. What a work_dir holds stays, for a later engine to take over."""
        self._closers.close()

    def client(self, service: str) -> Any:
        """A boto3 client of the local endpoint."""
        return in_process_session().client(  # type: ignore[call-overload]
            service,
            endpoint_url=IN_PROCESS_URL,
            aws_access_key_id="local",
            aws_secret_access_key="local",
        )

    def row(self, pk: str) -> dict[str, Any] | None:
        """An item of the job table as plain values, or None."""
        from boto3.dynamodb.types import TypeDeserializer

        name = self.stack.tables[0].name
        item = self.client("dynamodb").get_item(TableName=name, Key={"pk": {"S": pk}}, ConsistentRead=True).get("Item")
        return {key: TypeDeserializer().deserialize(value) for key, value in item.items()} if item else None

    # Going on

    def _take_over(self) -> None:
        assert self.work_dir is not None
        for file in sorted((self.work_dir / "executions").glob("*.jsonl")):
            journal = self._watched(FileJournal(file))
            if not journal.read():
                continue  # ended before its first record: nobody was told of this execution, it will be started again
            arn = self.step_functions.resume(journal)
            if self.step_functions.describe_execution(arn)["status"] == "RUNNING":
                self.step_functions.renew_limits(arn)
                journal.tell_where_it_is(self.clock.now().timestamp())
        self.sagemaker.resume()

    def _journal(self, execution_arn: str) -> WatchedJournal:
        if self.work_dir is None:
            return self._watched(MemoryJournal())
        return self._watched(FileJournal(self.work_dir / "executions" / f"{execution_arn.rpartition(':')[2]}.jsonl"))

    def _watched(self, journal: Journal) -> WatchedJournal:
        return WatchedJournal(journal, self.storage.sync, self.notify)

    # What AWS connects

    def notify(self, type: str, **fields: Any) -> None:
        """Tell the listener."""
        self.listener({"type": type, "time": self.clock.now().timestamp(), **fields})

    def _on_object_created(self, bucket: str, key: str, reason: str) -> None:
        """S3 to EventBridge (S3 user guide, "EventBridge event message structure")."""
        if not any(b.name == bucket and b.eventbridge for b in self.stack.buckets):
            return
        now_ns = int(self.clock.now().timestamp() * 1e9)
        detail = {
            "version": "0",
            "bucket": {"name": bucket},
            "object": {
                "key": key,
                **self.storage.describe(bucket, key),
                "sequencer": f"{now_ns:016X}{next(self._sequence):06X}",
            },
            "request-id": self.ids(),
            "requester": ACCOUNT_ID,
            "source-ip-address": "127.0.0.1",
            "reason": reason,
        }
        self.bus.put("aws.s3", "Object Created", detail, [f"arn:aws:s3:::{bucket}"])

    def _on_status_change(self, detail: dict[str, Any]) -> None:
        name = "Step Functions Execution Status Change"
        self.bus.put("aws.states", name, detail, [detail["executionArn"]])
        if detail["status"] != "RUNNING":
            self.notify("execution_ended", execution=detail["executionArn"], status=detail["status"])

    def _on_mail(self, to: str, path: Path | None) -> None:
        self.notify("mail", to=to, path=path)

    def _on_progress(self, job_name: str, progress: dict[str, Any]) -> None:
        if "warning" in progress:
            self.notify("log", text=progress["warning"])
            return
        state = self._stage_states.get(str(progress.get("stage")))
        self.notify("progress", state=state, job_name=job_name, **progress)

    def _deliver(self, target: Target, event: Any) -> None:
        """EventBridge to Lambda: an asynchronous invocation."""
        self._count(1)
        counted = _Counted(self.lambdas, lambda: self._count(-1))
        invoke_async(counted, self.clock, self.stack.function_by_arn(target.function_arn), event, self._on_dropped)

    def _on_dropped(self, function: Function, result: LambdaResult) -> None:
        error = result.error or {}
        self.notify(
            "log",
            text=f"{function.name} gave up an event: {error.get('errorType')}: {error.get('errorMessage')}",
            fault=True,
        )

    def _count(self, change: int) -> None:
        with self._idle:
            self._pending += change
            self._idle.notify_all()

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait until no delivered event is being handled any more; False when it takes longer."""
        with self._idle:
            return self._idle.wait_for(lambda: self._pending <= 0, timeout_s)

    # Task states

    def invoke(self, resource: str, payload: Any, on_done: Callable[[TaskResult], None], timeout_s: float) -> None:
        """Do the work of a Task state (the interpreter's Tasks protocol)."""
        if resource == LAMBDA_INVOKE:
            function = self.stack.function_by_arn(payload["FunctionName"])
            self._call(function, payload.get("Payload", {}), on_done, wrap_lambda_result)
        elif ":lambda:" in resource:
            self._call(self.stack.function_by_arn(resource), payload, on_done, lambda answer: answer)
        else:
            on_done(self._call_service(resource, payload))

    def _call(
        self, function: Function, event: Any, on_done: Callable[[TaskResult], None], wrap: Callable[[Any], Any]
    ) -> None:
        def done(result: LambdaResult) -> None:
            if result.error is None:
                on_done(TaskOk(wrap(result.payload)))
            else:
                on_done(TaskError(result.error["errorType"], json.dumps(result.error)))

        self.lambdas.invoke(function, event, done)

    def _call_service(self, resource: str, payload: Any) -> TaskResult:
        """An optimized integration such as arn:aws:states:::dynamodb:updateItem."""
        service, operation = resource.removeprefix("arn:aws:states:::").split(":")
        method = "".join(f"_{c.lower()}" if c.isupper() else c for c in operation)
        try:
            answer = getattr(self.client(service), method)(**payload)
        except botocore.exceptions.ClientError as error:
            name = f"{OPTIMIZED[service]}.{error.response['Error']['Code']}"
            return TaskError(name, error.response["Error"].get("Message", ""))
        except botocore.exceptions.ParamValidationError as error:
            return TaskError("States.Runtime", str(error))
        answer.pop("ResponseMetadata", None)
        return TaskOk(json.loads(json.dumps(answer, default=str)))

    def _check_resource(self, resource: str) -> None:
        """Refuse a definition that names work nobody here can do; raises KeyError or ValueError."""
        plain = resource.removesuffix(".waitForTaskToken")
        if plain == LAMBDA_INVOKE:
            return
        if plain.startswith("arn:aws:states:::"):
            if plain.removeprefix("arn:aws:states:::").split(":")[0] not in OPTIMIZED:
                raise ValueError(f"the state machine uses {resource}, which is not played locally")
            return
        self.stack.function_by_arn(plain)


class _Counted:
    """Lambdas that say when a call is over."""

    def __init__(self, lambdas: Lambdas, after: Callable[[], None]) -> None:
        self.lambdas = lambdas
        self.after: Callable[[], None] | None = after

    def invoke(self, function: Function, event: Any, on_done: Callable[[LambdaResult], None]) -> None:
        def done(result: LambdaResult) -> None:
            on_done(result)
            after, self.after = self.after, None
            if after:
                after()

        self.lambdas.invoke(function, event, done)

    def close(self) -> None:
        """The engine closes the real ones."""


def _at_once(work: Callable[[], None]) -> None:
    work()


def _stage_states(definition: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(stage, name of the state that runs it), from the payload of each state."""
    for name, state in definition["States"].items():
        payload = state.get("Parameters", {}).get("Payload", {})
        if isinstance(payload, dict) and "stage" in payload:
            yield payload["stage"], name


def _task_resources(definition: dict[str, Any]) -> Iterator[str]:
    for state in definition["States"].values():
        if state["Type"] == "Task":
            yield state["Resource"]
        for branch in [*state.get("Branches", []), *([state["ItemProcessor"]] if "ItemProcessor" in state else [])]:
            yield from _task_resources(branch)
