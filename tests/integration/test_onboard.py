"""`session-reaper onboard` on real servers: the role, the secret, and a fault at each step."""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from select import select
from signal import Signals
from typing import TYPE_CHECKING, Any

import pexpect
import pytest
from botocore.exceptions import ClientError
from pg8000.native import Connection, DatabaseError
from session_reaper.deadline import Deadline
from session_reaper.errors import TargetError
from session_reaper.postgres.server import Server
from session_reaper_cli.connections.secret import find_secret_target

from infra.local.aws import REGION
from infra.local.certificates import make_tls
from tests.integration.aws_faults import Fault, Proxy, aws_proxy
from tests.integration.cli import Done, finish, on_terminal, press_ctrl_c, run, uri
from tests.integration.stage import LEAK, PASSWORD, REAPER, ROLE_FILE, Stage, until
from tests.integration.wire import Impostor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from threading import Event

TAG = "session-reaper=prod"
OWNER = "owner"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def bare(own_server: Callable[..., Stage]) -> Stage:
    """A server without the reaper's role, whose log has every statement."""
    stage = own_server({"log_statement": "all"})
    stage.root.run(f"DROP ROLE {REAPER}")
    stage.role(OWNER, "SUPERUSER")
    return stage


@pytest.fixture
def proxy(cloud: object) -> Iterator[Proxy]:  # noqa: ARG001 -- the stand-in must run
    with aws_proxy() as made:
        yield made


def onboard(stage: Stage, home: Path, *arguments: str, **environ: str) -> Done:
    name = () if "--name" in arguments else ("--name", "orders")
    tag = () if {"--tag", "--remove"} & set(arguments) else ("--tag", TAG)
    return run(home, "onboard", uri(stage, OWNER), *name, *tag, *arguments, **environ)


def succeed(stage: Stage, home: Path, *arguments: str, **environ: str) -> Done:
    done = onboard(stage, home, *arguments, **environ)
    assert done.status in (0, 1), done.err
    return done


def secret(stage: Stage, name: str = "orders") -> dict[str, Any]:
    text = stage.aws.secrets.get_secret_value(SecretId=name)["SecretString"]
    return json.loads(text)  # type: ignore[no-any-return]


def tags(stage: Stage) -> dict[str, str]:
    found = stage.aws.secrets.describe_secret(SecretId="orders").get("Tags", [])
    return {tag["Key"]: tag["Value"] for tag in found}


def has_secret(stage: Stage) -> bool:
    with suppress(ClientError):
        return "DeletedDate" not in stage.aws.secrets.describe_secret(SecretId="orders")
    return False


def has_role(stage: Stage, role: str = REAPER) -> bool:
    return bool(stage.root.run("SELECT FROM pg_roles WHERE rolname = :role", role=role))


def logs_in(stage: Stage, password: str, role: str = REAPER) -> bool:
    where = {"host": stage.server.host, "port": stage.server.port, "ssl_context": False}
    try:
        Connection(role, password=password, database="postgres", **where).close()
    except DatabaseError:
        return False
    return True


def works(stage: Stage) -> bool:
    """Whether the secret has the tag, and its login works as the function reads it."""
    try:
        Server.connect(find_secret_target("orders", Deadline(60)), Deadline(60)).close()
    except TargetError:
        return False
    return tags(stage) == {"session-reaper": "prod"}


def end_owners_session(stage: Stage) -> None:
    own = "FROM pg_stat_activity WHERE usename = :role"
    stage.root.run(f"SELECT pg_terminate_backend(pid) {own}", role=OWNER)
    until(lambda: not stage.root.run(f"SELECT {own}", role=OWNER), "the owner's session is gone")


# -- the first run ---------------------------------------------------------------------------------


@pytest.mark.every_major
def test_one_command_creates_what_the_function_needs(bare: Stage, home: Path) -> None:
    done = succeed(bare, home)
    assert f"role {REAPER} is created" in done.err
    assert tags(bare) == {"session-reaper": "prod"}
    kept = secret(bare)
    assert kept["username"] == REAPER
    assert kept["sslmode"] == "disable"
    assert "WARNING: sslmode=disable" in done.err
    bare.monkeypatch.setenv("TARGET_SECRET_TAG", TAG)
    leak = bare.session(LEAK)
    assert bare.reap().outcomes() == {leak.pid: "terminated"}


