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

from infra.replay import decide_again, main, read_recording
from tests.builders import a_document, a_look, a_rule, a_session
from tests.looks import POLICIES, RECORDINGS, verdicts_on
from tests.looks.scene import CANARY

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from session_reaper.sessions.snapshot import Snapshot


LEAK = "idle in transaction"

Capture = pytest.CaptureFixture[str]

every_recording = pytest.mark.parametrize("recording", RECORDINGS, ids=lambda path: path.stem)


def recorded(look: Snapshot) -> Any:  # noqa: ANN401 -- JSON
    """As Lambda returns it."""
    return json.loads(json.dumps(to_recording(look)))


def write(path: Path, document: object) -> str:
    path.write_text(json.dumps(document), "utf-8")
    return str(path)


def condemned(recording: Path, policy: str) -> set[str]:
    """By their application names, which tell in `scene.py` what they are."""
    (look,) = read_recording(recording).values()
    decided = decide(look.sessions, look.slots, read_policy({"version": 1, **POLICIES[policy]}))
    return {decision.session.application for decision in decided.having(Verdict.CONDEMN)}


# -- real servers ----------------------------------------------------------------------------------


def test_every_major_that_we_speak_to_is_recorded() -> None:
    assert [path.stem for path in RECORDINGS] == [f"postgresql-{n}" for n in range(13, 19)]


@every_recording
def test_the_policies_say_of_a_recorded_server_what_they_said(recording: Path) -> None:
    """If they are to say something else: `python -m tests.looks --verdicts`, and read its diff."""
    assert verdicts_on(recording) == recording.with_suffix(".txt").read_text("utf-8")


@every_recording
def test_a_leak_is_condemned_whatever_it_has_done_in_its_transaction(recording: Path) -> None:
    kinds = {"leak-begin", "leak-read", "leak-xid", "leak-xmin", "leak-aborted"}
    assert condemned(recording, "default") == kinds | {"root", "wedged"}


@every_recording
def test_of_a_chain_of_waiters_only_the_root_is_condemned(recording: Path) -> None:
    assert condemned(recording, "blockers") == {"root"}
    assert "2 waiting on it" in verdicts_on(recording)


@every_recording
def test_a_wedged_session_is_condemned_and_a_copy_that_waits_for_rows_is_not(
    recording: Path,
) -> None:
    assert condemned(recording, "wedged") == {"wedged"}


@every_recording
def test_what_a_session_holds_tells_the_harmful_leaks_from_the_harmless(recording: Path) -> None:
    assert condemned(recording, "writers") == {"leak-xid", "root"}
    assert condemned(recording, "pins") == {"leak-xid", "leak-xmin", "root"}
    assert condemned(recording, "lockers") == {"leak-xid", "root"}  # of four, the most harmful two


@every_recording
@pytest.mark.parametrize("policy", POLICIES)
def test_the_protected_are_left_alone_whatever_a_policy_says(recording: Path, policy: str) -> None:
    (look,) = read_recording(recording).values()
    decided = decide(look.sessions, look.slots, read_policy({"version": 1, **POLICIES[policy]}))
    protected = {
        decision.session.application: decision.reason
        for decision in decided.having(Verdict.LEAVE)
        if decision.reason.startswith("protected")
    }
    assert protected["superuser"] == "protected: a superuser"
    assert protected["reaper-by-hand"] == "protected: our own role"
    assert protected["pg_dump"] == "protected: application pg_dump (built in)"


@every_recording
def test_a_recording_holds_no_literal_of_a_query(recording: Path) -> None:
    text = recording.read_text("utf-8")
    assert CANARY not in text
    assert "UPDATE orders SET note = ? WHERE id = ?" in text


def test_a_look_is_recorded_without_the_literals_of_its_queries() -> None:
    look = a_look(a_session(query="SELECT 'cAnArY', $$cAnArY$$ /* cAnArY */ FROM orders"))
    assert CANARY not in json.dumps(to_recording(look))
    assert recorded(look)["sessions"][0]["query"] == "SELECT ?, ? FROM orders"


# -- there and back --------------------------------------------------------------------------------


@every_recording
def test_a_recording_that_is_read_and_recorded_again_is_the_same(recording: Path) -> None:
    (look,) = read_recording(recording).values()
    assert recorded(look) == json.loads(recording.read_text("utf-8"))


def test_a_recording_of_an_older_release_is_read_as_well(tmp_path: Path) -> None:
    look = a_look(a_session(query="select now()"))
    document = recorded(look)
    for key in ("states", "oldest_idle_in_transaction"):
        del document[key]
    del document["sessions"][0]["query_id"]
    assert read_recording(Path(write(tmp_path / "old.json", document)))["old"] == look


