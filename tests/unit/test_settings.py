from __future__ import annotations

import pytest
from session_reaper.errors import ConfigurationError
from session_reaper.policy.enums import Mode
from session_reaper.settings import (
    Notify,
    ParameterName,
    Settings,
    Tag,
    read_settings,
    read_webhook_secret,
)
from session_reaper.summary.console_links import FunctionLocation

ARN = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:a/b-X1y2Z3"
TOPIC = "arn:aws:sns:eu-west-1:123456789012:session-reaper"


def settings(**overrides: str) -> Settings:
    return read_settings({"TARGET_SECRETS": "orders", "TOPIC_ARN": TOPIC, **overrides})


def test_minimal_settings_observe_with_the_bundled_policy() -> None:
    assert settings() == Settings(
        target_secrets=("orders",),
        target_secret_tag=None,
        whole_clusters=True,
        topic_arn=TOPIC,
        mode=Mode.OBSERVE,
        policy="",
        notify=Notify.CHANGES,
        remind_after=3600,
        memory_table=None,
        target_metrics=True,
        critical_topic_arn=None,
        fleet_topic_arn=None,
        run_interval=900,
        skip_paused=True,
        location=None,
    )


@pytest.mark.parametrize(
    ("value", "seconds"), [("1h", 3600), ("90m", 5400), ("0s", 0), ("7d", 604800)]
)
def test_remind_after_is_a_duration(value: str, seconds: float) -> None:
    assert settings(REMIND_AFTER=value).remind_after == seconds


@pytest.mark.parametrize("value", ["60", "1 h", "soon", "8d", "-1h"])
def test_an_invalid_remind_after_is_refused(value: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^REMIND_AFTER: "):
        settings(REMIND_AFTER=value)


def test_target_metrics_can_be_switched_off() -> None:
    assert settings(TARGET_METRICS="yes").target_metrics
    assert not settings(TARGET_METRICS="no").target_metrics
    with pytest.raises(
        ConfigurationError, match=r"^TARGET_METRICS: invalid value 'false'; valid: yes, no"
    ):
        settings(TARGET_METRICS="false")


def test_the_critical_topic_must_be_an_sns_topic() -> None:
    assert settings(CRITICAL_TOPIC_ARN=TOPIC).critical_topic_arn == TOPIC
    with pytest.raises(ConfigurationError, match=r"^CRITICAL_TOPIC_ARN: pager must be the ARN"):
        settings(CRITICAL_TOPIC_ARN="pager")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("5m", 300),
        ("rate(1 minute)", 60),
        ("rate(2 hours)", 7200),
        ("rate(1 day)", 86400),
        ("cron(0/5 * * * ? *)", 900),
    ],
)
def test_the_run_interval_is_a_duration_or_a_schedule(value: str, seconds: float) -> None:
    assert settings(RUN_INTERVAL=value).run_interval == seconds


