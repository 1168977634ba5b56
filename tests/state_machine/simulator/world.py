# Longer than 400 lines: one world holds everything that a schedule can disturb.
"""One run: the plan happens, the real code answers, and everything that can be seen from outside is kept."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from botocore.exceptions import ClientError

from base.stages import STAGES
from spaceport.asl.journal import MemoryJournal
from spaceport.asl.stepfunctions import ApiError, StepFunctions
from spaceport.asl.tasks import TaskError, TaskOk, TaskResult, wrap_lambda_result
from spaceport.base.clock import VirtualClock
from tests.state_machine.simulator import fakes
from tests.state_machine.simulator.code import Code, with_timeout
from tests.state_machine.simulator.plan import STAGE_OF, Act, Delivery, Fate, Fault, Plan

START = datetime(2026, 11, 12, 9, 0, tzinfo=UTC)
SCENE = "house"
JPEG = b"\xff\xd8\xff\xe0" + b"\0" * 60
ASYNC_RETRY_DELAYS_S = (60.0, 120.0)  # Lambda developer guide, "Error handling for asynchronous invocation"
SWEEP_S = 300.0
SWEEPS_OF_NOTHING = 3  # in a row; the next ones would find nothing either until a row is opened
LIMIT_S = 4 * 86_400.0
OUTPUTS: dict[str, tuple[str, ...]] = {stage.name: stage.writes for stage in STAGES}
REFUSED = {"mute": ("sns", "sesv2"), "deaf": ("events",)}  # kind of fault: services that refuse
STATUS_EVENT = "Step Functions Execution Status Change"


class CutOff(BaseException):
    """The function's process ends here; no handler of exceptions in it runs."""


@dataclass
class Call:
    """One invocation of a function that is going on."""

    where: str
    function: str
    started_at: float
    timeout_s: float
    fault: Fault | None
    calls: int = 0
    unmarked: Counter[tuple[str, str]] = field(default_factory=Counter)  # (message or event, job) sent and not marked


class Context:
    """What Lambda passes beside the event."""

    function_name = "function"
    memory_limit_in_mb = 512
    invoked_function_arn = "arn:aws:lambda:us-east-1:123456789012:function:function"
    aws_request_id = "52fdfc07-2182-154f-163f-5f0f9a621d72"


class Journal(MemoryJournal):
    """Tells of each state that is entered."""

    def __init__(self, world: World, execution_arn: str) -> None:
        super().__init__()
        self.world, self.execution_arn = world, execution_arn

    def append(self, record: dict[str, Any]) -> None:
        super().append(record)
        if record["type"] == "entered":
            self.world.entered(self.execution_arn, record["state"])


