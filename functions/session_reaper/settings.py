"""Reads the environment variables."""

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from enum import StrEnum
from typing import NamedTuple, TypeVar

from session_reaper.documents import may_hold_credential, read_choice
from session_reaper.errors import ConfigurationError
from session_reaper.policy.durations import parse_duration
from session_reaper.policy.enums import Mode
from session_reaper.policy.values import read_mode
from session_reaper.summary.console_links import FunctionLocation
from session_reaper.targets.target import is_secret_id

LONGEST_REMINDER = 7 * 86400  # seconds; known issues are kept for longer
_DEFAULT_REMINDER = 3600.0  # seconds
_DEFAULT_RUN_INTERVAL = 900.0  # seconds: the alarms expect a run within this time
SSM_PREFIX = "ssm:"

Choice = TypeVar("Choice", bound=str)


class Notify(StrEnum):
    """The runs after which a summary is published."""

    CHANGES = "changes"
    ALWAYS = "always"


class Tag(NamedTuple):
    """A tag whose secrets are targets."""

    key: str
    value: str


class ParameterName(NamedTuple):
    """The name of an SSM parameter that holds a setting."""

    name: str


class Settings(NamedTuple):
    """The configuration of the stack.

    `mode`: if it is in a parameter, each run reads it. `whole_clusters`: the secret of a cluster
    covers each of its instances. `skip_paused`: scheduled runs do not wake Aurora clusters without
    connections. `remind_after` and `run_interval` are in seconds. `location` is None outside of
    Lambda. `run_interval`: the longest time between two scheduled runs.
    """

    target_secrets: tuple[str, ...]
    target_secret_tag: Tag | None
    whole_clusters: bool
    topic_arn: str
    mode: Mode | ParameterName
    policy: str
    notify: Notify
    remind_after: float
    memory_table: str | None
    target_metrics: bool
    critical_topic_arn: str | None
    fleet_topic_arn: str | None
    run_interval: float
    skip_paused: bool
    location: FunctionLocation | None


