"""The page that shows the scene: our index.html and page.js around the files of supersplat-viewer."""

from __future__ import annotations

import base64
import hashlib
import shutil
from pathlib import Path
from typing import Any

from compress.fetch_viewer import viewer_package
from compress.templates import environment
from job.contract import write_json_atomically

PAGE_FOLDER = Path(__file__).parent / "page"
VIEWER_FILES = {"public/index.js": "index.js", "public/index.css": "index.css", "LICENSE": "LICENSE-viewer.txt"}
INLINE_HANDLER = "event.stopPropagation()"  # the only inline script in the viewer's own markup
# Browsers load no modules into a page that was opened as a file; without a word the page would stay empty.
FILE_NOTICE = """
if (location.protocol === 'file:') addEventListener('DOMContentLoaded', () => {
    const problem = document.getElementById('problem');
    problem.textContent = 'A browser shows this scene only from a web server. In a terminal: spaceport view ' +
        decodeURIComponent(location.pathname).replace(/\\/[^/]*$/, '');
    problem.hidden = false;
});
"""
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
    html = (
        environment()
        .get_template("index.html.j2")
        .render(title=title, notice=FILE_NOTICE, script_hashes=[script_hash(INLINE_HANDLER), script_hash(FILE_NOTICE)])
    )
    (folder / "index.html").write_text(html, encoding="utf-8")


def script_hash(script: str) -> str:
    """An inline script as a source of a Content Security Policy (CSP 3, section 2.3.1)."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
