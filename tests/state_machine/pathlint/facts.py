"""What is certain about the input of each state, and which paths read or write anything else.

A fact is a path and the type of its value. Facts come from the execution input, from ResultPath, from Parameters and
from the tests of a Choice; where ways meet, those hold that every way brings. An answer of a task may be anything.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from spaceport.asl.definition import MAX_SECONDS
from spaceport.asl.intrinsics import INT32, parse_intrinsic
from spaceport.asl.paths import Path, compile_path
from tests.state_machine.pathlint.assumptions import STATE_LIMIT_BYTES, Assumptions
from tests.state_machine.pathlint.rules import CAN_BE_RETRIED, Finding, inner_graphs, waits_for_token

Keys = tuple[str | int, ...]
SCALARS = ("string", "number", "boolean")


class Fact(NamedTuple):
    """The type of a value; "any" is one that is there. The range and wholeness are those of a number."""

    kind: str
    low: float = -math.inf
    high: float = math.inf
    whole: bool = False


Facts = dict[Keys, Fact]
ANY, OBJECT, ARRAY, STRING = Fact("any"), Fact("object"), Fact("array"), Fact("string")
ERROR_OUTPUT: Facts = {(): OBJECT, ("Error",): STRING}  # its Cause is there only sometimes
TYPE_TESTS = {"IsString": "string", "IsNumeric": "number", "IsBoolean": "boolean"}
CONTEXT = {f"$$.Execution.{name}" for name in ("Id", "Input", "Name", "RoleArn", "StartTime", "RedriveCount")}
CONTEXT |= {"$$.State.Name", "$$.State.EnteredTime", "$$.StateMachine.Id", "$$.StateMachine.Name"}


def check(definition: dict[str, Any], assumptions: Assumptions) -> Iterator[Finding]:
    """Every finding about paths, in ``definition`` and in the graphs nested in it."""
    given: Facts = {(): OBJECT, **{(name,): Fact(kind) for name, kind in assumptions.execution_input.items()}}
    yield from _graph(definition, given, assumptions)
    total = assumptions.other_bytes + sum(assumptions.answer_bytes.values())
    if total > STATE_LIMIT_BYTES:
        yield Finding("size", "", "", "$", f"all answers and one error together may have {total} bytes")


def _graph(graph: dict[str, Any], given: Facts, assumptions: Assumptions) -> Iterator[Finding]:
    states = graph["States"]
    entries: dict[str, Facts] = {}
    waiting = [(str(graph.get("StartAt")), given)]
    while waiting:
        name, arriving = waiting.pop()
        if name not in states:
            continue
        before = entries.get(name)
        entries[name] = arriving if before is None else _join(before, arriving)
        if entries[name] != before:
            waiting += _State(name, states[name], entries[name], assumptions).exits()
    for name, entry in entries.items():
        state = _State(name, states[name], entry, assumptions)
        list(state.exits())
        yield from dict.fromkeys(state.findings)
        for _, inner in inner_graphs(states[name]):
            yield from _graph(inner, state.branch_input, assumptions)


def _join(first: Facts, second: Facts) -> Facts:
    return {path: _either(fact, second[path]) for path, fact in first.items() if path in second}


def _either(first: Fact, second: Fact) -> Fact:
    if first == second:
        return first
    return Fact(first.kind, whole=first.whole and second.whole) if first.kind == second.kind else ANY


@dataclass
class _State:
    name: str
    body: dict[str, Any]
    entry: Facts
    assumptions: Assumptions

    def __post_init__(self) -> None:
        self.findings: list[Finding] = []
        self.branch_input: Facts = {}

    def add(self, rule: str, field: str, path: str, reason: str) -> None:
        self.findings.append(Finding(rule, self.name, field, path, reason))

    def exits(self) -> list[tuple[str, Facts]]:
        """(state, facts at its entry) of every way out; what may fail goes to ``findings``."""
        body, kind = self.body, self.body["Type"]
        if kind == "Choice":
            found = [(str(rule.get("Next")), self.tested(at, rule)) for at, rule in enumerate(body.get("Choices", []))]
            return [*found, (str(body.get("Default")), self.entry)]
        after = self.entry
        if kind in ("Task", "Pass", "Parallel", "Map"):
            after = self.written("ResultPath", body.get("ResultPath", "$"), self.result())
        if kind == "Wait" and "SecondsPath" in body:
            self.seconds(body["SecondsPath"])
        found = [(str(body.get("Next")), after)]
        for at, catcher in enumerate(body.get("Catch", [])):
            where = f"Catch[{at}].ResultPath"
            found.append((str(catcher.get("Next")), self.written(where, catcher.get("ResultPath", "$"), ERROR_OUTPUT)))
        return found

    def result(self) -> Facts:
        body, kind = self.body, self.body["Type"]
        template = body.get("ItemSelector", body.get("Parameters"))
        payload = self.entry if template is None else self.template("Parameters", template, self.entry)
        if kind == "Map":
            if self.fact("ItemsPath", body.get("ItemsPath", "$")).kind != "array":
                self.add("type", "ItemsPath", body.get("ItemsPath", "$"), "need not be an array")
            payload = payload if template is not None else {(): ANY}
        self.branch_input = payload
        if kind == "Pass":
            if template is not None and _whole_inputs(template):
                self.add("size", "Parameters", "$", "puts the state into itself, so it grows with each round")
            return _literal(body["Result"]) if "Result" in body else payload
        if template is not None and _whole_inputs(template) > 1:
            self.add("size", "Parameters", "$", "sends the whole state twice, which may exceed 256 KiB")
        integration = str(body.get("Resource", "")).startswith("arn:aws:states:::") and not waits_for_token(body)
        if kind == "Task" and not integration and self.name not in self.assumptions.answer_bytes:
            self.add("size", "Resource", "", "no most bytes of its answer are declared (assumptions.py)")
        answer: Facts = {(): ARRAY if kind in ("Map", "Parallel") else ANY}
        selector = body.get("ResultSelector")
        return answer if selector is None else self.template("ResultSelector", selector, answer)

    def written(self, field: str, path: str | None, value: Facts) -> Facts:
        """The entry with ``value`` at ``path``: one field of an object that is surely there."""
        if path is None:
            return self.entry
        keys = compile_path(path).keys
        if not keys:
            return value
        if len(keys) > 1 or self.entry.get((), ANY).kind != "object":
            self.add("result-path", field, path, "need not lead through an object: write one field of the state")
            return self.entry
        kept = {old: fact for old, fact in self.entry.items() if old[: len(keys)] != keys}
        return kept | {(*keys, *inner): fact for inner, fact in value.items()}

    # ---- reading

    def fact(self, field: str, text: str, facts: Facts | None = None) -> Fact:
        """What the path reads."""
        try:
            path = compile_path(text)
        except ValueError as error:
            self.add("definition", field, text, str(error))
            return ANY
        facts = self.entry if facts is None else facts
        if path.of_context:
            return self.context(field, path)
        if path.keys not in facts and path.keys:
            self.add("path", field, text, "is not there on every way: test IsPresent first, or write it on each way")
        return facts.get(path.keys, ANY)

    def context(self, field: str, path: Path) -> Fact:
        allowed = CONTEXT | {f"$$.Execution.Input.{name}" for name in self.assumptions.execution_input}
        if self.body["Type"] in CAN_BE_RETRIED:
            allowed = allowed | {"$$.State.RetryCount"}
        if waits_for_token(self.body) and field.startswith("Parameters"):
            allowed = allowed | {"$$.Task.Token"}
        if "ItemSelector" in self.body and field.startswith("Parameters"):
            allowed = allowed | {"$$.Map.Item.Index", "$$.Map.Item.Value"}
        if path.text not in allowed:
            self.add("context", field, path.text, "does not exist here, or need not")
        return OBJECT if path.text.endswith("Input") else ANY if path.text.endswith("Value") else STRING

    def template(self, field: str, template: Any, facts: Facts) -> Facts:
        """The facts about a payload template's value."""
        found: Facts = {(): OBJECT if isinstance(template, dict) else ANY}
        parts = template.items() if isinstance(template, dict) else enumerate(template)
        for name, value in parts:
            where = f"{field}.{name}"
            if isinstance(name, str) and name.endswith(".$"):
                found[(name.removesuffix(".$"),)] = self.expression(where, value, facts)
            elif isinstance(value, (dict, list)):
                found |= {(name, *inner): fact for inner, fact in self.template(where, value, facts).items()}
            else:
                found[(name,)] = _literal(value)[()]
        return found

    def expression(self, field: str, text: str, facts: Facts) -> Fact:
        if text.startswith("$"):
            return self.fact(field, text, facts)
        try:
            call = parse_intrinsic(text)
        except ValueError as error:
            self.add("definition", field, text, str(error))
            return ANY
        given = [
            self.fact(field, part.text, facts) if isinstance(part, Path) else _literal(part)[()]
            for part in call.arguments
        ]
        if call.name == "States.Format" and not all(part.kind in SCALARS for part in given):
            self.add("intrinsic", field, call.name, "a value may be an object or an array")
        if call.name != "States.MathAdd":
            return STRING
        low, high = (sum(bounds) for bounds in zip(*[(part.low, part.high) for part in given], strict=True))
        if any(part.kind != "number" for part in given) or low < INT32.start or high >= INT32.stop:
            self.add("intrinsic", field, call.name, "an argument may be no number, or the sum outside of 32 bits")
            return Fact("number")
        return Fact("number", math.floor(low + 0.5), math.floor(high + 0.5), whole=True)

    def seconds(self, text: str) -> None:
        found = self.fact("SecondsPath", text)
        if found.kind != "number" or not found.whole or found.low < 0 or found.high > MAX_SECONDS:
            reason = "need not be a whole number of seconds: bound it in a Choice and round it with States.MathAdd"
            self.add("type", "SecondsPath", text, reason)

    # ---- Choice

    def tested(self, at: int, rule: dict[str, Any]) -> Facts:
        """The entry where the rule holds. And stops at a test that fails, so IsPresent guards what comes after it."""
        known = dict(self.entry)
        for i, test in enumerate(rule.get("And", [rule])):
            field = f"Choices[{at}].And[{i}].Variable"
            names = [name for name in test if name not in ("Variable", "Next", "Comment")]
            keys = compile_path(test["Variable"]).keys if "Variable" in test else ()
            if names == ["IsPresent"]:
                if test["IsPresent"] is True:
                    known.setdefault(keys, ANY)
                continue
            if "Variable" in test:
                self.fact(field, test["Variable"], known)
                known[keys] = _narrowed(known.get(keys, ANY), names[0], test[names[0]])
        return known


