"""Finds the server to connect to, as libpq does: a URI, the environment, a service, the defaults."""

import os
import pwd
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, TypeVar

from session_reaper.documents import key_label, may_hold_credential
from session_reaper.errors import ConfigurationError
from session_reaper.targets.connection_options import find_unsupported, parse_require_auth
from session_reaper.targets.providers import rds_region
from session_reaper.targets.target import (
    ANY_AUTH,
    Auth,
    AuthMethod,
    ChannelBinding,
    SslMode,
    Target,
)

from session_reaper_cli.connections.parameters import (
    Parameters,
    are_pairs,
    is_uri,
    parse_pairs,
    parse_uri,
    read_environment,
)
from session_reaper_cli.connections.passfile import Login, read_password
from session_reaper_cli.connections.service_file import read_service

_Choice = TypeVar("_Choice", bound=StrEnum)
_DEFAULT_PORT: Final = "5432"
_HIGHEST_PORT: Final = 65535
_SOCKET_FOLDERS: Final = ("/var/run/postgresql", "/run/postgresql", "/tmp")  # noqa: S108 -- libpq's defaults
_HOST: Final = re.compile(r"[\w.:%-]+|/[^\0\n]*", re.ASCII)
_WAYS: Final = (
    "write a URI (postgres://user@host/dbname) or 'host=… dbname=… user=…', or set DATABASE_URL, PGSERVICE or PGHOST, or write"
    " --secret NAME"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """The user's input: a URI or "", the environment, and the home folder."""

    uri: str
    environ: Mapping[str, str]
    home: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundTarget:
    """A target, whose password is "" if none was given, and a warning or ""."""

    target: Target
    warning: str


def find_target(given: Given) -> FoundTarget:
    """Return the target that the user means. Raises ConfigurationError."""
    parameters, place, ignored = _merge(given)
    problem = find_unsupported({k: v for k, v in parameters.items() if k not in _OURS})
    if problem is not None:
        raise ConfigurationError(f"{place}: {problem.name}", f"unsupported value. {problem.hint}")
    port = _read_port(parameters.get("port", _DEFAULT_PORT), place)
    host = _read_host(parameters.get("host") or _find_socket_folder(port, place), place)
    role = parameters.get("user") or _find_user(place)
    database = parameters.get("dbname") or "postgres"
    password, warning = parameters.get("password", ""), ""
    if not password:
        login = Login(host=host, port=str(port), database=database, role=role)
        password, warning = read_password(_find_passfile(parameters, given.home), login)
    name = parameters.get("service") or (host if str(port) == _DEFAULT_PORT else f"{host}:{port}")
    sslmode = _read_sslmode(parameters, place)
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
        sslrootcert=_read_authorities(parameters, host, sslmode, given.home, place),
        fallback_secret=None,
        channel_binding=_read_choice(parameters, "channel_binding", ChannelBinding.PREFER, place),
        allowed_auth=_read_require_auth(parameters, place),
        ignored_options=ignored,
    )
    if target.channel_binding is ChannelBinding.REQUIRE and target.sslmode is SslMode.DISABLE:
        raise ConfigurationError(f"{place}: channel_binding", "require needs TLS; remove sslmode")
    return FoundTarget(target=target, warning=warning)


_OURS: Final = ("service", "passfile")  # libpq's files, which are here


def _merge(given: Given) -> tuple[Parameters, str, tuple[str, ...]]:
    """Merge the given parameters in libpq's order; return them with their place in errors.

    A URI comes before a service, a service before the environment, as in libpq.
    """
    uri, place = given.uri, "URI"
    if not uri and given.environ.get("DATABASE_URL"):
        uri, place = given.environ["DATABASE_URL"], "DATABASE_URL"
    explicit, ignored = _read_connection_string(uri, place) if uri else ({}, ())
    environment = read_environment(given.environ)
    service = explicit.get("service") or environment.get("service", "")
    of_service = read_service(service, given.environ, given.home) if service else {}
    if not uri:
        place = f"service {service}" if service else "environment"
    return {**environment, **of_service, **explicit}, place, ignored


