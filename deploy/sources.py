"""What the images are made of: the commit of a repository, or the files that `spaceport deploy --print` wrote.

A folder of such files has a file VERSION. Python there has boto3 alone, so nothing that deploys imports spaceport.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("containers", "deploy/buildspec.yaml")  # what images of the same content have in common
MADE = {"__pycache__", "node_modules"}  # folders that tools make there
STAGE_NAMES = tuple(
    str(stage["name"])
    for stage in json.loads((ROOT / "statemachine/stages.json").read_text(encoding="utf-8"))["stages"]
)


class SourcesError(Exception):
    """The sources of the images cannot be had; the text says why."""


def printed_version() -> str:
    """The version that wrote this folder; empty in a repository."""
    file = ROOT / "VERSION"
    return file.read_text(encoding="utf-8").strip() if file.is_file() else ""


def version() -> str:
    """The project's version."""
    if printed := printed_version():
        return printed
    with (ROOT / "pyproject.toml").open("rb") as file:
        return str(tomllib.load(file)["project"]["version"])


def commit() -> str:
    """The commit that is checked out, 40 digits; the version of a printed folder; "unknown" elsewhere."""
    return printed_version() or _git_text("rev-parse", "HEAD") or "unknown"


def revision() -> str:
    """The commit that the images are made from, with "-dirty" when a file of the build differs from it or is new."""
    changed = "" if printed_version() else _git_text("status", "--porcelain", "--", "containers")
    return commit() + ("-dirty" if changed else "")


def content_hash() -> str:
    """SHA-256 over the committed sources of the images, or over the files of a printed folder; hexadecimal."""
    if printed_version():
        told = "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()} {name}\n" for name, file in _files())
    else:
        told = _git("rev-parse", *(f"HEAD:{path}" for path in SOURCES)).decode()
    return hashlib.sha256(told.encode()).hexdigest()


def archive() -> bytes:
    """A zip of all that is committed, or of the sources of the images in a printed folder."""
    if not printed_version():
        return _git("archive", "--format=zip", "HEAD")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name, file in _files():
            target.write(file, name)
    return packed.getvalue()


def _files() -> list[tuple[str, Path]]:
    """(path from ROOT, file) of each source of the images in a printed folder, in order."""
    paths = [path for source in SOURCES for path in (ROOT / source, *(ROOT / source).rglob("*"))]
    names = ((path.relative_to(ROOT), path) for path in paths if path.is_file())
    return sorted((name.as_posix(), path) for name, path in names if not MADE.intersection(name.parts))


def _git(*arguments: str) -> bytes:
    """What git prints. Raises SourcesError when it fails or is not there."""
    try:
        return subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, check=True).stdout
    except FileNotFoundError as error:
        raise SourcesError("the sources of the images cannot be told: git is not installed") from error
    except subprocess.CalledProcessError as error:
        raise SourcesError(f"the sources of the images cannot be told: {error.stderr.decode().strip()}") from error


def _git_text(*arguments: str) -> str:
    """What git prints; empty when it fails or is not there."""
    try:
        return _git(*arguments).decode().strip()
    except SourcesError:
        return ""
