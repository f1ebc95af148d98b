"""The password file: https://www.postgresql.org/docs/current/libpq-pgpass.html."""

import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_FIELDS: Final = 5
SOCKET_FOLDERS: Final = ("/var/run/postgresql", "/run/postgresql", "/tmp")  # noqa: S108 -- libpq's defaults


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """The connections that a line of the password file is for."""

    host: str
    port: str
    database: str
    role: str


def read_password(path: Path, login: Login) -> tuple[str, str]:
    """Return the password for a login, "" if the file has none, and a warning or "".

    As in libpq, a file that others may read is ignored.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            return "", f"{path} is ignored: it is not a plain file"
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            return "", f"{path} is ignored: others may read it; run chmod 0600 {path}"
        text = path.read_text("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return "", ""
    except (OSError, UnicodeDecodeError) as error:
        return "", f"{path} is ignored: {type(error).__name__}"
    return find_password(text, login), ""


def find_password(text: str, login: Login) -> str:
    """Return the password of the first line that matches the login, "" if none does.

    A line is host:port:database:role:password; * matches anything; a backslash escapes : and
    itself.
    """
    # libpq looks for a server behind the default socket as localhost.
    hosts = {"localhost"} if login.host in SOCKET_FOLDERS else set()
    wanted = ({login.host} | hosts, {login.port}, {login.database}, {login.role})
    for line in text.splitlines():
        fields = [] if line.startswith("#") else list(_split(line))
        if len(fields) >= _FIELDS and all(
            raw == "*" or _unescape(raw) in values
            for raw, values in zip(fields[: _FIELDS - 1], wanted, strict=True)
        ):
            return _unescape(fields[_FIELDS - 1])
    return ""


def _split(line: str) -> Iterator[str]:
    """Split a line at its colons, and keep the escapes."""
    field, is_escaped = "", False
    for character in line:
        if character == ":" and not is_escaped:
            yield field
            field = ""
        else:
            field += character
        is_escaped = character == "\\" and not is_escaped
    yield field


def _unescape(field: str) -> str:
    return re.sub(r"\\(.)", r"\1", field)
