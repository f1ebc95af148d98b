from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from session_reaper.decision.decide import decide
from session_reaper.decision.limits import describe_pressure
from session_reaper.decision.model import Verdict
from session_reaper.policy.model import read_policy
from session_reaper.report.document import to_recording
from session_reaper.sessions.lock_chains import Waiter
from session_reaper.sessions.session import State
from session_reaper_cli.main import run
from session_reaper_cli.replay import decide_again, describe_verdicts, read_recording

from tests.builders import a_document, a_policy, a_rule, a_session, a_snapshot
from tests.recordings import POLICIES, RECORDINGS, write_verdicts
from tests.recordings.scene import CANARY

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from session_reaper.sessions.snapshot import Snapshot


LEAK = "idle in transaction"

Capture = pytest.CaptureFixture[str]

every_recording = pytest.mark.parametrize("recording", RECORDINGS, ids=lambda path: path.stem)


def record(snapshot: Snapshot) -> Any:  # noqa: ANN401 -- JSON
    """Return the snapshot as Lambda returns it."""
    return json.loads(json.dumps(to_recording(snapshot)))


def write(path: Path, document: object) -> str:
    path.write_text(json.dumps(document), "utf-8")
    return str(path)


def list_condemned(recording: Path, policy: str) -> set[str]:
    """Return the application names of the condemned sessions; `scene.py` explains the names."""
    (snapshot,) = read_recording(recording).values()
    decided = decide(
        snapshot.sessions, snapshot.slots, read_policy({"version": 1, **POLICIES[policy]})
    )
    return {decision.session.application for decision in decided.having(Verdict.CONDEMN)}


# -- real servers ----------------------------------------------------------------------------------


def test_every_supported_major_is_recorded() -> None:
    assert [path.stem for path in RECORDINGS] == [f"postgresql-{n}" for n in range(13, 19)]


@every_recording
def test_the_verdicts_on_a_recorded_server_are_unchanged(recording: Path) -> None:
    """After an intended change, run `python -m tests.recordings --verdicts` and review the diff."""
    assert write_verdicts(recording) == recording.with_suffix(".txt").read_text("utf-8")


@every_recording
def test_every_kind_of_leak_is_condemned(recording: Path) -> None:
    kinds = {"leak-begin", "leak-read", "leak-xid", "leak-xmin", "leak-aborted"}
    assert list_condemned(recording, "default") == kinds | {"root", "wedged"}


@every_recording
def test_only_the_root_of_a_lock_chain_is_condemned(recording: Path) -> None:
    assert list_condemned(recording, "blockers") == {"root"}
    assert "2 waiting on it" in write_verdicts(recording)


@every_recording
def test_a_wedged_session_is_condemned_and_a_copy_that_waits_for_rows_is_not(
    recording: Path,
) -> None:
    assert list_condemned(recording, "wedged") == {"wedged"}


@every_recording
def test_holds_and_pins_vacuum_by_select_the_harmful_leaks(recording: Path) -> None:
    assert list_condemned(recording, "writers") == {"leak-xid", "root"}
    assert list_condemned(recording, "pins") == {"leak-xid", "leak-xmin", "root"}
    assert list_condemned(recording, "lockers") == {
        "leak-xid",
        "root",
    }  # of four, the most harmful two


@every_recording
@pytest.mark.parametrize("policy", POLICIES)
def test_protected_sessions_are_left_alone_under_every_policy(recording: Path, policy: str) -> None:
    (snapshot,) = read_recording(recording).values()
    decided = decide(
        snapshot.sessions, snapshot.slots, read_policy({"version": 1, **POLICIES[policy]})
    )
    protected = {
        decision.session.application: decision.reason
        for decision in decided.having(Verdict.LEAVE)
        if decision.reason.startswith("protected")
    }
    assert protected["superuser"] == "protected: a superuser"
    assert protected["reaper-by-hand"] == "protected: our own role"
    assert protected["pg_dump"] == "protected: application pg_dump (built in)"


@every_recording
def test_a_recording_contains_no_literal_of_a_query(recording: Path) -> None:
    text = recording.read_text("utf-8")
    assert CANARY not in text
    assert "UPDATE orders SET note = ? WHERE id = ?" in text