@pytest.mark.every_major
def test_the_password_is_in_no_output_and_in_no_log_of_the_server(bare: Stage, home: Path) -> None:
    done = succeed(bare, home)
    rotated = succeed(bare, home, "--rotate")
    log = bare.server.log.read_text()
    assert f'ALTER ROLE "{REAPER}" PASSWORD' in log
    for version in bare.aws.secrets.list_secret_version_ids(SecretId="orders")["Versions"]:
        value = bare.aws.secrets.get_secret_value(SecretId="orders", VersionId=version["VersionId"])
        password = json.loads(value["SecretString"])["password"]
        for text in (log, done.out, done.err, rotated.out, rotated.err):
            assert password not in text
    assert PASSWORD not in done.out + done.err


@pytest.mark.every_major
def test_a_second_run_changes_nothing(bare: Stage, home: Path) -> None:
    succeed(bare, home)
    versions = bare.aws.secrets.describe_secret(SecretId="orders")["VersionIdsToStages"]
    verifier = bare.root.run("SELECT rolpassword FROM pg_authid WHERE rolname = :r", r=REAPER)
    again = succeed(bare, home)
    assert "the password in the secret still works" in again.err
    assert "unchanged" in again.err
    assert bare.aws.secrets.describe_secret(SecretId="orders")["VersionIdsToStages"] == versions
    assert verifier == bare.root.run(
        "SELECT rolpassword FROM pg_authid WHERE rolname = :r", r=REAPER
    )


def test_a_dry_run_shows_sql_and_calls_and_changes_nothing(bare: Stage, home: Path) -> None:
    done = onboard(bare, home, "--dry-run")
    assert done.status == 0, done.err
    assert f"CREATE ROLE {REAPER}" in done.out
    assert "SCRAM-SHA-256$…" in done.out
    assert "CreateSecret Name=orders" in done.out
    assert "TagResource" in done.out
    assert PASSWORD not in done.out
    assert not has_role(bare)
    assert not has_secret(bare)


@pytest.mark.every_major
def test_another_role_gets_the_rights_of_the_role_file(bare: Stage, home: Path) -> None:
    succeed(bare, home, "--role", "reaper_two")
    assert not has_role(bare)
    ((limit, settings),) = bare.root.run(
        "SELECT rolconnlimit, rolconfig FROM pg_roles WHERE rolname = 'reaper_two'"
    )
    assert limit == 5
    assert "search_path=pg_catalog" in settings
    assert works(bare)


def test_keys_that_others_wrote_stay_in_the_secret(bare: Stage, home: Path) -> None:
    succeed(bare, home)
    bare.aws.secrets.put_secret_value(
        SecretId="orders", SecretString=json.dumps(secret(bare) | {"fallback_secret": "master"})
    )
    succeed(bare, home, "--rotate")
    assert secret(bare)["fallback_secret"] == "master"  # noqa: S105 -- a name


# -- refusals --------------------------------------------------------------------------------------


def test_secrets_and_roles_of_others_are_left_alone(bare: Stage, home: Path) -> None:
    bare.role("app")
    bare.aws.put_secret("of-app", bare.secret(username="app"))
    bare.aws.put_secret("elsewhere", bare.secret(host="other.example"))
    bare.aws.put_secret("text", "postgres://a:b@c/d")
    cases = [
        (("--name", "of-app"), "is for the role app"),
        (("--name", "elsewhere"), "is for other.example:"),
        (("--name", "text"), "must be a JSON object"),
        (("--role", OWNER), "connect as the owner"),
        (("--role", "app"), "something else may use it"),
        (("--role", "postgres"), "is a superuser"),
        (("--role", 'a"b'), "lower case letters"),
        (("--iam",), "verify-full"),
        (("--rotate", "--remove"), "cannot be combined"),
        (("--tag", "a=b,c"), "letters, digits, spaces"),
    ]
    for arguments, words in cases:
        done = onboard(bare, home, *arguments)
        assert done.status == 2, arguments
        assert words in done.err, arguments
    assert not has_role(bare)
    assert not has_secret(bare)
    assert logs_in(bare, PASSWORD, "app")


