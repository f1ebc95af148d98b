"""YAML without its traps: no key twice, no aliases (a few lines of them can mean gigabytes)."""

from typing import Any

import yaml

from session_reaper.documents import may_hold_credential
from session_reaper.errors import ConfigurationError


class _StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader takes the last of two equal keys, and the first would be lost."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.get_mark()
            raise yaml.composer.ComposerError(None, None, "aliases are not supported", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 -- PyYAML's signature
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            problem = "a key is there twice; the first would be lost"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return mapping


# What PyYAML's constructors stumble into: a date that is none, !!bool x, !!int ''.
_REFUSED = (ArithmeticError, AttributeError, LookupError, ValueError)


def parse_yaml(text: str) -> object:
    """The document in `text`. Raises ConfigurationError with line and column."""
    try:
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506 -- a SafeLoader, made stricter
    except (*_REFUSED, yaml.YAMLError) as error:
        problem = " ".join(str(error).split())  # with the line as it is written
        if may_hold_credential(problem):
            mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
            problem = f"see line {mark.line + 1}" if mark else "(not shown)"
        raise ConfigurationError("document", f"is not valid YAML: {problem}") from None
