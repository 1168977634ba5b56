"""Random schedules: several faults of the catalogue at once, drawn from a seed."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache
from itertools import takewhile

from tests.state_machine.simulator import invariants
from tests.state_machine.simulator.catalog import CATALOG, EVENT_CALLS, Kind, Parts, plan_of
from tests.state_machine.simulator.code import Code, deployed
from tests.state_machine.simulator.plan import Delivery, Plan
from tests.state_machine.simulator.world import World

WHOLE = 20_000  # schedules of the result that is kept, benchmarks/results/faults.json
NOISE = ("object", "job", "status")
OPTIONS = (
    b'{"ready": true, "email": "ada@example.org"}',
    b'{"ready": true}',
    b'{"email": "ada@example.org", "title": "My caf\xc3\xa9"}',
    None,
)


def draw(seed: int, states: list[str]) -> Plan:
    """The plan of ``seed``: one to three faults, noise in the delivery of events, and how the user uploads."""
    rng = random.Random(seed)
    parts: list[Parts] = []
    taken: set[str] = set()
    for _ in range(rng.choice((1, 2, 2, 3))):
        state, kind = _pick(rng, states)
        chosen = rng.choice(_variants(state, kind))
        wheres = {fault.where for fault in chosen.faults} | {f"{stage} job" for stage, _ in chosen.fates}
        if not wheres & taken:  # two faults of one call hide each other
            taken |= wheres
            parts.append(chosen)
    plan = plan_of("Settle", *parts)
    options = rng.choice(OPTIONS)
    return replace(
        plan,
        photos=rng.choice((8, 9, 12)),
        photo_gap_s=rng.choice((0.0, 0.2, 5.0)),
        options=options,
        # What says that the upload is ready comes last, else the job takes what is there.
        options_first=rng.random() < 0.3 and b"ready" not in (options or b""),
        deliveries={**_noise(rng), **plan.deliveries},
        jobs=None,  # another fault may end the first upload earlier or later
    )


def _pick(rng: random.Random, states: list[str]) -> tuple[str, Kind]:
    while True:
        state, kind = rng.choice(states), rng.choice(CATALOG)
        if not kind.reason(state):
            return state, kind


@cache
def _calls(state: str) -> int:
    """How many calls to AWS the state's function makes on the usual way: faults at later ones would not strike."""
    return World(deployed(), plan_of(state)).run().most_calls[EVENT_CALLS.get(state, state)]


@cache
def _variants(state: str, kind: Kind) -> list[Parts]:
    return list(takewhile(lambda parts: parts.step <= _calls(state), kind.parts(state)))


def _noise(rng: random.Random) -> dict[tuple[str, int], Delivery]:
    """Some events are lost, doubled or late; an object's event is never lost: somebody must start the job."""
    found = {}
    share = rng.choice((0.0, 0.1, 0.5))
    for kind in NOISE:
        for number in range(24):
            if rng.random() < share:
                delays = rng.choice(((), (1.0, 1.0), (1.0, 90.0), (600.0,), (7200.0,), (0.0, 3600.0)))
                found[kind, number] = Delivery(delays or ((2.0,) if kind == "object" else ()))
    return found


def all_places(code: Code) -> list[str]:
    return [*code.definition["States"], *EVENT_CALLS]


def run_seed(code: Code, seed: int) -> tuple[World, list[str]]:
    world = World(code, draw(seed, all_places(code))).run()
    return world, invariants.check(world)