@pytest.mark.parametrize("other", [{"username": "app"}, {"host": "other.example"}])
def test_a_deleted_secret_of_others_stays_deleted(
    bare: Stage, home: Path, other: dict[str, str]
) -> None:
    bare.aws.put_secret("orders", bare.secret(**other))
    bare.aws.secrets.delete_secret(SecretId="orders", RecoveryWindowInDays=30)
    done = onboard(bare, home)
    assert done.status == 2
    assert "exists, and is for" in done.err
    assert f"the role {REAPER} does not exist" in done.err
    assert "the secret orders is unchanged" in done.err
    assert not has_secret(bare)
    bare.aws.secrets.restore_secret(SecretId="orders")
    assert secret(bare).items() >= other.items()


def test_ctrl_c_at_the_password_changes_nothing(bare: Stage, home: Path) -> None:
    without = uri(bare, OWNER).replace(f":{PASSWORD}@", "@")
    terminal = on_terminal(home, "onboard", without, "--name", "orders")
    terminal.expect_exact(f"Password of {OWNER} on ")
    press_ctrl_c(terminal)
    last = "Stopped. The role and the secret are unchanged."
    assert (terminal.before or "").rstrip().endswith(last)
    assert terminal.exitstatus == 130
    assert not has_role(bare)
    assert not has_secret(bare)


def test_an_owner_without_rights_leaves_nothing(bare: Stage, home: Path) -> None:
    bare.role("guest")
    done = run(home, "onboard", uri(bare, "guest"), "--name", "orders")
    assert done.status == 2
    assert f"the role {REAPER} does not exist" in done.err
    assert "the secret orders does not exist" in done.err
    assert "guest may not do this. Connect as a superuser, the master user" in done.err
    assert not has_secret(bare)


@pytest.mark.majors(16, 99)
def test_an_owner_may_not_change_a_role_that_another_one_created(bare: Stage, home: Path) -> None:
    bare.root.run(ROLE_FILE.read_text())
    bare.role("avnadmin", "CREATEROLE")
    done = run(home, "onboard", uri(bare, "avnadmin"), "--name", "orders")
    assert done.status == 2
    assert f"or as the role that created {REAPER}" in done.err
    assert not has_secret(bare)


def test_a_secret_in_another_region_than_the_server_gets_a_warning(bare: Stage, home: Path) -> None:
    here = f"{bare.server.host}:{bare.server.port}"
    host = "orders.abc123.us-west-2.rds.amazonaws.com"
    own = uri(bare, OWNER).replace(here, f"{host}:5432")
    done = run(home, "onboard", own, "--name", "orders", "--via", here, "--dry-run")
    assert done.status == 0, done.err
    assert f"the server is in us-west-2, and the secret in {REGION}" in done.err


def test_a_second_secret_for_the_role_is_refused(bare: Stage, home: Path) -> None:
    """Its new password would break the first one."""
    succeed(bare, home)
    done = onboard(bare, home, "--name", "again")
    assert done.status == 2
    assert "write --name orders" in done.err
    assert works(bare)


@pytest.mark.parametrize("faults", [[], [Fault()]], ids=["listed", "not listed"])
def test_an_existing_role_gets_a_password_and_a_warning(
    bare: Stage, home: Path, proxy: Proxy, faults: list[Fault]
) -> None:
    bare.root.run(ROLE_FILE.read_text())
    proxy.faults["ListSecrets"] = faults
    done = succeed(bare, home, AWS_ENDPOINT_URL=proxy.url)
    assert proxy.faults["ListSecrets"] == []
    assert "any other secret with its password no longer works" in done.err
    assert works(bare)


@pytest.mark.every_major
@pytest.mark.majors(16, 99)
def test_a_warning_of_the_role_file_is_shown(bare: Stage, home: Path) -> None:
    """Aiven's admin may not pass on every right."""
    admin = bare.role("avnadmin", "CREATEROLE")
    bare.root.run(f"GRANT pg_read_all_stats TO {admin} WITH ADMIN OPTION")
    done = run(home, "onboard", uri(bare, admin), "--name", "orders", "--tag", TAG)
    assert done.status == 1, done.err
    assert "terminates only those of roles that it is a member of" in done.err
    assert works(bare)
    assert run(home, "onboard", uri(bare, admin), "--name", "orders", "--remove").status == 0


