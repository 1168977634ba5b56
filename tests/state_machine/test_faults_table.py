"""Every fault in every state: what happens is what must happen, and docs/faults.md says so."""

import json
import os
from functools import cache

import pytest

from tests.state_machine.simulator import schedules, table
from tests.state_machine.simulator.catalog import CATALOG
from tests.state_machine.simulator.code import ROOT, deployed
from tests.state_machine.simulator.planted import BUGS

STATES = table.states(deployed())


@cache
def row(state):
    return [table.run_cell(deployed(), state, kind) for kind in CATALOG]


@pytest.mark.parametrize("state", STATES)
def test_every_fault_in(state):
    cells = row(state)
    assert [f"{c.fault}: {c.violations[:3]}" for c in cells if c.violations] == []
    assert [c.fault for c in cells if not c.reason and c.struck < c.runs] == [], "these faults did not strike here"
    assert all(c.reason or c.outcomes for c in cells)


def test_every_state_and_every_function_of_an_event_has_a_row():
    code = deployed()
    assert set(code.definition["States"]) <= set(STATES)
    called = {name for _, _, name in code.rules}
    from tests.state_machine.simulator.catalog import EVENT_CALLS

    assert called == set(EVENT_CALLS.values())


def test_the_recorded_result_is_of_this_catalogue():
    figures = json.loads((ROOT / "benchmarks/results/faults.json").read_text())["figures"]
    now = {"states": len(STATES), "faults": len(CATALOG), "planted_bugs": len(BUGS), "caught": len(BUGS)}
    now |= {"schedules": schedules.WHOLE, "violations": 0}
    assert {name: figures[name] for name in now} == now, "run: python -m benchmarks faults"


def test_the_page_is_current():
    text = table.render([cell for state in STATES for cell in row(state)])
    if os.environ.get("SPACEPORT_UPDATE_DOCS"):
        table.PAGE.write_text(text, encoding="utf-8")
    current = table.PAGE.read_text(encoding="utf-8")
    assert current == text, "docs/faults.md is out of date; write it with SPACEPORT_UPDATE_DOCS=1"