class World:
    """Run a plan with ``run()``; then look at the fields."""

    def __init__(self, code: Code, plan: Plan) -> None:
        self.code, self.plan = code, plan
        self.clock = VirtualClock(START)
        ids = itertools.count(1)
        self.engine = StepFunctions(
            self.clock, self, lambda arn: Journal(self, arn), lambda: f"id-{next(ids):04d}", self._status_changed
        )
        self.machine_arn = code.stack.state_machines[0].arn
        self.engine.create_state_machine(self.machine_arn, with_timeout(code.definition, plan.timeout_s))
        self.table = fakes.FakeTable(self.gate, "open-tasks", self._row_changed)
        self.s3 = fakes.FakeS3(self.gate, self._object_created, self.now)
        self.messages = fakes.FakeMessages(self.gate, self._told, self._announced)
        self.states = fakes.FakeStates(self.gate, self.engine)
        self.sagemaker = fakes.FakeSageMaker(self.gate, self.now, self._refusal, self._job_created, self._job_changed)
        self.calls: list[Call] = []
        self.counts: Counter[str] = Counter()
        self.most_calls: Counter[str] = Counter()  # by where: how many calls to AWS one invocation has made
        self.visits: Counter[tuple[str, str]] = Counter()
        self.log: list[str] = []
        self.causes: list[str] = []  # codes of fatal things that have struck
        self.violations: list[str] = []
        self.dropped: list[str] = []
        self.causes += plan.possible
        self.may_survive = bool(plan.possible)  # something struck that may or may not be fatal
        self.last_ends_s: dict[str, float] = {}  # job: the latest end that its row has had; a redriven job has several
        self.belongs: defaultdict[str, set[str]] = defaultdict(set)  # key of an object: jobs whose upload it is part of
        self.hit: list[object] = []  # parts of the plan that have struck
        self.deaf_since: float | None = None  # when the bus refused the first event
        self.aborted_in = ""  # the state in which the execution was when it was aborted
        self.timed_out_in = ""  # the state in which the execution was when its limit came
        self.delivered: list[tuple[str, str]] = []  # events of SageMaker jobs in the order in which they came
        self.unmarked: Counter[tuple[str, str]] = Counter()  # of calls that ended between sending and marking
        self.ended: dict[str, tuple[float, str]] = {}  # execution: (time, status)
        self.errors: dict[str, str] = {}
        self.aborted: set[str] = set()
        self.redrives = 0
        self.published: list[str] = []
        self.pending = 0
        self._ulids = itertools.count(1)
        self._idle = 0
        self._swept_nothing = 0
        self._names_taken: set[str] = set()
        self.current: dict[str, str] = {}  # state of each job's execution
        code.seam(
            now=self.now,
            new_ulid=lambda: f"01KD8E7J9Q3M5V8X2Z{next(self._ulids):08d}",
            s3=lambda: self.s3,
            sagemaker=lambda: self.sagemaker,
            stepfunctions=lambda: self.states,
            sns=lambda: self.messages,
            sesv2=lambda: self.messages,
            events=lambda: self.messages,
            table=lambda name: self.table,
        )

    def now(self) -> float:
        return self.clock.now().timestamp()

    def elapsed(self) -> float:
        return self.now() - START.timestamp()

    def note(self, text: str) -> None:
        self.log.append(f"{self.elapsed():9.1f} {text}")

    def run(self) -> World:
        with contextlib.redirect_stdout(io.StringIO()):  # metrics
            return self._run()

    def _run(self) -> World:
        self._upload()
        self.clock.call_later(SWEEP_S, self._sweep)
        while self.clock.run_next():
            if self.elapsed() > LIMIT_S:
                self.violations.append("does not come to rest within four days")
                break
        return self

    def started(self) -> list[str]:
        """ARNs of all executions."""
        return [item["executionArn"] for item in self.engine.list_executions(self.machine_arn)]

    def sweeps_back_at(self) -> float:
        """When the plan stops to suppress sweeps (seconds since 1970)."""
        return START.timestamp() + self.plan.lost_sweeps[1]

    # ---- the user

    def _upload(self) -> None:
        keys = [f"uploads/{SCENE}/IMG {index:03d}.jpg" for index in range(self.plan.photos)]
        files = [(key, JPEG) for key in keys]
        if self.plan.options is not None:
            files.insert(0 if self.plan.options_first else len(files), (f"uploads/{SCENE}/job.json", self.plan.options))
        for index, (key, body) in enumerate(files):
            self.clock.call_later(index * self.plan.photo_gap_s, lambda key=key, body=body: self.s3.put(key, body))  # type: ignore[misc]

    def entered(self, execution: str, state: str) -> None:
        visit = self.visits[execution, state]
        self.visits[execution, state] += 1
        self.current[execution.rpartition(":")[2]] = state
        self.note(f"state {state}")
        for act in self.plan.acts:
            if (act.state, act.visit) == (state, visit) and execution == self.started()[-1]:  # the first one
                self.clock.call_later(act.delay_s, lambda act=act: self._act(act, execution))  # type: ignore[misc]

    def _act(self, act: Act, execution: str) -> None:
        self.note(f"act {act.kind}")
        if act.kind == "abort":
            if self.engine.describe_execution(execution)["status"] != "RUNNING":
                return
            self.aborted.add(execution)
            self.aborted_in = self.aborted_in or self.current[execution.rpartition(":")[2]]
            self.engine.stop_execution(execution)
        elif act.kind == "redrive":
            if self.engine.describe_execution(execution)["redriveStatus"] != "REDRIVABLE":
                return
            self.redrives += 1
            self.engine.redrive_execution(execution)
        elif act.kind in ("send_failure", "send_success"):
            if not self._answer_token(act, execution.rpartition(":")[2]):
                return
        elif act.kind == "upload":
            self.s3.put(f"uploads/{SCENE}/later {act.values.get('n', 0)}.jpg", JPEG)
        elif act.kind == "old_object":
            self.emit("aws.s3", "Object Created", self._object_detail(self._first_key()), Delivery(), START)
        else:
            raise ValueError(f"unknown act {act.kind}")
        self.hit.append(act)

    def _answer_token(self, act: Act, job_id: str) -> bool:
        """Somebody answers the token of the job's running stage; False when nobody waits for it any more."""
        tasks = [row for row in self.table.rows.values() if "task_token" in row and "open" in row]
        tokens = [row["task_token"] for row in tasks if row["job_id"] == job_id]
        for token in tokens[-1:]:
            try:
                if act.kind == "send_failure":
                    self.engine.send_task_failure(token, act.values.get("error"), act.values.get("cause"))
                else:
                    self.engine.send_task_success(token, act.values["output"])
            except ApiError:
                return False
            self.causes += [act.code] if act.code else []
        return bool(tokens)

    # ---- events

    def emit(
        self, source: str, detail_type: str, detail: dict[str, Any], delivery: Delivery, at: datetime | None = None
    ) -> None:
        """An event of now, or of ``at``; its time has whole seconds, as EventBridge gives it."""
        time = (at or datetime.fromtimestamp(self.now(), UTC)).strftime("%Y-%m-%dT%H:%M:%SZ")
        event: dict[str, Any] = {"version": "0", "id": "1", "source": source, "detail-type": detail_type, "time": time}
        event |= {"account": "123456789012", "region": "us-east-1", "resources": [], "detail": detail}
        for pattern, function, name in self.code.rules:
            if pattern is not None and pattern.matches(event):
                for delay_s in delivery.delays_s:
                    self._later(delay_s, lambda function=function, name=name: self._deliver(function, name, event))  # type: ignore[misc]

    def _later(self, delay_s: float, act: Callable[[], None]) -> None:
        """As the clock's call_later, but counted: the run is not over before it has happened."""
        self.pending += 1

        def fire() -> None:
            self.pending -= 1
            act()

        self.clock.call_later(delay_s, fire)

    def _delivery(self, *kinds: str) -> Delivery:
        """Of an event that is of all ``kinds``: what the plan has for the last of them counts."""
        found = Delivery()
        for kind in kinds:
            number = self.counts["event " + kind]
            self.counts["event " + kind] += 1
            found = self.plan.deliveries.get((kind, number), found)
        self.hit.append(found)
        return found

    def _object_created(self, key: str) -> None:
        if key.startswith("results/"):
            self.published.append(key)
        if key.startswith("uploads/"):
            self.emit("aws.s3", "Object Created", self._object_detail(key), self._delivery("object"))

    def _object_detail(self, key: str) -> dict[str, Any]:
        return {"bucket": {"name": self.code.stack.buckets[0].name}, "object": {"key": key}}

    def _first_key(self) -> str:
        return min(key for key in self.s3.objects if key.startswith(f"uploads/{SCENE}/IMG"))

    def _status_changed(self, detail: dict[str, Any]) -> None:
        if detail["status"] != "RUNNING":
            self.ended[detail["executionArn"]] = (self.now(), detail["status"])
            self.errors[detail["executionArn"]] = str(detail.get("error") or "")
            self.note(f"execution {detail['status']} {detail.get('error')}: {str(detail.get('cause'))[:200]}")
            if detail["status"] == "TIMED_OUT":
                self.timed_out_in = self.current[detail["name"]]
                self.causes.append("EXECUTION_TIMED_OUT")
            if detail.get("error") == "States.DataLimitExceeded":
                self.causes.append("INTERNAL_ERROR")
            elif str(detail.get("error")).startswith("States."):
                self.violations.append(f"the state machine itself failed: {detail['error']} {detail.get('cause')}")
            self.emit("aws.states", STATUS_EVENT, detail, self._delivery("status"))

    def _deliver(self, function: str, name: str, event: dict[str, Any], attempt: int = 0) -> None:
        """Lambda's asynchronous invocation: two more tries, then the dead-letter queue."""
        if event["source"] == "aws.sagemaker":
            kind = "Training" if "TrainingJobName" in event["detail"] else "Processing"
            self.delivered.append((event["detail"][f"{kind}JobName"], event["detail"][f"{kind}JobStatus"]))
        answer = self.call(function, name, event)
        if "error" not in answer:
            if event["source"] == "aws.s3":
                self.belongs[event["detail"]["object"]["key"]].add(answer["payload"].get("job_id", ""))
            return
        if attempt < self.code.functions[function].async_retries:
            self._later(ASYNC_RETRY_DELAYS_S[attempt], lambda: self._deliver(function, name, event, attempt + 1))
        else:
            self.dropped.append(f"{name}: {answer['error']['errorType']}")
            self.note(f"dropped {name}: {answer['error']}")

    def _sweep(self) -> None:
        lost_from, lost_to = self.plan.lost_sweeps
        is_open = any("open" in row for row in self.table.rows.values())
        if lost_from <= self.elapsed() < lost_to:
            self.hit.append(self.plan.lost_sweeps)
        elif is_open or self._swept_nothing < SWEEPS_OF_NOTHING:
            self._swept_nothing = 0 if is_open else self._swept_nothing + 1
            event = {"source": "aws.events", "detail-type": "Scheduled Event", "detail": {}, "version": "0"}
            for pattern, function, name in self.code.rules:
                if pattern is None:
                    self._deliver(function, name, event)
        quiet = not self.pending and not self.calls and self.clock.next_due() is None
        lost = lost_from <= self.elapsed() < lost_to
        self._idle = self._idle + 1 if quiet and not lost else 0
        # A job is closed when no call of its last state can be running any more, a quarter of an hour after its end.
        is_open = any("open" in row for row in self.table.rows.values())
        if self._idle < (9 if is_open else 3):
            self.clock.call_later(SWEEP_S, self._sweep)

    # ---- functions

    def gate(self, service: str, operation: str) -> Callable[[], None]:
        """Before each AWS call of a function: what the plan has for it; returns what happens after the effect."""
        if not self.calls:
            return _nothing
        call = self.calls[-1]
        call.calls += 1
        fault = call.fault
        refusing = fault if fault is not None and fault.kind == "mute" else self._deaf()
        if refusing is not None and service in REFUSED[refusing.kind]:
            self.hit.append(refusing)
            if refusing.kind == "deaf" and self.deaf_since is None:
                self.deaf_since = self.now()
            raise fakes.client_error("AuthorizationError", "not now", operation, 403)
        if fault is not None and fault.kind == "early" and operation == "PutItem":
            self._early_event(fault, call)
        if fault is None or fault.at != call.calls or fault.kind not in ("crash", "service", "pause"):
            return _nothing
        self.hit.append(fault)
        self.note(f"  {fault.kind} at {call.calls}: {service} {operation}")
        if fault.kind == "service":
            raise fakes.client_error(fault.name, "the service said so", operation, 503)
        if fault.kind == "pause":
            self.clock.advance(fault.seconds)
            if self.now() - call.started_at > call.timeout_s:
                raise CutOff
            return _nothing
        if not fault.after:
            raise CutOff
        return _cut_off

    def _deaf(self) -> Fault | None:
        """The plan's fault of the bus, while it lasts."""
        fault = next((fault for fault in self.plan.faults if fault.kind == "deaf"), None)
        lasted_s = 0.0 if self.deaf_since is None else self.now() - self.deaf_since
        return fault if fault is not None and lasted_s < fault.seconds else None

    def _early_event(self, fault: Fault, call: Call) -> None:
        """An event of the job that this call is about to create arrives before its token is in the table."""
        self.hit.append(fault)
        stage = STAGE_OF[call.where]
        kind = "Training" if stage == "train" else "Processing"
        ulid = self.started()[-1].rpartition("-")[2].lower()  # of the first execution
        name = f"{self.code.modules['base.settings'].settings().job_prefix}-{ulid}-{stage}-0"
        detail = {f"{kind}JobName": name, f"{kind}JobStatus": "InProgress"}
        self.emit("aws.sagemaker", f"SageMaker {kind} Job State Change", detail, Delivery((0.0,)))
        self.clock.advance(0)

    def call(self, function: str, where: str, event: Any) -> dict[str, Any]:
        """{"payload"} or {"error": {errorType, errorMessage}} of one invocation."""
        number = self.counts[where]
        self.counts[where] += 1
        fault = next((f for f in self.plan.faults if f.where == where and 0 <= number - f.first < f.count), None)
        if fault is not None:
            self.note(f"fault {where} #{number}: {fault.kind} {fault.name}")
            if fault.kind in ("error", "answer", "silence") or fault.at == 0:
                self.hit.append(fault)
            if fault.code:
                self.causes.append(fault.code)
            if fault.kind == "error":
                return _error(fault.name, fault.value or "the call failed")
        call = Call(where, function, self.now(), self.code.functions[function].timeout_s, fault)
        self.calls.append(call)
        try:
            payload = self.code.handlers[function](json.loads(json.dumps(event)), Context)
            payload = json.loads(json.dumps(payload))
            if fault is not None and fault.kind == "crash" and fault.at == 0:
                raise CutOff
        except CutOff:
            self.unmarked.update(call.unmarked)
            name = fault.name if fault and fault.name else "Sandbox.Timedout"
            return _error(name, f"RequestId: 1 Error: Task timed out after {call.timeout_s:.2f} seconds")
        except Exception as error:  # noqa: BLE001 - as Lambda's runtime does
            self.unmarked.update(call.unmarked)
            self._check_exception(error, where)
            self.note(f"  {where} raised {type(error).__name__}: {error}")
            return _error(type(error).__name__, str(error))
        finally:
            self.calls.remove(call)
            self.most_calls[where] = max(self.most_calls[where], call.calls)
        if fault is not None and fault.kind == "answer":
            payload = fault.value
        self.note(f"  {where} -> {json.dumps(payload)[:160]}")
        return {"payload": payload}

    def _told(self, text: str) -> None:
        """A message goes out: it says what the row of its job says."""
        for pk, row in self.table.rows.items():
            job_id = pk.removeprefix("JOB#")
            if job_id != pk and job_id in text:
                self.calls[-1].unmarked["message", job_id] += 1
                if not fits(row, job_id, text):
                    self.violations.append(f"{job_id}: a message does not say what the row says: {row.get('status')}")

    def _announced(self, entry: dict[str, Any]) -> None:
        self.calls[-1].unmarked["event", json.loads(entry["Detail"])["job_id"]] += 1

    def _row_changed(self, pk: str, expression: str) -> None:
        """The marks after which nothing may be sent again, whatever becomes of the call; and each end of a job."""
        ended_at = self.table.rows[pk].get("ended_at")
        if ended_at is not None:
            ended_s = datetime.fromisoformat(ended_at).timestamp()
            self.last_ends_s[pk[4:]] = max(ended_s, self.last_ends_s.get(pk[4:], 0.0))
        for name, mark in (("message", "SET message_sent_at"), ("event", "SET announced_at")):
            if mark in expression and self.calls:
                self.calls[-1].unmarked.pop((name, pk.removeprefix("JOB#")), None)

    def _check_exception(self, error: Exception, where: str) -> None:
        """Functions raise what they mean to: their own failures, and errors of services; sweeps those of all rows."""
        own = self.code.modules["base.failures"].JobFailure
        causes = error.__cause__.exceptions if isinstance(error.__cause__, ExceptionGroup) else [error]
        for cause in causes:
            if not isinstance(cause, own | ClientError | RuntimeError):
                self.violations.append(f"{where} raised {type(cause).__name__}: {cause}")

    # ---- task states

    def invoke(self, resource: str, payload: Any, on_done: Callable[[TaskResult], None], timeout_s: float) -> None:
        """The interpreter's Tasks protocol."""
        state = self._state(payload)
        if resource.startswith("arn:aws:states:::dynamodb:"):
            self._record_failure(state, payload, on_done)
            return
        callback = resource == "arn:aws:states:::lambda:invoke"
        function = payload["FunctionName"] if callback else resource
        answer = self.call(function, state, payload["Payload"] if callback else payload)
        fault = self._last_fault(state)
        if fault is not None and fault.kind == "silence":
            # That the stage could not be started stays unheard, until its heartbeat is missed.
            self.causes += ["STAGE_LOST"] if state in STAGE_OF and "error" in answer else []
            return
        if "error" in answer:
            on_done(TaskError(answer["error"]["errorType"], json.dumps(answer["error"])))
        else:
            on_done(TaskOk(wrap_lambda_result(answer["payload"]) if callback else answer["payload"]))

    def _state(self, payload: Any) -> str:
        """The state whose task is being started, by the job that its payload is about."""
        data = payload.get("Payload", payload)
        job_id = data["Key"]["pk"]["S"][4:] if "Key" in data else data.get("job_id") or data["state"]["job_id"]
        return self.current[job_id]

    def _last_fault(self, state: str) -> Fault | None:
        number = self.counts[state] - 1
        return next((f for f in self.plan.faults if f.where == state and 0 <= number - f.first < f.count), None)

    def _record_failure(self, state: str, payload: Any, on_done: Callable[[TaskResult], None]) -> None:
        self.counts[state] += 1
        fault = self._last_fault(state)
        if fault is not None:
            self.note(f"fault {state}: {fault.kind} {fault.name}")
            self.hit.append(fault)
            if fault.kind == "silence":
                return
            on_done(TaskError(fault.name, "the service said so"))
            return
        try:
            self.table.call_typed(payload)
        except ClientError as error:
            on_done(TaskError(f"DynamoDB.{error.response['Error']['Code']}", error.response["Error"]["Message"]))
        else:
            on_done(TaskOk({}))

    # ---- SageMaker

    def _fate(self, name: str) -> Fate:
        stage, attempt = name.split("-")[-2:]
        fate = self.plan.fates.get((stage, int(attempt)))
        self.hit.append(fate)
        return fate or Fate()

    def _refusal(self, name: str) -> ClientError | None:
        self._check_token(name)
        fate = self._fate(name)
        if fate.refusal is not None:
            self.note(f"  refused {name}: {fate.refusal[0]}")
            self.causes += [fate.code] if fate.code else []
            return fakes.client_error(*fate.refusal, "CreateJob")
        if fate.name_taken and name not in self._names_taken:
            self._names_taken.add(name)
            kind = "Training" if "-train-" in name else "Processing"
            self.sagemaker.add(kind, name, {"StoppingCondition": {"MaxRuntimeInSeconds": 60}})
            job = self.sagemaker.jobs[name]
            job["CreationTime"] = datetime.fromtimestamp(self.now() - 30 * 86400, UTC)
            job[f"{kind}JobStatus"] = "Completed"
        return None

    def _check_token(self, name: str) -> None:
        row = self.table.rows.get(f"TASK#{name}")
        if row is None or "open" not in row:
            self.violations.append(f"{name} is created without an open task in the table")

    def _job_created(self, kind: str, name: str) -> None:
        fate = self._fate(name)
        self.note(f"  created {name}")
        self._job_changed(kind, name)
        if fate.interrupted_s:
            self._later(fate.interrupted_s, lambda: self._interrupt(name))
        self._later(fate.seconds, lambda: self._finish(name, fate))

    def _interrupt(self, name: str) -> None:
        if self.sagemaker.status(name) == "InProgress":
            self.sagemaker.change(name, "InProgress", SecondaryStatus="Interrupted")
            self.sagemaker.change(name, "InProgress", SecondaryStatus="Restarting")

    def _finish(self, name: str, fate: Fate) -> None:
        if self.sagemaker.status(name) != "InProgress":
            return
        self.causes += [fate.code] if fate.code and self._is_awaited(name) else []
        if fate.status == "Completed" and fate.files:
            self._write_outputs(name)
        kind = self.sagemaker.kind(name)
        secondary = {"SecondaryStatus": fate.status} if kind == "Training" else {}
        self.sagemaker.change(name, fate.status, **{**secondary, **fate.more})

    def _is_awaited(self, name: str) -> bool:
        return "open" in self.table.rows.get(f"TASK#{name}", {})

    def _write_outputs(self, name: str) -> None:
        stage, request = name.split("-")[-2], self.sagemaker.requests[name]
        if stage == "train":
            base = f"{request['OutputDataConfig']['S3OutputPath']}{name}/output/model/"
        else:
            base = request["ProcessingOutputConfig"]["Outputs"][0]["S3Output"]["S3Uri"]
        prefix = base.split("/", 3)[3]
        for file in OUTPUTS[stage]:
            self.s3.put(f"{prefix.rstrip('/')}/{file}", b"{}")

    def _job_changed(self, kind: str, name: str) -> None:
        status = self.sagemaker.status(name)
        self.note(f"  job {name} {status}")
        if status == "Stopping":
            self._later(30, lambda: self.sagemaker.change(name, "Stopped"))
        self._emit_job(kind, name, self._delivery("job", f"{name.split('-')[-2]} {status}"))

    def _emit_job(self, kind: str, name: str, delivery: Delivery) -> None:
        detail = {key: self.sagemaker.jobs[name][key] for key in (f"{kind}JobName", f"{kind}JobStatus")}
        self.emit("aws.sagemaker", f"SageMaker {kind} Job State Change", detail, delivery)


def fits(row: dict[str, Any], job_id: str, text: str) -> bool:
    """Whether a message says what the row says: the link to the page, or the code of the failure."""
    if row.get("status") == "SUCCEEDED":
        return f"/{job_id}/index.html" in text
    return f"({(row.get('failure') or {}).get('code')})" in text


def _nothing() -> None:
    """After a call that nothing happens to."""


def _cut_off() -> None:
    raise CutOff


def _error(name: str, message: str) -> dict[str, Any]:
    return {"error": {"errorType": name, "errorMessage": message, "stackTrace": []}}
