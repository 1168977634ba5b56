"""Loading a definition: everything is compiled once; what is wrong or not implemented is refused with its place."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from spaceport.asl.choice import compile_rule
from spaceport.asl.errors import ALL, RUNTIME, not_supported
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
from spaceport.asl.paths import Path, compile_path, compile_result_path
from spaceport.asl.templates import compile_template, context_paths_in

MAX_DEFINITION_BYTES = 1_048_576
MAX_NAME_CHARACTERS = 80
MAX_DELAY_SECONDS = 31_622_400
WAIT_FOR_TASK_TOKEN = ".waitForTaskToken"
ARN = re.compile(
    r"arn:aws[a-z-]*:(states:[a-z0-9-]*:\d*:[A-Za-z0-9:_-]+|lambda:[a-z0-9-]+:\d{12}:function:[A-Za-z0-9:$_-]+)"
)
SUBSTITUTION = re.compile(r"\$\{[A-Za-z0-9.:]+\}")

COMMON = {"Type", "Comment", "QueryLanguage"}
TRANSITION = {"Next", "End"}
RESULT = {"ResultPath", "ResultSelector", "Parameters"}
ERRORS = {"Retry", "Catch"}
TASK_FIELDS = {"Resource", "TimeoutSeconds", "HeartbeatSeconds"}
MAP_FIELDS = {"ItemsPath", "ItemSelector", "ItemProcessor", "MaxConcurrency"}
FIELDS: dict[str, set[str]] = {
    "Task": COMMON | TRANSITION | RESULT | ERRORS | TASK_FIELDS,
    "Pass": COMMON | TRANSITION | {"Result", "ResultPath", "Parameters"},
    "Wait": COMMON | TRANSITION | {"Seconds", "SecondsPath"},
    "Choice": COMMON | {"Choices", "Default"},
    "Succeed": COMMON,
    "Fail": COMMON | {"Error", "Cause"},
    "Parallel": COMMON | TRANSITION | RESULT | ERRORS | {"Branches"},
    "Map": COMMON | TRANSITION | {"ResultPath", "ResultSelector"} | ERRORS | MAP_FIELDS,
}
MACHINE_FIELDS = {"Comment", "StartAt", "States", "TimeoutSeconds", "Version", "QueryLanguage"}
BRANCH_FIELDS = {"Comment", "StartAt", "States", "QueryLanguage"}


def load(definition: dict[str, Any], has_random: bool = True) -> Machine:
    """Compile ``definition``. Raises DefinitionError with every problem.

    ``has_random``: whether the interpreter was given random numbers; without them JitterStrategy FULL is refused.
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
                self.add(state, prefix + name, not_supported(name))
        if holder.get("QueryLanguage", "JSONPath") != "JSONPath":
            self.add(state, prefix + "QueryLanguage", not_supported(f"{holder['QueryLanguage']}"))

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
        if "ResultPath" in body:
            state.result_keys = self.result_path(name, body, "")
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

    def templates(self, state: State, body: dict[str, Any]) -> None:
        for name in ("Parameters", "ItemSelector", "ResultSelector"):
            if name not in body or name not in FIELDS[state.kind]:
                continue
            template = compile_template(body[name], self.reporter(state.name, name))
            if name == "ResultSelector":
                state.result_selector = template
            else:
                state.parameters = template
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
            self.add(state.name, "Resource", reason + "; .sync and activities are not supported")
        if state.waits_for_token and not any(
            path.keys in ((), ("Task",), ("Task", "Token")) for path in context_paths_in(body.get("Parameters", {}))
        ):
            self.add(
                state.name,
                "Parameters",
                f"{WAIT_FOR_TASK_TOKEN} needs $$.Task.Token in Parameters; nobody could answer",
            )
        state.timeout_s = self.integer(state.name, body, "TimeoutSeconds", 1, MAX_SECONDS) or MAX_SECONDS
        state.heartbeat_s = self.integer(state.name, body, "HeartbeatSeconds", 1, MAX_SECONDS)
        if state.heartbeat_s is not None and state.heartbeat_s >= state.timeout_s:
            self.add(state.name, "HeartbeatSeconds", "must be smaller than TimeoutSeconds")

    def pass_state(self, state: State, body: dict[str, Any]) -> None:
        if "Result" in body:
            state.result = (body["Result"],)
            if "Parameters" in body:
                self.add(state.name, "Result", "cannot stand beside Parameters: one of them would be ignored")

    def wait_state(self, state: State, body: dict[str, Any]) -> None:
        if ("Seconds" in body) == ("SecondsPath" in body):
            self.add(state.name, "Seconds", "exactly one of Seconds and SecondsPath is needed")
        elif "Seconds" in body:
            state.seconds = self.integer(state.name, body, "Seconds", 0, MAX_SECONDS)
        else:
            state.seconds = self.path(state.name, body, "SecondsPath")

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
        state.error = self.string(state.name, body, "Error") if "Error" in body else None
        state.cause = self.string(state.name, body, "Cause") if "Cause" in body else None

    def parallel_state(self, state: State, body: dict[str, Any]) -> None:
        branches = body.get("Branches")
        if not isinstance(branches, list) or not branches:
            self.add(state.name, "Branches", "must be a non-empty array of objects with StartAt and States")
            return
        for i, branch in enumerate(branches):
            state.branches.append(self.inner_branch(state.name, f"Branches[{i}]", branch, BRANCH_FIELDS))

    def map_state(self, state: State, body: dict[str, Any]) -> None:
        processor = body.get("ItemProcessor")
        if processor is None:
            self.add(state.name, "ItemProcessor", "is missing")
            return
        known = BRANCH_FIELDS | {"ProcessorConfig"}
        state.branches.append(self.inner_branch(state.name, "ItemProcessor", processor, known))
        config = processor.get("ProcessorConfig", {}) if isinstance(processor, dict) else {}
        if config not in ({}, {"Mode": "INLINE"}):
            self.add(state.name, "ItemProcessor.ProcessorConfig", not_supported(f"ProcessorConfig {config}"))
        if "ItemsPath" in body:
            state.items_path = self.path(state.name, body, "ItemsPath") or state.items_path
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

    def path(self, state: str, body: dict[str, Any], name: str) -> Path | None:
        text = self.string(state, body, name)
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
                raise ValueError("must be a path or null")
            return compile_result_path(text)
        except ValueError as error:
            self.add(state, f"{prefix}ResultPath", str(error))
            return ()


def _targets(state: State) -> list[tuple[str, str]]:
    """Every (field, state name) a state can go to."""
    targets = [("Next", state.next)] if state.next is not None else []
    targets += [("Default", state.default)] if state.default is not None else []
    targets += [(f"Choices[{i}].Next", target) for i, (_, target) in enumerate(state.choices)]
    return [*targets, *((f"Catch[{i}].Next", catcher.next) for i, catcher in enumerate(state.catchers))]


def _waits(body: dict[str, Any]) -> bool:
    return body.get("Type") == "Task" and str(body.get("Resource", "")).endswith(WAIT_FOR_TASK_TOKEN)
