"""The viewer's web server: its files, the dashboards' JSON files, questions passed on to Prometheus. Loopback only."""

from __future__ import annotations

import http.server
import json
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

from scripts.monitoring.__main__ import FOLDER

_STATIC = Path(__file__).parent / "viewer"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".json": "application/json"}
_TIMEOUT_S = 30
_QUIET = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=60000")


class BrowserError(Exception):
    """No Chromium, or it failed; the message says which and why."""


def browse(address: str, *flags: str) -> str:
    """Open an address in Chromium without a window, and return what it prints.

    Raises:
        BrowserError: See there.
    """
    program = shutil.which("chromium")
    if not program:
        raise BrowserError("chromium is not installed; on Debian, scripts/debian-packages.sh installs it")
    done = subprocess.run([program, *_QUIET, *flags, address], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BrowserError(f"chromium failed on {address}: {done.stderr[-2000:]}")
    return done.stdout


@contextmanager
def served_page(prometheus: str, *, port: int, scrape_s: int) -> Iterator[str]:
    """Serve the viewer until the context ends; yields its address. Port 0 takes a free one.

    Raises:
        OSError: The port is taken.
    """

    class Handler(_Handler):
        upstream = prometheus
        settings = json.dumps({"scrape_interval_s": scrape_s}).encode()

    with http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    upstream = ""
    settings = b""

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path.startswith("/api/v1/"):
            self._pass_on()
        elif path == "/settings":
            self._answer(HTTPStatus.OK, "application/json", self.settings)
        elif path == "/dashboards":
            names = sorted(file.stem for file in FOLDER.glob("*.json"))
            self._answer(HTTPStatus.OK, "application/json", json.dumps(names).encode())
        else:
            self._file(path)

    def _file(self, path: str) -> None:
        name = Path(path).name or "index.html"
        file = (FOLDER if path.startswith("/dashboards/") else _STATIC) / name
        if file.is_file():
            self._answer(HTTPStatus.OK, _TYPES.get(file.suffix, "text/plain"), file.read_bytes())
        else:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"no such file\n")

    def _pass_on(self) -> None:
        try:
            with urllib.request.urlopen(self.upstream + self.path, timeout=_TIMEOUT_S) as answer:  # noqa: S310
                self._answer(HTTPStatus(answer.status), "application/json", answer.read())
        except urllib.error.HTTPError as error:
            self._answer(HTTPStatus(error.code), "application/json", error.read())
        except OSError as error:
            text = json.dumps({"status": "error", "error": f"Prometheus does not answer: {error}"})
            self._answer(HTTPStatus.BAD_GATEWAY, "application/json", text.encode())

    def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing: the terminal is the demonstration's."""
