"""The table state x fault: every cell is run, or says why it cannot happen; written to docs/faults.md."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tests.state_machine.simulator import invariants
from tests.state_machine.simulator.catalog import CATALOG, EVENT_CALLS, Kind, plan_of
from tests.state_machine.simulator.code import ROOT, Code
from tests.state_machine.simulator.world import World

PAGE = ROOT / "docs/faults.md"


@dataclass
class Cell:
    """``runs`` variants were run; ``outcomes`` counts how they ended; ``struck`` of them met their fault."""

    state: str
    fault: str
    reason: str = ""
    runs: int = 0
    struck: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)


def states(code: Code) -> list[str]:
    return [*code.definition["States"], *EVENT_CALLS]


def run_cell(code: Code, state: str, kind: Kind) -> Cell:
    cell = Cell(state, kind.name, kind.reason(state))
    if cell.reason:
        return cell
    for parts in kind.parts(state):
        world = World(code, plan_of(state, parts)).run()
        cell.runs += 1
        struck = world.struck > 0
        if not struck and cell.runs > 1:
            continue  # the function makes fewer calls than there are variants
        cell.struck += struck
        cell.violations += invariants.check(world)
        cell.outcomes[outcome(world)] += 1
    return cell


def outcome(world: World) -> str:
    """How the jobs ended, in a few words: status of the row, code, and messages if not one."""
    words = []
    for pk, row in world.table.rows.items():
        if pk.startswith("JOB#"):
            code = (row.get("failure") or {}).get("code", "")
            told = sum(pk[4:] in invariants.plain(text) for _, _, text in world.messages.sent)
            words.append(f"{row.get('status')} {code}".strip() + ("" if told == 1 else f", {told} messages"))
    return " + ".join(words)


def run_table(code: Code) -> list[Cell]:
    return [run_cell(code, state, kind) for state in states(code) for kind in CATALOG]
