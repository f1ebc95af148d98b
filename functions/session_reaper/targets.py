"""A target: one PostgreSQL instance, known by one secret."""

import json
import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from session_reaper.documents import UNSENDABLE
from session_reaper.errors import TargetError

_DEFAULT_PORT = 5432
_HIGHEST_PORT = 65535


class SslMode(StrEnum):
    """How the connection is secured; the names and meanings of libpq."""

    VERIFY_FULL = "verify-full"  # trusted certificate, of this very host
    VERIFY_CA = "verify-ca"  # trusted certificate
    REQUIRE = "require"  # TLS; the certificate is checked only if there is an sslrootcert
    DISABLE = "disable"  # plaintext


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where to sign in, and how."""

    name: str
    secret_arn: str
    host: str
    port: int
    role: str
    password: str = field(repr=False)
    database: str
    sslmode: SslMode
    sslrootcert: str | None = field(repr=False)  # PEM


class SecretError(TargetError):
    """The secret cannot be read, or is no description of a PostgreSQL server.

    `target` is the target's name as far as it is known: the secret's own, if it is not.
    """

    def __init__(self, target: str, message: str, hint: str) -> None:
        super().__init__("secret", message, hint)
        self.target = target


def read_target(secret_name: str, secret_arn: str, secret: str) -> Target:
    """The target that a secret's JSON text describes.

    The shape is that of RDS's secrets: engine, host, port, username, password, dbname,
    dbInstanceIdentifier, dbClusterIdentifier, and optionally sslmode, sslrootcert, auth, name.
    Raises SecretError naming the key; no message holds a value that could be the password.
    """
    try:
        document = json.loads(secret)
    except (ValueError, RecursionError):
        raise SecretError(  # from None: the JSON error carries the whole secret
            secret_name,
            f"secret {secret_name} is not JSON",
            'Store an object such as {"host": …, "username": …, "password": …}.',
        ) from None
    if not isinstance(document, dict):
        message = f"secret {secret_name} is JSON, but no object"
        raise SecretError(secret_name, message, "Store an object.")
    read = _Reader(secret_name, document)
    read.target = (
        read.optional("name").strip()
        or read.optional("dbInstanceIdentifier")
        or read.optional("dbClusterIdentifier")
        or secret_name
    )
    engine = read.optional("engine")
    if engine and "postgres" not in engine.lower():
        problem = f"engine {engine[:40]} is not PostgreSQL"
        raise read.error(problem, "Take the secret off the targets: there are no sessions to see.")
    if read.optional("auth") not in ("", "password"):
        hint = "Leave it out, or write password: the key password holds it."
        raise read.error("auth is not supported", hint)
    return Target(
        name=read.target,
        secret_arn=secret_arn,
        host=read.host(),
        port=read.port(),
        role=read.required("username"),
        password=read.required("password"),
        database=read.optional("dbname") or "postgres",
        sslmode=read.sslmode(),
        sslrootcert=read.optional("sslrootcert") or None,
    )


class _Reader:
    """Reads the keys of one secret; its errors name the secret and the key."""

    def __init__(self, secret_name: str, document: dict[str, Any]) -> None:
        self._secret_name = secret_name
        self.target = secret_name
        self._document = document

    def optional(self, key: str) -> str:
        """Text, or "" if the key is absent or null."""
        value = self._document.get(key)
        if value is None:
            return ""
        if not isinstance(value, str) or UNSENDABLE.search(value):
            raise self.error(f"{key} is not text", f"Write {key} as a JSON string.")
        return value

    def required(self, key: str) -> str:
        """Text that is not empty."""
        value = self.optional(key)
        if not value:
            raise self.error(f"{key} is missing", f"Add {key} to the secret.")
        return value

    def host(self) -> str:
        """A host's name or address."""
        value = self.required("host")
        if not re.fullmatch(r"[\w.:%-]+", value, re.ASCII):  # a URI would hold the password
            raise self.error("host is no host name", "Write the name or the address alone.")
        return value

    def port(self) -> int:
        """A port number, PostgreSQL's own by default."""
        value = self._document.get("port")
        if value is None:
            return _DEFAULT_PORT
        if isinstance(value, int | str) and re.fullmatch(r"[0-9]{1,5}", text := str(value)):
            port = int(text)
            if 0 < port <= _HIGHEST_PORT:
                return port
        raise self.error("port is no port number", f"Write 1 to {_HIGHEST_PORT}.")

    def sslmode(self) -> SslMode:
        """The strictest unless another is written."""
        try:
            return SslMode(self.optional("sslmode") or SslMode.VERIFY_FULL)
        except ValueError:
            known = ", ".join(SslMode)
            raise self.error("sslmode is not known", f"Write one of {known}.") from None

    def error(self, problem: str, hint: str) -> SecretError:
        """What is wrong with the secret, as an error."""
        return SecretError(self.target, f"secret {self._secret_name}: {problem}", hint)
