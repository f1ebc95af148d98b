"""The command against real servers: connections, top, check, reap, record and replay."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pg8000.native
import pytest

from infra.local.aws import REGION
from infra.local.certificates import make_tls
from tests.integration.cli import COMMAND, Done, run, run_closed, run_unread, uri
from tests.integration.fork_client import SECONDS, environment
from tests.integration.stage import IDLE, LEAK, PASSWORD, REAPER, Stage, policy, rule, until

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.every_major


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def rules(home: Path) -> str:
    """A policy file: every session idle in transaction for a moment."""
    path = home / "policy.json"
    path.write_text(json.dumps(policy(rule(idle_for="1ms"))))
    return str(path)


def top(home: Path, *arguments: str, **environ: str) -> dict[str, Any]:
    done = run(home, "top", "--json", *arguments, **environ)
    assert done.status == 0, done.err
    return json.loads(done.out)  # type: ignore[no-any-return]


# -- connections -----------------------------------------------------------------------------------


COMMANDS = ("top", "explain", "check", "reap", "record")
WAYS = (
    *("URI", "pairs", "DATABASE_URL", "environment", "service"),
    *("secret", "socket", "socket in a URI"),
)


def write_way(stage: Stage, home: Path, way: str) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the arguments and the environment that name the server; write the files they need."""
    server = stage.server
    login = {"PGUSER": REAPER, "PGPASSWORD": PASSWORD, "PGSSLMODE": "disable"}
    port = {"PGPORT": str(server.port)}
    service = f"[orders]\nhost={server.host}\nport={server.port}\nuser={REAPER}\nsslmode=disable\n"
    (home / ".pg_service.conf").write_text(service)
    (home / ".pgpass").write_text(f"{server.host}:{server.port}:*:{REAPER}:{PASSWORD}\n")
    (home / ".pgpass").chmod(0o600)
    stage.target("prod/orders")
    # The server trusts everyone on its socket: no password, and no TLS.
    socket = f"postgres://{REAPER}@/postgres?host={server.socket_dir}&port={server.port}"
    pairs = (
        f"host={server.host} port={server.port} user={REAPER} password='{PASSWORD}' dbname=postgres"
        " sslmode=disable"
    )
    ways: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
        "URI": ((uri(stage),), {}),
        "pairs": ((pairs,), {}),
        "DATABASE_URL": ((), {"DATABASE_URL": uri(stage)}),
        "environment": ((), {"PGHOST": server.host} | port | login),
        "service": ((), {"PGSERVICE": "orders"}),
        "secret": (("--secret", "prod/orders"), {}),
        "socket": ((), {"PGHOST": str(server.socket_dir), "PGUSER": REAPER} | port),
        "socket in a URI": ((socket,), {}),
    }
    return ways[way]


@pytest.mark.parametrize(
    ("command", "way"),
    [
        pytest.param(
            *(command, way),
            marks=[] if command == "top" or way == "URI" else pytest.mark.thorough,
        )
        for command in COMMANDS
        for way in WAYS
    ],
)
def test_every_command_takes_every_way_to_name_a_server(
    stage: Stage, home: Path, command: str, way: str
) -> None:
    arguments, environ = write_way(stage, home, way)
    done = run(home, command, *arguments, **environ)
    assert done.status == (1 if command == "check" else 0), done
    assert done.out


USER = pwd.getpwuid(os.geteuid()).pw_name


def require_peer(stage: Stage) -> None:
    """Let the operating-system user log in as the reaper and under its own name, on the socket only."""
    data = stage.server.socket_dir / "data"
    (data / "pg_hba.conf").write_text(
        "local all postgres trust\nlocal all all peer map=laptop\nhost all all all scram-sha-256\n"
    )
    (data / "pg_ident.conf").write_text(f"laptop {USER} {REAPER}\nlaptop {USER} {USER}\n")
    stage.root.run("SELECT pg_reload_conf()")

    def is_refused() -> bool:
        try:
            stage.connect("app").close()
        except pg8000.native.DatabaseError as error:
            return bool(error.args[0]["C"] == "28000")
        return False

    until(is_refused, "the server asks for the operating-system user")


