"""Evaluates the IAM policies of the template, and records the calls that the package makes to AWS."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from session_reaper.aws import clients as aws

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

# -- policies --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One API call, with the facts that IAM knows about it."""

    action: str
    resource: str
    facts: frozenset[tuple[str, str]]
    key: str | None = None  # the account's own key that encrypts the resource

    def __str__(self) -> str:
        """The shortest distinct form: action, resource, service."""
        # Without the random parts of names that Secrets Manager and RDS choose.
        name = re.sub(r"(?<=^secret:rds!db)-.+|-\w{6}$", "", self.resource.split(":", 5)[-1])
        through = dict(self.facts).get("kms:ViaService", "").partition(".")[0]
        return f"{self.action} {through or name.removeprefix('secret:')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """A condition that a fact must have one of these values."""

    operator: str
    key: str
    values: tuple[str, ...]

    def holds(self, facts: Mapping[str, str]) -> bool:
        if self.key not in facts:
            return False
        if self.operator == "StringEquals":
            return facts[self.key] in self.values
        assert self.operator == "ArnLike", f"unknown operator {self.operator}"
        return any(_arn_matches(value, facts[self.key]) for value in self.values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """One statement of a policy."""

    effect: str
    actions: tuple[str, ...]
    resources: tuple[str, ...]
    conditions: tuple[Condition, ...]

    def __str__(self) -> str:
        conditions = [f"{one.key} {', '.join(one.values)}" for one in self.conditions]
        return " if ".join([f"{', '.join(self.actions)} {', '.join(self.resources)}", *conditions])

    def covers(self, call: Call) -> bool:
        facts = dict(call.facts)
        return (
            any(_matches(action.lower(), call.action.lower()) for action in self.actions)
            and any(_arn_matches(resource, call.resource) for resource in self.resources)
            and all(condition.holds(facts) for condition in self.conditions)
        )

    def grants(self) -> Iterator[Statement]:
        """Split the statement into single actions, resources and condition values."""
        choices = [
            [replace(one, values=(value,)) for value in one.values] for one in self.conditions
        ]
        for action, resource in product(self.actions, self.resources):
            for conditions in product(*choices):
                yield replace(self, actions=(action,), resources=(resource,), conditions=conditions)


def parse_statements(policies: Iterable[Mapping[str, Any]]) -> tuple[Statement, ...]:
    """Parse the statements of policies."""
    documents = [policy["PolicyDocument"] for policy in policies]
    return tuple(
        _statement(one)
        for document in documents
        for one in (json.loads(document) if isinstance(document, str) else document)["Statement"]
    )


def find_refused(statements: Iterable[Statement], calls: Iterable[Call]) -> list[Call]:
    """Return the calls that no statement allows or that a statement denies."""
    every = tuple(statements)
    return [
        call for call in calls if {each.effect for each in every if each.covers(call)} != {"Allow"}
    ]


def find_superfluous(statements: Iterable[Statement], calls: Iterable[Call]) -> list[Statement]:
    """Return the grants that no call needs: unused ones, and those that another grant covers."""
    grants = [grant for one in statements if one.effect == "Allow" for grant in one.grants()]
    covering = [[grant for grant in grants if grant.covers(call)] for call in calls]
    needed = [only[0] for only in covering if len(only) == 1]
    return [grant for grant in grants if grant not in needed or grants.count(grant) > 1]


def _statement(one: Mapping[str, Any]) -> Statement:
    assert one.keys() <= {"Sid", "Effect", "Principal", "Action", "Resource", "Condition"}, one
    assert one["Effect"] in ("Allow", "Deny")
    return Statement(
        effect=one["Effect"],
        actions=_listed(one["Action"]),
        resources=_listed(one["Resource"]),
        conditions=tuple(
            Condition(operator=operator, key=key, values=_listed(values))
            for operator, keys in one.get("Condition", {}).items()
            for key, values in keys.items()
        ),
    )


def _listed(value: str | list[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _matches(pattern: str, text: str) -> bool:
    return bool(re.fullmatch(re.escape(pattern).replace(r"\*", ".*").replace(r"\?", "."), text))


def _arn_matches(pattern: str, arn: str) -> bool:
    """Match an ARN; a wildcard does not cross a colon except in the last part."""
    parts, others = pattern.split(":", 5), arn.split(":", 5)
    if pattern == "*" or len(parts) != len(others):
        return pattern == "*"
    return all(map(_matches, parts, others))


# -- requests --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A signed request: a call, or a token that is created without one."""

    operation: str  # service:Operation
    host: str
    arguments: Mapping[str, Any]


_HOOK: Final = "before-sign"  # botocore calls it for every try and for presigned tokens


@contextmanager
def record_requests() -> Iterator[list[Request]]:
    """Record every request that the package's clients make within the block."""
    requests: list[Request] = []

    def note(**signing: Any) -> None:  # noqa: ANN401 -- botocore's own
        data = signing["request"].data
        # CloudWatch signs under another name, and its client may send CBOR.
        service = _SERVICES.get(signing["signing_name"], signing["signing_name"])
        requests.append(
            Request(
                operation=f"{service}:{signing['operation_name']}",
                host=urlsplit(signing["request"].url).hostname or "",
                arguments={} if service in _SERVICES.values() else _read(data),
            )
        )

    _forget_clients()  # a client has the hooks that its session had when it was made
    aws.get_session().events.register(_HOOK, note)
    try:
        yield requests
    finally:
        _forget_clients()


_SERVICES: Final = {"monitoring": "cloudwatch"}


def _read(data: Any) -> dict[str, Any]:  # noqa: ANN401 -- botocore's own
    return data if isinstance(data, dict) else json.loads(data)


def _forget_clients() -> None:
    aws._make_client.cache_clear()  # noqa: SLF001
    aws.get_session.cache_clear()
