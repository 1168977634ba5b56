"""Files that are still there after a power cut, not only after the end of a process."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def sync_file(path: Path) -> None:
    """Return when the content of a file is on the disk."""
    _sync(path, os.O_RDONLY)


def sync_folder(path: Path) -> None:
    """Return when the names in a folder are on the disk (fsync(2): syncing a file does not sync its name)."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def write_json(path: Path, value: Any, default: Callable[[Any], Any] | None = None) -> None:
    """Replace a JSON file; a reader sees the old one or the new one, from the return on the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    temporary.write_text(json.dumps(value, default=default), encoding="utf-8")
    replace(temporary, path)


def replace(temporary: Path, path: Path) -> None:
    """Give a complete file its name. Content first: a name without content is what some file systems would keep."""
    sync_file(temporary)
    temporary.replace(path)
    sync_folder(path.parent)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
