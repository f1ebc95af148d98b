"""The environment variables of the contract, parsed once."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from session_reaper.errors import ConfigurationError
from session_reaper.policy import Mode, read_mode


class Notify(StrEnum):
    """When a summary is published."""

    CHANGES = "changes"
    ALWAYS = "always"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tag:
    """A secret that bears it is a target."""

    key: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the stack says of every run."""

    target_secrets: tuple[str, ...]
    target_secret_tag: Tag | None
    whole_clusters: bool  # the secret of a cluster is for each of its instances
    topic_arn: str
    mode: Mode
    policy: str
    notify: Notify


def read_settings(environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings; an empty variable counts as unset. Raises ConfigurationError naming one."""
    given = {name: value.strip() for name, value in environ.items() if value.strip()}
    names = [name.strip() for name in given.get("TARGET_SECRETS", "").split(",")]
    secrets = tuple(dict.fromkeys(name for name in names if name))
    tag = _tag(given.get("TARGET_SECRET_TAG"))
    if not secrets and not tag:
        raise ConfigurationError("TARGET_SECRETS", "give this or TARGET_SECRET_TAG; both are unset")
    return Settings(
        target_secrets=secrets,
        target_secret_tag=tag,
        whole_clusters=_whole_clusters(given.get("CLUSTER_TARGETS", "instances")),
        topic_arn=_topic(given.get("TOPIC_ARN")),
        mode=read_mode(given.get("MODE", "observe"), "MODE"),
        policy=given.get("POLICY", ""),
        notify=_notify(given.get("NOTIFY", "changes")),
    )


def _tag(value: str | None) -> Tag | None:
    if value is None:
        return None
    key, equals, rest = value.partition("=")
    if not key or not equals:
        raise ConfigurationError("TARGET_SECRET_TAG", f"{value} is no key=value")
    return Tag(key=key, value=rest)


def _whole_clusters(value: str) -> bool:
    if value not in ("instances", "endpoint"):
        raise ConfigurationError("CLUSTER_TARGETS", f"{value} is neither instances nor endpoint")
    return value == "instances"


def _topic(value: str | None) -> str:
    if value is None:
        raise ConfigurationError("TOPIC_ARN", "is required; give the SNS topic of the summary")
    if not re.fullmatch(r"arn:[\w-]+:sns:[\w-]+:\d{12}:[\w-]+", value):
        raise ConfigurationError("TOPIC_ARN", f"{value} is no ARN of a standard SNS topic")
    return value


def _notify(value: str) -> Notify:
    try:
        return Notify(value)
    except ValueError:
        raise ConfigurationError("NOTIFY", f"{value} is neither changes nor always") from None