def test_a_recorded_look_gets_the_verdicts_of_the_look_itself(tmp_path: Path) -> None:
    waiter = Waiter(pid=9, role="app", application="api", seconds=2.5)
    full = {"xid_age": 7, "xmin_age": 12, "locks": 3, "waiters": (waiter,)}
    look = a_look(
        a_session(pid=1, client=None, transaction_seconds=None, state=State.IDLE),
        a_session(pid=2, query="delete from orders where note = 'cAnArY'", **full),
        a_session(pid=3, query_seconds=70, waiting_for_client=True, state=State.ACTIVE),
        a_session(pid=4, superuser=True),
        a_session(pid=5, replication=True, idle_seconds=1),
        a_session(pid=6, own_role=True),
        a_session(pid=7, signalable=False),
    )
    path = tmp_path / "orders.json"
    write(path, recorded(look))
    read = read_recording(path)["orders"]
    assert replace(read, sessions=()) == replace(look, sessions=())
    for document in (
        a_document(a_rule("deletes", state=LEAK, idle_for="1s", query="delete from orders")),
        a_document(a_rule("blockers", state=LEAK, blocks=1, blocks_for="2s", holds="xmin")),
        a_document(a_rule("wedged", state="active", waiting_for_client=True, query_for="1m")),
        a_document(limits={"max_terminations": 1, "order": "most_harmful"}),
        a_document(limits={"max_share": "1%"}),
    ):
        policy = read_policy(document)
        live = decide(look.sessions, look.slots, policy)
        replayed = decide_again(read, policy)
        assert live.having(Verdict.CONDEMN) or live.having(Verdict.SPARE), document
        assert [(d.pid, d.verdict, d.rule, d.reason) for d in replayed.decisions] == [
            (d.pid, d.verdict, d.rule, d.reason) for d in live.decisions
        ]
        assert (replayed.breaker, describe_pressure(replayed)) == (
            live.breaker,
            describe_pressure(live),
        )


def cut_in(quoted: str) -> str:
    """A query that is cut inside of a quoted name, 500 characters of it shown."""
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
def test_a_glob_matches_a_recorded_query_where_it_matches_the_query_itself(
    tmp_path: Path, query: str, glob: str, *, matches: bool
) -> None:
    look = a_look(a_session(query=query))
    path = tmp_path / "orders.json"
    write(path, recorded(look))
    policy = read_policy(a_document(a_rule(state=LEAK, idle_for="1s", query=glob)))
    live = decide(look.sessions, look.slots, policy)
    assert live.having(Verdict.CONDEMN if matches else Verdict.LEAVE)
    replayed = decide_again(read_recording(path)["orders"], policy)
    assert [d.verdict for d in replayed.decisions] == [d.verdict for d in live.decisions]


# -- what is printed -------------------------------------------------------------------------------


def replay(capture: Capture, *arguments: str) -> list[str]:
    assert main(arguments) == 0
    printed = capture.readouterr()
    assert printed.err == ""
    return printed.out.splitlines()


def refusal(capture: Capture, *arguments: str) -> str:
    """The one line in which it says why it cannot."""
    assert main(arguments) == 2
    printed = capture.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("replay: ")
    assert printed.err.count("\n") == 1
    return printed.err.removeprefix("replay: ").rstrip()


def returned(**looks: Snapshot) -> dict[str, Any]:
    """What the event {"record": true} returns."""
    return {"status": "ok", "looks": {name: recorded(look) for name, look in looks.items()}}


def test_each_target_gets_a_head_line_and_a_line_for_each_session(
    tmp_path: Path, capsys: Capture
) -> None:
    old, young = a_session(pid=12), a_session(pid=3, client=None, application="", idle_seconds=1)
    path = write(tmp_path / "run.json", returned(orders=a_look(old, young), billing=a_look(young)))
    policy = write(tmp_path / "policy.json", a_document())
    billing = [
        "billing: slots 97/97, 0 condemned, 0 spared, 1 left alone",
        "3  app  orders  -  [local]  idle in transaction  left alone: no rule matches",
    ]
    assert replay(capsys, path, policy) == [
        "orders: slots 97/97, 1 condemned, 0 spared, 1 left alone",
        "3   app  orders  -    [local]   idle in transaction  left alone: no rule matches",
        (
            "12  app  orders  api  10.0.0.7  idle in transaction  condemned by idle-in-transaction:"
            " idle in transaction for 15m 1s (idle_for: 5m)"
        ),
        *billing,
    ]
    assert replay(capsys, path, policy, "--target", "billing") == billing


