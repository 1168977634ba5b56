"""Random schedules of several faults at once.

`python -m benchmarks faults` runs all 20,000; here it is another part of them each day.
"""

import os
from datetime import date

from tests.state_machine.simulator import schedules
from tests.state_machine.simulator.code import deployed

COUNT = int(os.environ.get("SPACEPORT_SCHEDULES", "1500"))
TODAY = date.today().toordinal() * COUNT % schedules.WHOLE
FIRST = int(os.environ.get("SPACEPORT_FIRST_SEED", TODAY))


def test_no_schedule_violates_an_invariant():
    code, bad = deployed(), {}
    for seed in range(FIRST, FIRST + COUNT):
        _, violations = schedules.run_seed(code, seed)
        if violations:
            bad[seed] = violations
    text = "\n".join(f"python -m tests.state_machine.simulator {seed}: {found}" for seed, found in bad.items())
    assert not bad, f"replay with\n{text}"


def test_a_seed_is_the_same_run_each_time():
    first, _ = schedules.run_seed(deployed(), 4711)
    second, _ = schedules.run_seed(deployed(), 4711)
    assert first.log == second.log
    assert first.table.rows == second.table.rows
    assert len(first.log) > 20


def has_struck(world):
    parts = [*world.plan.faults, *world.plan.acts, *world.plan.fates.values(), world.plan.lost_sweeps]
    return bool({id(part) for part in parts} & {id(part) for part in world.hit}) or bool(world.timed_out_in)


def test_schedules_differ_and_most_faults_strike():
    places = schedules.all_places(deployed())
    assert len({repr(schedules.draw(seed, places)) for seed in range(200)}) > 195
    assert sum(has_struck(schedules.run_seed(deployed(), seed)[0]) for seed in range(100)) > 70
