"""Replay one schedule: ``python -m tests.state_machine.simulator SEED`` prints what happened and what was violated."""

from __future__ import annotations

import sys

from tests.state_machine.simulator.code import deployed
from tests.state_machine.simulator.schedules import all_places, draw, run_seed


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__)
        return 2
    seed = int(sys.argv[1])
    print(draw(seed, all_places(deployed())))
    world, violations = run_seed(deployed(), seed)
    print("\n".join(world.log))
    print("\n".join(violations) or "no violation")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