# -- TLS and IAM -----------------------------------------------------------------------------------


@pytest.mark.every_major
@pytest.mark.tls
def test_the_secret_gets_the_tls_settings_of_the_uri_and_keeps_the_stricter_ones(
    own_server: Callable[..., Stage], home: Path
) -> None:
    tls = make_tls(home)
    stage = own_server(tls=tls)
    stage.role(OWNER, "SUPERUSER")
    verified = {"sslmode": "verify-full", "sslrootcert": str(tls.authority)}
    for options in (verified, {"sslmode": "require"}):
        done = run(home, "onboard", uri(stage, OWNER, **options), "--name", "orders", "--tag", TAG)
        assert done.status in (0, 1), done.err
        assert ("WARNING: sslmode=require" in done.err) == (options["sslmode"] == "require")
        assert secret(stage)["sslmode"] == "verify-full"
        assert secret(stage)["sslrootcert"] == tls.authority.read_text()
    assert works(stage)


@pytest.mark.every_major
@pytest.mark.tls
def test_with_iam_the_secret_has_no_password_and_without_it_one_again(
    own_server: Callable[..., Stage], home: Path
) -> None:
    tls = make_tls(home)
    stage = own_server(tls=tls)
    stage.role(OWNER, "SUPERUSER")
    owner = uri(stage, OWNER, sslmode="verify-full", sslrootcert=str(tls.authority))
    command = ("onboard", owner, "--name", "orders", "--tag", TAG)
    assert "only servers of RDS and Aurora" in run(home, *command, "--iam").err
    stage.role("rds_iam")
    members = "SELECT pg_has_role('session_reaper', 'rds_iam', 'MEMBER')"
    for _ in range(2):
        done = run(home, *command, "--iam")
        assert done.status == 1, done.err
        assert "IamDatabaseUser=session_reaper" in done.err
        assert secret(stage)["auth"] == "iam"
        assert "password" not in secret(stage)
        assert stage.root.run(members) == [[True]]
    run(home, *command)
    assert stage.root.run(members) == [[False]]
    assert works(stage)


# -- through a tunnel ------------------------------------------------------------------------------


def test_through_a_tunnel_the_secret_names_the_servers_own_endpoint(
    bare: Stage, home: Path
) -> None:
    here = f"{bare.server.host}:{bare.server.port}"
    own = uri(bare, OWNER).replace(here, "orders.example:5433")
    command = ("onboard", own, "--name", "orders", "--tag", TAG, "--via", here)
    for arguments in ((), ("--rotate",)):
        done = run(home, *command, *arguments)
        assert done.status == 1, done.err
        assert (secret(bare)["host"], secret(bare)["port"]) == ("orders.example", 5433)
        assert logs_in(bare, secret(bare)["password"])
        assert tags(bare) == {"session-reaper": "prod"}
    versions = bare.aws.secrets.describe_secret(SecretId="orders")["VersionIdsToStages"]
    assert "the password in the secret still works" in run(home, *command).err
    assert bare.aws.secrets.describe_secret(SecretId="orders")["VersionIdsToStages"] == versions
    shown = run(home, "top", "--secret", "orders", "--via", here)
    assert shown.status == 0, shown.err
    for wrong in ("localhost", "localhost:99999", ":1"):
        assert "write HOST:PORT" in run(home, "top", "--via", wrong).err


@pytest.mark.tls
def test_through_a_tunnel_the_certificate_must_name_the_servers_own_host(
    own_server: Callable[..., Stage], home: Path
) -> None:
    tls = make_tls(home)  # for localhost and 127.0.0.1
    stage = own_server(tls=tls)
    stage.role(OWNER, "SUPERUSER")
    here = f"127.0.0.1:{stage.server.port}"
    own = uri(stage, OWNER, sslmode="verify-full", sslrootcert=str(tls.authority))
    rest = ("--name", "orders", "--via", here)
    done = run(home, "onboard", own.replace(here, "orders.example:5433"), *rest)
    assert done.status == 2
    assert "orders.example" in done.err
    assert not has_secret(stage)
    done = run(home, "onboard", own.replace(here, "localhost:5433"), *rest)
    assert done.status == 1, done.err
    assert secret(stage)["host"] == "localhost"