def test_a_snapshot_is_recorded_without_the_literals_of_its_queries() -> None:
    snapshot = a_snapshot(a_session(query="SELECT 'cAnArY', $$cAnArY$$ /* cAnArY */ FROM orders"))
    assert CANARY not in json.dumps(to_recording(snapshot))
    assert record(snapshot)["sessions"][0]["query"] == "SELECT ?, ? FROM orders"


# -- reading and recording again --------------------------------------------------------------------------------


@every_recording
def test_reading_and_recording_again_changes_nothing(recording: Path) -> None:
    (snapshot,) = read_recording(recording).values()
    again = record(snapshot)
    # Recorded before there were these.
    for key in ("hidden", "holders", "lock_waiters", "prepared_waiters"):
        del again[key]
    for session in again["sessions"]:
        assert [session.pop(key) for key in WAIT_KEYS] == [None, None, False]
    assert again == json.loads(recording.read_text("utf-8"))


WAIT_KEYS = ("wait_event_type", "wait_event", "waits_for_lock")


def test_a_recording_of_an_older_release_can_be_read(tmp_path: Path) -> None:
    snapshot = a_snapshot(a_session(query="select now()"))
    document = record(snapshot)
    for key in (
        "states",
        "oldest_idle_in_transaction",
        "holders",
        "lock_waiters",
        "prepared_waiters",
    ):
        del document[key]
    for key in ("query_id", *WAIT_KEYS):
        del document["sessions"][0][key]
    assert read_recording(Path(write(tmp_path / "old.json", document)))["old"] == snapshot


def test_a_recorded_snapshot_gets_the_same_verdicts_as_the_live_one(tmp_path: Path) -> None:
    waiter = Waiter(pid=9, role="app", application="api", seconds=2.5)
    full = {"xid_age": 7, "xmin_age": 12, "locks": 3, "waiters": (waiter,)}
    victim: dict[str, Any] = {
        "wait_event_type": "IPC",
        "wait_event": "ExecuteGather",
        "waits_for_lock": True,
    }
    snapshot = a_snapshot(
        a_session(pid=1, client=None, transaction_seconds=None, state=State.IDLE),
        a_session(pid=2, query="delete from orders where note = 'cAnArY'", **full),
        a_session(pid=3, query_seconds=70, waiting_for_client=True, state=State.ACTIVE),
        a_session(pid=4, superuser=True),
        a_session(pid=5, replication=True, idle_seconds=1),
        a_session(pid=6, own_role=True),
        a_session(pid=7, signalable=False),
        a_session(pid=8, role=None),
        a_session(pid=9, query_seconds=70, state=State.ACTIVE, **victim),
    )
    path = tmp_path / "orders.json"
    write(path, record(snapshot))
    read = read_recording(path)["orders"]
    assert replace(read, sessions=()) == replace(snapshot, sessions=())
    for document in (
        a_document(a_rule("deletes", state=LEAK, idle_for="1s", query="delete from orders")),
        a_document(a_rule("blockers", state=LEAK, blocks=1, blocks_for="2s", holds="xmin")),
        a_document(a_rule("wedged", state="active", waiting_for_client=True, query_for="1m")),
        a_document(limits={"max_terminations": 1, "order": "most_harmful"}),
        a_document(limits={"max_share": "1%"}),
        a_document(limits={"max_condemned": 1}),
        a_document(a_rule("victims", state="active", query_for="1m", wait_event_type="Lock")),
        a_document(a_rule("roles", state=LEAK, role="app", idle_for="1s"), a_rule()),
    ):
        policy = read_policy(document)
        live = decide(snapshot.sessions, snapshot.slots, policy)
        replayed = decide_again(read, policy)
        assert live.having(Verdict.CONDEMN) or live.having(Verdict.SPARE), document
        assert [(d.pid, d.verdict, d.rule, d.reason) for d in replayed.decisions] == [
            (d.pid, d.verdict, d.rule, d.reason) for d in live.decisions
        ]
        assert (replayed.breaker, describe_pressure(replayed)) == (
            live.breaker,
            describe_pressure(live),
        )


