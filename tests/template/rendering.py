"""What CloudFormation would make of the templates, here: SAM's own transform, then the functions.

A reference to something that only AWS knows becomes a text that names it: `shop/Topic`,
`shop/Role.Arn`, of the stack `shop`. A nested stack is rendered, too: `shop/NetworkStack`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from samtranslator.translator.transform import transform
from samtranslator.yaml_helper import yaml_parse

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT: Final = Path(__file__).parents[2]
TEMPLATES: Final = ("template.yaml", "infra/monitoring.yaml", "infra/network.yaml")
PSEUDO: Final = {
    "AWS::AccountId": "123456789012",
    "AWS::Partition": "aws",
    "AWS::Region": "eu-west-1",
    "AWS::URLSuffix": "amazonaws.com",
}
_NOTHING: Final = object()

Properties = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """One resource that would be made. `name` is its logical id after its stack's name."""

    name: str
    kind: str
    properties: Properties
    deletion_policy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """What one set of parameters makes, nested stacks and all."""

    resources: tuple[Resource, ...]
    outputs: Mapping[str, Any]
    conditions: Mapping[tuple[str, str], bool]  # by template and name

    def of(self, kind: str) -> list[Resource]:
        """All of one type."""
        return [resource for resource in self.resources if resource.kind == kind]

    def one(self, name: str) -> Properties:
        """The properties of a resource of the main stack."""
        [found] = [one for one in self.resources if one.name.partition("/")[2] == name]
        return found.properties

    def has(self, name: str) -> bool:
        """Whether there is such a resource in the main stack."""
        return any(one.name.partition("/")[2] == name for one in self.resources)


class _Policies:
    """SAM asks AWS for its managed policies. No template here names one."""

    def load(self) -> dict[str, str]:
        return {}


@cache
def source(path: str) -> dict[str, Any]:
    """A template as it is written."""
    document: dict[str, Any] = yaml_parse((ROOT / path).read_text())
    return document


@cache
def transformed(path: str) -> dict[str, Any]:
    """A template without SAM."""
    document: dict[str, Any] = yaml_parse((ROOT / path).read_text())
    if "Transform" not in document:
        return document
    for resource in document["Resources"].values():
        if resource["Type"] == "AWS::Serverless::Function":
            resource["Properties"]["CodeUri"] = "s3://bucket/key"  # as `sam deploy` does
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_DEFAULT_REGION", PSEUDO["AWS::Region"])
        without: dict[str, Any] = transform(document, {}, _Policies())
    return without


def render(
    parameters: Mapping[str, str], *, stack: str = "shop", path: str = "template.yaml"
) -> Stack:
    """What these parameters make; those left out have their defaults."""
    template = transformed(path)
    evaluator = _Evaluator(template, _complete(template, parameters), stack)
    resources: list[Resource] = []
    conditions = {
        (path, name): evaluator.condition(name) for name in template.get("Conditions", {})
    }
    for name, one in template["Resources"].items():
        if "Condition" in one and not evaluator.condition(one["Condition"]):
            continue
        made = Resource(
            name=f"{stack}/{name}",
            kind=one["Type"],
            properties=evaluator.value(one.get("Properties", {})),
            deletion_policy=evaluator.value(one.get("DeletionPolicy", "Delete")),
        )
        resources.append(made)
        if made.kind == "AWS::CloudFormation::Stack":
            nested = evaluator.nested(name)
            resources += nested.resources
            conditions.update(nested.conditions)
    return Stack(
        resources=tuple(resources),
        outputs={
            name: evaluator.value(one["Value"])
            for name, one in template.get("Outputs", {}).items()
            if "Condition" not in one or evaluator.condition(one["Condition"])
        },
        conditions=conditions,
    )


def refusals(parameters: Mapping[str, str]) -> list[str]:
    """Why these parameters make nothing: what a parameter does not allow, and what a rule says."""
    template = transformed("template.yaml")
    given = _complete(template, parameters)
    evaluator = _Evaluator(template, given, "shop")
    return [
        *(
            name
            for name, one in template["Parameters"].items()
            if not re.fullmatch(one.get("AllowedPattern", r"(?s).*"), str(given[name]))
            or str(given[name]) not in map(str, one.get("AllowedValues", [given[name]]))
        ),
        *(
            assertion["AssertDescription"]
            for rule in template["Rules"].values()
            for assertion in rule["Assertions"]
            if not evaluator.value(assertion["Assert"])
        ),
    ]