def test_peer_authentication_needs_no_password(
    own_server: Callable[..., Stage], home: Path
) -> None:
    stage = own_server()
    require_peer(stage)
    folder, port = str(stage.server.socket_dir), str(stage.server.port)
    default = Path(f"/tmp/.s.PGSQL.{port}")  # noqa: S108 -- where a client looks without a host
    default.symlink_to(stage.server.unix_sock)
    stage.cleanup(default.unlink)
    where = {"PGHOST": folder, "PGPORT": port}
    mapped: list[tuple[tuple[str, ...], dict[str, str]]] = [
        ((f"postgres://{REAPER}@:{port}/postgres",), {}),
        ((f"postgres:///postgres?user={REAPER}",), {"PGPORT": port}),
        ((f"postgres://{REAPER}@/postgres",), where),
        ((), where | {"PGUSER": REAPER, "PGSSLMODE": "prefer"}),
        ((f"postgres://{REAPER}@/postgres?host={folder}&port={port}",), {}),
        ((f"host={folder} port={port} user={REAPER}",), {}),
    ]
    for arguments, environ in mapped:
        assert top(home, *arguments, **environ)["role"] == REAPER
    refused = run(home, "top", f"postgres://app@/postgres?host={folder}&port={port}")
    assert (refused.status, "(28000)" in refused.err) == (2, True), refused
    assert "pg_ident.conf" in refused.err
    stage.role(USER, "IN ROLE pg_read_all_stats")
    assert top(home, **where, LOGNAME="somebody")["role"] == USER


STATUSES = {  # with a leak
    "top": 0,
    "top --json": 0,
    "reap": 1,
    "reap --json": 1,
    "reap --enforce": 2,
    "explain": 1,
    "check": 1,
    "record": 0,
    "top --nonsense": 2,
}


@pytest.mark.parametrize(
    ("command", "stream"),
    [
        *((command, stream) for command in STATUSES for stream in ("stdout", "stderr")),
        ("top --watch 100ms", "stdout"),
    ],
)
def test_a_stream_without_a_reader_changes_no_exit_status(
    stage: Stage, home: Path, rules: str, command: str, stream: str
) -> None:
    leak = stage.session(LEAK)
    policies = () if command in ("check", "record") else ("--policy", rules)
    name, *options = command.split()
    done = run_unread(home, name, uri(stage), *policies, *options, stream=stream)
    assert done.status == STATUSES.get(command, 0)
    assert not any(word in done.err for word in ("bug", "Traceback", "BrokenPipeError"))
    assert leak.is_there


@pytest.mark.parametrize("closed", [[0], [1], [2], [0, 1, 2]])
def test_a_stream_that_is_closed_is_no_bug(stage: Stage, home: Path, closed: list[int]) -> None:
    done = run_closed(home, "top", uri(stage), closed=closed)
    assert (done.status, done.err) == (0, "")
    asking = run_closed(home, "reap", uri(stage), "--enforce", closed=closed)
    assert (asking.status, "bug" in asking.err) == (2, False)


def test_a_secret_is_read_in_the_region_that_the_aws_cli_would_use(
    stage: Stage, home: Path
) -> None:
    stage.target("prod/orders")
    none = {"AWS_DEFAULT_REGION": "", "AWS_REGION": ""}
    assert top(home, "--secret", "prod/orders", **none | {"AWS_REGION": REGION})["role"] == REAPER
    refused = run(home, "top", "--secret", "prod/orders", **none)
    assert (refused.status, "AWS_REGION" in refused.err) == (2, True)


def test_a_check_reaches_the_fallback_secrets_server_through_the_tunnel(
    stage: Stage, home: Path
) -> None:
    here = f"{stage.server.host}:{stage.server.port}"
    place = {"host": "orders.example", "port": 5433}
    stage.role("rescuer", "SUPERUSER")
    stage.aws.put_secret("prod/root", stage.secret(username="rescuer", **place))
    stage.target("prod/orders", **place, fallback_secret="prod/root")  # noqa: S106 -- a name
    done = run(home, "check", "--secret", "prod/orders", "--via", here, "--json")
    (target,) = json.loads(done.out)["targets"]
    assert target["error"] is None
    assert [a["message"] for a in target["advice"] if a["code"] == "mend-fallback-secret"] == []