def test_a_secret_that_names_the_tunnels_end_is_repaired(bare: Stage, home: Path) -> None:
    done = succeed(bare, home)
    here = f"{bare.server.host}:{bare.server.port}"
    assert f"--via {here} if that is a tunnel" in done.err
    own = uri(bare, OWNER).replace(here, "orders.example:5433")
    done = run(home, "onboard", own, "--name", "orders", "--tag", TAG, "--via", here)
    assert done.status == 1, done.err
    assert secret(bare)["host"] == "orders.example"


# -- rotation --------------------------------------------------------------------------------------


@pytest.mark.every_major
def test_a_rotation_replaces_the_password(bare: Stage, home: Path) -> None:
    succeed(bare, home)
    old = secret(bare)["password"]
    succeed(bare, home, "--rotate")
    new = secret(bare)["password"]
    assert new != old
    assert not logs_in(bare, old)
    assert works(bare)


# -- a fault at each step --------------------------------------------------------------------------

FIRST_CALLS = ["DescribeSecret", "CreateSecret", "GetSecretValue", "TagResource"]


@pytest.mark.parametrize("call", FIRST_CALLS)
@pytest.mark.parametrize("is_performed", [pytest.param(False, marks=pytest.mark.thorough), True])
def test_the_next_run_repairs_a_first_run_that_aws_interrupted(
    bare: Stage, home: Path, proxy: Proxy, call: str, *, is_performed: bool
) -> None:
    proxy.faults[call] = [Fault(is_performed=is_performed)]
    done = onboard(bare, home, AWS_ENDPOINT_URL=proxy.url)
    assert done.status == 2
    assert "AccessDeniedException" in done.err
    assert PASSWORD not in done.err
    if call == "CreateSecret":
        state = "is created or changed" if is_performed else "does not exist"
        assert f"the role {REAPER} does not exist" in done.err
        assert f"the secret orders {state}" in done.err
        assert not has_role(bare)
    succeed(bare, home)
    assert works(bare)


def test_the_next_run_repairs_a_first_run_that_the_server_interrupted(
    bare: Stage, home: Path, proxy: Proxy
) -> None:
    proxy.faults["CreateSecret"] = [
        Fault(is_performed=True, is_refused=False, then=lambda: end_owners_session(bare))
    ]
    done = onboard(bare, home, AWS_ENDPOINT_URL=proxy.url)
    assert done.status == 2
    assert f"the role {REAPER} does not exist" in done.err
    assert not tags(bare)  # so the function does not see it
    kept = secret(bare)["password"]
    succeed(bare, home)
    assert secret(bare)["password"] == kept
    assert works(bare)


@pytest.mark.parametrize("is_performed", [False, True])
def test_a_rotation_that_aws_refuses_leaves_a_working_secret(
    bare: Stage, home: Path, proxy: Proxy, *, is_performed: bool
) -> None:
    succeed(bare, home)
    old = secret(bare)["password"]
    proxy.faults["PutSecretValue"] = [Fault(is_performed=is_performed)]
    done = onboard(bare, home, "--rotate", AWS_ENDPOINT_URL=proxy.url)
    assert done.status == 2
    assert f"the role {REAPER} is unchanged" in done.err
    assert "the secret orders is unchanged" in done.err
    assert secret(bare)["password"] == old
    assert works(bare)
    succeed(bare, home, "--rotate")
    assert works(bare)


@pytest.mark.every_major
def test_a_rotation_that_the_server_interrupts_leaves_a_working_secret(
    bare: Stage, home: Path, proxy: Proxy
) -> None:
    succeed(bare, home)
    old = secret(bare)["password"]
    proxy.faults["PutSecretValue"] = [
        Fault(is_performed=True, is_refused=False, then=lambda: end_owners_session(bare))
    ]
    done = onboard(bare, home, "--rotate", AWS_ENDPOINT_URL=proxy.url)
    assert done.status == 2
    assert "the secret orders is unchanged" in done.err
    assert secret(bare)["password"] == old
    assert works(bare)


def test_the_next_run_repairs_a_rotation_that_could_not_be_undone(
    bare: Stage, home: Path, proxy: Proxy
) -> None:
    succeed(bare, home)
    proxy.faults["PutSecretValue"] = [Fault(is_performed=True), Fault()]
    done = onboard(bare, home, "--rotate", AWS_ENDPOINT_URL=proxy.url)
    assert done.status == 2
    assert "the secret orders may be changed" in done.err
    assert not works(bare)
    again = succeed(bare, home)
    assert "the password of the secret again" in again.err
    assert works(bare)


