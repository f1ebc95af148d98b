"""Targets whose secrets choose the same name get unique names."""

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


def test_equal_names_are_extended_by_the_secrets_name(stage: Stage) -> None:
    leak = stage.session(LEAK)
    stage.target("prod/orders", name="orders")
    stage.target("prod/billing", name="orders", port=unused_port())
    run = stage.reap()
    assert sorted(names(run)) == ["orders (secret prod/billing)", "orders (secret prod/orders)"]
    assert run.outcomes("orders (secret prod/orders)") == {leak.pid: "terminated"}
    assert run.error("orders (secret prod/billing)")["code"] == "connection"
    secrets = {target["name"]: target["secret"] for target in run.document["targets"]}
    assert secrets == {name: name.partition("secret ")[2].rstrip(")") for name in names(run)}


def test_a_name_that_is_another_secrets_name_is_extended(stage: Stage) -> None:
    stage.target("orders")
    stage.target("evil", name="orders")
    stage.target("other")
    expected = ["orders (secret evil)", "orders (secret orders)", "other"]
    assert sorted(names(stage.run({"policy": policy()}))) == expected


def test_a_name_that_imitates_an_extended_one_is_extended_too(stage: Stage) -> None:
    stage.target("prod/a", name="orders")
    stage.target("prod/b", name="orders")
    stage.target("evil", name="orders (secret prod/a)")
    found = names(stage.run({"policy": policy()}))
    assert len(set(found)) == 3
    arn = stage.aws.secrets.describe_secret(SecretId="prod/a")["ARN"]
    assert f"orders ({arn})" in found
    assert "orders (secret prod/b)" in found
    assert "orders (secret prod/a)" not in found


def test_the_name_of_an_unreadable_secret_is_extended_too(stage: Stage) -> None:
    stage.listed("orders")
    stage.target("evil", name="orders")
    run = stage.run({"policy": policy()})
    assert run.error("orders (secret orders)")["code"] == "secret"
    assert run.target("orders (secret evil)")["status"] == "ok"


def test_an_event_selects_targets_by_their_original_and_their_unique_name(stage: Stage) -> None:
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


def test_a_refused_login_is_not_retried_because_of_the_extended_name(stage: Stage) -> None:
    """The reread target is compared without the unique name."""
    stage.target("prod/a", name="orders", password="wrong")  # noqa: S106 -- of nothing
    stage.target("prod/b", name="orders", password="wrong")  # noqa: S106 -- of nothing
    before = stage.server.log.read_text(errors="replace").count("password authentication failed")
    run = stage.run({"policy": policy()})
    after = stage.server.log.read_text(errors="replace").count("password authentication failed")
    assert {target["error"]["code"] for target in run.document["targets"]} == {"28P01"}
    assert after - before == 2
