"""The imports of tests."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from tests.template.sources import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator


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