def _complete(template: Mapping[str, Any], parameters: Mapping[str, str]) -> dict[str, Any]:
    declared = template["Parameters"]
    defaults = {name: one["Default"] for name, one in declared.items() if "Default" in one}
    given = {**defaults, **parameters}
    assert given.keys() == declared.keys(), declared.keys() ^ given.keys()
    return given


class _Evaluator:
    """CloudFormation's functions, for one stack."""

    def __init__(self, template: Mapping[str, Any], given: Mapping[str, Any], stack: str) -> None:
        self._template = template
        self._given = given
        self._stack = stack
        self._nested: dict[str, Stack] = {}

    def condition(self, name: str) -> bool:
        return bool(self.value(self._template["Conditions"][name]))

    def nested(self, name: str) -> Stack:
        if name not in self._nested:
            one = self._template["Resources"][name]
            assert self.condition(one["Condition"]), f"{name} is not there"
            properties = self.value(one["Properties"])
            self._nested[name] = render(
                properties["Parameters"],
                stack=f"{self._stack}/{name}",
                path=properties["TemplateURL"],
            )
        return self._nested[name]

    def value(self, node: Any) -> Any:  # noqa: ANN401
        """Evaluate the functions of a node; leave out AWS::NoValue."""
        if isinstance(node, list):
            return [one for one in map(self.value, node) if one is not _NOTHING]
        if not isinstance(node, dict):
            return node
        if len(node) == 1:
            [(key, argument)] = node.items()
            if key in ("Ref", "Condition") and isinstance(argument, str):
                return self._ref(argument) if key == "Ref" else self.condition(argument)
            if key.startswith("Fn::"):
                function = getattr(self, "_" + key.removeprefix("Fn::").lower())
                return function(argument)
        made = {key: self.value(one) for key, one in node.items()}
        return {key: one for key, one in made.items() if one is not _NOTHING}

    def _ref(self, name: str) -> Any:  # noqa: ANN401
        if name == "AWS::NoValue":
            return _NOTHING
        if name == "AWS::StackName":
            return self._stack.replace("/", "-")
        return self._given.get(name, PSEUDO.get(name)) or (
            self._made(name) if name in self._template["Resources"] else ""
        )

    def _made(self, name: str) -> str:
        needed = self._template["Resources"][name].get("Condition")
        assert needed is None or self.condition(needed), f"{name} is not there"
        return f"{self._stack}/{name}"

    def _getatt(self, argument: Any) -> Any:  # noqa: ANN401
        name, _, attribute = (
            argument if isinstance(argument, str) else ".".join(argument)
        ).partition(".")
        if attribute.startswith("Outputs."):
            return self.nested(name).outputs[attribute.removeprefix("Outputs.")]
        text = f"{self._made(name)}.{attribute}"
        # The one list: an endpoint's names, each after its zone.
        return [f"Z1:{text}"] if attribute == "DnsEntries" else text

    def _sub(self, argument: Any) -> str:  # noqa: ANN401
        text, local = argument if isinstance(argument, list) else (argument, {})

        def filled(match: re.Match[str]) -> str:
            name = match[1]
            if name.startswith("!"):
                return f"${{{name[1:]}}}"
            if name in local:
                return str(self.value(local[name]))
            return str(self._getatt(name) if "." in name else self._ref(name))

        return re.sub(r"\$\{([^}]+)\}", filled, text)

    def _if(self, argument: Any) -> Any:  # noqa: ANN401
        name, yes, no = argument
        return self.value(yes if self.condition(name) else no)

    def _and(self, argument: Any) -> bool:  # noqa: ANN401
        return all(self.value(argument))

    def _or(self, argument: Any) -> bool:  # noqa: ANN401
        return any(self.value(argument))

    def _not(self, argument: Any) -> bool:  # noqa: ANN401
        return not self.value(argument)[0]

    def _equals(self, argument: Any) -> bool:  # noqa: ANN401
        one, other = self.value(argument)
        return bool(one == other)

    def _join(self, argument: Any) -> str:  # noqa: ANN401
        separator, parts = argument
        return str(separator).join(self.value(parts))

    def _split(self, argument: Any) -> list[str]:  # noqa: ANN401
        separator, text = argument
        return str(self.value(text)).split(separator)

    def _findinmap(self, argument: Any) -> Any:  # noqa: ANN401
        mapping, first, second = self.value(argument)
        return self._template["Mappings"][mapping][first][second]

    def _select(self, argument: Any) -> Any:  # noqa: ANN401
        index, parts = argument
        return self.value(parts)[int(index)]