def test_kept_and_observed_sessions_are_shown_as_such(tmp_path: Path) -> None:
    sessions = [a_session(pid=1), a_session(pid=2, role="etl"), a_session(pid=3, role=None)]
    path = write(tmp_path / "orders.json", record(a_snapshot(*sessions)))
    keep = {"name": "keep", "match": {"state": LEAK, "role": "app"}, "action": "keep"}
    warn = a_rule("warn", state=LEAK, role="etl", idle_for="1m") | {"mode": "observe"}
    (snapshot,) = read_recording(Path(path)).values()
    lines = [*describe_verdicts("orders", snapshot, a_policy(keep, warn))]
    assert lines[0] == (
        "orders: slots 97/97, 0 condemned, 0 spared, 1 only observed, 1 kept, 1 left alone"
    )
    assert lines[1].endswith("  kept by rule keep")
    assert "  only observed by warn: idle in transaction for 15m 1s" in lines[2]
    assert lines[3].startswith("3  (role dropped)  orders")


def cut_in(quoted: str) -> str:
    """Return a query of which the first 500 characters end inside a quoted name."""
    return "select " + "a, " * 162 + f'"{quoted}" from t'


@pytest.mark.parametrize(
    ("query", "glob", "matches"),
    [
        (cut_in("orders"), '*, "order[!s]', False),
        (cut_in("orders"), '*, "orders', True),
        (cut_in("orders"), "*, [?]", False),
        ("select " + "x" * 493, "*xx", True),
        ("select " + "x" * 494, "select *[!x]", False),
        ("x\xadE'cAnArY' from t", "x e[?]", True),
        ("x\xad1 from t", "x [!?]* from t", True),
        ("x\xad1 from t", "x [?] from t", False),
        (r"select 'it\'s', b", "select [?]?", False),
        ("select 1 -- why", "select ?", True),
    ],
)
def test_a_glob_matches_a_recorded_query_if_it_matches_the_live_query(
    tmp_path: Path, query: str, glob: str, *, matches: bool
) -> None:
    snapshot = a_snapshot(a_session(query=query))
    path = tmp_path / "orders.json"
    write(path, record(snapshot))
    policy = read_policy(a_document(a_rule(state=LEAK, idle_for="1s", query=glob)))
    live = decide(snapshot.sessions, snapshot.slots, policy)
    assert live.having(Verdict.CONDEMN if matches else Verdict.LEAVE)
    replayed = decide_again(read_recording(path)["orders"], policy)
    assert [d.verdict for d in replayed.decisions] == [d.verdict for d in live.decisions]


# -- what is printed -------------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> int:
    """Run the command on a recording, a policy if there is one, and options."""
    recording, *rest = arguments
    has_policy = rest and not rest[0].startswith("--")
    return run(["replay", recording, *(["--policy"] if has_policy else []), *rest])


def replay(capture: Capture, *arguments: str) -> list[str]:
    assert main(arguments) == 0
    printed = capture.readouterr()
    assert printed.err == ""
    return printed.out.splitlines()


def refusal_of(capture: Capture, *arguments: str) -> str:
    """Return the line that explains why the replay is refused."""
    assert main(arguments) == 2
    printed = capture.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("session-reaper: ")
    assert printed.err.count("\n") == 1
    return printed.err.removeprefix("session-reaper: ").rstrip()


def make_return_value(**snapshots: Snapshot) -> dict[str, Any]:
    """Return what the event {"record": true} returns."""
    return {
        "status": "ok",
        "snapshots": {name: record(snapshot) for name, snapshot in snapshots.items()},
    }


def test_each_target_gets_a_head_line_and_a_line_for_each_session(
    tmp_path: Path, capsys: Capture
) -> None:
    old, young = a_session(pid=12), a_session(pid=3, client=None, application="", idle_seconds=1)
    path = write(
        tmp_path / "run.json",
        make_return_value(orders=a_snapshot(old, young), billing=a_snapshot(young)),
    )
    policy = write(tmp_path / "policy.json", a_document())
    young_misses = "nearest: idle-in-transaction: idle in transaction for 1s of 5m"
    billing = [
        "billing: slots 97/97, 0 condemned, 0 spared, 1 left alone",
        f"3  app  orders  -  [local]  idle in transaction  left alone: no rule matches; {young_misses}",
    ]
    assert replay(capsys, path, policy) == [
        "orders: slots 97/97, 1 condemned, 0 spared, 1 left alone",
        f"3   app  orders  -    [local]   idle in transaction  left alone: no rule matches; {young_misses}",
        (
            "12  app  orders  api  10.0.0.7  idle in transaction  condemned by idle-in-transaction:"
            " idle in transaction for 15m 1s (idle_for: 5m)"
        ),
        *billing,
    ]
    assert replay(capsys, path, policy, "--target", "billing") == billing