@pytest.mark.parametrize("value", ["5", "rate(5)", "rate(0 minutes)", "0s", "soon"])
def test_an_invalid_run_interval_is_refused(value: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^RUN_INTERVAL: invalid interval"):
        settings(RUN_INTERVAL=value)


def test_the_fleets_topic_must_be_in_the_region_of_the_other_topic() -> None:
    assert settings(FLEET_TOPIC_ARN=TOPIC).fleet_topic_arn == TOPIC
    with pytest.raises(ConfigurationError, match=r"^FLEET_TOPIC_ARN: .* region of TOPIC_ARN"):
        settings(FLEET_TOPIC_ARN=TOPIC.replace("eu-west-1", "us-east-1"))


def test_a_critical_topic_in_another_region_is_refused() -> None:
    other = TOPIC.replace(TOPIC.split(":")[3], "us-west-2")
    with pytest.raises(
        ConfigurationError, match=r"^CRITICAL_TOPIC_ARN: .* region of TOPIC_ARN, eu-"
    ):
        settings(CRITICAL_TOPIC_ARN=other)


def test_the_location_comes_from_lambdas_own_variables() -> None:
    function = {"AWS_LAMBDA_FUNCTION_NAME": "reaper", "AWS_REGION": "eu-west-1"}
    location = FunctionLocation(
        region="eu-west-1", function="reaper", log_group="/aws/lambda/reaper", dashboard=None
    )
    assert settings(**function).location == location
    named = {"AWS_LAMBDA_LOG_GROUP_NAME": "group", "DASHBOARD": "board"}
    assert settings(**function, **named).location == location._replace(
        log_group="group", dashboard="board"
    )
    assert settings(AWS_REGION="eu-west-1").location is None


def test_scheduled_runs_skip_paused_clusters_unless_that_is_switched_off() -> None:
    assert settings(PAUSED_CLUSTERS="skip").skip_paused
    assert not settings(PAUSED_CLUSTERS="connect").skip_paused
    with pytest.raises(
        ConfigurationError,
        match=r"^PAUSED_CLUSTERS: invalid value 'no'; valid: skip, connect",
    ):
        settings(PAUSED_CLUSTERS="no")


def test_a_cluster_covers_its_instances_unless_that_is_switched_off() -> None:
    assert settings(CLUSTER_TARGETS="instances").whole_clusters
    assert not settings(CLUSTER_TARGETS="endpoint").whole_clusters
    with pytest.raises(
        ConfigurationError,
        match=r"^CLUSTER_TARGETS: invalid value 'off'; valid: instances, endpoint",
    ):
        settings(CLUSTER_TARGETS="off")


def test_an_empty_variable_counts_as_unset() -> None:
    empty = settings(TARGET_SECRET_TAG="", MODE=" ", POLICY="", NOTIFY="")
    assert empty == settings()


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("orders", ("orders",)),
        ("orders,billing", ("orders", "billing")),
        (" orders , billing ,", ("orders", "billing")),
        ("orders,orders", ("orders",)),
        (f"orders,{ARN}", ("orders", ARN)),
    ],
)
def test_target_secrets_are_separated_by_commas(value: str, names: tuple[str, ...]) -> None:
    assert settings(TARGET_SECRETS=value).target_secrets == names


@pytest.mark.parametrize(
    ("value", "tag"),
    [
        ("team=payments", Tag(key="team", value="payments")),
        ("expression=a=b", Tag(key="expression", value="a=b")),
        ("reap=", Tag(key="reap", value="")),
    ],
)
def test_a_tag_alone_is_enough(value: str, tag: Tag) -> None:
    read = settings(TARGET_SECRETS="", TARGET_SECRET_TAG=value)
    assert read.target_secrets == ()
    assert read.target_secret_tag == tag


@pytest.mark.parametrize("mode", Mode)
def test_reads_every_mode(mode: Mode) -> None:
    assert settings(MODE=str(mode)).mode is mode


