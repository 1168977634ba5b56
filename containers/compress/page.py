"""The page that shows the scene: our index.html and page.js around the files of supersplat-viewer.

Twice: index.html with its files beside it, for a web server, and scene.html with all of them in it, which a link to one
object or a file on a disk shows too.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from pathlib import Path

from compress.fetch_viewer import viewer_package
from compress.templates import environment
from compress.viewer_settings import ViewerSettings
from job.documents import write_document

PAGE_FOLDER = Path(__file__).parent / "page"
VIEWER_FILES = {"public/index.js": "index.js", "public/index.css": "index.css", "LICENSE": "LICENSE-viewer.txt"}
INLINE_HANDLER = "event.stopPropagation()"  # the only inline script in the viewer's own markup
# Browsers load no modules into a page that was opened as a file; without a word the page would stay empty.
FILE_NOTICE = """
if (location.protocol === 'file:') addEventListener('DOMContentLoaded', () => {
    const problem = document.getElementById('problem');
    problem.textContent = 'A browser shows this page only from a web server. Open scene.html beside it, ' +
        'or in a terminal: spaceport view ' +
        decodeURIComponent(location.pathname).replace(/\\/[^/]*$/, '');
    problem.hidden = false;
});
"""
# The styles of page.css are for a scene on black; these follow them where it is on white.
ON_WHITE = """
:root {
    color-scheme: light;
}

html,
body {
    background-color: #fff;
}

.scene-bar {
    color: #111;
    text-shadow: 0 0 6px rgb(255 255 255 / 90%), 0 1px 2px rgb(255 255 255 / 90%);
}

.scene-problem {
    color: #111;
    background: rgb(245 245 245 / 95%);
    box-shadow: 0 0 0 1px rgb(0 0 0 / 20%);
}

.scene-problem a {
    color: #05c;
}

/* The viewer's light icons stand on what is behind them, darkened by 30 % only. */
.sse-viewer .sse-controlsWrap > .sse-buttonsContainer .sse-buttonGroup {
    background-color: rgb(0 0 0 / 65%);
}
"""
PAGE_FILES = ("page.js", "page.css")
SINGLE_PAGE = "scene.html"
MODULE = "./index.js"  # as page.js imports the viewer
# What page.js and the styles load, with the types that a web server would give.
INLINED = {"scene.sog": "application/octet-stream", "settings.json": "application/json", "poster.jpg": "image/jpeg"}


def write_page(folder: Path, title: str, settings: ViewerSettings) -> None:
    """Put index.html, settings.json and what they load into ``folder``; every address is relative to it.

    Raises StageError VIEWER_MISSING when the viewer was not fetched.
    """
    package = viewer_package()
    for source, name in VIEWER_FILES.items():
        shutil.copyfile(package / source, folder / name)
    for name in PAGE_FILES:
        shutil.copyfile(PAGE_FOLDER / name, folder / name)
    if min(settings.background.color) > 0.5:
        with (folder / "page.css").open("a", encoding="utf-8") as styles:
            styles.write(ON_WHITE)
    write_document(folder / "settings.json", settings)
    html = (
        environment()
        .get_template("index.html.j2")
        .render(title=title, notice=FILE_NOTICE, script_hashes=[script_hash(INLINE_HANDLER), script_hash(FILE_NOTICE)])
    )
    (folder / "index.html").write_text(html, encoding="utf-8")


def write_single_page(folder: Path, title: str) -> None:
    """Put scene.html into ``folder``, made of the files of `write_page`, the scene and the poster that lie there."""
    files = {name: data_url((folder / name).read_bytes(), kind) for name, kind in INLINED.items()}
    viewer = data_url((folder / "index.js").read_bytes(), "text/javascript")
    modules = json.dumps({"imports": {MODULE: viewer}})
    script = (folder / "page.js").read_text(encoding="utf-8")
    styles = "".join((folder / name).read_text(encoding="utf-8") for name in ("index.css", "page.css"))
    license_text = (folder / "LICENSE-viewer.txt").read_text(encoding="utf-8")
    for name, text in (("page.js", script), ("the viewer's license", license_text)):
        if "</script" in text.lower():
            raise ValueError(f"{name} holds </script and would end early in {SINGLE_PAGE}")
    hashes = [script_hash(text) for text in (INLINE_HANDLER, modules, script)]
    html = (
        environment()
        .get_template("scene.html.j2")
        .render(
            title=title,
            files=json.dumps(files),
            modules=modules,
            script=script,
            styles=styles.replace("./poster.jpg", files["poster.jpg"]),
            license_text=license_text,
            script_hashes=hashes,
        )
    )
    (folder / SINGLE_PAGE).write_text(html, encoding="utf-8", newline="\n")  # the hashes are of these very bytes


def data_url(data: bytes, kind: str) -> str:
    """The data as an address that holds it (RFC 2397)."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def script_hash(script: str) -> str:
    """An inline script as a source of a Content Security Policy (CSP 3, section 2.3.1)."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