def test_a_commit_whose_answer_is_lost_is_found_out(bare: Stage, home: Path) -> None:
    with Impostor(lose_answer_to_commit(bare.server.port)) as lossy:
        where = uri(bare, OWNER).replace(f":{bare.server.port}/", f":{lossy.port}/")
        for arguments in ((), ("--rotate",)):
            done = run(home, "onboard", where, "--name", "orders", "--tag", TAG, *arguments)
            assert done.status == 1, done.err
            assert logs_in(bare, secret(bare)["password"])
        done = run(home, "onboard", where, "--name", "orders", "--remove")
        assert done.status == 0, done.err
    assert not has_role(bare)
    assert not has_secret(bare)


def lose_answer_to_commit(port: int) -> Callable[[socket.socket, Event], None]:
    def answer(client: socket.socket, stop: Event) -> None:
        with socket.create_connection(("127.0.0.1", port)) as server:
            while not stop.is_set():
                for ready in select([client, server], [], [], 0.05)[0]:
                    data = ready.recv(65536)
                    if not data:
                        return
                    (client if ready is server else server).sendall(data)
                    if ready is client and b"COMMIT" in data:
                        server.recv(65536)
                        return

    return answer


def test_a_secret_is_not_tagged_before_its_login_works(bare: Stage, home: Path) -> None:
    hba = bare.server.socket_dir / "data" / "pg_hba.conf"
    allowed = hba.read_text()
    hba.write_text(f"host all {REAPER} 127.0.0.1/32 reject\n{allowed}")
    bare.root.run("SELECT pg_reload_conf()")
    until(lambda: refusal(bare) == "28000", "the role is rejected")
    done = onboard(bare, home)
    assert done.status == 2
    assert f"role {REAPER}: cannot connect" in done.err
    assert "does not have the tag" in done.err
    assert has_role(bare)
    assert not tags(bare)
    hba.write_text(allowed)
    bare.root.run("SELECT pg_reload_conf()")
    until(lambda: refusal(bare) == "28P01", "the role is not rejected")
    succeed(bare, home)
    assert works(bare)


def refusal(stage: Stage) -> str:
    with pytest.raises(DatabaseError) as refused:
        Connection(
            REAPER,
            password="wrong",  # noqa: S106 -- it must be refused
            database="postgres",
            host=stage.server.host,
            port=stage.server.port,
            ssl_context=False,
        )
    return str(refused.value.args[0]["C"])


# -- an interruption at each step ------------------------------------------------------------------


def interrupt(
    stage: Stage, home: Path, proxy: Proxy, call: str, *arguments: str, with_signal: Signals
) -> str:
    """Send a signal to the command while AWS answers a call; return what it said."""
    tag = () if "--remove" in arguments else ("--tag", TAG)
    terminal = on_terminal(
        home,
        *("onboard", uri(stage, OWNER), "--name", "orders", *tag, *arguments),
        AWS_ENDPOINT_URL=proxy.url,
        columns=300,
    )
    proxy.faults[call] = [
        Fault(is_performed=True, is_refused=False, then=lambda: terminal.kill(with_signal))
    ]
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert not proxy.faults[call], "the call was made"
    assert (terminal.exitstatus, terminal.signalstatus) in ((130, None), (None, with_signal))
    idle = "SELECT FROM pg_stat_activity WHERE usename = :role"
    until(lambda: not stage.root.run(idle, role=OWNER), "the owner's session is gone")
    return str(terminal.before)


def assert_stopped(said: str, *, is_begun: bool) -> None:
    """Assert that the last lines give the state, and say what to do."""
    lines = said.split()
    assert ("The state now:" in said) == is_begun
    end = "Stopped." if is_begun else "Stopped. The role and the secret are unchanged."
    assert said.rstrip().endswith(end)
    assert ("Run the same command again; it continues from there." in said) == is_begun
    assert "signalled" not in lines
    assert "cause" not in lines


