"""What the tests may import."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

TESTS = Path(__file__).parents[1]


def list_imports(source: str) -> Iterator[str]:
    """Return the full names that a module imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{each.name}" for each in node.names)


def list_imported_tests(source: str) -> list[str]:
    """Return those names that lead into a module of tests."""
    return [
        name
        for name in list_imports(source)
        if any(part.startswith("test_") for part in name.split("."))
    ]


def test_no_module_imports_a_module_of_tests() -> None:
    """What several of them need is in a module of helpers."""
    found = {str(path): list_imported_tests(path.read_text()) for path in TESTS.rglob("*.py")}
    assert len(found) > 100
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "line",
    [
        "import tests.unit.test_policy",
        "import tests.unit.test_policy as policy",
        "from tests.unit import test_policy",
        "from tests.unit.test_policy import a_rule",
        "from .test_policy import a_rule",
    ],
)
def test_every_form_of_such_an_import_is_found(line: str) -> None:
    assert list_imported_tests(line)
    assert list_imported_tests(f"def f():\n    {line}\n")
    assert not list_imported_tests(line.replace("test_", ""))