def test_errors_of_usage_show_no_password(stage: Stage, home: Path) -> None:
    given = uri(stage)
    for arguments in (
        (given,),
        ("policy", given),
        ("top", given, given),
        ("top", "host=db", f"password={PASSWORD}"),
        ("top", "host=db", "password=x", PASSWORD),
        ("top", "--watch", given),
        ("top", "--via", given),
        ("top", given, "--policy", given),
        ("replay", given),
        ("policy", "validate", given),
    ):
        done = run(home, *arguments)
        assert done.status == 2
        assert done.err
        assert PASSWORD not in done.err + done.out, arguments


def test_errors_take_one_line_and_say_what_to_do(stage: Stage, home: Path) -> None:
    where = f"{stage.server.host}:{stage.server.port}"
    plain = f"postgres://{REAPER}:{PASSWORD}@{where}/postgres"
    cases = [
        ((plain,), "sslmode=disable"),
        ((uri(stage).replace(PASSWORD, "wrong-word"),), "~/.pgpass"),
        ((uri(stage).replace("/postgres?", "/nowhere?"),), "PGDATABASE"),
        ((f"postgres://u:p@{stage.server.host}:1/x?sslmode=disable",), "Check the host"),
        ((f"postgres://{REAPER}@{where}/postgres?sslmode=disable",), "PGPASSWORD"),
        (("--secret", "nowhere"), "aws sts get-caller-identity"),
        ((uri(stage), "--policy", "/nowhere"), "cannot be read"),
        ((uri(stage), "--wait", "soon"), "is not a duration"),
    ]
    for arguments, words in cases:
        done = run(home, "top", *arguments)
        assert (done.status, done.out) == (2, ""), done
        assert words in done.err
        assert "Traceback" not in done.err
        assert PASSWORD not in done.err
        assert "wrong-word" not in done.err


@pytest.mark.tls
def test_a_certificate_is_verified_by_the_authority_that_the_user_names(
    own_server: Callable[..., Stage], home: Path
) -> None:
    tls = make_tls(home)
    stage = own_server(tls=tls)
    plain = uri(stage).replace("?sslmode=disable", "")
    done = run(home, "top", plain)
    assert (done.status, "sslrootcert=FILE" in done.err) == (2, True), done.err
    top(home, f"{plain}?sslrootcert={tls.authority}")
    top(home, plain, PGSSLROOTCERT=str(tls.authority))
    top(home, plain, PGSSLMODE="require")
    (home / ".postgresql").mkdir()
    (home / ".postgresql" / "root.crt").write_text(tls.authority.read_text())
    top(home, plain)


# -- top -------------------------------------------------------------------------------------------


def make_chain(stage: Stage) -> tuple[int, int]:
    """Let a session block another; return their pids."""
    blocker = stage.session(LEAK, application_name="api", query="SELECT pg_advisory_xact_lock(7)")
    waiter = stage.session(
        "active", application_name="worker", query="SELECT pg_advisory_xact_lock(7)"
    )
    return blocker.pid, waiter.pid


def test_top_shows_slots_groups_lock_chains_and_the_policys_plan(
    stage: Stage, home: Path, rules: str
) -> None:
    blocker, waiter = make_chain(stage)
    stage.sessions(3, IDLE, application_name="web")
    found = top(home, uri(stage), "--policy", rules)
    groups = {(g["application"], g["state"]): g for g in found["groups"]}
    assert groups["web", "idle"]["count"] == 3
    assert groups["api", LEAK]["blocks"] == 1
    assert groups["api", LEAK]["locks"] >= 1
    (chain,) = found["lock_chains"]
    assert chain["pid"] == blocker
    assert [each["pid"] for each in chain["waiters"]] == [waiter]
    assert [(plan["rule"], plan["count"]) for plan in found["policy"]] == [("leak", 1)]
    assert found["hidden"] == 0
    assert found["slots"]["used"] >= 5