@pytest.mark.parametrize(
    ("is_interrupted", "status", "advice"),
    [(True, 130, "Run the same command again"), (False, 2, "Fix the cause below, and run")],
)
def test_a_check_that_ends_early_leaves_the_secret_without_its_tag_and_says_so(  # noqa: PLR0913 -- fixtures
    bare: Stage, home: Path, proxy: Proxy, *, is_interrupted: bool, status: int, advice: str
) -> None:
    def lock() -> None:
        bare.root.run("BEGIN")
        bare.root.run("LOCK pg_catalog.pg_proc IN ACCESS EXCLUSIVE MODE")

    fault = Fault(is_performed=True, is_refused=False, then=lock)
    proxy.faults["GetSecretValue"] = [fault]
    terminal = on_terminal(
        home,
        *("onboard", uri(bare, OWNER), "--name", "orders", "--tag", TAG),
        AWS_ENDPOINT_URL=proxy.url,
        columns=300,
    )
    until(lambda: not proxy.faults["GetSecretValue"], "the secret is read")
    until(lambda: bare.root.run("SELECT FROM pg_locks WHERE NOT granted"), "the check waits")
    if is_interrupted:
        terminal.sendintr()
    else:
        check = "FROM pg_stat_activity WHERE usename = :role"
        bare.root.run(f"SELECT pg_terminate_backend(pid) {check}", role=REAPER)
    said, ended_with = finish(terminal)
    assert ended_with == status
    assert f"the role {REAPER} is created or changed" in said
    assert "the secret does not have the tag" in said
    assert advice in said
    bare.root.run("ROLLBACK")
    succeed(bare, home)
    assert works(bare)


SIGNALS = [pytest.param(Signals.SIGKILL, marks=pytest.mark.thorough), Signals.SIGINT]


@pytest.mark.thorough
@pytest.mark.parametrize("with_signal", SIGNALS)
@pytest.mark.parametrize("call", FIRST_CALLS)
def test_the_next_run_repairs_a_first_run_that_was_interrupted(
    bare: Stage, home: Path, proxy: Proxy, call: str, with_signal: Signals
) -> None:
    said = interrupt(bare, home, proxy, call, with_signal=with_signal)
    if with_signal is Signals.SIGINT:
        assert_stopped(said, is_begun=call != "DescribeSecret")
    succeed(bare, home)
    assert works(bare)


@pytest.mark.parametrize("with_signal", SIGNALS)
@pytest.mark.parametrize("call", ["GetSecretValue", "PutSecretValue"])
def test_the_next_run_repairs_a_rotation_that_was_interrupted(
    bare: Stage, home: Path, proxy: Proxy, call: str, with_signal: Signals
) -> None:
    succeed(bare, home)
    said = interrupt(bare, home, proxy, call, "--rotate", with_signal=with_signal)
    if with_signal is Signals.SIGINT:
        assert_stopped(said, is_begun=call == "PutSecretValue")
    # A killed command cannot take back the secret's new password; Ctrl-C leaves both as before.
    assert works(bare) == (with_signal is Signals.SIGINT or call != "PutSecretValue")
    succeed(bare, home)
    assert works(bare)


@pytest.mark.parametrize("with_signal", SIGNALS)
def test_the_next_run_repairs_a_removal_that_was_interrupted(
    bare: Stage, home: Path, proxy: Proxy, with_signal: Signals
) -> None:
    succeed(bare, home)
    said = interrupt(bare, home, proxy, "DeleteSecret", "--remove", with_signal=with_signal)
    if with_signal is Signals.SIGINT:
        assert_stopped(said, is_begun=True)
    assert has_role(bare)
    assert has_secret(bare) == (with_signal is Signals.SIGINT)
    succeed(bare, home, "--remove")
    assert not has_role(bare)
    assert not has_secret(bare)


# -- removal ---------------------------------------------------------------------------------------


@pytest.mark.every_major
def test_removal_takes_role_and_secret_away_and_a_later_run_brings_them_back(
    bare: Stage, home: Path
) -> None:
    succeed(bare, home)
    shown = onboard(bare, home, "--remove", "--dry-run")
    assert f'DROP ROLE "{REAPER}";' in shown.out
    assert "DeleteSecret SecretId=orders RecoveryWindowInDays=30" in shown.out
    assert has_secret(bare)
    for _ in range(2):
        done = onboard(bare, home, "--remove")
        assert done.status == 0, done.err
        assert not has_role(bare)
        assert not has_secret(bare)
    succeed(bare, home)
    assert works(bare)


