"""What continuous integration runs, by the Makefile and by the workflows."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def commands(target: str) -> str:
    return subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_ci_runs_every_test() -> None:
    """What the workflow runs, and the deployment in its other job, are together what `make ci` runs."""
    wanted = (
        '-m "not images and not deploy and not wheel"',
        "-m images tests/images",
        "-m wheel tests/wheel",
        "ruff check",
        "mypy ",
    )
    for target in ("ci", "ci-without-deploy"):
        assert all(command in commands(target) for command in wanted)
    deploying = "-m deploy tests/deploy"
    assert deploying in commands("ci") and deploying in commands("test-deploy")
    assert deploying not in commands("ci-without-deploy")


def test_workflows_leave_the_choice_of_tests_to_the_makefile() -> None:
    """pytest takes the last -m alone: one in PYTEST_ARGS would undo that of the target."""
    text = (ROOT / ".github" / "workflows" / "ci.yaml").read_text()
    assert "make ci-without-deploy" in text and "make test-deploy" in text
    for file in (ROOT / ".github" / "workflows").glob("*.yaml"):
        assert "PYTEST_ARGS" not in file.read_text(), file.name
