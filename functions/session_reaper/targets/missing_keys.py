"""Finds the value that a secret holds under another program's key, so that an error can name it."""

import json
import re
from collections.abc import Mapping
from typing import Final

# Without a prefix (DB_HOST, PGHOST, spring.datasource.username), in lower case, without separators.
_FORMS: Final[Mapping[str, re.Pattern[str]]] = {
    "host": re.compile("host|hostname|endpoint|address|server|fullyqualifieddomainname"),
    "username": re.compile("user|username|userid|login"),
    "password": re.compile("pass|[a-z]*(?:password|passwd|pwd)"),
}
_PREFIX: Final = re.compile(
    r"(?:(?:spring)?datasource|administrator|database|postgresql|postgres|cluster|master|admin|proxy"
    r"|rds|pg|db)*"
)
SHOWABLE_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,39}")
SERVICE_URI: Final = re.compile(r"\s*postgres(ql)?(\+\w+)?://")  # SQLAlchemy's may name a driver
_JDBC: Final = re.compile(r"\s*jdbc:postgresql://")


def explain_missing_key(document: Mapping[str, object], key: str) -> str:
    """Return what to do with a key that seems to hold what the reaper reads as `key`.

    Returns "" if there is none.

    A service URI under any key holds everything, and so may an inner document.
    """
    given = {n: _unwrap(v) for n, v in document.items() if SHOWABLE_NAME.fullmatch(n)}
    for name, value in given.items():
        if value and value is not True and _is_form_of(key, name):
            return f"Write the value of {name} as {key}."
    for name, value in given.items():
        if _is_match(SERVICE_URI, value):
            return f"Write the value of {name} as uri."
        if key == "host" and _is_match(_JDBC, value):
            return f"Write the host of {name}, a JDBC URL, as host."
    for name, value in given.items():
        inner = value if isinstance(value, dict) else {}
        has_key = any(each == key or _is_form_of(key, each) for each in inner)
        if has_key or any(_is_match(SERVICE_URI, _unwrap(each)) for each in inner.values()):
            return f"Store the content of {name} as the secret itself."
    return ""


def _is_form_of(key: str, name: str) -> bool:
    """Return whether a name is another program's form of a key."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    form = _FORMS.get(key)
    return form is not None and form.fullmatch(_PREFIX.sub("", plain, count=1)) is not None


def _is_match(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.match(value) is not None


def _unwrap(value: object) -> object:
    """Return a list's first item, the JSON object in a text, or else the value itself."""
    if isinstance(value, list) and value:
        value = value[0]
    if not isinstance(value, str) or not value.lstrip().startswith("{"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):  # ordinary text
        return value
