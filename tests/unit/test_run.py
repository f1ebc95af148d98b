from __future__ import annotations

import socket
import time
from threading import Event
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError
from session_reaper import run as module
from session_reaper import secrets_manager
from session_reaper.deadline import Deadline
from session_reaper.errors import ConfigurationError
from session_reaper.reap import record
from session_reaper.report import TargetReport, TargetStatus
from session_reaper.settings import read_settings

from tests.builders import a_secret, a_target_report

if TYPE_CHECKING:
    from collections.abc import Iterator

ARN = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:"


class SecretsManager:
    """Stands in for botocore's client: secrets by name, all of them tagged reap=yes."""

    def __init__(self, secrets: dict[str, str]) -> None:
        self._secrets = secrets

    def get_secret_value(self, *, SecretId: str) -> dict[str, str]:  # noqa: N803 -- botocore's name
        name = SecretId.removeprefix(ARN)
        return {"Name": name, "ARN": ARN + name, "SecretString": self._secrets[name]}

    def get_paginator(self, _operation: str) -> SecretsManager:
        return self

    def paginate(self, **_filters: object) -> list[dict[str, Any]]:
        tags = [{"Key": "reap", "Value": "yes"}]
        return [{"SecretList": [{"ARN": ARN + name, "Tags": tags}]} for name in self._secrets]


def run(
    monkeypatch: pytest.MonkeyPatch,
    secrets: dict[str, str],
    *names: str,
    **settings: str,
) -> tuple[TargetReport, ...]:
    monkeypatch.setattr(secrets_manager, "client", lambda _service: SecretsManager(secrets))
    topic = "arn:aws:sns:eu-west-1:123456789012:topic"
    read = read_settings({"TOPIC_ARN": topic, **settings})
    return module.run(read, names, record, Deadline(5))


BROKEN = a_secret(name="broken", host=None)  # fails before anything goes out to the network


@pytest.mark.parametrize(
    "settings",
    [
        {"TARGET_SECRETS": f"orders,{ARN}orders"},
        {"TARGET_SECRETS": "orders", "TARGET_SECRET_TAG": "reap=yes"},
        {"TARGET_SECRETS": f"{ARN}orders", "TARGET_SECRET_TAG": "reap=yes"},
    ],
    ids=["name and ARN", "name and tag", "ARN and tag"],
)
def test_a_secret_that_is_given_twice_is_one_target(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str]
) -> None:
    # An address that no socket can be opened to: looking it up takes no network.
    secrets = {"orders": a_secret(host="no..such..host")}
    reports = run(monkeypatch, secrets, **settings)
    assert [report.name for report in reports] == ["orders"]
    assert reports[0].status is TargetStatus.FAILED


def test_every_secret_is_a_target_and_what_is_wrong_with_one_is_said_of_that_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    secrets = {"a": BROKEN, "b": "no json", "c": a_secret(engine="mysql")}
    reports = run(monkeypatch, secrets, TARGET_SECRETS="a,b,c")
    messages = [report.error.message for report in reports if report.error]
    assert messages[0].startswith("secret a: host ")
    assert messages[1].startswith("secret b is not JSON")
    assert messages[2].startswith("secret c: engine mysql ")


def test_a_secret_that_brings_out_a_bug_does_not_hide_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reports = run(monkeypatch, {"a": BROKEN}, TARGET_SECRETS="missing,a")  # a KeyError of the fake
    codes = {report.name: report.error.code for report in reports if report.error}
    assert codes == {"missing": "internal", "broken": "secret"}


def test_a_target_that_nobody_has_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match=r"^event\.targets\[1\]: .*\bnobody\b.*\bbroken\b"):
        run(monkeypatch, {"a": BROKEN}, "broken", "nobody", TARGET_SECRETS="a")


def test_a_request_that_names_targets_gets_those(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {"a": BROKEN, "b": "no json"}
    for name in ("b", "broken"):
        reports = run(monkeypatch, secrets, name, TARGET_SECRETS="a,b")
        assert [report.name for report in reports] == [name]


def test_two_broken_secrets_of_one_name_are_two(monkeypatch: pytest.MonkeyPatch) -> None:
    reports = run(monkeypatch, {"a": BROKEN, "b": BROKEN}, TARGET_SECRETS="a,b")
    assert len(reports) == 2


def test_a_tag_that_no_secret_bears_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"TARGET_SECRET_TAG": "reap=ye"}
    with pytest.raises(ConfigurationError, match=r"^TARGET_SECRET_TAG: "):
        run(monkeypatch, {"a": BROKEN}, **settings)


def test_a_list_of_secrets_that_is_denied_does_not_hide_those_that_were_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def denied(*_: object, **__: object) -> None:
        raise ClientError({"Error": {"Code": "AccessDeniedException"}}, "ListSecrets")

    monkeypatch.setattr(SecretsManager, "get_paginator", denied)
    tag = {"TARGET_SECRET_TAG": "reap=yes"}

    reports = run(monkeypatch, {"a": BROKEN}, TARGET_SECRETS="a", **tag)

    assert [report.name for report in reports] == ["tag reap=yes", "broken"]


# -- all at the same time ---------------------------------------------------------------------------


def said(works: list[Iterator[TargetReport]], deadline: Deadline) -> list[str]:
    return [item.name for item in module._latest_of_all(works, deadline)]  # noqa: SLF001 -- the heart of it


def test_work_goes_on_at_the_same_time() -> None:
    here, there = Event(), Event()

    def first() -> Iterator[TargetReport]:
        yield a_target_report(name="first, at the start")
        here.set()
        assert there.wait(2)
        yield a_target_report(name="first, at the end")

    def second() -> Iterator[TargetReport]:
        yield a_target_report(name="second, at the start")
        assert here.wait(2)
        there.set()
        yield a_target_report(name="second, at the end")

    assert said([first(), second()], Deadline(2)) == ["first, at the end", "second, at the end"]


def test_however_many_hang_the_run_waits_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_GRACE", 0.1)
    never = Event()

    def hangs(name: str) -> Iterator[TargetReport]:
        yield a_target_report(name=name)
        never.wait(5)
        yield a_target_report(name="too late")

    start = time.monotonic()
    names = [f"target-{n}" for n in range(20)]
    assert said([hangs(name) for name in names], Deadline(0)) == names
    assert time.monotonic() - start < 0.5
    never.set()


def test_who_hangs_on_a_connection_finds_it_shut_when_the_time_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_GRACE", 0.1)
    deadline = Deadline(0)
    ours, theirs = socket.socketpair()
    over = Event()

    def hangs() -> Iterator[TargetReport]:
        deadline.binds(ours)
        yield a_target_report(name="hangs")
        ours.settimeout(2)
        assert ours.recv(1) == b""
        over.set()

    with ours, theirs:
        assert said([hangs()], deadline) == ["hangs"]
        assert over.wait(1)


def test_a_bug_keeps_what_was_known_and_tells_no_more_than_its_kind() -> None:
    def breaks() -> Iterator[TargetReport]:
        yield a_target_report(name="orders")
        raise LookupError("CANARY")

    (report,) = module._latest_of_all([breaks()], Deadline(1))  # noqa: SLF001 -- the heart of it
    assert isinstance(report, TargetReport)
    assert report.status is TargetStatus.FAILED
    assert report.slots == a_target_report().slots
    assert report.error is not None
    assert report.error.code == "internal"
    assert "LookupError" in report.error.message
    assert "CANARY" not in repr(report)
