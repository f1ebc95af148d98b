"""The imports of our modules: which package may use which, and which foreign API."""

from __future__ import annotations

import ast
import sys
from typing import TYPE_CHECKING

import pytest

from tests.template.sources import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = ROOT / "functions" / "session_reaper"
BASICS = {"deadline", "documents", "errors", "grants"}
PURE = ("targets", "sessions", "policy", "decision", "report", "summary", "fleet")
"""Each imports only those before it."""

ADAPTERS = {
    "aws": {"boto3", "botocore", "observability", "settings"},
    "log_levels": set[str](),
    "observability": {"aws_lambda_powertools", "log_levels"},
    "postgres": {"asn1crypto", "pg8000", "scramp"},
    "settings": set[str](),
}
"""The foreign API of each, and the other adapters that it uses."""

ENTRY_POINTS = {
    "handler": {"aws_lambda_powertools", "log_levels", "observability", "runs"},
    "hub": {"aws_lambda_powertools", "log_levels", "observability", "runs", "settings"},
    "webhook": {"aws", "aws_lambda_powertools", "log_levels", "settings", "urllib3"},
}
ALLOWED = (
    dict.fromkeys(BASICS, BASICS)
    | {name: BASICS | set(PURE[:number]) for number, name in enumerate(PURE)}
    | {name: BASICS | set(PURE) | own for name, own in (ADAPTERS | ENTRY_POINTS).items()}
    | {"runs": BASICS | set(PURE) | set(ADAPTERS) | {"yaml"}}
)


@pytest.mark.parametrize("place", sorted(ALLOWED))
def test_a_package_imports_only_what_its_place_allows(place: str) -> None:
    paths = sorted((PACKAGE / place).rglob("*.py")) or [PACKAGE / f"{place}.py"]
    used = {used for path in paths for used in _list_used(path.read_text())}
    assert used - {place} <= ALLOWED[place]


def test_every_module_has_its_place() -> None:
    places = {path.stem for path in PACKAGE.iterdir() if path.suffix in {"", ".py"}}
    assert places - {"__init__", "__pycache__"} == set(ALLOWED)


def test_only_one_module_reads_the_environment_and_one_reads_yaml() -> None:
    texts = {path: path.read_text() for path in PACKAGE.rglob("*.py")}
    assert [path.name for path, text in texts.items() if "os.environ" in text] == ["settings.py"]
    assert [path.name for path, text in texts.items() if "yaml" in _list_used(text)] == ["yaml.py"]


def _list_used(source: str) -> set[str]:
    """List the packages of ours and the foreign ones that a module imports; types do not count."""
    used = set()
    for one in _list_imports(source):
        first, *rest = one.split(".")
        if first == "session_reaper":
            used.add(rest[0])
        elif first not in sys.stdlib_module_names and not first.startswith("mypy_boto3"):
            used.add(first)
    return used


def test_no_module_imports_a_test() -> None:
    """Code that tests share is in modules that are not tests."""
    paths = sorted((ROOT / "tests").rglob("*.py"))
    assert len(paths) > 100
    found = [(path.name, one) for path in paths for one in _list_imports(path.read_text())]
    assert [(name, one) for name, one in found if ".test_" in one] == []


def _list_imports(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
