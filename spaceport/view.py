"""Show a result in the browser, which refuses to load a splat from a file: a small server on loopback serves it."""

from __future__ import annotations

import functools
import http.server
import webbrowser
from pathlib import Path
from typing import Any


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Files of one folder, without a log line per request."""

    def log_message(self, format: str, *args: Any) -> None:
        return


def serve(folder: Path, port: int = 0) -> http.server.ThreadingHTTPServer:
    """A server for ``folder`` on 127.0.0.1; port 0 takes a free one. The caller runs ``serve_forever``."""
    handler = functools.partial(QuietHandler, directory=str(folder))
    return http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)


def show(folder: Path, port: int = 0, open_browser: bool = True) -> None:
    """Serve ``folder`` until interrupted, and open its page."""
    server = serve(folder, port)
    url = f"http://127.0.0.1:{server.server_address[1]}/"
    print(f"{url}  (Ctrl-C ends)", flush=True)
    if open_browser:
        webbrowser.open(url)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        server.server_close()
