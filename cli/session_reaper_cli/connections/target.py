"""Finds the server to connect to, as libpq does: URI, environment, service file, defaults."""

import os
import pwd
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from session_reaper.documents import key_label, may_hold_credential
from session_reaper.errors import ConfigurationError
from session_reaper.targets.connection_options import OPTIONS, find_unsupported, parse_require_auth
from session_reaper.targets.providers import find_rds_region
from session_reaper.targets.target import (
    ANY_AUTH,
    Auth,
    AuthMethod,
    ChannelBinding,
    SslMode,
    Target,
    is_socket_folder,
)

from session_reaper_cli.connections.parameters import (
    ENVIRONMENT,
    Parameters,
    are_pairs,
    parse_pairs,
    parse_uri,
    read_environment,
)
from session_reaper_cli.connections.passfile import SOCKET_FOLDERS, Login, read_password
from session_reaper_cli.connections.service_file import read_service

_Choice = TypeVar("_Choice", bound=StrEnum)
_DEFAULT_PORT: Final = "5432"
_HIGHEST_PORT: Final = 65535
_HOST: Final = re.compile(r"[\w.:%-]+|/[^\0\n]*", re.ASCII)
_WAYS: Final = (
    "write a URI (postgres://user@host/dbname) or 'host=… dbname=… user=…', or set DATABASE_URL,"
    " PGSERVICE or PGHOST, or write --secret NAME"
)


class FoundTarget(NamedTuple):
    """A target, whose password is "" if none was given, and a warning or ""."""

    target: Target
    warning: str


def find_target(uri: str, environ: Mapping[str, str], home: Path) -> FoundTarget:
    """Return the target that the user means, by a URI or without one. Raises ConfigurationError."""
    merged = _merge(uri, environ, home)
    parameters = merged.values
    option = find_unsupported({k: v for k, v in parameters.items() if k not in _OURS})
    if option is not None:
        raise merged.make_error(option, f"unsupported value. {OPTIONS[option].hint}")
    port = _read_port(merged)
    host = _read_host(merged, port)
    role = parameters.get("user") or _find_user()
    database = parameters.get("dbname") or "postgres"
    password, warning = parameters.get("password", ""), ""
    if not password:
        login = Login(host=host, port=str(port), database=database, role=role)
        password, warning = read_password(
            Path(parameters.get("passfile") or home / ".pgpass"), login
        )
    name = parameters.get("service") or (host if str(port) == _DEFAULT_PORT else f"{host}:{port}")
    # As in libpq, it does not apply to a socket, which never has TLS.
    sslmode = SslMode.VERIFY_FULL if is_socket_folder(host) else _read_sslmode(merged)
    target = Target(
        name=name,
        group=name,
        secret_arn="",
        host=host,
        port=port,
        role=role,
        auth=Auth.PASSWORD,
        is_auth_given=True,
        password=password,
        database=database,
        sslmode=sslmode,
        sslrootcert=_read_authorities(merged, host, sslmode, home),
        fallback_secret=None,
        channel_binding=_read_choice(merged, "channel_binding", ChannelBinding.PREFER),
        allowed_auth=_read_require_auth(merged),
        ignored_options=merged.ignored,
    )
    if target.channel_binding is ChannelBinding.REQUIRE and target.sslmode is SslMode.DISABLE:
        raise merged.make_error("channel_binding", "require needs TLS; remove sslmode")
    return FoundTarget(target=target, warning=warning)


_OURS: Final = ("service", "passfile")  # libpq's files, which are here


@dataclass(frozen=True, slots=True, kw_only=True)
class _Merged:
    """The parameters of all sources, and where each of them stands.

    `place`: of the connection string. `ignored`: the names of its parameters that are a driver's.
    """

    explicit: Parameters
    place: str
    ignored: tuple[str, ...]
    of_service: Parameters
    service: str
    environment: Parameters

    @property
    def values(self) -> Parameters:
        """Each parameter from the first source that has it, in libpq's order."""
        return {**self.environment, **self.of_service, **self.explicit}

    def make_error(self, name: str, problem: str) -> ConfigurationError:
        """Make an error that names the place of a parameter."""
        if name in self.explicit:
            place = f"{self.place}: {name}"
        elif name in self.of_service:
            place = f"service {key_label(self.service)}: {name}"
        else:
            place = next((v for v, n in ENVIRONMENT.items() if n == name), name)
        return ConfigurationError(place, problem)


