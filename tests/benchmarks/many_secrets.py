"""A stand-in for Secrets Manager that reads each of any number of secrets in the same time.

moto searches all secrets for each one, so 5,000 of them take minutes. This stand-in has the calls
of a scheduled run: `ListSecrets` by a tag, in pages of 100, `BatchGetSecretValue` and
`GetSecretValue`. Each call takes a round trip.
"""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Final

from infra.local.aws import REGION
from infra.local.postgres import HOST
from tests.benchmarks.distance import ONE_WAY

TAG: Final = ("session-reaper", "target")
_PAGE: Final = 100  # AWS's own limit
_ARN: Final = f"arn:aws:secretsmanager:{REGION}:123456789012:secret:"


class ManySecrets(ThreadingHTTPServer):
    """The secrets; the first `tagged` of them have the tag."""

    daemon_threads = True

    def __init__(self, secrets: Mapping[str, Mapping[str, object]]) -> None:
        super().__init__((HOST, 0), _Calls)
        self.tagged = len(secrets)
        self._names = list(secrets)
        self._texts = {name: json.dumps(value) for name, value in secrets.items()}

    @property
    def url(self) -> str:
        """The endpoint of the service."""
        return f"http://{HOST}:{self.server_address[1]}"

    def answer(self, operation: str, given: Mapping[str, Any]) -> dict[str, object]:
        """Answer a call. Raises ValueError for one that a scheduled run does not make."""
        match operation:
            case "ListSecrets":
                return self._list(int(given.get("NextToken", 0)))
            case "BatchGetSecretValue":
                return {"SecretValues": [*map(self._read, given["SecretIdList"])], "Errors": []}
            case "GetSecretValue":
                return self._read(given["SecretId"])
        raise ValueError(operation)

    def _list(self, begin: int) -> dict[str, object]:
        end = min(begin + _PAGE, self.tagged)
        key, value = TAG
        tags = [{"Key": key, "Value": value}]
        names = self._names[begin:end]
        found = [{"ARN": f"{_ARN}{name}", "Name": name, "Tags": tags} for name in names]
        return {"SecretList": found} | ({"NextToken": str(end)} if end < self.tagged else {})

    def _read(self, secret_id: str) -> dict[str, object]:
        name = secret_id.removeprefix(_ARN)
        return {"ARN": f"{_ARN}{name}", "Name": name, "SecretString": self._texts[name]}


class _Calls(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for an acknowledgement
    server: ManySecrets

    def do_POST(self) -> None:
        given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        operation = self.headers["X-Amz-Target"].rpartition(".")[2]
        body = json.dumps(self.server.answer(operation, given)).encode()
        time.sleep(2 * ONE_WAY)
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "application/x-amz-json-1.1")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def serve_secrets(secrets: Mapping[str, Mapping[str, object]]) -> Iterator[ManySecrets]:
    """Serve the secrets until the block ends."""
    with ManySecrets(secrets) as service:
        serving = Thread(target=service.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        try:
            yield service
        finally:
            service.shutdown()
            serving.join()