def test_a_single_snapshot_is_named_after_its_file(tmp_path: Path, capsys: Capture) -> None:
    path = write(tmp_path / "tuesday.json", record(a_snapshot()))
    assert replay(capsys, path)[0].startswith("tuesday: ")
    assert replay(capsys, path, "--target", "tuesday") == replay(capsys, path)


def test_the_head_line_shows_the_breaker_and_the_pressure(tmp_path: Path, capsys: Capture) -> None:
    path = write(tmp_path / "orders.json", record(a_snapshot()))
    pressed = a_rule() | {"when": {"slots_used": "85%"}, "until": {"slots_used": "70%"}}
    policy = write(tmp_path / "policy.json", a_document(pressed, limits={"max_share": "1%"}))
    head, line = replay(capsys, path, policy)
    assert head.startswith("orders: slots 97/97, 0 condemned, 1 spared, 0 left alone; breaker: the")
    assert "; rule idle-in-transaction in force at slots 97/97 (when slots_used: 85%)" in head
    assert "  spared, idle-in-transaction: slots 97/97" in line


def test_the_policy_is_yaml_json_or_by_default_the_bundled_one(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # from where a relative path is meant, not from the artifact
    write(tmp_path / "orders.json", record(a_snapshot()))
    rules = "rules: [{name: mine, match: {state: [idle in transaction], idle_for: 1s}}]"
    (tmp_path / "policy.yaml").write_text(f"version: 1 # comment\n{rules}\n")
    write(tmp_path / "policy.json", a_document(a_rule("json", state=LEAK, idle_for="1s")))
    assert "condemned by mine: " in replay(capsys, "orders.json", "policy.yaml")[1]
    assert "condemned by json: " in replay(capsys, "orders.json", "policy.json")[1]
    bundled = replay(capsys, "orders.json")
    assert "condemned by idle-in-transaction: " in bundled[1]
    assert replay(capsys, "orders.json", "") == bundled


def test_the_output_does_not_depend_on_the_order_of_the_sessions(
    tmp_path: Path, capsys: Capture
) -> None:
    sessions = [a_session(pid=pid, idle_seconds=1000 + pid % 7) for pid in range(90, 120)]
    some = write(tmp_path / "policy.json", a_document(limits={"max_terminations": 5}))
    path = tmp_path / "orders.json"
    lines = []
    for arranged in (sessions, sessions[::-1], sessions[15:] + sessions[:15]):
        write(path, record(a_snapshot(*arranged)))
        lines.append(replay(capsys, str(path), some))
    assert all(one == other for one, other in pairwise(lines))
    assert [int(line.split()[0]) for line in lines[0][1:]] == list(range(90, 120))


def test_no_control_character_is_printed(tmp_path: Path, capsys: Capture) -> None:
    evil = "\x1b[2J\r\n\u202e\ud800"
    snapshot = a_snapshot(a_session(pid=1, role=evil, database=evil, application=evil, query=evil))
    document = make_return_value(orders=snapshot)
    document["snapshots"][f"orders{evil}"] = document["snapshots"].pop("orders")
    path = write(tmp_path / "run.json", document)
    rules = a_document(a_rule(f"rule{evil[:-1]}", state=LEAK, idle_for="1s"))
    policy = write(tmp_path / "policy.json", rules)
    for arguments in ((path,), (path, policy), (path, policy, "--against", "")):
        printed = replay(capsys, *arguments)
        assert len(printed) == 2 or "--against" in arguments
        assert all(line.isprintable() for line in printed)
    document["snapshots"][f"orders{evil}"][evil] = evil
    write(tmp_path / "run.json", document)
    assert refusal_of(capsys, path).isprintable()


def test_a_very_long_name_is_truncated(tmp_path: Path, capsys: Capture) -> None:
    path = write(tmp_path / "orders.json", record(a_snapshot(a_session(application="x" * 9000))))
    assert len(replay(capsys, path)[1]) < 300


# -- a change of policy ----------------------------------------------------------------------------


def test_against_shows_only_the_sessions_that_differ(tmp_path: Path, capsys: Capture) -> None:
    snapshot = a_snapshot(
        a_session(pid=1, idle_seconds=400),  # condemned by both, at another threshold
        a_session(pid=2, idle_seconds=120),
        a_session(pid=3, idle_seconds=10),  # left alone by both
        a_session(pid=4, idle_seconds=500, role="etl"),
        a_session(pid=5, idle_seconds=400, application="report"),
    )
    path = write(tmp_path / "run.json", make_return_value(orders=snapshot, billing=a_snapshot()))
    old = write(tmp_path / "old.json", a_document(a_rule("leaks", state=LEAK, idle_for="5m")))
    reports = a_rule("reports", state=LEAK, application="report", idle_for="1s")
    leaks = a_rule("leaks", state=LEAK, idle_for="1m")
    new = write(tmp_path / "new.json", a_document(reports, leaks, protect={"roles": ["etl"]}))
    assert replay(capsys, path, new, "--against", old) == [
        f"--- {old}",
        f"+++ {new}",
        "orders:",
        (
            "- 2  app  orders  api     10.0.0.7  idle in transaction  left alone: no rule matches;"
            " nearest: leaks: idle in transaction for 2m of 5m"
        ),
        (
            "+ 2  app  orders  api     10.0.0.7  idle in transaction  condemned by leaks:"
            " idle in transaction for 2m (idle_for: 1m)"
        ),
        (
            "- 4  etl  orders  api     10.0.0.7  idle in transaction  condemned by leaks:"
            " idle in transaction for 8m 20s (idle_for: 5m)"
        ),
        (
            "+ 4  etl  orders  api     10.0.0.7  idle in transaction  protected (protect.roles):"
            " role etl; otherwise rule leaks would condemn it"
        ),
        (
            "- 5  app  orders  report  10.0.0.7  idle in transaction  condemned by leaks:"
            " idle in transaction for 6m 40s (idle_for: 5m)"
        ),
        (
            "+ 5  app  orders  report  10.0.0.7  idle in transaction  condemned by reports:"
            " idle in transaction for 6m 40s (idle_for: 1s)"
        ),
        "3 of 6 sessions differ",
    ]
    assert replay(capsys, path, new, "--against", new)[2:] == ["0 of 6 sessions differ"]
    assert replay(capsys, path, new, "--against", old, "--target", "billing")[2:] == [
        "0 of 1 sessions differ"
    ]


def test_a_different_verdict_or_action_of_the_same_rule_is_a_difference(
    tmp_path: Path, capsys: Capture
) -> None:
    snapshot = a_snapshot(a_session(state=State.ACTIVE, query_seconds=100))
    path = write(tmp_path / "orders.json", record(snapshot))
    rule = a_rule("runaway", state="active", query_for="1m")
    old = write(tmp_path / "old.json", a_document(rule))
    for changed in (
        a_document(rule | {"action": "cancel"}),
        a_document(rule, limits=NO_ONE_CONDEMNED),
    ):
        new = write(tmp_path / "new.json", changed)
        minus, plus, count = replay(capsys, path, new, "--against", old)[2:][1:]
        assert minus.startswith("- 4711")
        assert plus.startswith("+ 4711")
        assert ("to be cancelled" in plus) or ("spared, runaway: " in plus)
        assert count == "1 of 1 sessions differ"


NO_ONE_CONDEMNED = {"max_share": "1%"}


def test_an_empty_name_compares_with_the_bundled_policy(tmp_path: Path, capsys: Capture) -> None:
    path = write(tmp_path / "orders.json", record(a_snapshot()))
    new = write(tmp_path / "new.json", a_document(protect={"roles": ["app"]}))
    lines = replay(capsys, path, new, "--against", "")
    assert lines[0] == "--- the bundled policy"
    assert "  protected (protect.roles): role app" in lines[-2]


# -- what cannot be replayed -----------------------------------------------------------------------


def changed(document: Any, place: Iterable[str | int], value: object) -> Any:  # noqa: ANN401 -- JSON
    """Copy a document with another value at one place; `GONE` removes the key."""
    copy = json.loads(json.dumps(document))
    inner = copy
    *path, last = place
    for key in path:
        inner = inner[key]
    if value is GONE:
        del inner[last]
    else:
        inner[last] = value
    return copy


GONE = object()
SNAPSHOT = record(
    a_snapshot(
        a_session(pid=1, waiters=(Waiter(pid=2, role="app", application="api", seconds=1),)),
        a_session(pid=2, query_id="42"),
        states={State.IDLE_IN_TRANSACTION: 2},
        oldest_idle_in_transaction=901.2,
    )
)
IN_SESSION = ("sessions", 1)


@pytest.mark.parametrize(
    ("place", "value", "problem"),
    [
        (
            ("sessions", 1, "identity", "pid"),
            "x",
            "sessions[1].identity.pid: must be a whole number, not 'x'",
        ),
        (
            (*IN_SESSION, "identity", "pid"),
            True,
            "sessions[1].identity.pid: must be a whole number, not True",
        ),
        (
            (*IN_SESSION, "identity", "pid"),
            1.0,
            "sessions[1].identity.pid: must be a whole number, not 1.0",
        ),
        (
            (*IN_SESSION, "identity", "pid"),
            None,
            "sessions[1].identity.pid: must be a whole number, not None",
        ),
        ((*IN_SESSION, "identity", "pid"), 1, "sessions[1].identity.pid: duplicate pid 1"),
        (
            (*IN_SESSION, "identity", "state"),
            "zombie",
            "sessions[1].identity.state: must be one of active, idle",
        ),
        (
            (*IN_SESSION, "identity", "state"),
            [],
            "sessions[1].identity.state: must be one of active, idle",
        ),
        ((*IN_SESSION, "identity"), [], "sessions[1].identity: must be an object, not []"),
        ((*IN_SESSION, "role"), 5, "sessions[1].role: must be text, not 5"),
        ((*IN_SESSION, "database"), None, "sessions[1].database: must be text, not None"),
        (
            (*IN_SESSION, "client"),
            "db.example",
            "sessions[1].client: must be an IP address, not 'db.example'",
        ),
        (
            (*IN_SESSION, "idle_seconds"),
            "5m",
            "sessions[1].idle_seconds: must be a number, not '5m'",
        ),
        (
            (*IN_SESSION, "idle_seconds"),
            None,
            "sessions[1].idle_seconds: must be a number, not None",
        ),
        (
            (*IN_SESSION, "idle_seconds"),
            True,
            "sessions[1].idle_seconds: must be a number, not True",
        ),
        (
            (*IN_SESSION, "idle_seconds"),
            float("inf"),
            "sessions[1].idle_seconds: must be a number, not inf",
        ),
        (
            (*IN_SESSION, "idle_seconds"),
            float("nan"),
            "sessions[1].idle_seconds: must be a number, not nan",
        ),
        (
            (*IN_SESSION, "idle_seconds"),
            10**400,
            "sessions[1].idle_seconds: must be a number, not 1000",
        ),
        ((*IN_SESSION, "superuser"), 0, "sessions[1].superuser: must be true or false, not 0"),
        (
            (*IN_SESSION, "superuser"),
            None,
            "sessions[1].superuser: must be true or false, not None",
        ),
        ((*IN_SESSION, "superuser"), GONE, "sessions[1].superuser: is missing"),
        ((*IN_SESSION, "idle"), 1, "sessions[1].idle: unknown key"),
        ((*IN_SESSION, "waiters"), None, "sessions[1].waiters: must be a list, not None"),
        (
            ("sessions", 0, "waiters", 0, "seconds"),
            "1",
            "sessions[0].waiters[0].seconds: must be a number, not '1'",
        ),
        (("sessions", 0), "x", "sessions[0]: must be an object, not 'x'"),
        (("sessions",), {}, "sessions: must be a list, not {}"),
        (("slots",), None, "slots: must be an object, not None"),
        (("slots", "used"), GONE, "slots.used: is missing"),
        (("states",), [], "states: must be an object, not []"),
        (("states", "disabled"), 1, "states: must be one of active, idle"),
        (("states", "idle"), 1.5, "states.idle: must be a whole number, not 1.5"),
        ((*IN_SESSION, "query_id"), 42, "sessions[1].query_id: must be text, not 42"),
        (("role",), GONE, "role: is missing"),
        (("can_see",), False, "can_see: must be true"),
    ],
)
def test_an_invalid_recording_is_an_error_that_names_the_place(
    tmp_path: Path, capsys: Capture, place: tuple[str | int, ...], value: object, problem: str
) -> None:
    snapshot = changed(SNAPSHOT, place, value)
    alone = write(tmp_path / "snapshot.json", snapshot)
    assert refusal_of(capsys, alone).startswith(problem)
    path = write(tmp_path / "run.json", {"snapshots": {"billing": SNAPSHOT, "orders": snapshot}})
    assert refusal_of(capsys, path).startswith(f"snapshots.orders.{problem}")
    assert replay(capsys, path, "--target", "billing")  # the invalid snapshot is of another target


def places(value: object, here: tuple[str | int, ...] = ()) -> Iterable[tuple[str | int, ...]]:
    inner: Iterable[tuple[str | int, object]] = ()
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = enumerate(value)
    for key, item in inner:
        yield (*here, key)
        yield from places(item, (*here, key))


@pytest.mark.parametrize(
    "junk", [None, True, -1, 10**400, 1e308, "", "x" * 5000, "\ud800", [], [[]], {}, {"": {}}, GONE]
)
def test_any_recording_is_replayed_or_refused_in_one_line(
    tmp_path: Path, capsys: Capture, junk: object
) -> None:
    rule = a_rule("all", state=[*State], idle_for="1ms", client="10.0.0.0/8", blocks=1)
    other = a_rule("vacuum", state=[*State], connected_for="1ms", pins_vacuum_by=1, holds="locks")
    limits = {"order": "most_harmful", "max_share": "50%"}
    policy = write(tmp_path / "policy.json", a_document(rule, other, limits=limits))
    for place in places({"snapshots": {"orders": SNAPSHOT}}):
        document = changed({"snapshots": {"orders": SNAPSHOT}}, place, junk)
        status = main([write(tmp_path / "run.json", document), policy])
        printed = capsys.readouterr()
        assert (status, bool(printed.out), printed.err.count("\n")) in {(0, True, 0), (2, False, 1)}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is not valid JSON"),
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("\ud800", "is not valid JSON"),
        ("[]", "must be what the event"),
        ('{"status": "ok", "targets": []}', "must be what the event"),
        ('{"errorMessage": "event.record: \'yes\' is neither true nor false"}', "must be what"),
        ('{"snapshots": {}}', "snapshots: has no snapshot"),
        ('{"snapshots": []}', "snapshots: has no snapshot"),
        ('{"snapshots": {"orders": null}}', "snapshots.orders: must be an object, not None"),
        ('{"snapshots": {"orders": {}}}', "snapshots.orders.role: is missing"),
    ],
)
def test_a_file_that_is_not_a_recording_is_an_error(
    tmp_path: Path, capsys: Capture, text: str, problem: str
) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    assert problem in refusal_of(capsys, str(path))


