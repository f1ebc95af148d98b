"""A proxy in front of the AWS stand-in, which fails the calls that a test names."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_MESSAGE = "not allowed here"
# Of a service that names the call in a form, such as EC2 and RDS; each reads its own part.
_ERROR = "<Error><Code>{code}</Code><Message>{message}</Message></Error>"
FORM_REFUSAL = (
    "<ErrorResponse>"
    + _ERROR.format(code="AccessDenied", message=_MESSAGE)
    + "<Errors>"
    + _ERROR.format(code="UnauthorizedOperation", message=_MESSAGE)
    + "</Errors></ErrorResponse>"
).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A fault at a call, which is performed or not and refused or not; `then` runs afterwards."""

    is_performed: bool = False
    is_refused: bool = True
    code: str = "AccessDeniedException"  # of a service that speaks JSON
    then: Callable[[], object] | None = None


_NO_FAULT = Fault(is_performed=True, is_refused=False)


@dataclass(slots=True, kw_only=True)
class Proxy:
    """The proxy's address, and the faults of the next calls by their name."""

    url: str = ""
    faults: dict[str, list[Fault]] = field(default_factory=dict)


@contextmanager
def aws_proxy() -> Iterator[Proxy]:
    proxy = Proxy()
    real = os.environ["AWS_ENDPOINT_URL"]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            target = self.headers.get("X-Amz-Target")
            is_form = target is None
            if target is None:
                call = parse_qs(body.decode()).get("Action", [""])[0]
            else:
                call = target.rpartition(".")[2]
            planned = proxy.faults.get(call)
            fault = planned.pop(0) if planned else _NO_FAULT
            refusal = json.dumps({"__type": fault.code, "Message": _MESSAGE}).encode()
            status, answer = 400, FORM_REFUSAL if is_form else refusal
            kind = "text/xml" if is_form else "application/x-amz-json-1.1"
            if fault.is_performed:
                done = _forward(real + self.path, body, dict(self.headers.items()))
                if not fault.is_refused:
                    status, answer = done
            if fault.then:
                fault.then()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("x-amzn-RequestId", "1")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Write no log."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    proxy.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _forward(url: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
    request = urllib.request.Request(url, data=body, headers=headers, method="POST")  # noqa: S310 -- the stand-in's
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 -- as above
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()
