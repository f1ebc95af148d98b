"""The SQL of a full server's summary, run as printed by roles that are not superusers."""

from __future__ import annotations

import json
import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import pytest
from session_reaper.policy.builtin import TOOLS
from session_reaper.report.emergency import _to_regex

from tests.integration.stage import IDLE, LEAK, rule, until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.integration.stage import Client, Run, Stage, Victim

pytestmark = pytest.mark.every_major
LONGEST_LINE = 998  # characters of a line of mail (RFC 5322)
AGE = "interval '5 minutes'"
PROTECT = {
    "roles": ["deploy", "etl_*"],
    "applications": ["it's; safe*"],
    "databases": ["bill[i]ng"],
    "clients": ["127.0.0.0/8"],
}


@pytest.fixture
def crowded(own_server: Callable[..., Stage]) -> Stage:
    stage = own_server({"max_connections": "22", "superuser_reserved_connections": "4"})
    stage.root.run("ALTER SYSTEM SET idle_in_transaction_session_timeout = 0")
    return stage


def full_mail(stage: Stage, **keys: object) -> Run:
    stage.target()
    stage.fill("app")
    run = stage.reap(rule(), seconds=10, **keys)
    assert run.target()["status"] == "full"
    return run


def find_statement(run: Run) -> str:
    """Return the statement as it stands in the email, alone on its lines."""
    lines = run.email.body.splitlines()
    assert max(map(len, lines)) < LONGEST_LINE
    (first,) = (n for n, line in enumerate(lines) if "pg_terminate_backend" in line)
    last = next(n for n in range(first, len(lines)) if lines[n].endswith(";"))
    statement = "\n".join(lines[first : last + 1]).strip()
    assert statement.startswith("SELECT ")
    assert statement.count(";") == 1
    assert statement.endswith(";")
    assert AGE in statement
    return statement


def run_as(client: Client, statement: str) -> None:
    """Run the statement as printed, which ends no session so young, and then without the age."""
    assert client.run(statement) == []
    client.run(statement.replace(AGE, "interval '0'"))


def open_protected(stage: Stage) -> list[Victim]:
    stage.role("boss", "SUPERUSER")
    stage.role("copier", "REPLICATION")
    stage.database("billing")
    return [
        stage.session(LEAK, "boss"),
        stage.session(LEAK, "copier"),
        stage.session(LEAK, "rdsproxyadmin"),
        stage.session(LEAK, application_name="pg_dump"),
        stage.session(LEAK, application_name="Flyway by Redgate"),
        stage.session(LEAK, application_name="ruby-pg-online-schema-change"),
        stage.session(LEAK, "deploy"),
        stage.session(LEAK, "etl_nightly"),
        stage.session(LEAK, application_name="it's; safe to keep"),
        stage.session(LEAK, database="billing"),
        stage.session(LEAK, tcp=True),
        stage.session(IDLE),
    ]


def test_it_ends_the_leaks_and_spares_what_is_protected(crowded: Stage) -> None:
    crowded.role("helper", "IN ROLE pg_signal_backend, pg_read_all_stats")
    helper = crowded.connect("helper")
    crowded.cleanup(helper.close)
    spared = open_protected(crowded)
    leaks = [crowded.session(LEAK), crowded.session(LEAK, "other", application_name="pgAdmin 4")]
    run = full_mail(crowded, protect=PROTECT)
    statement = find_statement(run)
    assert statement in run.error()["hint"]
    assert any(statement in step for step in run.document["steps"])
    run_as(helper, statement)
    until(lambda: crowded.survivors(leaks) == [], "the leaks are gone")
    assert crowded.survivors(spared) == spared


def test_a_long_statement_is_printed_in_lines_that_mail_servers_do_not_cut(crowded: Stage) -> None:
    names = [f"it's AND a; name {n} *" for n in range(12)]
    crowded.role("helper", "IN ROLE pg_signal_backend, pg_read_all_stats")
    helper = crowded.connect("helper")
    crowded.cleanup(helper.close)
    spared = [crowded.session(LEAK, application_name=names[11]), crowded.session(LEAK, "service_7")]
    leak = crowded.session(LEAK)
    protect = {"applications": names, "roles": [f"service_{n}" for n in range(12)]}
    run = full_mail(crowded, protect=protect)
    statement = find_statement(run)
    assert "\n" in statement
    assert " ".join(statement.split()) in " ".join(run.error()["hint"].split())
    run_as(helper, statement)
    until(lambda: not leak.is_there, "the leak is gone")
    assert crowded.survivors(spared) == spared


