"""Targets whose secrets give the same name get distinct names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from session_reaper.errors import ConfigurationError

from tests.integration.stage import LEAK, policy
from tests.integration.wire import unused_port

if TYPE_CHECKING:
    from tests.integration.stage import Run, Stage


def names(run: Run) -> list[str]:
    return [target["name"] for target in run.document["targets"]]


def test_targets_of_equal_names_are_distinguished_by_their_secrets(stage: Stage) -> None:
    leak = stage.session(LEAK)
    stage.target("prod/orders", name="orders")
    stage.target("prod/billing", name="orders", port=unused_port())
    run = stage.reap()
    assert sorted(names(run)) == ["orders (secret prod/billing)", "orders (secret prod/orders)"]
    assert run.outcomes("orders (secret prod/orders)") == {leak.pid: "terminated"}
    assert run.error("orders (secret prod/billing)")["code"] == "connection"
    secrets = {target["name"]: target["secret"] for target in run.document["targets"]}
    assert secrets == {name: name.partition("secret ")[2].rstrip(")") for name in names(run)}


def test_a_target_named_like_another_secret_is_distinguished(stage: Stage) -> None:
    stage.target("orders")
    stage.target("evil", name="orders")
    stage.target("other")
    expected = ["orders (secret evil)", "orders (secret orders)", "other"]
    assert sorted(names(stage.run({"policy": policy()}))) == expected


def test_a_target_named_like_a_distinguished_one_is_distinguished(stage: Stage) -> None:
    stage.target("prod/a", name="orders")
    stage.target("prod/b", name="orders")
    stage.target("evil", name="orders (secret prod/a)")
    found = names(stage.run({"policy": policy()}))
    assert len(set(found)) == 3
    arn = stage.aws.secrets.describe_secret(SecretId="prod/a")["ARN"]
    assert f"orders ({arn})" in found
    assert "orders (secret prod/b)" in found
    assert "orders (secret prod/a)" not in found


def test_an_unreadable_secret_of_an_equal_name_is_distinguished(stage: Stage) -> None:
    stage.listed("orders")
    stage.target("evil", name="orders")
    run = stage.run({"policy": policy()})
    assert run.error("orders (secret orders)")["code"] == "secret"
    assert run.target("orders (secret evil)")["status"] == "ok"


def test_an_event_finds_targets_by_the_name_in_the_secret_and_by_the_reported_name(
    stage: Stage,
) -> None:
    stage.target("prod/a", name="orders")
    stage.target("prod/b", name="orders")
    stage.target("other")

    def asked(name: str) -> list[str]:
        return sorted(names(stage.run({"targets": [name], "policy": policy()})))

    both = ["orders (secret prod/a)", "orders (secret prod/b)"]
    assert asked("orders") == both
    assert asked(both[1]) == both[1:]
    with pytest.raises(ConfigurationError, match=r"event\.targets\[0\]"):
        asked("order")


def test_a_refused_login_is_tried_once_for_a_distinguished_target(stage: Stage) -> None:
    """A reread secret is compared without the name that discovery made."""
    stage.target("prod/a", name="orders", password="wrong")  # noqa: S106 -- of nothing
    stage.target("prod/b", name="orders", password="wrong")  # noqa: S106 -- of nothing
    before = stage.server.log.read_text(errors="replace").count("password authentication failed")
    run = stage.run({"policy": policy()})
    after = stage.server.log.read_text(errors="replace").count("password authentication failed")
    assert {target["error"]["code"] for target in run.document["targets"]} == {"28P01"}
    assert after - before == 2
