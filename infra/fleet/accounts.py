"""Reads the accounts file of a fleet: CSV, one line for each stack.

The columns `account` and `region` are required; `role` and `stack` are optional. Every other column
is a parameter of template.yaml; an empty cell leaves it unchanged. Lines that begin with # are
comments.
"""

import csv
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

DEFAULT_STACK: Final = "session-reaper"
_REQUIRED: Final = ("account", "region")
_OWN_COLUMNS: Final = (*_REQUIRED, "role", "stack")


class AccountsError(Exception):
    """The file holds invalid values; each line of the message names its file and line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """One stack to deploy. `role` is a name or an ARN; empty means the caller's own credentials."""

    line: int
    account: str
    region: str
    role: str = ""
    stack: str = DEFAULT_STACK
    parameters: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The stack as messages name it."""
        return f"{self.account}/{self.region}/{self.stack}"


def read_accounts(path: Path, parameters: Collection[str]) -> Sequence[Deployment]:
    """Read the stacks of a file; `parameters` are those of the template. Raises AccountsError."""
    try:
        text = path.read_text("utf-8-sig")  # spreadsheets write a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise AccountsError(f"{path}: cannot be read: {error}") from None
    numbered = [
        (number, line)
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip(" ,;\t")
        and not line.lstrip(' "').startswith("#")  # a spreadsheet adds quotes
    ]
    if not numbered:
        raise AccountsError(
            f"{path}: is empty; the first line must name the columns, such as account,region,role"
        )
    (first, heading), *others = numbered
    columns = [cell.strip() for cell in _split(heading)]
    problems = [f"{path}:{first}: {each}" for each in _check_columns(columns, parameters)]
    if problems:
        raise AccountsError("\n".join(problems))
    if not others:
        raise AccountsError(
            f"{path}:{first}: has no line below the columns; add one for each stack"
        )
    found: list[Deployment] = []
    for number, line in others:
        made, wrong = _read_row(number, columns, _split(line))
        problems += [f"{path}:{number}: {each}" for each in wrong]
        found += [made] if made else []
    problems += [f"{path}:{each}" for each in _list_duplicates(found)]
    if problems:
        raise AccountsError("\n".join(problems))
    return found


def _split(line: str) -> Sequence[str]:
    """Split a line into cells; none if it has an open quote, as in a value with a line break."""
    try:
        return next(csv.reader([line], strict=True))
    except csv.Error:
        return []


def _check_columns(columns: Sequence[str], parameters: Collection[str]) -> Iterator[str]:
    for name in _REQUIRED:
        if name not in columns:
            yield f"{name}: this column is required"
    if "" in columns:
        yield "a column has no name; delete it, even if it is empty"
    for name in filter(None, dict.fromkeys(columns)):
        if columns.count(name) > 1:
            yield f"{name}: {columns.count(name)} columns have this name"
        if name not in (*_OWN_COLUMNS, *parameters):
            known = ", ".join([*_OWN_COLUMNS, *sorted(parameters)])
            yield f"unknown column '{name}'; known: {known}"


def _read_row(
    number: int, columns: Sequence[str], row: Sequence[str]
) -> tuple[Deployment | None, Sequence[str]]:
    if not row:
        return None, ["a quote is missing or misplaced; a value must not contain a line break"]
    if len(row) != len(columns):
        problem = f"has {len(row)} cells for {len(columns)} columns; quote values with commas"
        return None, [problem]
    cells = {name: cell.strip() for name, cell in zip(columns, row, strict=True)}
    problems = list(_check_cells(cells))
    if problems:
        return None, problems
    made = Deployment(
        line=number,
        account=cells["account"],
        region=cells["region"],
        role=cells.get("role", ""),
        stack=cells.get("stack") or DEFAULT_STACK,
        parameters={
            name: cell for name, cell in cells.items() if name not in _OWN_COLUMNS and cell
        },
    )
    return made, []


def _check_cells(cells: Mapping[str, str]) -> Iterator[str]:
    account, role, stack = cells["account"], cells.get("role", ""), cells.get("stack", "")
    if not re.fullmatch("[0-9]{12}", account):
        yield (
            f"account: '{account}' must have 12 digits; spreadsheets drop leading zeros and write"
            " large numbers as 1.2E+11"
        )
    if not re.fullmatch(r"[a-z]{2,4}(-[a-z]+)+-\d", cells["region"]):
        yield f"region: invalid region '{cells['region']}'; write eu-central-1, for example"
    arn = re.fullmatch(r"arn:[\w-]+:iam::(\d{12}):role/[\w+=,.@/-]+", role)
    if arn and arn[1] != account:
        yield f"role: '{role}' belongs to another account than {account}"
    if role and not arn and not re.fullmatch(r"[\w+=,.@/-]+", role):
        yield f"role: '{role}' must be the name or the ARN of a role"
    if stack and not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]{0,127}", stack):
        yield f"stack: '{stack}' must begin with a letter and contain only letters, digits and hyphens"
    for name, cell in cells.items():
        if name not in _OWN_COLUMNS and (not cell.isprintable() or set(cell) & set('"\\')):
            yield f"{name}: must not contain a quote, a backslash or a line break"


def _list_duplicates(found: Sequence[Deployment]) -> Iterator[str]:
    lines: dict[str, int] = {}
    for each in found:
        if lines.setdefault(each.label, each.line) != each.line:
            yield (
                f"{each.line}: {each.label} is already on line {lines[each.label]}; a second"
                " stack in one region needs another name in the column stack"
            )