def read_settings(environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings; an empty variable counts as unset.

    Raises ConfigurationError that names the variable.
    """
    given = _read_given(environ)
    topic = _read_topic("TOPIC_ARN", given.get("TOPIC_ARN"))
    secrets = _read_secrets(given.get("TARGET_SECRETS", ""))
    tag = _read_tag(given.get("TARGET_SECRET_TAG"))
    if not secrets and not tag:
        raise ConfigurationError("TARGET_SECRETS", "set this or TARGET_SECRET_TAG; both are empty")
    return Settings(
        target_secrets=secrets,
        target_secret_tag=tag,
        whole_clusters=_read_choice(given, "CLUSTER_TARGETS", ("instances", "endpoint"))
        == "instances",
        topic_arn=topic,
        mode=_read_mode(given.get("MODE", "observe")),
        policy=given.get("POLICY", ""),
        notify=_read_choice(given, "NOTIFY", tuple(Notify)),
        remind_after=_read_remind_after(given.get("REMIND_AFTER", "1h")),
        memory_table=given.get("MEMORY_TABLE"),
        target_metrics=_read_choice(given, "TARGET_METRICS", ("yes", "no")) == "yes",
        critical_topic_arn=_read_other_topic(given, "CRITICAL_TOPIC_ARN", topic),
        fleet_topic_arn=_read_other_topic(given, "FLEET_TOPIC_ARN", topic),
        run_interval=read_run_interval(given.get("RUN_INTERVAL", "")),
        skip_paused=_read_choice(given, "PAUSED_CLUSTERS", ("skip", "connect")) == "skip",
        location=_read_location(given),
    )


class ErrorSettings(NamedTuple):
    """The settings for reporting a broken configuration, as far as they are valid.

    `topic_arns`: the topics to try, in this order.
    """

    topic_arns: tuple[str, ...]
    fleet_topic_arn: str | None
    run_interval: float
    memory_table: str | None
    remind_after: float
    location: FunctionLocation | None


def read_error_settings(environ: Mapping[str, str] = os.environ) -> ErrorSettings:
    """Read each of these settings by itself; an invalid one counts as unset."""
    found = _find_given(environ)
    unsafe = [name for name in _SHOWN if may_hold_credential(found.get(name, ""))]
    given = {name: value for name, value in found.items() if name not in unsafe}
    topics = []
    for name in ("TOPIC_ARN", "CRITICAL_TOPIC_ARN"):
        with suppress(ConfigurationError):
            topics.append(_read_topic(name, given.get(name)))
    fleet_topic, run_interval = None, _DEFAULT_RUN_INTERVAL
    with suppress(ConfigurationError):
        fleet_topic = _read_topic("FLEET_TOPIC_ARN", given.get("FLEET_TOPIC_ARN"))
    with suppress(ConfigurationError):
        run_interval = read_run_interval(given.get("RUN_INTERVAL", ""))
    remind_after = parse_duration(given.get("REMIND_AFTER", "")) or _DEFAULT_REMINDER
    return ErrorSettings(
        topic_arns=tuple(topics),
        fleet_topic_arn=fleet_topic,
        run_interval=run_interval,
        memory_table=given.get("MEMORY_TABLE"),
        remind_after=min(remind_after, LONGEST_REMINDER),
        location=_read_location(given),
    )


class HubSettings(NamedTuple):
    """The configuration of a fleet's hub; `remind_after` is in seconds."""

    queue_url: str
    topic_arn: str
    memory_table: str
    remind_after: float
    location: FunctionLocation | None


def read_hub_settings(environ: Mapping[str, str] = os.environ) -> HubSettings:
    """Read the settings of the hub. Raises ConfigurationError that names the variable."""
    given = _read_given(environ)
    queue = given.get("FLEET_QUEUE_URL", "")
    if not re.fullmatch(r"https?://[\w.:-]+/\d{12}/[\w-]{1,80}", queue):
        problem = "is required; write the URL of an SQS queue (the value is not shown)"
        raise ConfigurationError("FLEET_QUEUE_URL", problem)
    if "MEMORY_TABLE" not in given:
        raise ConfigurationError("MEMORY_TABLE", "is required; write the name of a DynamoDB table")
    return HubSettings(
        queue_url=queue,
        topic_arn=_read_topic("TOPIC_ARN", given.get("TOPIC_ARN")),
        memory_table=given["MEMORY_TABLE"],
        remind_after=_read_remind_after(given.get("REMIND_AFTER", "1h")),
        location=_read_location(given),
    )


def read_webhook_secret(environ: Mapping[str, str] = os.environ) -> str:
    """Read the name of the secret with the webhook's URL. Raises ConfigurationError."""
    secret = environ.get("WEBHOOK_SECRET", "").strip()
    if not secret:
        raise ConfigurationError("WEBHOOK_SECRET", "is required; write the webhook's secret here")
    if not is_secret_id(secret):
        raise ConfigurationError("WEBHOOK_SECRET", _NOT_AN_ID)
    return secret


def read_aws_endpoint() -> str | None:
    """Return the endpoint of all services, if it is not AWS."""
    return os.environ.get("AWS_ENDPOINT_URL")


_NOT_AN_ID = (
    "must be the name or the ARN of a secret (the value is not shown: it may contain a credential);"
    " store URIs and passwords in Secrets Manager, and write the name of that secret here"
)
# The values of these may appear in errors, log lines and summaries.
_SHOWN = (
    *("TARGET_SECRET_TAG", "CLUSTER_TARGETS", "TOPIC_ARN", "CRITICAL_TOPIC_ARN", "MODE", "POLICY"),
    *("NOTIFY", "REMIND_AFTER", "MEMORY_TABLE", "TARGET_METRICS", "DASHBOARD", "PAUSED_CLUSTERS"),
    *("FLEET_TOPIC_ARN", "RUN_INTERVAL"),
)
_LAMBDA = ("AWS_LAMBDA_FUNCTION_NAME", "AWS_LAMBDA_LOG_GROUP_NAME", "AWS_REGION")
_NAMES = (*_SHOWN, *_LAMBDA, "TARGET_SECRETS", "FLEET_QUEUE_URL")


def _find_given(environ: Mapping[str, str]) -> Mapping[str, str]:
    """Return the variables that are set; an empty one counts as unset."""
    return {name: value for name in _NAMES if (value := environ.get(name, "").strip())}


def _read_given(environ: Mapping[str, str]) -> Mapping[str, str]:
    """Return the variables that are set. Raises ConfigurationError if one may hold a credential."""
    given = _find_given(environ)
    for name in _SHOWN:
        if may_hold_credential(given.get(name, "")):
            problem = "looks like a URI or a password (not shown); store it in a secret, and write"
            raise ConfigurationError(name, f"{problem} the name of that secret into TARGET_SECRETS")
    return given


def _read_secrets(value: str) -> tuple[str, ...]:
    """Read names and ARNs. An error shows none of them, because a password may contain commas."""
    ids = tuple(dict.fromkeys(each.strip() for each in value.split(",") if each.strip()))
    for number, each in enumerate(ids, start=1):
        if not is_secret_id(each) or may_hold_credential(each.rpartition(":")[2]):
            problem = f"value {number} of {len(ids)} (comma-separated) {_NOT_AN_ID}"
            raise ConfigurationError("TARGET_SECRETS", problem)
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
        raise ConfigurationError("TARGET_SECRET_TAG", f"{value} must be key=value")
    return Tag(key=key, value=rest)


def _read_mode(value: str) -> Mode | ParameterName:
    if not value.startswith(SSM_PREFIX):
        return read_mode(value, "MODE")
    name = value.removeprefix(SSM_PREFIX)
    if not re.fullmatch(r"[\w./:-]{1,2048}", name):
        problem = "must be ssm:NAME with the name of an SSM parameter, or a mode"
        raise ConfigurationError("MODE", problem)
    return ParameterName(name=name)


def _read_topic(name: str, value: str | None) -> str:
    if value is None:
        raise ConfigurationError(name, "is required; write the ARN of an SNS topic")
    if not re.fullmatch(r"arn:[\w-]+:sns:[\w-]+:\d{12}:[\w-]+", value):
        raise ConfigurationError(name, f"{value} must be the ARN of a standard SNS topic")
    return value


def _read_other_topic(given: Mapping[str, str], name: str, topic: str) -> str | None:
    if name not in given:
        return None
    region = topic.split(":")[3]
    # A client of SNS publishes to topics of its own region only.
    if _read_topic(name, given[name]).split(":")[3] != region:
        problem = f"{given[name]} must be in the region of TOPIC_ARN, {region}"
        raise ConfigurationError(name, problem)
    return given[name]


def read_run_interval(value: str) -> float:
    """Read a duration, or a schedule, in seconds; a cron expression counts as the default.

    Raises ConfigurationError.
    """
    if not value or value.startswith("cron("):
        return _DEFAULT_RUN_INTERVAL
    rate = re.fullmatch(r"rate\((\d{1,6}) (minute|hour|day)s?\)", value)
    seconds = parse_duration(f"{rate[1]}{rate[2][0]}" if rate else value)
    if not seconds:
        problem = f"invalid interval {value}; write 5m, or a schedule such as rate(5 minutes)"
        raise ConfigurationError("RUN_INTERVAL", problem)
    return seconds


def _read_remind_after(value: str) -> float:
    seconds = parse_duration(value)
    if seconds is None:
        raise ConfigurationError("REMIND_AFTER", f"invalid duration {value}; write 1h or 90m")
    if seconds > LONGEST_REMINDER:
        raise ConfigurationError("REMIND_AFTER", f"{value} must be at most 7d")
    return seconds
