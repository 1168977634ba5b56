"""What is certain at the entry of every state: a fixpoint over all edges (Next, Choice branches, Default, Catch).

Retry enters a state again with the same input, so it adds no edge. The states inside a Parallel or Map are graphs of
their own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from spaceport.asl.definition import MAX_SECONDS
from spaceport.asl.paths import compile_reference_path
from tests.state_machine.pathproof import integrations
from tests.state_machine.pathproof.assumptions import (
    CAUSE_CHARACTERS,
    ERROR_CHARACTERS,
    STATE_LIMIT_BYTES,
    Assumptions,
)
from tests.state_machine.pathproof.choices import branch
from tests.state_machine.pathproof.expressions import (
    Env,
    expression,
    on_the_way,
    read,
    surely,
    surely_timestamp,
    template,
    whole_number,
)
from tests.state_machine.pathproof.findings import Report, silent
from tests.state_machine.pathproof.shapes import (
    EMPTY_OBJECT,
    INF,
    Array,
    Shape,
    array_of,
    assign,
    closed_object,
    join,
    of_json,
    repeated,
    simplify,
    size,
    text,
    unknown,
    widen,
)

VISITS_BEFORE_WIDENING = 12
ERROR_OUTPUT = closed_object({"Error": text(ERROR_CHARACTERS)}, maybe={"Cause": text(CAUSE_CHARACTERS)})
ReportOf = Callable[[str], Report]  # the state's name -> where its findings go


class Edge(NamedTuple):
    """One way out of a state; ``target`` None ends the branch."""

    target: str | None
    label: str
    shape: Shape


@dataclass
class Analysis:
    """``entries``: the shape of the input of every state that can be reached, by name (unique in a machine)."""

    entries: dict[str, Shape] = field(default_factory=dict)


def analyse(definition: dict[str, Any], assumptions: Assumptions, report_of: ReportOf) -> Analysis:
    """Prove every expression of ``definition``; what cannot be proven is reported."""
    flow = _Flow(assumptions)
    flow.graph(definition, assumptions.execution_input, "StartAt", report_of)
    return Analysis(flow.entries)


class _Flow:
    def __init__(self, assumptions: Assumptions) -> None:
        self.assumptions = assumptions
        self.entries: dict[str, Shape] = {}

    def graph(self, graph: dict[str, Any], data: Shape, label: str, report_of: ReportOf | None) -> Shape | None:
        """The shape of what comes out at the ends of ``graph`` for the input ``data``; None if no end is reached."""
        states: dict[str, dict[str, Any]] = graph["States"]
        start_at = graph.get("StartAt")
        if start_at not in states:
            return None
        entries = self._fixpoint(states, start_at, data)
        routes: dict[str, list[tuple[str, Shape]]] = {name: [] for name in entries}
        routes[start_at].append((label, data))
        for name, entry in entries.items():
            for edge in self._edges(name, states[name], entry, silent, [], None):
                if edge.target in routes:
                    routes[edge.target].append((edge.label, edge.shape))
        output: Shape | None = None
        for name, entry in entries.items():
            report = report_of(name) if report_of else silent
            if report_of:
                self.entries[name] = join(self.entries.get(name, entry), entry)
            for edge in self._edges(name, states[name], entry, report, routes[name], report_of):
                if edge.target is None:
                    output = edge.shape if output is None else join(output, edge.shape)
        return output

    def _fixpoint(self, states: dict[str, dict[str, Any]], start_at: str, data: Shape) -> dict[str, Shape]:
        entries, visits, waiting = {start_at: data}, dict.fromkeys(states, 0), deque([start_at])
        while waiting:
            name = waiting.popleft()
            for edge in self._edges(name, states[name], entries[name], silent, [], None):
                if edge.target not in states:
                    continue
                old = entries.get(edge.target)
                combine = join if visits[edge.target] < VISITS_BEFORE_WIDENING else widen
                reached = simplify(edge.shape)
                new = reached if old is None else combine(old, reached)
                if new != old:
                    entries[edge.target] = new
                    visits[edge.target] += 1
                    if edge.target not in waiting:
                        waiting.append(edge.target)
        return entries

    def _edges(
        self,
        name: str,
        body: dict[str, Any],
        entry: Shape,
        report: Report,
        routes: list[tuple[str, Shape]],
        report_of: ReportOf | None,
    ) -> list[Edge]:
        visit = _Visit(self, name, body, entry, report, routes, report_of)
        return visit.edges()


class _Visit:
    """One state with one input: every expression is evaluated in the order in which Step Functions does it."""

    def __init__(
        self,
        flow: _Flow,
        name: str,
        body: dict[str, Any],
        entry: Shape,
        report: Report,
        routes: list[tuple[str, Shape]],
        report_of: ReportOf | None,
    ) -> None:
        self.flow, self.assumptions = flow, flow.assumptions
        self.name, self.body, self.entry, self.report, self.report_of = name, body, entry, report, report_of
        context = integrations.context(body, name, self.assumptions)
        self.raw = Env(entry, context, report, routes)

    def edges(self) -> list[Edge]:
        kinds = {
            "Task": self.task,
            "Pass": self.pass_state,
            "Wait": self.wait,
            "Choice": self.choice,
            "Succeed": self.succeed,
            "Fail": self.fail,
            "Parallel": self.parallel,
            "Map": self.map_state,
        }
        return kinds[self.body["Type"]]()

    # ---- what most states do

    def effective(self) -> Env:
        """The input after InputPath."""
        if "InputPath" not in self.body or self.body["InputPath"] == "$":
            return self.raw
        path = self.body["InputPath"]
        return self.raw.over(EMPTY_OBJECT if path is None else read(self.raw, "InputPath", path))

    def leave(self, shape: Shape, target: str | None, label: str) -> Edge:
        if "OutputPath" in self.body:
            path = self.body["OutputPath"]
            shape = EMPTY_OBJECT if path is None else read(self.raw.over(shape), "OutputPath", path)
        self.check_size(shape, "OutputPath" if "OutputPath" in self.body else "output", "the state's output")
        return Edge(target, label, shape)

    def next(self, shape: Shape) -> list[Edge]:
        if not self.body.get("End") and not isinstance(self.body.get("Next"), str):
            return []
        return [self.leave(shape, None if self.body.get("End") else self.body["Next"], f"Next of '{self.name}'")]

    def put(self, where: str, holder: dict[str, Any], value: Shape) -> Shape:
        """``value`` at the ResultPath of ``holder`` in the state's raw input."""
        path = holder.get("ResultPath", "$")
        if path is None:
            return self.entry
        try:
            keys = compile_reference_path(str(path), context_allowed=False).keys
        except ValueError as error:
            self.report("result-path", where, str(path), str(error))
            return self.entry
        changed, trouble = assign(self.entry, keys, value)
        if trouble:
            lacking = [label for label, shape in self.raw.routes if assign(shape, keys, value)[1]]
            reason = f"{trouble}{on_the_way(lacking)}; States.ResultPathMatchFailure"
            self.report("result-path", where, str(path), reason)
        return changed

    def check_size(self, shape: Shape, where: str, what: str) -> None:
        bytes_at_most = size(shape)
        if bytes_at_most > STATE_LIMIT_BYTES:
            reason = f"{what} may have {_bytes(bytes_at_most)}, above {STATE_LIMIT_BYTES:,} (States.DataLimitExceeded)"
            self.report("size", where, "", f"{reason}; the largest parts: {_largest(shape)}")

    def result_edges(self, result: Shape) -> list[Edge]:
        """ResultSelector, ResultPath and Next."""
        self.check_size(result, "result", "the result")
        if "ResultSelector" in self.body:
            result = template(self.raw.over(result), "ResultSelector", self.body["ResultSelector"])
        return self.next(self.put("ResultPath", self.body, result))

    def catch_edges(self) -> list[Edge]:
        edges = []
        for at, catcher in enumerate(self.body.get("Catch", [])):
            where = f"Catch[{at}].ResultPath"
            output = self.put(where, catcher, ERROR_OUTPUT)
            self.check_size(output, where, "the input of the state that handles the error")
            edges.append(Edge(str(catcher.get("Next")), f"Catch of '{self.name}'", output))
        return edges

    # ---- the types of state

    def task(self) -> list[Edge]:
        env = self.effective()
        self.limits(env)
        payload = env.data
        if "Parameters" in self.body:
            with_token = integrations.add_token(env.context, self.body)
            payload = template(replace(env, context=with_token), "Parameters", self.body["Parameters"])
        self.check_size(payload, "Parameters", "the task's input")
        result = integrations.answer(self.body, self.assumptions.answer_bytes.get(self.name))
        if result is None:
            reason = "no bound is declared for the task's answer (assumptions.py, answer_bytes), so it may be too large"
            self.report("size", "Resource", "", reason)
            result = unknown(0)
        return [*self.result_edges(result), *self.catch_edges()]

    def limits(self, env: Env) -> None:
        ranges = {}
        for name in ("TimeoutSeconds", "HeartbeatSeconds"):
            value = self.body.get(name)
            if f"{name}Path" in self.body:
                where = f"{name}Path"
                shape = read(env, where, self.body[where], reference=True)
                whole_number(env, where, shape, str(self.body[where]), 1, MAX_SECONDS)
            else:
                shape = of_json(value)
            if shape.number:
                ranges[name] = shape.number
        timeout, heartbeat = ranges.get("TimeoutSeconds"), ranges.get("HeartbeatSeconds")
        if timeout and heartbeat and heartbeat.high >= timeout.low:
            reason = f"may be {heartbeat.high} s, which is not less than TimeoutSeconds ({timeout.low} s)"
            self.report("heartbeat", "HeartbeatSeconds", "", reason)

    def pass_state(self) -> list[Edge]:
        env = self.effective()
        data = env.data
        if "Parameters" in self.body:
            data = template(env, "Parameters", self.body["Parameters"])
        if "Result" in self.body:
            data = of_json(self.body["Result"])
        return self.next(self.put("ResultPath", self.body, data))

    def wait(self) -> list[Edge]:
        env = self.effective()
        if "SecondsPath" in self.body:
            path = self.body["SecondsPath"]
            whole_number(env, "SecondsPath", read(env, "SecondsPath", path, reference=True), str(path), 0, MAX_SECONDS)
        if "TimestampPath" in self.body:
            path = self.body["TimestampPath"]
            surely_timestamp(env, "TimestampPath", read(env, "TimestampPath", path, reference=True), str(path))
        return self.next(env.data)

    def choice(self) -> list[Edge]:
        env, edges = self.effective(), []
        for at, rule in enumerate(self.body.get("Choices", [])):
            where = f"Choices[{at}]"
            routes = env.routes if at == 0 else []
            branches = branch(replace(env, routes=routes), where, rule)
            edges.append(self.leave(branches.holds, str(rule.get("Next")), f"{where} of '{self.name}'"))
            env = replace(env, data=branches.fails)
        if "Default" in self.body:
            edges.append(self.leave(env.data, str(self.body["Default"]), f"Default of '{self.name}'"))
        return edges

    def succeed(self) -> list[Edge]:
        return [self.leave(self.effective().data, None, f"End at '{self.name}'")]

    def fail(self) -> list[Edge]:
        for where in ("ErrorPath", "CausePath"):
            if where in self.body:
                surely(self.raw, where, expression(self.raw, where, self.body[where]), "text", str(self.body[where]))
        return []

    def parallel(self) -> list[Edge]:
        env = self.effective()
        data = template(env, "Parameters", self.body["Parameters"]) if "Parameters" in self.body else env.data
        self.check_size(data, "Parameters", "the input of the branches")
        outputs = []
        for at, inner in enumerate(self.body["Branches"]):
            outputs.append(self.flow.graph(inner, data, f"Branches[{at}] of '{self.name}'", self.report_of))
        ended = [output for output in outputs if output is not None]
        edges = self.result_edges(array_of(ended)) if len(ended) == len(outputs) else []
        return [*edges, *self.catch_edges()]

    def map_state(self) -> list[Edge]:
        env = self.effective()
        if "MaxConcurrencyPath" in self.body:
            path = self.body["MaxConcurrencyPath"]
            shape = read(env, "MaxConcurrencyPath", path, reference=True)
            whole_number(env, "MaxConcurrencyPath", shape, str(path), 0, MAX_SECONDS)
        path = self.body.get("ItemsPath", "$")
        items = read(env, "ItemsPath", path, reference=True)
        surely(env, "ItemsPath", items, "array", str(path))
        array = items.array or Array(None, 0, INF, INF)
        data = array.items if array.items is not None else unknown(array.size_bytes)
        for selector in ("ItemSelector", "Parameters"):
            if selector in self.body:
                context = integrations.add_item(env.context, data)
                data = template(replace(env, context=context), selector, self.body[selector])
        self.check_size(data, "ItemSelector", "the input of an item")
        processor = self.body.get("ItemProcessor") or self.body["Iterator"]
        output = self.flow.graph(processor, data, f"item of '{self.name}'", self.report_of)
        declared = self.assumptions.map_items.get(self.name, INF)
        most = min(array.most, max(0, array.size_bytes - 1) / 2, declared)
        if output is None:
            return self.catch_edges()
        return [
            *self.result_edges(repeated(output, int(min(array.least, most)), most)),
            *self.catch_edges(),
        ]


def _bytes(count: float) -> str:
    return "any number of bytes" if count == INF else f"{count:,.0f} bytes"


def _largest(shape: Shape) -> str:
    if shape.object is None:
        return _bytes(size(shape))
    parts = sorted(((size(part.shape), name) for name, part in shape.object.fields.items()), reverse=True)
    return ", ".join(f"{name} {_bytes(count)}" for count, name in parts[:3]) or _bytes(shape.object.rest_bytes)