def _read_connection_string(text: str, place: str) -> tuple[Parameters, tuple[str, ...]]:
    """Read a URI or name=value pairs; the second value are the parameters of a driver."""
    if are_pairs(text):
        return parse_pairs(text, place), ()
    if is_uri(text):
        return parse_uri(text, place)
    shown = "it is not shown" if may_hold_credential(text) else f"not {key_label(text)}"
    raise ConfigurationError(place, f"must begin with postgres:// ({shown}); {_WAYS}")


def _read_port(text: str, place: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 0 < int(text) <= _HIGHEST_PORT:
        raise ConfigurationError(f"{place}: port", f"must be 1 to {_HIGHEST_PORT}")
    return int(text)


def _read_host(text: str, place: str) -> str:
    """Read a host name, an address, or the folder of a Unix socket."""
    if not _HOST.fullmatch(text):
        problem = "must be one host name, address or socket folder (not shown)"
        raise ConfigurationError(f"{place}: host", problem)
    return text


def _find_socket_folder(port: int, place: str) -> str:
    """Return the folder of the local server's Unix socket. Raises ConfigurationError without one."""
    for folder in _SOCKET_FOLDERS:
        if os.path.exists(f"{folder}/.s.PGSQL.{port}"):  # noqa: PTH110 -- a path of the kernel's form
            return folder
    raise ConfigurationError(f"{place}: host", f"no server was given, and none is local; {_WAYS}")


def _find_user(place: str) -> str:
    """Return the name of the operating-system user, as libpq and peer authentication see it."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        problem = "your operating-system user has no name; write postgres://USER@… or PGUSER"
        raise ConfigurationError(f"{place}: user", problem) from None


def _find_passfile(parameters: Parameters, home: Path) -> Path:
    return Path(parameters.get("passfile") or home / ".pgpass")


def _read_sslmode(parameters: Parameters, place: str) -> SslMode:
    if parameters.get("sslmode") in ("prefer", "allow"):
        problem = "prefer and allow are refused: they may connect in plaintext. Write one of "
        raise ConfigurationError(f"{place}: sslmode", problem + ", ".join(SslMode))
    if parameters.get("sslmode") is None and parameters.get("requiressl") == "1":
        return SslMode.REQUIRE
    return _read_choice(parameters, "sslmode", SslMode.VERIFY_FULL, place)


def _read_choice(parameters: Parameters, name: str, default: _Choice, place: str) -> _Choice:
    try:
        return type(default)(parameters.get(name) or default)
    except ValueError:
        choices = ", ".join(type(default))
        raise ConfigurationError(f"{place}: {name}", f"write one of {choices}") from None


def _read_require_auth(parameters: Parameters, place: str) -> frozenset[AuthMethod]:
    allowed = parse_require_auth(parameters.get("require_auth", ""))
    if not allowed:
        problem = f"write a comma-separated list of {', '.join(sorted(ANY_AUTH))}"
        raise ConfigurationError(f"{place}: require_auth", problem)
    return allowed


def _read_authorities(
    parameters: Parameters, host: str, sslmode: SslMode, home: Path, place: str
) -> str | None:
    """Return the PEM text of the CAs to trust; None for those of AWS or of the system.

    Without `sslrootcert`, libpq trusts the CAs in ~/.postgresql/root.crt; RDS has its own.
    """
    given = parameters.get("sslrootcert", "")
    default = home / ".postgresql" / "root.crt"
    if given == "system" or (not given and (rds_region(host) or not default.is_file())):
        return None
    if not given and sslmode in (SslMode.REQUIRE, SslMode.DISABLE):
        return None
    path = Path(given).expanduser() if given else default
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        problem = f"{path} cannot be read: {error.strerror}"
        raise ConfigurationError(f"{place}: sslrootcert", problem) from None
    except UnicodeDecodeError:
        text = ""
    if "-----BEGIN " not in text:
        raise ConfigurationError(f"{place}: sslrootcert", f"{path} must be a PEM file of CAs")
    return text
