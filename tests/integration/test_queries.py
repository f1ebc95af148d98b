"""The text of queries in log, return value and summary, by policy."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.integration.stage import ACTIVE, LEAK, policy, rule

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.integration.conftest import Output
    from tests.integration.stage import Run, Stage

CANARY = "cAnArY"
QUERY = f"SELECT '{CANARY}',\n\t4711 -- {CANARY}"
REDACTED = "SELECT ?, ?"


def stack(stage: Stage, *rules: Mapping[str, object], **keys: object) -> None:
    """The stack's policy; by default it condemns every leak."""
    text = json.dumps(policy(*rules, **keys))
    stage.aws.ssm.put_parameter(Name="/reaper/policy", Value=text, Type="String", Overwrite=True)
    stage.monkeypatch.setenv("POLICY", "ssm:/reaper/policy")


def read_log(output: Output) -> dict[str, str]:
    """Return the log lines of a run by their message, without the metrics."""
    lines = output.readouterr().out.splitlines()
    return {json.loads(line)["message"]: line for line in lines if "_aws" not in line}


def join_emails(run: Run) -> str:
    """Return the texts of all messages that were published."""
    email = run.email
    return email.subject + email.body + email.chat + email.webhook


@pytest.mark.every_major
def test_queries_are_redacted_by_default(stage: Stage, output: Output) -> None:
    leak = stage.session(LEAK, query=QUERY)
    stack(stage)
    run = stage.run()
    assert run.session(leak)["query"] == REDACTED
    lines = read_log(output)
    assert set(lines) == {"decision", "outcome", "run"}
    assert all(REDACTED in line and CANARY not in line for line in lines.values())
    assert CANARY not in json.dumps(run.document) + join_emails(run)


@pytest.mark.every_major
def test_full_queries_are_in_the_return_value_and_the_log_but_not_in_the_summary(
    stage: Stage, output: Output
) -> None:
    leak = stage.session(LEAK, query=QUERY)
    stack(stage, queries="full")
    run = stage.run()
    assert run.session(leak)["query"] == QUERY
    lines = read_log(output)
    assert set(lines) == {"decision", "outcome", "run"}
    assert all(json.dumps(QUERY)[1:-1] in line for line in lines.values())
    assert CANARY not in join_emails(run)
    assert REDACTED in join_emails(run)


def test_an_observing_run_shows_full_queries_too(stage: Stage, output: Output) -> None:
    leak = stage.session(LEAK, query=QUERY)
    stack(stage, queries="full", limits={"max_terminations": 1})
    stage.session(LEAK, query=QUERY)
    run = stage.run({"mode": "observe"})
    assert {s["outcome"]: s["query"] for s in run.target()["sessions"]} == {
        "would_terminate": QUERY,
        "spared": QUERY,
    }
    assert CANARY in read_log(output)["decision"]
    assert CANARY not in join_emails(run)
    assert leak.is_there


@pytest.mark.parametrize(
    ("of_stack", "of_event", "shown"),
    [
        ("full", "full", QUERY),
        ("full", None, REDACTED),
        ("redacted", "full", REDACTED),
        (None, "full", REDACTED),
    ],
)
def test_an_event_alone_cannot_show_full_queries(
    stage: Stage, output: Output, of_stack: str | None, of_event: str | None, shown: str
) -> None:
    leak = stage.session(LEAK, query=QUERY)
    stack(stage, **{"queries": of_stack} if of_stack else {})
    run = stage.run({"policy": policy(**{"queries": of_event} if of_event else {})})
    assert run.session(leak)["query"] == shown
    for line in read_log(output).values():
        assert (CANARY in line) == (shown == QUERY)


def test_a_recording_is_always_redacted(stage: Stage, output: Output) -> None:
    stage.session(LEAK, query=QUERY)
    stack(stage, queries="full")
    run = stage.run({"record": True})
    queries = [session["query"] for session in run.document["snapshots"]["orders"]["sessions"]]
    assert REDACTED in queries
    assert CANARY not in json.dumps(run.document)
    assert CANARY not in output.readouterr().out


def test_a_reason_is_always_redacted(stage: Stage) -> None:
    leak = stage.session(ACTIVE, query=f"SELECT pg_sleep(60), '{CANARY}'")
    stack(stage, rule(state=ACTIVE, query="*pg_sleep", query_for="1ms"), queries="full")
    session = stage.run().session(leak)
    assert CANARY in session["query"]
    assert CANARY not in session["reason"]


@pytest.mark.every_major
def test_a_query_glob_matches_the_redacted_query(stage: Stage) -> None:
    stage.root.run("CREATE TABLE jobs AS SELECT 1 AS id; GRANT ALL ON jobs TO public")
    stage.cleanup(stage.root.run, "DROP TABLE jobs")
    leaks = [
        stage.session(LEAK, query=query)
        for query in (
            "SELECT * FROM jobs WHERE id = 42 FOR UPDATE SKIP LOCKED",
            "/* a worker */ select *\n\tfrom jobs where id = '1'\n\tfor update skip locked",
            "SELECT 'select * from jobs where id = 1 for update skip locked'",
            "SELECT 1 -- select * from jobs where id = 1 for update skip locked",
            "WITH x AS (SELECT 1) SELECT * FROM jobs WHERE id = 1 FOR UPDATE SKIP LOCKED",
        )
    ]
    stack(stage, rule(query="select * from jobs where id = ? for update"), queries="full")
    outcomes = stage.run().outcomes()
    assert outcomes == {leak.pid: "terminated" for leak in leaks[:2]}
    assert stage.survivors(leaks) == leaks[2:]


def test_a_query_cut_off_by_the_server_is_shown_up_to_the_cut(stage: Stage) -> None:
    query = f"SELECT '{'x' * 3000}'"
    leak = stage.session(LEAK, query=query)
    stack(stage, queries="full")
    shown = stage.run().session(leak)["query"]
    assert shown == query[:1023]  # track_activity_query_size, less its end


# -- which query it was ----------------------------------------------------------------------------


@pytest.mark.every_major
@pytest.mark.majors(14, 18)
def test_a_session_has_its_query_id_if_the_server_computes_it(stage: Stage, output: Output) -> None:
    for role in ("app", "other"):
        stage.role(role)
    stage.root.run("ALTER ROLE app SET compute_query_id = on")
    stage.root.run("ALTER ROLE other SET compute_query_id = off")
    leak, unknown = stage.session(LEAK), stage.session(LEAK, "other")
    same = stage.session(LEAK, query="SELECT 2")
    ((query_id,),) = stage.root.run(
        "SELECT query_id::text FROM pg_stat_activity WHERE pid = :pid", pid=leak.pid
    )
    run = stage.reap()
    assert run.session(leak)["query_id"] == query_id  # text: JavaScript would round the number
    assert run.session(same)["query_id"] == query_id  # but for literals it is the same
    assert "query_id" not in run.session(unknown)
    assert query_id in read_log(output)["run"]


@pytest.mark.majors(13, 13)
def test_a_server_without_query_ids_is_supported(stage: Stage) -> None:
    leak = stage.session(LEAK)
    assert "query_id" not in stage.reap().session(leak)
