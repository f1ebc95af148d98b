"""A real HTTPS server that answers as Slack's incoming webhooks do."""

from __future__ import annotations

import json
import ssl
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING

from tests.integration.wire import ENDLESS_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from infra.local.postgres import Tls

NOTIFICATION_SCHEMA = json.loads(
    (Path(__file__).parents[1] / "summaries/custom_notification.schema.json").read_text()
)
"""The schema of a custom notification of Amazon Q Developer."""

PATH = "/services/T0CANARY/B0CANARY/canary"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """Slack's answer to one request; by default a success."""

    status: int = 200
    said: str = "ok"
    headers: Mapping[str, str] = field(default_factory=dict)
    hangs: bool = False
    drips: bool = False  # announces a long answer, and sends a byte now and then


@dataclass(frozen=True, slots=True, kw_only=True)
class Slack:
    """A running server, with the requests that it received."""

    url: str
    paths: list[str]
    posts: list[object]


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Log nothing: a client that does not trust the certificate disconnects."""


@contextmanager
def run_slack(tls: Tls, replies: tuple[Reply, ...]) -> Iterator[Slack]:
    """Run a Slack that gives these replies in turn, and repeats the last."""
    paths: list[str] = []
    posts: list[object] = []
    over = Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.headers["Content-Type"] == "application/json"
            paths.append(self.path)
            posts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            reply = replies[min(len(posts), len(replies)) - 1]
            if reply.hangs:
                over.wait(ENDLESS_SECONDS)
                return
            self.send_response(reply.status)
            if reply.drips:
                self.send_header("Content-Length", "1000000")
                self.end_headers()
                end = time.monotonic() + ENDLESS_SECONDS
                while not over.wait(0.1) and time.monotonic() < end:
                    self.wfile.write(b" ")
                return
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.said.encode())))
            self.end_headers()
            self.wfile.write(reply.said.encode())

        def log_message(self, *_: object) -> None:
            """Log nothing, because the tests search the log for the path."""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.certificate, tls.key)
    server = _Server(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield Slack(url=f"https://localhost:{server.server_port}{PATH}", paths=paths, posts=posts)
    finally:
        over.set()
        server.shutdown()
        server.server_close()
        thread.join()