@pytest.mark.parametrize("columns", ["60", "100", "200"])
def test_top_fits_its_width(stage: Stage, home: Path, rules: str, columns: str) -> None:
    make_chain(stage)
    stage.session(LEAK, application_name="x" * 63)
    done = run(home, "top", uri(stage), "--policy", rules, COLUMNS=columns)
    assert done.status == 0, done.err
    assert "\x1b" not in done.out
    assert max(map(len, done.out.splitlines())) <= 100
    assert "blocks 1" in done.out


def test_top_says_what_is_hidden_from_the_applications_role(stage: Stage, home: Path) -> None:
    stage.sessions(2, LEAK, role="app")
    stage.sessions(3, IDLE, role="other")
    done = run(home, "top", uri(stage, "app"))
    # The superuser of the test is connected, too.
    assert "4 sessions are hidden from this role (app)" in done.out
    found = top(home, uri(stage, "app"))
    assert found["hidden"] == 4
    assert {group["role"] for group in found["groups"]} == {"app"}
    assert found["slots"]["used"] == 6


def test_watch_without_a_pause_is_refused_and_seconds_may_have_a_fraction(
    stage: Stage, home: Path
) -> None:
    done = run(home, "top", uri(stage), "--watch", "0")
    assert (done.status, "write 0.1 or more" in done.err) == (2, True)
    assert run(home, "top", uri(stage), "--wait", "0.5").status == 0


def test_watch_ends_quietly_once_its_reader_has_read_enough(stage: Stage, home: Path) -> None:
    command = subprocess.Popen(  # noqa: S603 -- our own command
        [*COMMAND, "top", uri(stage), "--watch", "100ms"],
        env=environment(home, {}),
        stdout=subprocess.PIPE,
    )
    assert command.stdout is not None
    command.stdout.readline()
    command.stdout.close()
    assert command.wait(SECONDS) == 0


# -- reap ------------------------------------------------------------------------------------------


def fold(text: str) -> str:
    """Return a text without its line breaks."""
    return " ".join(text.split())


def reap(home: Path, *arguments: str) -> Done:
    done = run(home, "reap", *arguments)
    assert "Traceback" not in done.err
    return done


def outcomes(done: Done) -> dict[int, str]:
    """Return the outcome of each session in a document with the contract's keys."""
    document = json.loads(done.out)
    keys = {"run_id", "mode", "status", "verdict", "steps", "summary", "totals", "targets"}
    assert keys <= document.keys()
    (target,) = document["targets"]
    return {session["pid"]: session["outcome"] for session in target["sessions"]}


def test_reap_observes_unless_told_otherwise(stage: Stage, home: Path, rules: str) -> None:
    leak = stage.session(LEAK)
    done = reap(home, uri(stage), "--policy", rules)
    assert done.status == 1
    assert done.out.startswith("OBSERVED: With --enforce, 1 session would be terminated.")
    assert "run again with --enforce: it asks first" in fold(done.out)
    done = reap(home, uri(stage), "--policy", rules, "--json")
    assert (done.status, outcomes(done)) == (1, {leak.pid: "would_terminate"})
    assert leak.is_there


def test_reap_without_anything_to_do_succeeds(stage: Stage, home: Path, rules: str) -> None:
    stage.session(IDLE)
    done = reap(home, uri(stage), "--policy", rules)
    assert (done.status, done.out.splitlines()[0]) == (0, "QUIET: There was nothing to terminate.")


def test_reap_does_not_enforce_unasked_without_a_terminal(
    stage: Stage, home: Path, rules: str
) -> None:
    leak = stage.session(LEAK)
    done = reap(home, uri(stage), "--policy", rules, "--enforce")
    assert done.status == 2
    assert "--yes" in done.err
    assert leak.is_there


def test_reap_terminates_and_verifies_with_yes(stage: Stage, home: Path, rules: str) -> None:
    leak, healthy = stage.session(LEAK), stage.session(IDLE)
    done = reap(home, uri(stage), "--policy", rules, "--enforce", "--yes", "--json")
    assert (done.status, outcomes(done)) == (0, {leak.pid: "terminated"})
    assert not leak.is_there
    assert healthy.is_there


