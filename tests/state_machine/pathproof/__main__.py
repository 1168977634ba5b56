"""``python -m tests.state_machine.pathproof``: print what cannot be proven about the definitions in statemachine/."""

from __future__ import annotations

import sys

from tests.state_machine.pathproof.prove import prove_all

results = prove_all()
for name, findings in results.items():
    print(f"{name}: {len(findings)} findings")
    for finding in findings:
        print(f"  {finding}")
sys.exit(1 if any(results.values()) else 0)
