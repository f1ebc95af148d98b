"""Reads the templates as they are written."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).parents[2]
TEMPLATES: Final = (
    "template.yaml",
    *sorted(f"infra/{path.name}" for path in (ROOT / "infra").glob("*.yaml")),
    *sorted(f"infra/fleet/{path.name}" for path in (ROOT / "infra" / "fleet").glob("*.yaml")),
)


class _Loader(yaml.SafeLoader):
    """YAML with CloudFormation's short forms: `!Ref X` is {"Ref": X}."""


def _construct_short_form(loader: yaml.Loader, name: str, node: yaml.Node) -> dict[str, Any]:
    if isinstance(node, yaml.ScalarNode):
        return {name: loader.construct_scalar(node)}
    if isinstance(node, yaml.SequenceNode):
        return {name: loader.construct_sequence(node, deep=True)}
    assert isinstance(node, yaml.MappingNode)
    return {name: loader.construct_mapping(node, deep=True)}


_Loader.add_multi_constructor("!", _construct_short_form)


@cache
def read_template(path: str) -> dict[str, Any]:
    """Return a template; its functions keep their short names, without the exclamation mark."""
    document: dict[str, Any] = yaml.load((ROOT / path).read_text(), _Loader)  # noqa: S506 -- a SafeLoader
    return document


def compose_template(path: str) -> yaml.Node:
    """Return a template as nodes, which know their lines."""
    node = yaml.compose((ROOT / path).read_text(), _Loader)
    assert node
    return node