def test_a_policy_that_only_observes_is_not_enforced(stage: Stage, home: Path) -> None:
    leak = stage.session(LEAK)
    path = home / "observe.json"
    path.write_text(json.dumps(policy(rule(idle_for="1ms"), mode="observe")))
    done = reap(home, uri(stage), "--policy", str(path), "--enforce", "--yes")
    assert (done.status, leak.is_there) == (1, True)
    assert "run again with mode: enforce in the policy." in fold(done.out)
    path.write_text(json.dumps(policy(rule(idle_for="1ms"), mode="off")))
    off = reap(home, uri(stage), "--policy", str(path), "--enforce", "--yes")
    assert (off.status, off.out) == (2, "")
    assert "mode: is off; write observe or enforce" in off.err


def test_limits_of_a_run_and_of_a_target_hold(stage: Stage, home: Path) -> None:
    leaks = stage.sessions(4)
    path = home / "limited.json"
    path.write_text(json.dumps(policy(rule(idle_for="1ms"), limits={"max_per_run": 1})))
    done = reap(home, uri(stage), "--policy", str(path), "--enforce", "--yes", "--json")
    assert done.status == 1
    assert sorted(outcomes(done).values()) == ["spared"] * 3 + ["terminated"]
    assert len(stage.survivors(leaks)) == 3


def test_reap_says_which_protection_rests_on_its_own_role(
    stage: Stage, home: Path, rules: str
) -> None:
    own = stage.sessions(2, LEAK, role=REAPER)
    done = reap(home, uri(stage), "--policy", rules, "--enforce", "--yes")
    assert done.out.startswith("QUIET")
    assert f"--role {REAPER} works on them" in done.err
    assert len(stage.survivors(own)) == 2
    done = reap(home, uri(stage), "--policy", rules, "--role", REAPER, "--enforce", "--yes")
    assert done.status == 0, done
    assert stage.survivors(own) == []


# -- explain ---------------------------------------------------------------------------------------


def test_explain_shows_every_session_and_the_nearest_miss(
    stage: Stage, home: Path, rules: str
) -> None:
    leak, idle = stage.session(LEAK), stage.session(IDLE, application_name="web")
    done = run(home, "explain", uri(stage), "--policy", rules)
    assert done.status == 1, done.err
    assert f"condemned  pid {leak.pid}" in done.out
    assert f"left  pid {idle.pid}  web@local" in done.out
    assert "nearest: leak" in done.out
    only = run(home, "explain", uri(stage), "--policy", rules, "--application", "w*")
    assert (only.status, f"pid {leak.pid}" in only.out) == (0, False)
    none = run(home, "explain", uri(stage), "--role", "nobody")
    assert (none.out, none.err) == ("", "No session matches.\n")
    names = ("--application", "web", "--state", IDLE)
    found = run(home, "explain", uri(stage), "--policy", rules, *names, "--json")
    assert outcomes(found) == {idle.pid: "left"}


# -- the application's own login --------------------------------------------------------------------


def test_an_application_ends_the_sessions_of_its_own_role_only(
    stage: Stage, home: Path, rules: str
) -> None:
    own, other = stage.sessions(2, LEAK, role="app"), stage.session(LEAK, "other")
    blind = reap(home, uri(stage, "app"), "--policy", rules, "--enforce", "--yes")
    assert blind.status == 2
    assert "--role app" in blind.err + blind.out
    explained = run(home, "explain", uri(stage, "app"))
    assert (explained.status, "--role app" in explained.err) == (2, True)
    assert len(stage.survivors(own)) == 2
    explained = run(
        home, "explain", uri(stage, "app"), "--policy", rules, "--role", "app", "--json"
    )
    assert outcomes(explained) == {each.pid: "condemned" for each in own}
    arguments = ("--policy", rules, "--role", "app", "--enforce", "--yes", "--json")
    done = reap(home, uri(stage, "app"), *arguments)
    assert (done.status, outcomes(done)) == (0, {each.pid: "terminated" for each in own})
    (target,) = json.loads(done.out)["targets"]
    slots = target["slots"]
    assert slots["used_after"] == slots["used_before"] - 2  # both count the hidden ones, too
    assert stage.survivors(own) == []
    assert other.is_there


