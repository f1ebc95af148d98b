from __future__ import annotations

import pytest
from session_reaper.errors import ConfigurationError
from session_reaper.policy import Mode
from session_reaper.settings import Notify, Settings, Tag, read_settings

ARN = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:a/b-X1y2Z3"
TOPIC = "arn:aws:sns:eu-west-1:123456789012:session-reaper"


def settings(**overrides: str) -> Settings:
    return read_settings({"TARGET_SECRETS": "orders", "TOPIC_ARN": TOPIC, **overrides})


def test_the_least_that_works_observes_by_the_bundled_policy() -> None:
    assert settings() == Settings(
        target_secrets=("orders",),
        target_secret_tag=None,
        whole_clusters=True,
        topic_arn=TOPIC,
        mode=Mode.OBSERVE,
        policy="",
        notify=Notify.CHANGES,
    )


def test_a_cluster_is_dealt_with_instance_by_instance_unless_it_is_switched_off() -> None:
    assert settings(CLUSTER_TARGETS="instances").whole_clusters
    assert not settings(CLUSTER_TARGETS="endpoint").whole_clusters
    with pytest.raises(ConfigurationError, match=r"^CLUSTER_TARGETS: off is neither"):
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
def test_a_missing_or_bad_variable_is_named(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{name}: "):
        settings(**{name: value})


def test_reads_the_environment_as_it_is_now_and_not_as_it_was_at_import(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TARGET_SECRETS", "set-later")
    monkeypatch.setenv("TOPIC_ARN", TOPIC)
    assert read_settings().target_secrets == ("set-later",)
