"""The environment variables of the contract, parsed once."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from session_reaper.documents import may_hold_credential, read_choice
from session_reaper.errors import ConfigurationError
from session_reaper.policy.durations import parse_duration
from session_reaper.policy.enums import Mode
from session_reaper.policy.values import read_mode
from session_reaper.targets.target import is_secret_id

LONGEST_REMINDER = 7 * 86400  # seconds: in which an item of the memory is not forgotten


Choice = TypeVar("Choice", bound=str)


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
class FunctionLocation:
    """Where the function runs, by Lambda's own variables."""

    region: str
    function: str
    log_group: str
    dashboard: str | None


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
    remind_after: float  # seconds
    memory_table: str | None
    target_metrics: bool  # beside those of the run, which cost the same for any fleet
    critical_topic_arn: str | None
    place: FunctionLocation | None  # None outside of Lambda


def read_settings(environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings; an empty variable counts as unset. Raises ConfigurationError naming one."""
    given = {name: value.strip() for name, value in environ.items() if value.strip()}
    _refuse_credentials(given)
    secrets = _read_secrets(given.get("TARGET_SECRETS", ""))
    tag = _read_tag(given.get("TARGET_SECRET_TAG"))
    topic = _read_topic("TOPIC_ARN", given.get("TOPIC_ARN"))
    if not secrets and not tag:
        raise ConfigurationError("TARGET_SECRETS", "give this or TARGET_SECRET_TAG; both are unset")
    return Settings(
        target_secrets=secrets,
        target_secret_tag=tag,
        whole_clusters=_read_choice(given, "CLUSTER_TARGETS", ("instances", "endpoint"))
        == "instances",
        topic_arn=topic,
        mode=read_mode(given.get("MODE", "observe"), "MODE"),
        policy=given.get("POLICY", ""),
        notify=_read_choice(given, "NOTIFY", tuple(Notify)),
        remind_after=_read_remind_after(given.get("REMIND_AFTER", "1h")),
        memory_table=given.get("MEMORY_TABLE"),
        target_metrics=_read_choice(given, "TARGET_METRICS", ("yes", "no")) == "yes",
        critical_topic_arn=_read_critical_topic(given.get("CRITICAL_TOPIC_ARN"), topic),
        place=_read_location(given),
    )


def read_webhook_secret(environ: Mapping[str, str] = os.environ) -> str:
    """The secret that holds the webhook's URL. Raises ConfigurationError."""
    secret = environ.get("WEBHOOK_SECRET", "").strip()
    if not secret:
        raise ConfigurationError("WEBHOOK_SECRET", "is required; give the secret of the webhook")
    if not is_secret_id(secret):  # somebody may have written the URL itself
        raise ConfigurationError("WEBHOOK_SECRET", f"does not have {_NOT_AN_ID}")
    return secret


_NOT_AN_ID = (
    "the form of a secret's name or ARN (not shown: it may hold a credential); store URIs and"
    " passwords in Secrets Manager, and write the name of that secret here"
)
_OTHERS = (
    *("TARGET_SECRET_TAG", "CLUSTER_TARGETS", "TOPIC_ARN", "CRITICAL_TOPIC_ARN", "MODE", "POLICY"),
    *("NOTIFY", "REMIND_AFTER", "MEMORY_TABLE", "TARGET_METRICS", "DASHBOARD"),
)
"""The variables beside TARGET_SECRETS; an error, a log line or a summary may show their values."""


def _refuse_credentials(given: Mapping[str, str]) -> None:
    for name in _OTHERS:
        if may_hold_credential(given.get(name, "")):
            problem = "looks like a URI or a password (not shown); it belongs into a secret"
            raise ConfigurationError(name, f"{problem} that TARGET_SECRETS names")


def _read_secrets(value: str) -> tuple[str, ...]:
    """The names and ARNs. None is shown if any has another form: a password may have commas."""
    ids = tuple(dict.fromkeys(each.strip() for each in value.split(",") if each.strip()))
    for number, each in enumerate(ids, start=1):
        if not is_secret_id(each) or may_hold_credential(each.rpartition(":")[2]):
            problem = f"value {number} of {len(ids)}, separated by commas, does not have"
            raise ConfigurationError("TARGET_SECRETS", f"{problem} {_NOT_AN_ID}")
    return ids


def _read_choice(given: Mapping[str, str], name: str, choices: tuple[Choice, ...]) -> Choice:
    """Read one of the choices; the first is the default."""
    return read_choice(choices, given.get(name, str(choices[0])), name)


def _read_location(given: Mapping[str, str]) -> FunctionLocation | None:
    function, region = given.get("AWS_LAMBDA_FUNCTION_NAME"), given.get("AWS_REGION")
    if function is None or region is None:
        return None
    log_group = given.get("AWS_LAMBDA_LOG_GROUP_NAME", f"/aws/lambda/{function}")
    dashboard = given.get("DASHBOARD")
    return FunctionLocation(
        region=region, function=function, log_group=log_group, dashboard=dashboard
    )


def _read_tag(value: str | None) -> Tag | None:
    if value is None:
        return None
    key, equals, rest = value.partition("=")
    if not key or not equals:
        raise ConfigurationError("TARGET_SECRET_TAG", f"{value} is no key=value")
    return Tag(key=key, value=rest)


def _read_topic(name: str, value: str | None) -> str:
    if value is None:
        raise ConfigurationError(name, "is required; give the SNS topic of the summary")
    if not re.fullmatch(r"arn:[\w-]+:sns:[\w-]+:\d{12}:[\w-]+", value):
        raise ConfigurationError(name, f"{value} is no ARN of a standard SNS topic")
    return value


def _read_critical_topic(value: str | None, topic: str) -> str | None:
    if value is None:
        return None
    region = topic.split(":")[3]
    if (
        _read_topic("CRITICAL_TOPIC_ARN", value).split(":")[3] != region
    ):  # SNS takes none of another's
        raise ConfigurationError("CRITICAL_TOPIC_ARN", f"{value} is not in TOPIC_ARN's {region}")
    return value


def _read_remind_after(value: str) -> float:
    seconds = parse_duration(value)
    if seconds is None:
        raise ConfigurationError("REMIND_AFTER", f"{value} is no duration such as 1h or 90m")
    if seconds > LONGEST_REMINDER:
        raise ConfigurationError("REMIND_AFTER", f"{value} is longer than 7d")
    return seconds
