"""``python -m benchmarks NAME [arguments]`` runs one benchmark; without a name it lists them.

Benchmarks import the stage programs and the functions as their own processes do: by the two folders on PYTHONPATH.
"""

from __future__ import annotations

import ast
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HELPERS = ("__init__", "__main__", "encode_sog", "iteration_steps")  # the last two are run by other benchmarks


def benchmarks() -> dict[str, str]:
    """First line of the docstring by name, of the modules that are commands."""
    found = {}
    for file in sorted((ROOT / "benchmarks").glob("*.py")):
        text = file.read_text(encoding="utf-8")
        if file.stem not in HELPERS and '__name__ == "__main__"' in text:
            found[file.stem] = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    return found


def main() -> None:
    known = benchmarks()
    if sys.argv[1:2] and sys.argv[1] in known:
        path = os.pathsep.join([str(ROOT), str(ROOT / "containers"), str(ROOT / "functions")])
        given = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = path + os.pathsep + given if given else path
        os.execv(sys.executable, [sys.executable, "-m", f"benchmarks.{sys.argv[1]}", *sys.argv[2:]])
    for name, line in known.items():
        print(f"{name:18} {line}")
    sys.exit(f"error: there is no benchmark {sys.argv[1]!r}" if sys.argv[1:] else 0)


if __name__ == "__main__":
    main()
