"""The path lint: every path of a state machine definition has a shape that cannot fail. Rules: docs/path-lint.md."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spaceport.asl.definition import DefinitionError, load
from tests.state_machine.pathlint import facts, rules
from tests.state_machine.pathlint.assumptions import Assumptions
from tests.state_machine.pathlint.rules import Finding

DEFINITIONS = Path(__file__).parents[3] / "statemachine"
SUBSTITUTION = re.compile(r"\$\{([A-Za-z0-9.:]+)\}")


def read_definition(path: Path) -> dict[str, Any]:
    """A definition with its substitutions filled in: ``…Arn`` by the ARN of a function, all else by its name."""

    def value(match: re.Match[str]) -> str:
        name = match[1]
        return f"arn:aws:lambda:us-east-1:123456789012:function:{name}" if name.endswith("Arn") else name

    definition: dict[str, Any] = json.loads(SUBSTITUTION.sub(value, path.read_text(encoding="utf-8")))
    return definition


def lint(definition: dict[str, Any], assumptions: Assumptions | None = None) -> list[Finding]:
    """Everything about ``definition`` that may fail beyond any Catch."""
    assumptions = assumptions or Assumptions()
    refused = list(_refused(definition))
    try:
        found = dict.fromkeys([*rules.check(definition, assumptions), *facts.check(definition, assumptions)])
    except (KeyError, TypeError, AttributeError):
        return refused  # too broken to walk over; the loader says where
    # What the loader refuses on other grounds is a finding too.
    places = {_place(finding) for finding in found}
    return [*found, *(finding for finding in refused if _place(finding) not in places)]


def _refused(definition: dict[str, Any]) -> Iterator[Finding]:
    try:
        load(definition)
    except DefinitionError as error:
        yield from (Finding("definition", *problem[:2], "", problem.reason) for problem in error.problems)


def _place(finding: Finding) -> tuple[str, str]:
    """The state and its field, without what is inside the field."""
    return finding.state, re.split(r"[.\[]", finding.field)[0]
