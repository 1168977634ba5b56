"""Every fault in every state: what happens is what must happen, and docs/faults.md says so."""

import os
from functools import cache

import pytest

from tests.state_machine.simulator import table
from tests.state_machine.simulator.catalog import CATALOG
from tests.state_machine.simulator.code import deployed

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


def test_the_page_is_current():
    text = table.render([cell for state in STATES for cell in row(state)])
    if os.environ.get("SPACEPORT_UPDATE_DOCS"):
        table.PAGE.write_text(text, encoding="utf-8")
    current = table.PAGE.read_text(encoding="utf-8")
    assert current == text, "docs/faults.md is out of date; write it with SPACEPORT_UPDATE_DOCS=1"
