"""Loading a definition: everything is compiled once; what is wrong or not implemented is refused with its place."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from spaceport.asl.choice import compile_rule, parse_timestamp
from spaceport.asl.errors import ALL, RUNTIME
from spaceport.asl.intrinsics import Expression
from spaceport.asl.model import (
    MAX_SECONDS,
    Branch,
    Catcher,
    DefinitionError,
    Machine,
    Problem,
    Retrier,
    State,
)
from spaceport.asl.paths import Path, compile_path, compile_reference_path
from spaceport.asl.templates import (
    compile_expression,
    compile_template,
    context_paths_in,
    template_uses_random,
)

MAX_DEFINITION_BYTES = 1_048_576
MAX_NAME_CHARACTERS = 80
MAX_DELAY_SECONDS = 31_622_400
WAIT_FOR_TASK_TOKEN = ".waitForTaskToken"
ARN = re.compile(
    r"arn:aws[a-z-]*:(states:[a-z0-9-]*:\d*:[A-Za-z0-9:_-]+|lambda:[a-z0-9-]+:\d{12}:function:[A-Za-z0-9:$_-]+)"
)
SUBSTITUTION = re.compile(r"\$\{[A-Za-z0-9.:]+\}")
FAIL_INTRINSICS = "States.(Format|JsonToString|ArrayGetItem|Base64Encode|Base64Decode|Hash|UUID)"

COMMON = {"Type", "Comment", "QueryLanguage"}
IN_OUT = {"InputPath", "OutputPath"}
TRANSITION = {"Next", "End"}
RESULT = {"ResultPath", "ResultSelector", "Parameters"}
ERRORS = {"Retry", "Catch"}
TASK_FIELDS = {"Resource", "TimeoutSeconds", "TimeoutSecondsPath", "HeartbeatSeconds", "HeartbeatSecondsPath"}
MAP_FIELDS = {"ItemsPath", "ItemSelector", "ItemProcessor", "Iterator", "MaxConcurrency", "MaxConcurrencyPath"}
FIELDS: dict[str, set[str]] = {
    "Task": COMMON | IN_OUT | TRANSITION | RESULT | ERRORS | TASK_FIELDS,
    "Pass": COMMON | IN_OUT | TRANSITION | {"Result", "ResultPath", "Parameters"},
    "Wait": COMMON | IN_OUT | TRANSITION | {"Seconds", "SecondsPath", "Timestamp", "TimestampPath"},
    "Choice": COMMON | IN_OUT | {"Choices", "Default"},
    "Succeed": COMMON | IN_OUT,
    "Fail": COMMON | {"Error", "Cause", "ErrorPath", "CausePath"},
    "Parallel": COMMON | IN_OUT | TRANSITION | RESULT | ERRORS | {"Branches"},
    "Map": COMMON | IN_OUT | TRANSITION | RESULT | ERRORS | MAP_FIELDS,
}
MACHINE_FIELDS = {"Comment", "StartAt", "States", "TimeoutSeconds", "Version", "QueryLanguage"}
BRANCH_FIELDS = {"Comment", "StartAt", "States", "QueryLanguage"}


def load(definition: dict[str, Any], has_random: bool = True) -> Machine:
    """Compile ``definition``. Raises DefinitionError with every problem.

    ``has_random``: whether the interpreter was given random numbers; without them JitterStrategy FULL and an unseeded
    States.MathRandom are refused.
    """
    loader = _Loader(has_random)
    machine = loader.machine(definition)
    if loader.problems:
        raise DefinitionError(loader.problems)
    return machine


class _Loader:
    def __init__(self, has_random: bool) -> None:
        self.has_random = has_random
        self.problems: list[Problem] = []
        self.names: Counter[str] = Counter()

    def add(self, state: str, place: str, reason: str) -> None:
        self.problems.append(Problem(state, place.rstrip("."), reason))

    def machine(self, definition: Any) -> Machine:
        if not isinstance(definition, dict):
            self.add("", "", "a definition must be an object")
            return Machine(Branch("", {}), {})
        self.check_text(definition)
        self.check_fields("", definition, MACHINE_FIELDS)
        if definition.get("Version", "1.0") != "1.0":
            self.add("", "Version", "only '1.0' is implemented")
        timeout_s = self.integer("", definition, "TimeoutSeconds", 1, MAX_SECONDS)
        root = self.branch("", definition)
        for name, count in self.names.items():
            if count > 1:
                self.add(name, "", "the name is used more than once in the whole state machine")
        return Machine(root, definition, timeout_s)

    def check_text(self, definition: dict[str, Any]) -> None:
        try:
            text = json.dumps(definition, allow_nan=False)
        except (TypeError, ValueError) as error:
            self.add("", "", f"the definition is not JSON: {error}")
            return
        if len(text.encode()) > MAX_DEFINITION_BYTES:
            self.add("", "", f"the definition has more than {MAX_DEFINITION_BYTES} bytes")
        for name in sorted(set(SUBSTITUTION.findall(text))):
            self.add("", "", f"the substitution {name} was not replaced")

    def check_fields(self, state: str, holder: dict[str, Any], known: set[str], prefix: str = "") -> None:
        for name in holder:
            if name not in known:
                self.add(state, prefix + name, "is not implemented here, or unknown")
        if holder.get("QueryLanguage", "JSONPath") != "JSONPath":
            self.add(
                state, prefix + "QueryLanguage", f"{holder['QueryLanguage']!r} is not implemented, only 'JSONPath'"
            )

    def branch(self, where: str, holder: dict[str, Any]) -> Branch:
        definitions = holder.get("States")
        if not isinstance(definitions, dict) or not definitions:
            self.add(where, "States", "must be an object with at least one state")
            return Branch("", {})
        self.names.update(definitions.keys())
        states = {name: self.state(name, body) for name, body in definitions.items()}
        start_at = holder.get("StartAt")
        if start_at not in states:
            self.add(where, "StartAt", "is missing" if start_at is None else f"there is no state {start_at!r}")
            return Branch("", states)
        self.check_graph(where, str(start_at), states)
        return Branch(str(start_at), states)

    def check_graph(self, where: str, start_at: str, states: dict[str, State]) -> None:
        reached, waiting = set(), [start_at]
        while waiting:
            name = waiting.pop()
            if name in reached or name not in states:
                continue
            reached.add(name)
            waiting += [target for _, target in _targets(states[name])]
        for name, state in states.items():
            for place, target in _targets(state):
                if target not in states:
                    self.add(name, place, f"there is no state '{target}' in the same States")
            if name not in reached:
                self.add(name, "", "cannot be reached from StartAt")
        if not any(states[name].next is None and states[name].kind != "Choice" for name in reached):
            self.add(where, "States", "no state that can be reached ends the execution (End, Succeed or Fail)")

    def state(self, name: str, body: Any) -> State:
        if not 0 < len(name) <= MAX_NAME_CHARACTERS:
            self.add(name, "", f"a state name must have 1 to {MAX_NAME_CHARACTERS} characters")
        kind = body.get("Type") if isinstance(body, dict) else None
        if kind not in FIELDS:
            self.add(
                name, "Type", "is missing" if kind is None else f"{kind!r} is not a state type that is implemented"
            )
            return State(name, "Succeed")
        self.check_fields(name, body, FIELDS[kind])
        state = State(name, kind)
        if "Next" in FIELDS[kind]:
            self.transition(state, body)
        self.paths(state, body)
        self.templates(state, body)
        self.errors(state, body)
        getattr(self, kind.lower() + "_state")(state, body)
        return state

    def transition(self, state: State, body: dict[str, Any]) -> None:
        if ("Next" in body) == ("End" in body):
            self.add(
                state.name, "Next", "exactly one of Next and End is needed" + (", not both" if "Next" in body else "")
            )
        if "End" in body and body["End"] is not True:
            self.add(state.name, "End", "must be true; leave it out otherwise")
        if "Next" in body:
            state.next = self.string(state.name, body, "Next")

    def paths(self, state: State, body: dict[str, Any]) -> None:
        if "InputPath" in body:
            state.input_path = self.nullable_path(state.name, body, "InputPath")
        if "OutputPath" in body:
            state.output_path = self.nullable_path(state.name, body, "OutputPath")
        if "ResultPath" in body:
            state.result_keys = self.result_path(state.name, body, "")
        for place, path in (("InputPath", state.input_path), ("OutputPath", state.output_path)):
            if path is not None and path.of_context and path.keys[:1] == ("Task",) and not _waits(body):
                self.add(state.name, place, "the Context Object has no task token here")

    def templates(self, state: State, body: dict[str, Any]) -> None:
        for name in ("Parameters", "ItemSelector", "ResultSelector"):
            if name not in body or name not in FIELDS[state.kind]:
                continue
            template = compile_template(body[name], self.reporter(state.name, name))
            if name == "ResultSelector":
                state.result_selector = template
            else:
                state.parameters = template
            if template_uses_random(body[name]) and not self.has_random:
                self.add(state.name, name, "States.MathRandom without a seed needs a source of random numbers")
            if any(path.keys[:1] == ("Task",) for path in context_paths_in(body[name])) and not _waits(body):
                self.add(
                    state.name,
                    name,
                    f"$$.Task.Token exists only in a Task whose Resource ends in {WAIT_FOR_TASK_TOKEN}",
                )

    def errors(self, state: State, body: dict[str, Any]) -> None:
        for name, compile_one in (("Retry", self.retrier), ("Catch", self.catcher)):
            if name not in body or name not in FIELDS[state.kind]:
                continue
            entries = body[name]
            if not isinstance(entries, list) or not entries:
                self.add(state.name, name, "must be a non-empty array")
                continue
            for i, entry in enumerate(entries):
                place = f"{name}[{i}]"
                if not isinstance(entry, dict):
                    self.add(state.name, place, "must be an object")
                elif self.error_names(state.name, entry, place, is_last=i == len(entries) - 1):
                    compile_one(state, entry, place)

    def error_names(self, state: str, entry: dict[str, Any], place: str, is_last: bool) -> bool:
        names = entry.get("ErrorEquals")
        place = f"{place}.ErrorEquals"
        if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
            self.add(state, place, "must be a non-empty array of strings")
            return False
        if ALL in names and len(names) > 1:
            self.add(state, place, "States.ALL must stand alone")
        if ALL in names and not is_last:
            self.add(state, place, "States.ALL must be in the last entry")
        if RUNTIME in names:
            self.add(state, place, "States.Runtime always fails the execution; it can be neither retried nor caught")
        return True

    def retrier(self, state: State, entry: dict[str, Any], place: str) -> None:
        known = {
            "ErrorEquals",
            "IntervalSeconds",
            "MaxAttempts",
            "BackoffRate",
            "MaxDelaySeconds",
            "JitterStrategy",
            "Comment",
        }
        self.check_fields(state.name, entry, known, f"{place}.")
        interval_s = self.integer(state.name, entry, "IntervalSeconds", 1, MAX_SECONDS, place)
        attempts = self.integer(state.name, entry, "MaxAttempts", 0, MAX_SECONDS, place)
        max_delay_s = self.integer(state.name, entry, "MaxDelaySeconds", 1, MAX_DELAY_SECONDS - 1, place)
        rate = entry.get("BackoffRate", 2.0)
        jitter = entry.get("JitterStrategy", "NONE")
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or rate < 1:
            self.add(state.name, f"{place}.BackoffRate", "must be a number of at least 1.0")
            rate = 2.0
        if max_delay_s is not None and max_delay_s <= (interval_s or 1):
            self.add(state.name, f"{place}.MaxDelaySeconds", "must be greater than IntervalSeconds")
        if jitter not in ("FULL", "NONE"):
            self.add(state.name, f"{place}.JitterStrategy", "must be 'FULL' or 'NONE'")
        elif jitter == "FULL" and not self.has_random:
            self.add(state.name, f"{place}.JitterStrategy", "FULL needs a source of random numbers")
        state.retriers.append(
            Retrier(
                tuple(entry["ErrorEquals"]),
                1 if interval_s is None else interval_s,
                3 if attempts is None else attempts,
                float(rate),
                max_delay_s,
                jitter == "FULL",
            )
        )

    def catcher(self, state: State, entry: dict[str, Any], place: str) -> None:
        self.check_fields(state.name, entry, {"ErrorEquals", "Next", "ResultPath", "Comment"}, f"{place}.")
        keys = self.result_path(state.name, entry, f"{place}.") if "ResultPath" in entry else ()
        target = self.string(state.name, entry, "Next", place)
        state.catchers.append(Catcher(tuple(entry["ErrorEquals"]), target or "", keys))

    def task_state(self, state: State, body: dict[str, Any]) -> None:
        resource = self.string(state.name, body, "Resource") or ""
        state.waits_for_token = _waits(body)
        state.resource = resource.removesuffix(WAIT_FOR_TASK_TOKEN)
        if resource and not ARN.fullmatch(state.resource):
            reason = (
                f"'{resource}' is not the ARN of a Lambda function or of a service integration ('arn:aws:states:::…')"
            )
            self.add(state.name, "Resource", reason + "; .sync and activities are not implemented")
        if state.waits_for_token and not any(
            path.keys in ((), ("Task",), ("Task", "Token")) for path in context_paths_in(body.get("Parameters", {}))
        ):
            self.add(
                state.name,
                "Parameters",
                f"{WAIT_FOR_TASK_TOKEN} needs $$.Task.Token in Parameters; nobody could answer",
            )
        timeout_s = self.seconds_or_path(state.name, body, "TimeoutSeconds")
        state.timeout_s = MAX_SECONDS if timeout_s is None else timeout_s
        state.heartbeat_s = self.seconds_or_path(state.name, body, "HeartbeatSeconds")
        fixed = isinstance(state.timeout_s, int) and isinstance(state.heartbeat_s, int)
        if fixed and state.heartbeat_s >= state.timeout_s:  # type: ignore[operator]
            self.add(state.name, "HeartbeatSeconds", "must be smaller than TimeoutSeconds")

    def pass_state(self, state: State, body: dict[str, Any]) -> None:
        if "Result" in body:
            state.result = (body["Result"],)
            if "Parameters" in body:
                self.add(state.name, "Result", "cannot stand beside Parameters: one of them would be ignored")

    def wait_state(self, state: State, body: dict[str, Any]) -> None:
        given = [name for name in ("Seconds", "SecondsPath", "Timestamp", "TimestampPath") if name in body]
        if len(given) != 1:
            self.add(
                state.name,
                "Seconds",
                f"exactly one of Seconds, SecondsPath, Timestamp, TimestampPath is needed, not {given}",
            )
            return
        if given == ["Seconds"]:
            state.seconds = self.integer(state.name, body, "Seconds", 0, MAX_SECONDS)
        elif given == ["SecondsPath"]:
            state.seconds = self.reference_path(state.name, body, "SecondsPath")
        elif given == ["TimestampPath"]:
            state.timestamp = self.reference_path(state.name, body, "TimestampPath")
        else:
            state.timestamp = self.string(state.name, body, "Timestamp")
            if state.timestamp and parse_timestamp(state.timestamp) is None:
                self.add(state.name, "Timestamp", f"'{state.timestamp}' is not a timestamp like 2026-01-31T12:00:00Z")

    def choice_state(self, state: State, body: dict[str, Any]) -> None:
        rules = body.get("Choices")
        if not isinstance(rules, list) or not rules:
            self.add(state.name, "Choices", "must be a non-empty array")
            rules = []
        for i, body_of_rule in enumerate(rules):
            place = f"Choices[{i}]"
            rule = compile_rule(body_of_rule, self.reporter(state.name, place))
            target = self.string(state.name, body_of_rule, "Next", place) if isinstance(body_of_rule, dict) else None
            if rule is not None and target is not None:
                state.choices.append((rule, target))
        if "Default" in body:
            state.default = self.string(state.name, body, "Default")

    def succeed_state(self, state: State, body: dict[str, Any]) -> None:
        """Has no fields of its own."""

    def fail_state(self, state: State, body: dict[str, Any]) -> None:
        state.error = self.text_or_expression(state.name, body, "Error")
        state.cause = self.text_or_expression(state.name, body, "Cause")

    def parallel_state(self, state: State, body: dict[str, Any]) -> None:
        branches = body.get("Branches")
        if not isinstance(branches, list) or not branches:
            self.add(state.name, "Branches", "must be a non-empty array of objects with StartAt and States")
            return
        for i, branch in enumerate(branches):
            state.branches.append(self.inner_branch(state.name, f"Branches[{i}]", branch, BRANCH_FIELDS))

    def map_state(self, state: State, body: dict[str, Any]) -> None:
        for new, old in (("ItemProcessor", "Iterator"), ("ItemSelector", "Parameters")):
            if new in body and old in body:
                self.add(state.name, new, f"cannot stand beside {old}, its older name")
        name = "ItemProcessor" if "ItemProcessor" in body else "Iterator"
        known = BRANCH_FIELDS | ({"ProcessorConfig"} if name == "ItemProcessor" else set())
        processor = body.get(name)
        if processor is None:
            self.add(state.name, "ItemProcessor", "is missing")
            return
        state.branches.append(self.inner_branch(state.name, name, processor, known))
        config = processor.get("ProcessorConfig", {}) if isinstance(processor, dict) else {}
        if config not in ({}, {"Mode": "INLINE"}):
            self.add(state.name, f"{name}.ProcessorConfig", "only {'Mode': 'INLINE'} is implemented")
        if "ItemsPath" in body:
            state.items_path = self.reference_path(state.name, body, "ItemsPath") or state.items_path
        if "MaxConcurrency" in body and "MaxConcurrencyPath" in body:
            self.add(state.name, "MaxConcurrencyPath", "cannot stand beside MaxConcurrency")
        if "MaxConcurrencyPath" in body:
            state.max_concurrency = self.reference_path(state.name, body, "MaxConcurrencyPath") or 0
        else:
            state.max_concurrency = self.integer(state.name, body, "MaxConcurrency", 0, MAX_SECONDS) or 0

    def inner_branch(self, state: str, place: str, body: Any, known: set[str]) -> Branch:
        if not isinstance(body, dict):
            self.add(state, place, "must be an object with StartAt and States")
            return Branch("", {})
        self.check_fields(state, body, known, f"{place}.")
        return self.branch(f"{state}.{place}", body)

    def reporter(self, state: str, place: str) -> Callable[[str, str], None]:
        return lambda inner, reason: self.add(state, f"{place}.{inner}", reason)

    def string(self, state: str, holder: dict[str, Any], name: str, place: str = "") -> str | None:
        value = holder.get(name)
        if not isinstance(value, str) or not value:
            full = f"{place}.{name}" if place else name
            self.add(state, full, "is missing" if name not in holder else "must be a non-empty string")
            return None
        return value

    def integer(
        self, state: str, holder: dict[str, Any], name: str, least: int, most: int, place: str = ""
    ) -> int | None:
        value = holder.get(name)
        if name not in holder:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self.add(state, f"{place}.{name}" if place else name, f"must be an integer from {least} to {most}")
            return None
        return value

    def seconds_or_path(self, state: str, body: dict[str, Any], name: str) -> int | Path | None:
        if name in body and f"{name}Path" in body:
            self.add(state, name, f"cannot stand beside {name}Path")
        if f"{name}Path" in body:
            return self.reference_path(state, body, f"{name}Path")
        return self.integer(state, body, name, 1, MAX_SECONDS)

    def reference_path(self, state: str, body: dict[str, Any], name: str) -> Path | None:
        text = self.string(state, body, name)
        try:
            return compile_reference_path(text) if text else None
        except ValueError as error:
            self.add(state, name, str(error))
            return None

    def nullable_path(self, state: str, body: dict[str, Any], name: str) -> Path | None:
        text = None if body[name] is None else self.string(state, body, name)
        try:
            return compile_path(text) if text else None
        except ValueError as error:
            self.add(state, name, str(error))
            return None

    def result_path(self, state: str, holder: dict[str, Any], prefix: str) -> tuple[str | int, ...] | None:
        text = holder["ResultPath"]
        if text is None:
            return None
        try:
            if not isinstance(text, str):
                raise ValueError("must be a reference path or null")
            return compile_reference_path(text, context_allowed=False).keys
        except ValueError as error:
            self.add(state, f"{prefix}ResultPath", str(error))
            return ()

    def text_or_expression(self, state: str, body: dict[str, Any], name: str) -> str | Expression | None:
        path_name = f"{name}Path"
        if name in body and path_name in body:
            self.add(state, name, f"cannot stand beside {path_name}")
        if path_name not in body:
            return self.string(state, body, name) if name in body else None
        text = self.string(state, body, path_name)
        if text is None:
            return None
        try:
            if text.startswith("$"):
                return compile_reference_path(text).find
            if not re.match(FAIL_INTRINSICS + r"\(", text):
                raise ValueError(f"must be a reference path or one of {FAIL_INTRINSICS}")
            return compile_expression(text)
        except ValueError as error:
            self.add(state, path_name, str(error))
            return None


def _targets(state: State) -> list[tuple[str, str]]:
    """Every (field, state name) a state can go to."""
    targets = [("Next", state.next)] if state.next is not None else []
    targets += [("Default", state.default)] if state.default is not None else []
    targets += [(f"Choices[{i}].Next", target) for i, (_, target) in enumerate(state.choices)]
    return [*targets, *((f"Catch[{i}].Next", catcher.next) for i, catcher in enumerate(state.catchers))]


def _waits(body: dict[str, Any]) -> bool:
    return body.get("Type") == "Task" and str(body.get("Resource", "")).endswith(WAIT_FOR_TASK_TOKEN)
