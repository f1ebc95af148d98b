"""Endpoints of RDS and other hosts that lead to this machine."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Any

from moto.backends import get_backend
from moto.core.models import DEFAULT_ACCOUNT_ID

from infra.local.aws import REGION
from infra.local.postgres import HOST

if TYPE_CHECKING:
    import pytest


def resolve_here(monkeypatch: pytest.MonkeyPatch, *endings: str) -> None:
    """Resolve host names with these endings to this machine; the ports of servers differ."""
    resolve = socket.getaddrinfo

    def resolve_some(host: object, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401 -- socket's own
        is_here = str(host).lower().rstrip(".").endswith(endings)
        return resolve(HOST if is_here else host, *arguments, **options)  # type: ignore[arg-type] # as given

    monkeypatch.setattr(socket, "getaddrinfo", resolve_some)


def reset_rds() -> None:
    """Delete the instances and clusters of the stand-in."""
    get_backend("rds")[DEFAULT_ACCOUNT_ID][REGION].reset()


def error_response(code: str, message: str, **fields: str) -> bytes:
    """A fatal ErrorResponse of PostgreSQL's protocol; further fields by their letters."""
    values = {"S": "FATAL", "V": "FATAL", "C": code, "M": message, **fields}
    body = b"".join(f"{key}{value}\0".encode() for key, value in values.items()) + b"\0"
    return b"E" + struct.pack("!i", len(body) + 4) + body


def has_ipv6() -> bool:
    """Return whether this machine has an IPv6 loopback."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True
