"""The preparation of a server for the benchmarks."""

from collections.abc import Mapping
from pathlib import Path

from infra.local.postgres import Server

ENDING = ".bench.eu-central-1.rds.amazonaws.com"
RESOLVE_HERE = f"""\
import socket
def _resolve_here(host, *arguments, _resolve=socket.getaddrinfo, **named):
    return _resolve("127.0.0.1" if str(host).endswith("{ENDING}") else host, *arguments, **named)
socket.getaddrinfo = _resolve_here
"""
"""Code for the measured process, so that it finds instances of RDS by these names on this machine."""


def as_instance(secret: Mapping[str, object], name: str, port: int) -> dict[str, object]:
    """Return a secret that names an instance of RDS, because secrets of one server would be one target."""
    # The certificate is not for this name.
    return {**secret, "host": f"{name}{ENDING}", "port": port, "sslmode": "verify-ca"}


def prepare_roles(database: Server, password: str) -> dict[str, object]:
    """Create our role and a role `app`; return the secret of our role, with sslmode verify-full."""
    admin = database.connect()
    admin.run(Path("infra/database/reaper_role.sql").read_text())
    admin.run(f"ALTER ROLE session_reaper PASSWORD '{password}'")
    admin.run(f"CREATE ROLE app LOGIN PASSWORD '{password}'")
    admin.close()
    return {
        "engine": "postgres",
        "host": database.host,
        "port": database.port,
        "username": "session_reaper",
        "password": password,
        "dbname": "postgres",
        "sslmode": "verify-full",
        "sslrootcert": database.tls.authority.read_text() if database.tls else None,
    }
