"""Strict YAML: duplicate keys, and aliases, of which a few can mean gigabytes, are errors."""

import re
from typing import Any, ClassVar, Final

import yaml

from session_reaper.documents import may_hold_credential
from session_reaper.errors import ConfigurationError


class _StrictLoader(yaml.SafeLoader):
    """A safe loader that refuses aliases, and duplicate keys, of which PyYAML keeps the last."""

    # Other libraries add constructors of tags to SafeLoader itself.
    yaml_multi_constructors: ClassVar[dict[str | None, Any]] = {}

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


_QUOTED_TAG: Final = re.compile(r"the tag .*|tag handle .*", re.DOTALL)

# PyYAML's constructors raise these for an invalid date, `!!bool x` or `!!int ''`.
_CONSTRUCTOR_ERRORS = (ArithmeticError, AttributeError, LookupError, ValueError)


def parse_yaml(text: str) -> object:
    """Parse a YAML document.

    Raises ConfigurationError with line and column, but without any text of the document, which may
    be a password.
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506 -- a stricter SafeLoader
    except _CONSTRUCTOR_ERRORS:  # their text quotes the value
        problem = "a value does not have the form of its type"
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
            mark = error.problem_mark
            # A password that begins with an exclamation mark is read as a tag.
            cause = _QUOTED_TAG.sub("a tag", str(error.problem))
            problem = f"{cause} (line {mark.line + 1}, column {mark.column + 1})"
    if may_hold_credential(problem):
        problem = "(not shown)"
    raise ConfigurationError("document", f"is not valid YAML: {problem}")