def test_a_role_that_may_signal_one_role_s_sessions_ends_those(crowded: Stage) -> None:
    """One session that it may not signal would abort the statement."""
    spared = [crowded.session(LEAK, "other"), *open_protected(crowded)[:1]]
    leak = crowded.session(LEAK)
    crowded.role("helper", "IN ROLE pg_read_all_stats")
    crowded.root.run("GRANT app TO helper")
    helper = crowded.connect("helper")
    crowded.cleanup(helper.close)
    run_as(helper, find_statement(full_mail(crowded)))
    until(lambda: not leak.is_there, "the leak is gone")
    assert crowded.survivors(spared) == spared


def test_sessions_of_a_role_whose_protection_the_policy_lifts_are_ended(crowded: Stage) -> None:
    crowded.role("copier", "REPLICATION")
    crowded.role("other_copier", "REPLICATION")
    leak, spared = crowded.session(LEAK, "copier"), crowded.session(LEAK, "other_copier")
    crowded.use_policy({"version": 1, "rules": [rule(role=["copier"])]})
    crowded.target()
    crowded.fill("app")
    crowded.root.run(find_statement(crowded.run(seconds=4)).replace(AGE, "interval '0'"))
    until(lambda: not leak.is_there, "the leak is gone")
    assert spared.is_there


def test_slack_shows_it_whole_on_its_own_line(crowded: Stage) -> None:
    run = full_mail(crowded)
    statement = find_statement(run).replace("&", "&amp;").replace("<", "&lt;")
    content = json.loads(run.email.chat)["content"]
    assert f"\n`{statement}`\n" in content["description"]
    assert all(len(step) <= 350 for step in content.get("nextSteps", ()))
    blocks = json.loads(run.email.webhook)["blocks"]
    assert any(f"\n`{statement}`\n" in block["text"]["text"] for block in blocks)


@pytest.mark.parametrize("name", ["helper", "boss"])
def test_the_largest_idle_group_can_be_ended_as_printed(
    own_server: Callable[..., Stage], build: object, name: str
) -> None:
    settings = {"max_connections": "24", "superuser_reserved_connections": "6"}
    if getattr(build, "major", 0) >= 16:
        settings["reserved_connections"] = "2"
    stage = own_server(settings)
    stage.role("rescuer", "SUPERUSER")
    stage.aws.put_secret("rescue", stage.secret(username="rescuer"))
    stage.target(fallback_secret="rescue")  # noqa: S106 -- a name
    stage.role(name, "SUPERUSER" if name == "boss" else "IN ROLE pg_monitor, pg_signal_backend")
    helper = stage.connect(name)
    stage.cleanup(helper.close)
    idle = stage.sessions(9, IDLE, application_name="api")
    others = [stage.session(IDLE, application_name="api2"), stage.session(IDLE, "other")]
    stage.fill("rest")
    run = stage.reap(rule(idle_for="1h"))
    run_as(helper, find_statement(run))
    until(lambda: stage.survivors(idle) == [], "the group is gone")
    assert stage.survivors(others) == others


@pytest.mark.parametrize(
    "glob",
    [
        "a*",
        "*a",
        "a?c",
        "a.c",
        "a[bc]d",
        "a\\b",
        "(a|b)",
        "it's",
        "x;y",
        "a+b",
        "^a$",
        "名*",
        "[!a]",
    ],
)
def test_a_pattern_protects_at_least_what_the_policy_protects(stage: Stage, glob: str) -> None:
    names = [
        "a",
        "ab",
        "abc",
        "abd",
        "a.c",
        "a\\b",
        "(a|b)",
        "it's",
        "x;y",
        "a+b",
        "^a$",
        "名x",
        "b",
    ]
    names += [tool.applications[0].strip("*") for tool in TOOLS]
    regex = _to_regex([glob])
    assert not re.search(r"[';\\]", regex)
    for name in names:
        ((is_spared,),) = stage.root.run(
            "SELECT CAST(:name AS text) ~ CAST(:regex AS text)", name=name, regex=regex
        )
        assert is_spared >= fnmatchcase(name, glob), name