def test_a_missing_file_or_target_is_an_error_that_names_it(
    tmp_path: Path, capsys: Capture
) -> None:
    missing = str(tmp_path / "missing")
    path = write(
        tmp_path / "run.json", make_return_value(orders=a_snapshot(), billing=a_snapshot())
    )
    assert refusal_of(capsys, missing) == f"{missing}: cannot be read: No such file or directory"
    assert "Is a directory" in refusal_of(capsys, str(tmp_path))
    for arguments in ((missing,), ("", "--against", missing)):
        assert f"{missing}: cannot be read" in refusal_of(capsys, path, *arguments)
    assert refusal_of(capsys, path, "--target", "shop") == (
        "--target: unknown target 'shop'; known: orders, billing"
    )


def test_a_policy_that_does_not_load_is_an_error_that_names_the_place(
    tmp_path: Path, capsys: Capture
) -> None:
    path = write(tmp_path / "orders.json", record(a_snapshot()))
    bad: Mapping[str, object] = a_document(a_rule("x", state=LEAK, idle_for=5))
    policy = write(tmp_path / "policy.json", bad)
    for arguments in ((policy,), ("", "--against", policy)):
        refusal = refusal_of(capsys, path, *arguments)
        assert re.search(r"policy\.json: rules\[0\]\.match\.idle_for: 5 has no unit", refusal)
