"""The report as a live page on this machine only, from the standard library's web server."""

from __future__ import annotations

import errno
import json
import logging
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from crystalmon.report.live.feed import RunFeed
from crystalmon.report.page import render

logger = logging.getLogger(__name__)

ADDRESS = "127.0.0.1"


IDLE_SECONDS = 10.0
"""A connection that says nothing for so long ends; the page asks twice a second."""

MOST_CONNECTIONS = 64
"""Further ones are closed at once: each holds a thread."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int, feed: RunFeed) -> None:
        self.feed = feed
        self.page = render("crystalmon", None, live=True).encode()
        self._free = threading.BoundedSemaphore(MOST_CONNECTIONS)
        super().__init__((ADDRESS, port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread of its own, if there are not too many."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """In that thread: serve it to its end."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a browser that goes away in the middle of an answer; log anything else."""
        error = sys.exception()
        if not isinstance(error, ConnectionError):
            logger.error("crystalmon: the page could not be served.", exc_info=error)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS

    def do_GET(self) -> None:
        """`/` is the page, `/data?since=<mark>` what is new since that mark."""
        if self.headers.get("Host", "").rsplit(":", 1)[0] not in (ADDRESS, "localhost"):
            # a page elsewhere that points its own name at this machine shall not read the run
            return self._send(HTTPStatus.FORBIDDEN, b"local names only", "text/plain")
        url = urlsplit(self.path)
        if url.path == "/":
            return self._send(HTTPStatus.OK, self.server.page, "text/html; charset=utf-8")
        if url.path == "/data":
            return self._data(parse_qs(url.query).get("since", [""])[0])
        return self._send(HTTPStatus.NOT_FOUND, b"not found", "text/plain")

    def _data(self, since: str) -> None:
        news = self.server.feed.news()
        if news.mark == since:
            return self._send(HTTPStatus.NO_CONTENT, b"", "application/json")
        body = {"mark": news.mark, "message": news.message, "payload": news.payload}
        text = json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return self._send(HTTPStatus.OK, text.encode(), "application/json")

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        if status != HTTPStatus.NO_CONTENT:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the terminal quiet: the page asks twice a second."""


def make_server(feed: RunFeed, port: int) -> ThreadingHTTPServer:
    """A server of the live page, listening on this machine only.

    Args:
        feed: what to show.
        port: 0 for any free one.

    Raises:
        OSError: if another program listens there.
        ValueError: if it is no port.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"port must lie between 0 and 65535, got {port}.")
    try:
        return _Server(port, feed)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        why = "another program uses it" if error.errno == errno.EADDRINUSE else "it is reserved"
        raise OSError(
            f"port must be free, got {port}: {why}. Choose another with --port; --port 0 finds one."
        ) from error


def serve(feed: RunFeed, port: int) -> None:
    """Serve the live page until Ctrl-C."""
    with make_server(feed, port) as server:
        print(f"watching at http://{ADDRESS}:{server.server_address[1]}/  (Ctrl-C ends it)")
        if message := feed.news().message:
            print(message)
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            print("\nstopped watching; the training is not affected")
