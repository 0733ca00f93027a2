"""The page on this machine: `jaxinfer explore`, with the standard library's server alone."""

import errno
import os
import sys
import webbrowser
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from jaxinfer.analysis.explorer.document import Page, page
from jaxinfer.errors import InputError, shown
from jaxinfer.host.files import path_of

HOST = "127.0.0.1"
PORT = 8050


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = os.name != "nt"  # elsewhere it would take a port that another one listens on


def serve(
    port: int = PORT,
    model: str | None = None,
    device: str | None = None,
    browser: bool = True,
    say: Callable[[str], None] = print,
) -> None:
    """Serve the page on this machine until Ctrl-C, and open it in a browser where there is a display.

    port: 0 takes any that is free. say: told the address once it answers. Raises InputError for a port that is in use
    or may not be had, and for an unknown model or device.
    """
    with listen(port) as server:  # before the page is made: a port in use is said at once
        server.RequestHandlerClass = handler(page(model, device))
        address = f"http://{HOST}:{server.server_port}/"
        say(f"the explorer is at {address} (Ctrl-C ends it)")
        if browser and has_display():
            webbrowser.open(address)
        server.serve_forever()


def export(path: str | Path, model: str | None = None, device: str | None = None) -> Path:
    """Write the page as one file that works offline. Raises InputError for a path that cannot be written to."""
    file = path_of(path, "--export")
    if file.is_dir():
        raise InputError(f"--export: {file}: is a folder; give a file, such as {file / 'explorer.html'}")
    if not file.parent.is_dir():
        raise InputError(f"--export: {file}: there is no folder {file.parent}")
    page(model, device).write(file)
    return file


def listen(port: int) -> ThreadingHTTPServer:
    """Take the port. Raises InputError where it is in use, may not be had, or is none."""
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65535:
        raise InputError(f"--port: expected a whole number from 0 to 65535, got {shown(port)}")
    try:
        return _Server((HOST, port), BaseHTTPRequestHandler)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InputError(f"--port: {port} is in use; take another, or 0 for any that is free") from None
        raise InputError(f"--port: {port}: {error.strerror}; take one above 1023") from None


def handler(made: Page) -> type[BaseHTTPRequestHandler]:
    """Make the handler that answers `/` with the page, and everything else with 404."""
    body = made.html.encode()

    class Handler(BaseHTTPRequestHandler):
        """Answer with the one page."""

        def do_GET(self) -> None:
            self._answer(body)

        def do_HEAD(self) -> None:
            self._answer(b"")

        def _answer(self, text: bytes) -> None:
            if self.path.partition("?")[0] not in ("/", "/index.html"):
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: what the page is asked for is nobody's interest."""

    return Handler


def has_display() -> bool:
    """Tell whether a browser would be seen."""
    return sys.platform in ("win32", "darwin") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
