"""The path proof: every finding about a state machine definition. Rules: docs/path-proof.md."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from spaceport.asl.definition import DefinitionError, load
from tests.state_machine.pathproof import rules
from tests.state_machine.pathproof.assumptions import MACHINES, Assumptions
from tests.state_machine.pathproof.findings import Finding, Report
from tests.state_machine.pathproof.flow import Analysis, analyse

DEFINITIONS = Path(__file__).parents[3] / "statemachine"
SUBSTITUTION = re.compile(r"\$\{([A-Za-z0-9.:]+)\}")


def read_definition(path: Path) -> dict[str, Any]:
    """A definition with its substitutions filled in: ``…Arn`` by the ARN of a function, all else by its name."""

    def value(match: re.Match[str]) -> str:
        name = match[1]
        return f"arn:aws:lambda:us-east-1:123456789012:function:{name}" if name.endswith("Arn") else name

    definition: dict[str, Any] = json.loads(SUBSTITUTION.sub(value, path.read_text(encoding="utf-8")))
    return definition


def prove(definition: dict[str, Any], assumptions: Assumptions | None = None) -> list[Finding]:
    """Everything about ``definition`` that cannot be proven; an empty list is the proof."""
    return prove_with_entries(definition, assumptions or Assumptions())[0]


def prove_with_entries(definition: dict[str, Any], assumptions: Assumptions) -> tuple[list[Finding], Analysis]:
    """The findings, and what is certain at the entry of each state."""
    malformed = [*_malformed(definition)]
    if malformed:
        return malformed, Analysis()
    findings = dict.fromkeys(rules.check(definition, assumptions))

    def report_of(state: str) -> Report:
        def report(rule: str, field: str, path: str, reason: str) -> None:
            findings.setdefault(Finding(rule, state, field, path, reason))

        return report

    analysis = analyse(definition, assumptions, report_of)
    # What the loader refuses on other grounds (unknown fields, limits of the language) is no proof either.
    places = {_place(finding) for finding in findings}
    for finding in _refused(definition):
        if _place(finding) not in places:
            findings.setdefault(finding)
    return list(findings), analysis


def prove_all() -> dict[str, list[Finding]]:
    """The findings of every definition in statemachine/, by the name of its file."""
    found = {}
    for path in sorted(DEFINITIONS.glob("*.asl.json")):
        name = path.name.removesuffix(".asl.json")
        found[name] = prove(read_definition(path), MACHINES.get(name))
    return found


def _refused(definition: dict[str, Any]) -> list[Finding]:
    try:
        load(definition)
    except DefinitionError as error:
        return [Finding("definition", problem.state, problem.field, "", problem.reason) for problem in error.problems]
    return []


def _place(finding: Finding) -> tuple[str, str]:
    """The state and its field, without what is inside the field."""
    return finding.state, re.split(r"[.\[]", finding.field)[0]


def _malformed(graph: Any, outer: str = "") -> list[Finding]:
    """What is too broken to walk over."""
    states = graph.get("States") if isinstance(graph, dict) else None
    if not isinstance(states, dict) or not states:
        return [Finding("definition", outer, "States", "", "must be an object with at least one state")]
    found = []
    kinds = {"Task", "Pass", "Wait", "Choice", "Succeed", "Fail", "Parallel", "Map"}
    for name, body in states.items():
        if not isinstance(body, dict) or body.get("Type") not in kinds:
            found.append(Finding("definition", name, "Type", "", f"must be one of {', '.join(sorted(kinds))}"))
            continue
        for field in ("Retry", "Catch", "Choices", "Branches"):
            entries = body.get(field, [])
            if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
                found.append(Finding("definition", name, field, "", "must be an array of objects"))
                return found
        if body["Type"] == "Map" and "ItemProcessor" not in body and "Iterator" not in body:
            found.append(Finding("definition", name, "ItemProcessor", "", "is missing"))
        for _, inner in rules.inner_graphs(body):
            found += _malformed(inner, name)
    return found
