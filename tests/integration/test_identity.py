"""Targets whose secrets choose the same name get distinct names."""

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


def test_targets_of_equal_names_get_the_name_of_their_secret_added(stage: Stage) -> None:
    leak = stage.session(LEAK)
    stage.target("prod/orders", name="orders")
    stage.target("prod/billing", name="orders", port=unused_port())
    run = stage.reap()
    assert sorted(names(run)) == ["orders (secret prod/billing)", "orders (secret prod/orders)"]
    assert run.outcomes("orders (secret prod/orders)") == {leak.pid: "terminated"}
    assert run.error("orders (secret prod/billing)")["code"] == "connection"
    secrets = {target["name"]: target["secret"] for target in run.document["targets"]}
    assert secrets == {name: name.partition("secret ")[2].rstrip(")") for name in names(run)}


def test_a_name_that_equals_the_name_of_another_secret_is_made_distinct(stage: Stage) -> None:
    stage.target("orders", port=unused_port())
    stage.target("evil", name="orders")
    stage.target("other", port=unused_port())
    expected = ["orders (secret evil)", "orders (secret orders)", "other"]
    assert sorted(names(stage.run({"policy": policy()}))) == expected


def test_a_name_that_imitates_a_distinct_name_is_made_distinct_too(stage: Stage) -> None:
    stage.target("prod/a", name="orders", port=unused_port())
    stage.target("prod/b", name="orders", port=unused_port())
    stage.target("evil", name="orders (secret prod/a)")
    found = names(stage.run({"policy": policy()}))
    assert len(set(found)) == 3
    arn = stage.aws.secrets.describe_secret(SecretId="prod/a")["ARN"]
    assert f"orders ({arn})" in found
    assert "orders (secret prod/b)" in found
    assert "orders (secret prod/a)" not in found


def test_an_unreadable_secret_gets_a_distinct_name_too(stage: Stage) -> None:
    stage.listed("orders")
    stage.target("evil", name="orders")
    run = stage.run({"policy": policy()})
    assert run.error("orders (secret orders)")["code"] == "secret"
    assert run.target("orders (secret evil)")["status"] == "ok"


def test_an_event_finds_targets_by_their_name_in_the_secret_and_in_the_report(stage: Stage) -> None:
    stage.target("prod/a", name="orders", port=unused_port())
    stage.target("prod/b", name="orders", port=unused_port())
    stage.target("other")

    def find(name: str) -> list[str]:
        return sorted(names(stage.run({"targets": [name], "policy": policy()})))

    both = ["orders (secret prod/a)", "orders (secret prod/b)"]
    assert find("orders") == both
    assert find(both[1]) == both[1:]
    with pytest.raises(ConfigurationError, match=r"event\.targets\[0\]"):
        find("order")


def test_a_refused_login_is_tried_once_for_targets_of_equal_names(stage: Stage) -> None:
    """The secret is compared with its reread version without the added name."""
    stage.target("prod/a", name="orders", password="wrong")  # noqa: S106 -- of nothing
    stage.target("prod/b", name="orders", password="wrong")  # noqa: S106 -- of nothing
    before = stage.server.log.read_text(errors="replace").count("password authentication failed")
    run = stage.run({"policy": policy()})
    after = stage.server.log.read_text(errors="replace").count("password authentication failed")
    assert {target["error"]["code"] for target in run.document["targets"]} == {"28P01"}
    assert after - before == 2