def test_a_reaper_ends_the_sessions_of_one_role(stage: Stage, home: Path, rules: str) -> None:
    wanted, other = stage.session(LEAK, "app"), stage.session(LEAK, "other")
    arguments = ("--policy", rules, "--role", "app", "--enforce", "--yes", "--json")
    done = reap(home, uri(stage), *arguments)
    assert outcomes(done) == {wanted.pid: "terminated"}
    assert other.is_there


def test_another_roles_sessions_need_sight(stage: Stage, home: Path, rules: str) -> None:
    other = stage.session(LEAK, "other")
    stage.role("app")
    done = reap(home, uri(stage, "app"), "--policy", rules, "--role", "other")
    assert done.status == 2
    assert "GRANT pg_read_all_stats" in done.err + done.out
    assert other.is_there


# -- a full server ---------------------------------------------------------------------------------


def test_a_full_server_is_explained_with_sql_that_frees_it(
    own_server: Callable[..., Stage], home: Path
) -> None:
    stage = own_server({"max_connections": "8", "superuser_reserved_connections": "2"})
    stage.role("app")
    leaks = stage.fill()
    stage.root.run("SET ROLE postgres")
    done = run(home, "top", uri(stage, "app"), "--wait", "200ms")
    assert done.status == 2
    assert "Trying again for 200ms" in done.err
    assert "the leaks may be younger: lower the 5 minutes" in done.err
    assert "--wait 10m" in done.err
    (statement,) = [line for line in done.err.splitlines() if "pg_terminate_backend" in line]
    stage.root.run(statement.strip().replace("5 minutes", "0 minutes"))
    until(lambda: not stage.survivors(leaks), "the statement has ended the application's sessions")
    assert top(home, uri(stage, "app"))["role"] == "app"


def test_the_owner_frees_a_full_server_through_reserved_slots(
    own_server: Callable[..., Stage], home: Path, rules: str
) -> None:
    stage = own_server({"max_connections": "8", "superuser_reserved_connections": "2"})
    stage.role("owner", "SUPERUSER")
    leaks = stage.fill()
    done = reap(home, uri(stage, "owner"), "--policy", rules, "--enforce", "--yes")
    assert done.status == 0, done
    assert done.out.startswith("RESOLVED")
    assert stage.survivors(leaks) == []


# -- check, record and replay ----------------------------------------------------------------------


def test_check_prints_the_sql_that_fixes_each_shortcoming(stage: Stage, home: Path) -> None:
    done = run(home, "check", uri(stage))
    assert done.status == 1
    assert "Recommendations" in done.out
    assert "ALTER " in done.out
    stage.role("app")
    done = run(home, "check", uri(stage, "app"))
    assert done.status == 1
    assert 'GRANT pg_read_all_stats TO "app"' in done.out


def test_a_recording_is_replayed_offline(stage: Stage, home: Path, rules: str) -> None:
    leak = stage.session(LEAK, query="SELECT 'cAnArY'")
    done = run(home, "record", uri(stage))
    assert done.status == 0, done.err
    assert "cAnArY" not in done.out
    recording = home / "recording.json"
    recording.write_text(done.out)
    replayed = run(home, "replay", str(recording), "--policy", rules)
    assert f"{leak.pid} " in replayed.out
    assert "condemned by leak" in replayed.out
    differences = run(home, "replay", str(recording), "--policy", rules, "--against", "")
    assert differences.out.splitlines()[-1].startswith("1 of ")


def test_the_command_leaves_no_session_behind(stage: Stage, home: Path, rules: str) -> None:
    before = stage.clients
    top(home, uri(stage))
    reap(home, uri(stage), "--policy", rules)
    run(home, "check", uri(stage))
    until(lambda: stage.clients <= before, "every session of the command has ended")
