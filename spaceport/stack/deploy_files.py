"""What `make deploy` needs, in a folder of its own: the service can be deployed where there is no repository."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from spaceport.stack.root import ROOT

# Folders and files below ROOT. Of deploy/ only what runs at a deployment; it needs boto3 alone.
DEPLOY_FILES = (
    "template.yaml",
    "samconfig.toml",
    "deploy.mk",
    "statemachine",
    "functions",
    "containers",
    "events/schemas",
    "deploy/account.py",
    "deploy/push_images.py",
    "deploy/sources.py",
    "deploy/images/build.py",
    "deploy/images/docker.py",
    "deploy/buildspec.yaml",
    "deploy/requirements",
)
MADE_BY_TOOLS = {"__pycache__", "node_modules", ".mypy_cache", ".pytest_cache", ".ruff_cache"}
MAKEFILE = """# Written by `spaceport deploy --print`, version {version}: `make deploy`; docs are in the repository.
PYTHON ?= python3

.PHONY: help
help:
	@sed -n 's/^# make/make/p' $(MAKEFILE_LIST)

include deploy.mk
"""


class FolderTakenError(Exception):
    """The folder to write into has something in it already."""


def write_deploy_files(folder: Path) -> None:
    """Write all that `make deploy` needs into ``folder``, which is new or empty.

    Raises FolderTakenError when it is neither, OSError when it cannot be written.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FolderTakenError(f"{folder} is there already and is not an empty folder. Name a new one.")
    for source in deploy_sources():
        target = folder / source.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())  # not its mode: an installation may be read-only
    (folder / "VERSION").write_text(f"{version('spaceport')}\n", encoding="utf-8")
    (folder / "Makefile").write_text(MAKEFILE.format(version=version("spaceport")), encoding="utf-8")


def deploy_sources() -> list[Path]:
    """The files themselves, without what tools have made beside them."""
    roots = [ROOT / name for name in DEPLOY_FILES]
    files = [file for root in roots for file in (sorted(root.rglob("*")) if root.is_dir() else [root])]
    files = [file for file in files if not file.is_dir()]
    return [file for file in files if not MADE_BY_TOOLS.intersection(file.relative_to(ROOT).parts)]