def test_a_look_by_itself_is_named_as_its_file(tmp_path: Path, capsys: Capture) -> None:
    path = write(tmp_path / "tuesday.json", recorded(a_look()))
    assert replay(capsys, path)[0].startswith("tuesday: ")
    assert replay(capsys, path, "--target", "tuesday") == replay(capsys, path)


def test_the_head_line_tells_the_breaker_and_the_pressure(tmp_path: Path, capsys: Capture) -> None:
    path = write(tmp_path / "orders.json", recorded(a_look()))
    pressed = a_rule() | {"when": {"slots_used": "85%"}, "until": {"slots_used": "70%"}}
    policy = write(tmp_path / "policy.json", a_document(pressed, limits={"max_share": "1%"}))
    head, line = replay(capsys, path, policy)
    assert head.startswith("orders: slots 97/97, 0 condemned, 1 spared, 0 left alone; breaker: the")
    assert "; rule idle-in-transaction in force at slots 97/97 (when slots_used: 85%)" in head
    assert "  spared, idle-in-transaction: slots 97/97" in line


def test_the_policy_is_yaml_or_json_or_else_the_bundled_one(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # from where a relative path is meant, not from the artifact
    write(tmp_path / "orders.json", recorded(a_look()))
    rules = "rules: [{name: mine, match: {state: [idle in transaction], idle_for: 1s}}]"
    (tmp_path / "policy.yaml").write_text(f"version: 1 # comment\n{rules}\n")
    write(tmp_path / "policy.json", a_document(a_rule("json", state=LEAK, idle_for="1s")))
    assert "condemned by mine: " in replay(capsys, "orders.json", "policy.yaml")[1]
    assert "condemned by json: " in replay(capsys, "orders.json", "policy.json")[1]
    bundled = replay(capsys, "orders.json")
    assert "condemned by idle-in-transaction: " in bundled[1]
    assert replay(capsys, "orders.json", "") == bundled


def test_the_order_of_the_sessions_in_a_recording_does_not_show(
    tmp_path: Path, capsys: Capture
) -> None:
    sessions = [a_session(pid=pid, idle_seconds=1000 + pid % 7) for pid in range(90, 120)]
    some = write(tmp_path / "policy.json", a_document(limits={"max_terminations": 5}))
    path = tmp_path / "orders.json"
    lines = []
    for arranged in (sessions, sessions[::-1], sessions[15:] + sessions[:15]):
        write(path, recorded(a_look(*arranged)))
        lines.append(replay(capsys, str(path), some))
    assert all(one == other for one, other in pairwise(lines))
    assert [int(line.split()[0]) for line in lines[0][1:]] == list(range(90, 120))


def test_nothing_that_a_terminal_acts_on_is_printed(tmp_path: Path, capsys: Capture) -> None:
    evil = "\x1b[2J\r\n\u202e\ud800"
    look = a_look(a_session(pid=1, role=evil, database=evil, application=evil, query=evil))
    document = returned(orders=look)
    document["looks"][f"orders{evil}"] = document["looks"].pop("orders")
    path = write(tmp_path / "run.json", document)
    rules = a_document(a_rule(f"rule{evil[:-1]}", state=LEAK, idle_for="1s"))
    policy = write(tmp_path / "policy.json", rules)
    for arguments in ((path,), (path, policy), (path, policy, "--against", "")):
        printed = replay(capsys, *arguments)
        assert len(printed) == 2 or "--against" in arguments
        assert all(line.isprintable() for line in printed)
    document["looks"][f"orders{evil}"][evil] = evil
    write(tmp_path / "run.json", document)
    assert refusal(capsys, path).isprintable()


def test_a_name_too_long_to_be_true_does_not_fill_the_screen(
    tmp_path: Path, capsys: Capture
) -> None:
    path = write(tmp_path / "orders.json", recorded(a_look(a_session(application="x" * 9000))))
    assert len(replay(capsys, path)[1]) < 300


# -- a change of policy ----------------------------------------------------------------------------


def test_against_another_policy_only_the_differences_are_shown(
    tmp_path: Path, capsys: Capture
) -> None:
    look = a_look(
        a_session(pid=1, idle_seconds=400),  # condemned by both, at another threshold
        a_session(pid=2, idle_seconds=120),
        a_session(pid=3, idle_seconds=10),  # left alone by both
        a_session(pid=4, idle_seconds=500, role="etl"),
        a_session(pid=5, idle_seconds=400, application="report"),
    )
    path = write(tmp_path / "run.json", returned(orders=look, billing=a_look()))
    old = write(tmp_path / "old.json", a_document(a_rule("leaks", state=LEAK, idle_for="5m")))
    reports = a_rule("reports", state=LEAK, application="report", idle_for="1s")
    leaks = a_rule("leaks", state=LEAK, idle_for="1m")
    new = write(tmp_path / "new.json", a_document(reports, leaks, protect={"roles": ["etl"]}))
    assert replay(capsys, path, new, "--against", old) == [
        f"--- {old}",
        f"+++ {new}",
        "orders:",
        "- 2  app  orders  api     10.0.0.7  idle in transaction  left alone: no rule matches",
        (
            "+ 2  app  orders  api     10.0.0.7  idle in transaction  condemned by leaks:"
            " idle in transaction for 2m (idle_for: 1m)"
        ),
        (
            "- 4  etl  orders  api     10.0.0.7  idle in transaction  condemned by leaks:"
            " idle in transaction for 8m 20s (idle_for: 5m)"
        ),
        "+ 4  etl  orders  api     10.0.0.7  idle in transaction  left alone: protected: role etl",
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


def test_another_verdict_or_action_of_the_same_rule_is_a_difference(
    tmp_path: Path, capsys: Capture
) -> None:
    look = a_look(a_session(state=State.ACTIVE, query_seconds=100))
    path = write(tmp_path / "orders.json", recorded(look))
    rule = a_rule("runaway", state="active", query_for="1m")
    old = write(tmp_path / "old.json", a_document(rule))
    for changed in (a_document(rule | {"action": "cancel"}), a_document(rule, limits=NOBODY)):
        new = write(tmp_path / "new.json", changed)
        minus, plus, count = replay(capsys, path, new, "--against", old)[2:][1:]
        assert minus.startswith("- 4711")
        assert plus.startswith("+ 4711")
        assert ("to be cancelled" in plus) or ("spared, runaway: " in plus)
        assert count == "1 of 1 sessions differ"


NOBODY = {"max_share": "1%"}


def test_a_policy_is_compared_with_the_bundled_one_by_an_empty_name(
    tmp_path: Path, capsys: Capture
) -> None:
    path = write(tmp_path / "orders.json", recorded(a_look()))
    new = write(tmp_path / "new.json", a_document(protect={"roles": ["app"]}))
    lines = replay(capsys, path, new, "--against", "")
    assert lines[0] == "--- the bundled policy"
    assert "left alone: protected: role app" in lines[-2]


# -- what cannot be replayed -----------------------------------------------------------------------


def changed(document: Any, place: Iterable[str | int], value: object) -> Any:  # noqa: ANN401 -- JSON
    """A copy with another value at one place; `GONE` takes it away."""
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
LOOK = recorded(
    a_look(
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
        (("sessions", 1, "identity", "pid"), "x", "sessions[1].identity.pid: 'x' is not a whole"),
        ((*IN_SESSION, "identity", "pid"), True, "sessions[1].identity.pid: True is not a whole"),
        ((*IN_SESSION, "identity", "pid"), 1.0, "sessions[1].identity.pid: 1.0 is not a whole"),
        ((*IN_SESSION, "identity", "pid"), None, "sessions[1].identity.pid: None is not a whole"),
        ((*IN_SESSION, "identity", "pid"), 1, "sessions[1].identity.pid: 1 is there twice"),
        ((*IN_SESSION, "identity", "state"), "zombie", "sessions[1].identity.state: 'zombie' is"),
        ((*IN_SESSION, "identity", "state"), [], "sessions[1].identity.state: [] is not a state"),
        ((*IN_SESSION, "identity"), [], "sessions[1].identity: [] is not an object"),
        ((*IN_SESSION, "role"), None, "sessions[1].role: None is not text"),
        ((*IN_SESSION, "client"), "db.example", "sessions[1].client: 'db.example' is no address"),
        ((*IN_SESSION, "idle_seconds"), "5m", "sessions[1].idle_seconds: '5m' is not a number"),
        ((*IN_SESSION, "idle_seconds"), None, "sessions[1].idle_seconds: None is not a number"),
        ((*IN_SESSION, "idle_seconds"), True, "sessions[1].idle_seconds: True is not a number"),
        ((*IN_SESSION, "idle_seconds"), float("inf"), "sessions[1].idle_seconds: inf is not a"),
        ((*IN_SESSION, "idle_seconds"), float("nan"), "sessions[1].idle_seconds: nan is not a"),
        ((*IN_SESSION, "idle_seconds"), 10**400, "sessions[1].idle_seconds: 1000"),
        ((*IN_SESSION, "superuser"), 0, "sessions[1].superuser: 0 is not true or false"),
        ((*IN_SESSION, "superuser"), None, "sessions[1].superuser: None is not true or false"),
        ((*IN_SESSION, "superuser"), GONE, "sessions[1].superuser: is missing"),
        ((*IN_SESSION, "idle"), 1, "sessions[1].idle: unknown key"),
        ((*IN_SESSION, "waiters"), None, "sessions[1].waiters: None is not a list"),
        (("sessions", 0, "waiters", 0, "seconds"), "1", "sessions[0].waiters[0].seconds: '1' is"),
        (("sessions", 0), "x", "sessions[0]: 'x' is not an object"),
        (("sessions",), {}, "sessions: {} is not a list"),
        (("slots",), None, "slots: None is not an object"),
        (("slots", "used"), GONE, "slots.used: is missing"),
        (("states",), [], "states: [] is not an object"),
        (("states", "disabled"), 1, "states: 'disabled' is not a state that a rule may name"),
        (("states", "idle"), 1.5, "states.idle: 1.5 is not a whole number"),
        ((*IN_SESSION, "query_id"), 42, "sessions[1].query_id: 42 is not text"),
        (("role",), GONE, "role: is missing"),
        (("can_see",), False, "can_see: is false: a run decides nothing then"),
    ],
)
def test_a_bad_recording_is_an_error_that_names_the_place(
    tmp_path: Path, capsys: Capture, place: tuple[str | int, ...], value: object, problem: str
) -> None:
    look = changed(LOOK, place, value)
    alone = write(tmp_path / "look.json", look)
    assert refusal(capsys, alone).startswith(problem)
    path = write(tmp_path / "run.json", {"looks": {"billing": LOOK, "orders": look}})
    assert refusal(capsys, path).startswith(f"looks.orders.{problem}")
    assert replay(capsys, path, "--target", "billing")  # the trouble of another target


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
def test_whatever_stands_in_a_recording_it_is_replayed_or_refused_in_one_line(
    tmp_path: Path, capsys: Capture, junk: object
) -> None:
    rule = a_rule("all", state=[*State], idle_for="1ms", client="10.0.0.0/8", blocks=1)
    other = a_rule("vacuum", state=[*State], connected_for="1ms", pins_vacuum_by=1, holds="locks")
    limits = {"order": "most_harmful", "max_share": "50%"}
    policy = write(tmp_path / "policy.json", a_document(rule, other, limits=limits))
    for place in places({"looks": {"orders": LOOK}}):
        document = changed({"looks": {"orders": LOOK}}, place, junk)
        status = main([write(tmp_path / "run.json", document), policy])
        printed = capsys.readouterr()
        assert (status, bool(printed.out), printed.err.count("\n")) in {(0, True, 0), (2, False, 1)}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("\ud800", "is not JSON"),
        ("[]", "is neither what the event"),
        ('{"status": "ok", "targets": []}', "is neither what the event"),
        ('{"errorMessage": "event.record: \'yes\' is neither true nor false"}', "is neither what"),
        ('{"looks": {}}', "looks: holds no look"),
        ('{"looks": []}', "looks: holds no look"),
        ('{"looks": {"orders": null}}', "looks.orders: None is not an object"),
        ('{"looks": {"orders": {}}}', "looks.orders.role: is missing"),
    ],
)
def test_a_file_that_is_no_recording_is_an_error_that_says_so(
    tmp_path: Path, capsys: Capture, text: str, problem: str
) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    assert problem in refusal(capsys, str(path))


def test_what_is_not_there_is_an_error_that_names_it(tmp_path: Path, capsys: Capture) -> None:
    missing = str(tmp_path / "missing")
    path = write(tmp_path / "run.json", returned(orders=a_look(), billing=a_look()))
    assert refusal(capsys, missing) == f"{missing}: cannot be read: No such file or directory"
    assert "Is a directory" in refusal(capsys, str(tmp_path))
    for arguments in ((missing,), ("", "--against", missing)):
        assert f"POLICY {missing}: file: cannot be read" in refusal(capsys, path, *arguments)
    assert refusal(capsys, path, "--target", "shop") == (
        "--target: shop is not among orders, billing"
    )


def test_a_policy_that_does_not_load_is_an_error_that_names_the_place(
    tmp_path: Path, capsys: Capture
) -> None:
    path = write(tmp_path / "orders.json", recorded(a_look()))
    bad: Mapping[str, object] = a_document(a_rule("x", state=LEAK, idle_for=5))
    policy = write(tmp_path / "policy.json", bad)
    for arguments in ((policy,), ("", "--against", policy)):
        said = refusal(capsys, path, *arguments)
        assert re.search(r"policy\.json: rules\[0\]\.match\.idle_for: 5 has no unit", said)
