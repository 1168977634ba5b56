"""The page that shows the scene: our index.html and page.js around the files of supersplat-viewer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from compress.fetch_viewer import viewer_package
from compress.templates import environment
from job.contract import write_json_atomically

PAGE_FOLDER = Path(__file__).parent / "page"
VIEWER_FILES = {"public/index.js": "index.js", "public/index.css": "index.css", "LICENSE": "LICENSE-viewer.txt"}
PAGE_FILES = ("page.js", "page.css")


def write_page(folder: Path, title: str, settings: dict[str, Any]) -> None:
    """Put index.html, settings.json and what they load into ``folder``; every address is relative to it.

    Raises StageError VIEWER_MISSING when the viewer was not fetched.
    """
    package = viewer_package()
    for source, name in VIEWER_FILES.items():
        shutil.copyfile(package / source, folder / name)
    for name in PAGE_FILES:
        shutil.copyfile(PAGE_FOLDER / name, folder / name)
    write_json_atomically(folder / "settings.json", settings)
    html = environment().get_template("index.html.j2").render(title=title)
    (folder / "index.html").write_text(html, encoding="utf-8")