def _merge(uri: str, environ: Mapping[str, str], home: Path) -> _Merged:
    """Find the parameters in the connection string, the service and the environment."""
    text, place = uri, "URI"
    if not text and environ.get("DATABASE_URL"):
        text, place = environ["DATABASE_URL"], "DATABASE_URL"
    explicit, ignored = _read_connection_string(text, place) if text else ({}, ())
    environment = read_environment(environ)
    service = explicit.get("service") or environment.get("service", "")
    return _Merged(
        explicit=explicit,
        place=place,
        ignored=ignored,
        of_service=read_service(service, environ, home) if service else {},
        service=service,
        environment=environment,
    )


def _read_connection_string(text: str, place: str) -> tuple[Parameters, tuple[str, ...]]:
    """Read a URI or name=value pairs; the second value are the parameters of a driver."""
    if are_pairs(text):
        return parse_pairs(text, place), ()
    if text.startswith(("postgres://", "postgresql://")):
        return parse_uri(text, place)
    shown = "it is not shown" if may_hold_credential(text) else f"not {key_label(text)}"
    raise ConfigurationError(place, f"must begin with postgres:// ({shown}); {_WAYS}")


def _read_port(merged: _Merged) -> int:
    text = merged.values.get("port", _DEFAULT_PORT)
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 0 < int(text) <= _HIGHEST_PORT:
        raise merged.make_error("port", f"must be 1 to {_HIGHEST_PORT}")
    return int(text)


def _read_host(merged: _Merged, port: int) -> str:
    """Read a host name, an address, or the folder of a Unix socket."""
    text = merged.values.get("host") or _find_socket_folder(port)
    if "," in text:
        raise merged.make_error("host", "names several servers; write the one to look at")
    if not _HOST.fullmatch(text):
        raise merged.make_error("host", "must be a host name, address or socket folder (not shown)")
    return text


def _find_socket_folder(port: int) -> str:
    """Return the folder of the local server's socket. Raises ConfigurationError without one."""
    for folder in SOCKET_FOLDERS:
        if os.path.exists(f"{folder}/.s.PGSQL.{port}"):  # noqa: PTH110 -- a path of the kernel's form
            return folder
    raise ConfigurationError("host", f"no server was given, and none is local; {_WAYS}")


def _find_user() -> str:
    """Return the name of the operating-system user, as libpq and peer authentication see it."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        problem = "your operating-system user has no name; write postgres://USER@… or PGUSER"
        raise ConfigurationError("user", problem) from None


def _read_sslmode(merged: _Merged) -> SslMode:
    if merged.values.get("sslmode") in ("prefer", "allow"):
        problem = "prefer and allow are refused: they may connect in plaintext. Write one of "
        raise merged.make_error("sslmode", problem + ", ".join(SslMode))
    return _read_choice(merged, "sslmode", SslMode.VERIFY_FULL)


def _read_choice(merged: _Merged, name: str, default: _Choice) -> _Choice:
    try:
        return type(default)(merged.values.get(name) or default)
    except ValueError:
        raise merged.make_error(name, f"write one of {', '.join(type(default))}") from None


def _read_require_auth(merged: _Merged) -> frozenset[AuthMethod]:
    allowed = parse_require_auth(merged.values.get("require_auth", ""))
    if not allowed:
        problem = f"write a comma-separated list of {', '.join(sorted(ANY_AUTH))}"
        raise merged.make_error("require_auth", problem)
    return allowed


def _read_authorities(merged: _Merged, host: str, sslmode: SslMode, home: Path) -> str | None:
    """Return the PEM text of the CAs to trust; None for those of AWS or of the system.

    Without `sslrootcert`, libpq trusts the CAs in ~/.postgresql/root.crt; RDS has its own.
    """
    given = merged.values.get("sslrootcert", "")
    default = home / ".postgresql" / "root.crt"
    if given == "system" or (not given and (find_rds_region(host) or not default.is_file())):
        return None
    if not given and sslmode in (SslMode.REQUIRE, SslMode.DISABLE):
        return None
    path = Path(given).expanduser() if given else default
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        problem = f"{path} cannot be read: {error.strerror}"
        raise merged.make_error("sslrootcert", problem) from None
    except UnicodeDecodeError:
        text = ""
    if "-----BEGIN " not in text:
        raise merged.make_error("sslrootcert", f"{path} must be a PEM file of CAs")
    return text
