"""``python -m tests.state_machine.pathlint``: print the findings about the definitions in statemachine/."""

from __future__ import annotations

import sys

from tests.state_machine.pathlint.assumptions import MACHINES
from tests.state_machine.pathlint.lint import DEFINITIONS, lint, read_definition

count = 0
for path in sorted(DEFINITIONS.glob("*.asl.json")):
    for finding in lint(read_definition(path), MACHINES.get(path.name.removesuffix(".asl.json"))):
        print(f"{path.name}: {finding}")
        count += 1
sys.exit(1 if count else 0)
