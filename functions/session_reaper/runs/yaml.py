"""Strict YAML: duplicate keys and aliases are errors (a few lines of aliases can mean gigabytes)."""

from typing import Any

import yaml

from session_reaper.documents import may_hold_credential
from session_reaper.errors import ConfigurationError


class _StrictLoader(yaml.SafeLoader):
    """A safe loader that also refuses aliases and duplicate keys, of which PyYAML keeps the last."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.get_mark()
            raise yaml.composer.ComposerError(None, None, "aliases are not supported", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 -- PyYAML's signature
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            raise yaml.constructor.ConstructorError(None, None, "duplicate key", node.start_mark)
        return mapping


# PyYAML's constructors raise these for an invalid date, `!!bool x` or `!!int ''`.
_CONSTRUCTOR_ERRORS = (ArithmeticError, AttributeError, LookupError, ValueError)


def parse_yaml(text: str) -> object:
    """Parse a YAML document.

    Raises ConfigurationError with line and column, but without the line, which may be a password.
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506 -- a stricter SafeLoader
    except (*_CONSTRUCTOR_ERRORS, yaml.YAMLError) as error:
        problem = " ".join(str(error).split())
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
            mark = error.problem_mark
            problem = f"{error.problem} (line {mark.line + 1}, column {mark.column + 1})"
        if may_hold_credential(problem):
            problem = "(not shown)"
        raise ConfigurationError("document", f"is not valid YAML: {problem}") from None