@pytest.mark.parametrize(
    "arn",
    [
        TOPIC,
        "arn:aws-cn:sns:cn-north-1:123456789012:a",
        "arn:aws-us-gov:sns:us-gov-west-1:123456789012:A_b-9",
    ],
)
def test_reads_the_topics_of_every_partition(arn: str) -> None:
    assert settings(TOPIC_ARN=arn).topic_arn == arn


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TARGET_SECRETS", ""),
        ("TARGET_SECRETS", " , "),
        ("TARGET_SECRET_TAG", "team"),
        ("TARGET_SECRET_TAG", "=payments"),
        ("TOPIC_ARN", ""),
        ("TOPIC_ARN", "session-reaper"),
        ("TOPIC_ARN", "arn:aws:sqs:eu-west-1:123456789012:queue"),
        ("TOPIC_ARN", "arn:aws:sns:eu-west-1:123456789012:topic:subscription"),
        ("TOPIC_ARN", "arn:aws:sns:eu-west-1:123456789012:ordered.fifo"),
        ("MODE", "Enforce"),
        ("MODE", "on"),
        ("MODE", "false"),
        ("MODE", "2"),
        ("NOTIFY", "never"),
        ("NOTIFY", "ALWAYS"),
    ],
)
def test_an_error_names_the_missing_or_invalid_variable(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{name}: "):
        settings(**{name: value})


@pytest.mark.parametrize("name", ["mode", "/reaper/mode", "/reaper/mode:3"])
def test_the_mode_may_be_in_a_parameter(name: str) -> None:
    assert settings(MODE=f"ssm:{name}").mode == ParameterName(name=name)


@pytest.mark.parametrize("value", ["ssm:", "ssm: mode", "ssm:mode,enforce", "SSM:mode"])
def test_the_name_of_the_modes_parameter_must_be_valid(value: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^MODE: "):
        settings(MODE=value)


def test_the_topic_is_read_before_the_other_variables() -> None:
    with pytest.raises(ConfigurationError, match=r"^TOPIC_ARN: "):
        read_settings({"TARGET_SECRETS": "", "MODE": "kill"})


def test_the_environment_is_read_on_each_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TARGET_SECRETS", "set-later")
    monkeypatch.setenv("TOPIC_ARN", TOPIC)
    assert read_settings().target_secrets == ("set-later",)


URIS = [
    "postgres://app:hunter2@db.example:5432/orders",
    "postgresql://app:hun,ter2,@db.example/orders?sslmode=require",
    "POSTGRES://app:hunter2@db",
    "app:hunter2@db.example:5432/orders",
    "host=db.example user=app password=hunter2",
    "host=db.example,password='hunter2',user=app",
    '{"host": "db.example", "password": "hunter2"}',
    "{'host':'db.example','Password':'hunter2'}",
    "https://hooks.slack.com/services/T0/B0/hunter2",
    "Server=db;Uid=app;Pwd=hunter2",
]
ECHOING = [
    "TARGET_SECRET_TAG",
    "CLUSTER_TARGETS",
    "PAUSED_CLUSTERS",
    "TOPIC_ARN",
    "CRITICAL_TOPIC_ARN",
    "MODE",
    "POLICY",
]
ECHOING += ["NOTIFY", "REMIND_AFTER", "MEMORY_TABLE", "TARGET_METRICS", "DASHBOARD"]
ECHOING += ["FLEET_TOPIC_ARN", "RUN_INTERVAL"]


@pytest.mark.parametrize("value", URIS)
@pytest.mark.parametrize("others", ["", "orders,", "orders, billing ,"])
def test_a_uri_among_the_secrets_is_refused_without_being_shown(value: str, others: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^TARGET_SECRETS: value \d of") as caught:
        settings(TARGET_SECRETS=f"{others}{value}")
    for part in ("hun", "ter2", "app", "example", "db"):
        assert part not in str(caught.value)
    assert "write the name of that secret" in str(caught.value)


@pytest.mark.parametrize(
    "value", ["a password", "orders;billing", "arn:aws:s3:::bucket", "x" * 513]
)
def test_a_value_that_is_not_a_secret_id_is_refused_without_being_shown(value: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^TARGET_SECRETS: ") as caught:
        settings(TARGET_SECRETS=value)
    assert value not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        ARN,
        ARN.replace("arn:aws:", "arn:aws-us-gov:"),
        ARN.replace("a/b", "team@example.com"),
        "rds!db-0a1b2c3d",
        "prod/orders_1+2=3.x@y-z",
    ],
)
def test_names_and_arns_of_secrets_are_accepted(value: str) -> None:
    assert settings(TARGET_SECRETS=value).target_secrets == (value,)


@pytest.mark.parametrize("value", URIS)
@pytest.mark.parametrize("name", ECHOING)
def test_no_error_shows_a_credential(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{name}: ") as caught:
        settings(**{name: value})
    assert "hun" not in str(caught.value)


@pytest.mark.parametrize("value", URIS)
def test_the_url_of_the_webhook_instead_of_its_secret_is_not_shown(value: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^WEBHOOK_SECRET: ") as caught:
        read_webhook_secret({"WEBHOOK_SECRET": value})
    assert "hun" not in str(caught.value)
