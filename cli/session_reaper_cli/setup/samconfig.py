"""Writes the answers into samconfig.toml, and leaves its comments and other tables as they are."""

import json
import re
import tomllib
from collections.abc import Mapping
from typing import Any, Final

from session_reaper.errors import ConfigurationError

_PLACE: Final = "samconfig.toml"
_NEW: Final[dict[str, Any]] = {
    "resolve_s3": True,
    "capabilities": "CAPABILITY_IAM",
    "fail_on_empty_changeset": False,
}


def read_answers(text: str, environment: str) -> dict[str, str]:
    """Return the parameters that the file has for an environment. Raises ConfigurationError."""
    parameters = _read_parameters(text, environment, "deploy")
    return _read_overrides(parameters.get("parameter_overrides", []))


def read_stack(text: str, environment: str) -> str:
    """Return the name of an environment's stack, as `make` finds it. Raises ConfigurationError."""
    name = "session-reaper" if environment == "default" else f"session-reaper-{environment}"
    return _read_general(text, environment, "stack_name") or name


def read_region(text: str, environment: str) -> str:
    """Return the region to which `make` deploys, "" for the shell's. Raises ConfigurationError."""
    return _read_general(text, environment, "region")


def _read_general(text: str, environment: str, key: str) -> str:
    tables = (_read_parameters(text, environment, table) for table in ("deploy", "global"))
    values = (table.get(key) for table in tables)
    return next((str(value) for value in values if value), "")


def write_answers(text: str, environment: str, region: str, answers: Mapping[str, str]) -> str:
    """Return the file's text with the answers for an environment.

    Parameters without an answer stay. So does one that is empty now, because sam would deploy the
    former value of a missing one. The changes are no longer confirmed. Raises ConfigurationError.
    """
    parameters = _read_parameters(text, environment, "deploy")
    stack = read_stack(text, environment)
    shared = _read_parameters(text, environment, "global")
    general = {"stack_name": shared.get("stack_name", stack)}
    if region:
        general["region"] = region
    overrides = _read_overrides(parameters.get("parameter_overrides", []))
    given = {**overrides, **answers}
    merged = {key: value for key, value in given.items() if value or key in overrides}
    deploy = {
        **(_NEW | {"s3_prefix": stack} if not parameters else {}),
        "confirm_changeset": False,
        "parameter_overrides": [f"{key}={_quote(value)}" for key, value in merged.items()],
    }
    for table, values in (("global", general), ("deploy", deploy)):
        for key, value in values.items():
            text = _set_key(text, f"{environment}.{table}.parameters", key, value)
    written = _read_parameters(text, environment, "deploy")
    if written["parameter_overrides"] != deploy["parameter_overrides"]:
        problem = (
            f"has a form that cannot be edited; write {deploy['parameter_overrides']} yourself"
        )
        raise ConfigurationError(_PLACE, problem)
    return text


def _read_parameters(text: str, environment: str, table: str) -> dict[str, Any]:
    try:
        tables = tomllib.loads(text).get(environment, {})
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(_PLACE, f"cannot be read: {error}") from None
    parameters: dict[str, Any] = tables.get(table, {}).get("parameters", {})
    return parameters


def _read_overrides(given: Any) -> dict[str, str]:  # noqa: ANN401 -- a list, or sam's own text
    items = given if isinstance(given, list) else re.findall(r'[\w-]+="[^"]*"|\S+', str(given))
    pairs = (str(item).partition("=") for item in items)
    return {key: value.strip('"') for key, _, value in pairs}


def _quote(value: str) -> str:
    """Quote a value with a space, at which sam would cut it, or an empty one, which it refuses."""
    return f'"{value}"' if " " in value or not value else value


def _set_key(text: str, table: str, key: str, value: object) -> str:
    """Set a key of a table, which is added at the end if it is missing."""
    if isinstance(value, list):
        lines = "".join(f"  {json.dumps(each)},\n" for each in value)
        line = f"{key} = [\n{lines}]" if value else f"{key} = []"
    else:
        line = f"{key} = {json.dumps(value)}"
    header = re.search(rf"^\[{re.escape(table)}\][^\n]*\n?", text, re.MULTILINE)
    if header is None:
        beginning = f"{text.rstrip()}\n\n" if text.strip() else "version = 0.1\n\n"
        return f"{beginning}[{table}]\n{line}\n"
    after = re.search(r"^\[", text[header.end() :], re.MULTILINE)
    end = header.end() + after.start() if after else len(text)
    body = text[header.end() : end]
    pattern = rf"^{key} *= *(?:\[[^\]]*\]|[^\n]*)"
    if re.search(pattern, body, re.MULTILINE):
        body = re.sub(pattern, lambda _: line, body, count=1, flags=re.MULTILINE)
    else:
        kept = body.rstrip()
        body = (
            f"{kept}\n{line}\n{body[len(kept) :].removeprefix(chr(10))}"
            if kept
            else f"{line}\n{body}"
        )
    return text[: header.end()] + body + text[end:]
