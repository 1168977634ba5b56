"""The rules that need no data flow: where transitions lead, limits of tasks, tokens, Retry and Catch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from spaceport.asl.templates import context_paths_in
from tests.state_machine.pathlint.assumptions import Assumptions

Graph = dict[str, Any]  # {"StartAt", "States"}: a machine, a branch of Parallel, the processor of Map
ALL, RUNTIME = "States.ALL", "States.Runtime"
CAN_BE_RETRIED = ("Task", "Parallel", "Map")


class Finding(NamedTuple):
    """One thing that may fail: ``path`` is the JSONPath, error name or state name that it is about."""

    rule: str
    state: str
    field: str
    path: str
    reason: str

    def __str__(self) -> str:
        place = f"state '{self.state}'" if self.state else "state machine"
        return f"[{self.rule}] {place}, {self.field}: {self.path + ': ' if self.path else ''}{self.reason}"


def waits_for_token(body: dict[str, Any]) -> bool:
    """Whether the state is a callback task."""
    return body.get("Type") == "Task" and str(body.get("Resource", "")).endswith(".waitForTaskToken")


def check(definition: Graph, assumptions: Assumptions) -> Iterator[Finding]:
    """Every finding of the rules below, in ``definition`` and in the graphs nested in it."""
    if "TimeoutSeconds" not in definition:
        yield Finding("timeout", "", "TimeoutSeconds", "", "without it an execution may hang for a year")
    used: set[tuple[str, Any]] = set()
    yield from _graph(definition, "", assumptions, False, used)
    yield from _unused_exceptions(assumptions, used)


def inner_graphs(body: dict[str, Any]) -> list[tuple[str, Graph]]:
    """The graphs inside a Parallel or Map state, with the field they are in."""
    found: list[tuple[str, Graph]] = [(f"Branches[{at}]", graph) for at, graph in enumerate(body.get("Branches", []))]
    return found + [("ItemProcessor", body["ItemProcessor"])] if "ItemProcessor" in body else found


def targets(body: dict[str, Any], with_catch: bool = True) -> list[tuple[str, Any]]:
    """Every (field, state name) that a state can go to."""
    found: list[tuple[str, Any]] = [(name, body[name]) for name in ("Next", "Default") if name in body]
    found += [(f"Choices[{at}].Next", rule.get("Next")) for at, rule in enumerate(body.get("Choices", []))]
    if with_catch:
        found += [(f"Catch[{at}].Next", catcher.get("Next")) for at, catcher in enumerate(body.get("Catch", []))]
    return found


def _graph(graph: Graph, outer: str, assumptions: Assumptions, caught: bool, used: set[Any]) -> Iterator[Finding]:
    states = graph["States"]
    yield from _transitions(graph, outer)
    for name, body in states.items():
        if body["Type"] == "Task":
            yield from _task(name, body, assumptions, used)
        if body["Type"] == "Choice" and "Default" not in body:
            reason = "when no rule matches, the execution fails with States.NoChoiceMatched: a Choice has no Catch"
            yield Finding("choice-default", name, "Default", "", reason)
        yield from _error_lists(name, body, assumptions, used)
        is_caught = caught or _catches_all(body)
        if body["Type"] in CAN_BE_RETRIED:
            yield from _catch(name, body, states, assumptions, is_caught, used)
        for _, inner in inner_graphs(body):
            yield from _graph(inner, name, assumptions, is_caught, used)


# ---- where transitions lead


def _transitions(graph: Graph, outer: str) -> Iterator[Finding]:
    states = graph["States"]
    if graph.get("StartAt") not in states:
        yield Finding("next", outer, "StartAt", str(graph.get("StartAt")), "there is no such state")
    for name, body in states.items():
        for where, target in targets(body):
            if target not in states:
                yield Finding("next", name, where, str(target), "there is no such state on this level")
        if not any(target for _, target in targets(body)) and not _ends(body):
            yield Finding("next", name, "Next", "", "leads nowhere: neither Next nor End")
    reached = _reachable(states, [str(graph.get("StartAt"))])
    for name in states:
        if name not in reached:
            yield Finding("unreachable", name, "", name, "no route leads here from StartAt")
    for name in states:
        if name in reached and not any(_ends(states[found]) for found in _reachable(states, [name], with_catch=False)):
            reason = "no end (End, Succeed, Fail) can be reached from here except by an error: a loop without a way out"
            yield Finding("no-end", name, "", name, reason)


def _ends(body: dict[str, Any]) -> bool:
    return body["Type"] in ("Succeed", "Fail") or body.get("End") is True


def _reachable(states: dict[str, Any], start: list[str], with_catch: bool = True) -> set[str]:
    reached: set[str] = set()
    waiting = list(start)
    while waiting:
        name = waiting.pop()
        if name in states and name not in reached:
            reached.add(name)
            waiting += [str(target) for _, target in targets(states[name], with_catch)]
    return reached


# ---- tasks


def _task(name: str, body: dict[str, Any], assumptions: Assumptions, used: set[Any]) -> Iterator[Finding]:
    if "TimeoutSeconds" not in body:
        yield Finding("timeout", name, "TimeoutSeconds", "", "a task without it waits 99,999,999 s when nobody answers")
    if not waits_for_token(body):
        return
    if "HeartbeatSeconds" not in body:
        used.add(("no_heartbeat", name))
        if name not in assumptions.no_heartbeat:
            reason = "a lost job is noticed only at TimeoutSeconds; give a heartbeat, or a reason (assumptions.py)"
            yield Finding("heartbeat", name, "HeartbeatSeconds", "", reason)
    if not any(path.keys == ("Task", "Token") for path in context_paths_in(body.get("Parameters"))):
        yield Finding("token", name, "Parameters", "$$.Task.Token", "is not passed on, so nobody can answer the task")


# ---- errors


def _error_lists(name: str, body: dict[str, Any], assumptions: Assumptions, used: set[Any]) -> Iterator[Finding]:
    for kind in ("Retry", "Catch"):
        entries = body.get(kind, [])
        for at, entry in enumerate(entries):
            where, errors = f"{kind}[{at}].ErrorEquals", entry.get("ErrorEquals", [])
            if ALL in errors and (len(errors) > 1 or at < len(entries) - 1):
                yield Finding("states-all", name, where, ALL, "must stand alone, in the last entry")
            if RUNTIME in errors:
                yield Finding(
                    "states-runtime", name, where, RUNTIME, f"is never seen by {kind}: the execution just fails"
                )
            if kind == "Retry":
                yield from _retried(name, where, errors, assumptions, used)


def _retried(name: str, where: str, errors: list[str], assumptions: Assumptions, used: set[Any]) -> Iterator[Finding]:
    for error in errors:
        if error in assumptions.transient_errors:
            continue
        used.add(("retries", (name, error)))
        if (name, error) not in assumptions.retries:
            reason = "is not known to be transient, so a retry pays again for the same failure (assumptions.py)"
            yield Finding("retry", name, where, error, reason)


def _catches_all(body: dict[str, Any]) -> bool:
    return any(ALL in catcher.get("ErrorEquals", []) for catcher in body.get("Catch", []))


def _catch(
    name: str, body: dict[str, Any], states: dict[str, Any], assumptions: Assumptions, caught: bool, used: set[Any]
) -> Iterator[Finding]:
    if not caught:
        used.add(("no_catch", name))
        if name not in assumptions.no_catch:
            reason = "its errors end the execution without the failure route: no Catch of States.ALL here or around it"
            yield Finding("catch", name, "Catch", ALL, reason)
    for at, catcher in enumerate(body.get("Catch", [])):
        target = str(catcher.get("Next"))
        good_ends = sorted(
            found for found in _reachable(states, [target]) if _ends(states[found]) and states[found]["Type"] != "Fail"
        )
        if not good_ends:
            continue
        used.add(("recovers", name))
        if name not in assumptions.recovers:
            reason = f"this failure can end as a success, at {', '.join(good_ends)}; end it in Fail, or give a reason"
            yield Finding("failure-route", name, f"Catch[{at}].Next", target, reason)


def _unused_exceptions(assumptions: Assumptions, used: set[Any]) -> Iterator[Finding]:
    """An exception that nothing needs hides the next mistake."""
    for table in ("no_heartbeat", "no_catch", "recovers", "retries"):
        for key in getattr(assumptions, table):
            if (table, key) not in used:
                state, error = key if isinstance(key, tuple) else (key, "")
                yield Finding("exception", state, table, error, "is listed in assumptions.py, but nothing needs it")