def _narrowed(fact: Fact, name: str, value: Any) -> Fact:
    if name in TYPE_TESTS:
        return Fact(TYPE_TESTS[name]) if value is True and fact.kind != TYPE_TESTS[name] else fact
    if name.startswith("Numeric"):
        fact = fact if fact.kind == "number" else Fact("number")
        low = value if "Greater" in name or name == "NumericEquals" else fact.low
        high = value if "Less" in name or name == "NumericEquals" else fact.high
        return fact._replace(low=max(low, fact.low), high=min(high, fact.high))
    return Fact({"S": "string", "B": "boolean"}.get(name[0], fact.kind))


def _literal(value: Any) -> Facts:
    """The facts about a constant."""
    if isinstance(value, dict):
        inner = {(name, *path): fact for name, part in value.items() for path, fact in _literal(part).items()}
        return {(): OBJECT, **inner}
    if isinstance(value, bool):
        return {(): Fact("boolean")}
    if isinstance(value, (int, float)):
        return {(): Fact("number", value, value, float(value).is_integer())}
    return {(): STRING if isinstance(value, str) else ARRAY if isinstance(value, list) else ANY}


def _whole_inputs(template: Any) -> int:
    """How often a template has the whole input."""
    if isinstance(template, dict):
        return sum(part == "$" if name.endswith(".$") else _whole_inputs(part) for name, part in template.items())
    return sum(map(_whole_inputs, template)) if isinstance(template, list) else 0