@pytest.mark.parametrize("option", ["--remove", "--rotate"])
@pytest.mark.parametrize(
    ("name", "region"), [("order", REGION), ("orders", "us-east-1")], ids=["name", "region"]
)
def test_without_the_secret_an_existing_role_is_neither_removed_nor_rotated(
    bare: Stage, home: Path, name: str, region: str, option: str
) -> None:
    succeed(bare, home)
    shell = {"AWS_REGION": region, "AWS_DEFAULT_REGION": region}
    done = run(home, "onboard", uri(bare, OWNER), "--name", name, option, **shell)
    assert done.status == 2
    assert f"secret {name}: does not exist in {region}" in done.err
    assert works(bare)


@pytest.mark.parametrize("is_performed", [False, True])
def test_a_removal_that_aws_refuses_leaves_both(
    bare: Stage, home: Path, proxy: Proxy, *, is_performed: bool
) -> None:
    succeed(bare, home)
    proxy.faults["DeleteSecret"] = [Fault(is_performed=is_performed)]
    done = onboard(bare, home, "--remove", AWS_ENDPOINT_URL=proxy.url)
    assert done.status == 2
    assert f"the role {REAPER} is unchanged" in done.err
    assert works(bare)
    assert onboard(bare, home, "--remove").status == 0
    assert not has_role(bare)


def test_a_removal_that_the_server_interrupts_leaves_both(
    bare: Stage, home: Path, proxy: Proxy
) -> None:
    succeed(bare, home)
    proxy.faults["DeleteSecret"] = [
        Fault(is_performed=True, is_refused=False, then=lambda: end_owners_session(bare))
    ]
    done = onboard(bare, home, "--remove", AWS_ENDPOINT_URL=proxy.url)
    assert done.status == 2
    assert f"the role {REAPER} is unchanged" in done.err
    assert "the secret orders is unchanged" in done.err
    assert works(bare)


@pytest.mark.parametrize("arguments", [("--remove",), ()])
def test_the_next_run_repairs_a_removal_that_could_not_be_undone(
    bare: Stage, home: Path, proxy: Proxy, arguments: tuple[str, ...]
) -> None:
    succeed(bare, home)
    proxy.faults["DeleteSecret"] = [
        Fault(is_performed=True, is_refused=False, then=lambda: end_owners_session(bare))
    ]
    proxy.faults["RestoreSecret"] = [Fault()]
    done = onboard(bare, home, "--remove", AWS_ENDPOINT_URL=proxy.url)
    assert done.status == 2
    assert f"the role {REAPER} is unchanged" in done.err
    assert "the secret orders may be changed" in done.err
    assert has_role(bare)
    assert not has_secret(bare)
    succeed(bare, home, *arguments)
    if arguments:
        assert not has_role(bare)
        assert not has_secret(bare)
    else:
        assert works(bare)


@pytest.mark.parametrize("call", ["RestoreSecret", "PutSecretValue"])
@pytest.mark.parametrize("is_performed", [False, True])
def test_the_next_run_repairs_a_return_that_aws_interrupted(
    bare: Stage, home: Path, proxy: Proxy, call: str, *, is_performed: bool
) -> None:
    """A secret that is scheduled for deletion comes back with its role."""
    succeed(bare, home)
    succeed(bare, home, "--remove")
    proxy.faults[call] = [Fault(is_performed=is_performed)]
    done = onboard(bare, home, AWS_ENDPOINT_URL=proxy.url)
    assert done.status == 2
    assert f"the role {REAPER} does not exist" in done.err
    assert "the secret orders is unchanged" in done.err
    assert not has_role(bare)
    assert not has_secret(bare)
    succeed(bare, home)
    assert works(bare)


@pytest.mark.every_major
def test_a_role_that_other_objects_depend_on_is_not_removed(bare: Stage, home: Path) -> None:
    succeed(bare, home)
    bare.root.run(f"GRANT CONNECT ON DATABASE postgres TO {REAPER}")
    done = onboard(bare, home, "--remove")
    assert done.status == 2
    assert "DROP OWNED BY" in done.err
    assert works(bare)
