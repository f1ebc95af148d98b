"""A server of a major version that this release was not tested with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pg8000.native import DatabaseError
from session_reaper.postgres.errors import translate_server_error
from session_reaper.sessions.server_facts import NEWEST_TESTED, OLDEST_TESTED

from tests.integration.stage import Stage, until
from tests.integration.wire import Proxy

if TYPE_CHECKING:
    from collections.abc import Callable


pytestmark = pytest.mark.every_major

FUTURE = 19
PLAYS_A_NEWER_ONE = pytest.mark.majors(NEWEST_TESTED, 99)


def replace_version(stage: Stage, major: int) -> Callable[[bytes], bytes]:
    """Let the server name another version, of the same length, wherever it names its own."""
    own = stage.server.major
    ((number,),) = stage.root.run("SHOW server_version_num")
    texts = {
        f"server_version\0{own}.": f"server_version\0{major}.",
        f'"major" : {own}': f'"major" : {major}',
        f'"version" : "{own}.': f'"version" : "{major}.',
        number: f"{major}{number[2:]}",
    }

    def change(data: bytes) -> bytes:
        for before, after in texts.items():
            data = data.replace(before.encode(), after.encode())
        return data

    return change


@PLAYS_A_NEWER_ONE
def test_a_check_tells_that_the_version_was_not_tested(stage: Stage) -> None:
    with Proxy(stage.server.port, says=replace_version(stage, FUTURE)) as proxy:
        stage.target(port=proxy.port)
        run = stage.run({"check": True})
    assert run.target()["status"] == "ok"
    assert run.target()["check"]["version"].startswith(f"{FUTURE}.")
    (given,) = [each for each in run.target()["advice"] if each["code"] == "untested-version"]
    assert f"the server is PostgreSQL {FUTURE}." in given["message"]


def test_a_tested_version_is_not_mentioned(stage: Stage) -> None:
    run = stage.run({"check": True})
    assert "untested-version" not in {each["code"] for each in run.target()["advice"]}


@PLAYS_A_NEWER_ONE
def test_a_newer_major_version_is_treated_as_the_newest_tested_one(stage: Stage) -> None:
    leak = stage.session()
    with Proxy(stage.server.port, says=replace_version(stage, FUTURE)) as proxy:
        stage.target(port=proxy.port)
        run = stage.reap()
    assert run.outcomes() == {leak.pid: "terminated"}
    assert run.document["status"] == "ok"
    until(lambda: not leak.is_there, "the leak is there")


@pytest.mark.parametrize("sqlstate", ["42703", "42883", "42P01", "42704"])
def test_the_error_of_something_that_the_server_does_not_have_mentions_versions(
    sqlstate: str,
) -> None:
    error = DatabaseError({"C": sqlstate, "M": "column a.query_id does not exist"})
    hint = translate_server_error("reading", "", error).hint
    assert f"PostgreSQL {OLDEST_TESTED} to {NEWEST_TESTED}" in hint
