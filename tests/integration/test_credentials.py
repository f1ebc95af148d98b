"""Credentials over time: cached secrets, rotation, and IAM tokens."""

from __future__ import annotations

import json
import socket
import ssl
import struct
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest
from botocore.client import BaseClient
from pg8000.native import literal

from infra.local.certificates import make_tls
from infra.local.postgres import HOST
from tests.integration.endpoints import error_response, resolve_here
from tests.integration.stage import LEAK, PASSWORD, REAPER, policy
from tests.integration.wire import Impostor, Proxy, hang, pump, unused_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from threading import Event

    from infra.local.postgres import Tls
    from tests.integration.conftest import Output
    from tests.integration.stage import Run, Stage

SCHEDULED = {"source": "aws.scheduler", "detail-type": "Scheduled Event"}
NEW = "t0morrow"
FETCHES = ("GetSecretValue", "BatchGetSecretValue")


@pytest.fixture
def fetches(stage: Stage) -> list[str]:
    """The calls to Secrets Manager; clear it between runs."""
    call = BaseClient._make_api_call  # type: ignore[attr-defined] # noqa: SLF001 -- botocore's one way out
    fetched: list[str] = []

    def count(client: BaseClient, operation: str, arguments: dict[str, Any]) -> Any:  # noqa: ANN401
        if operation in FETCHES:
            fetched.append(operation)
        return call(client, operation, arguments)

    stage.monkeypatch.setattr(BaseClient, "_make_api_call", count)
    return fetched


def run_scheduled(stage: Stage, fetches: list[str]) -> tuple[Run, int]:
    """Return a scheduled run, and the number of its calls to Secrets Manager."""
    fetches.clear()
    run = stage.run(SCHEDULED)
    return run, len(fetches)


def password_is(stage: Stage, password: str) -> None:
    stage.root.run(f"ALTER ROLE {REAPER} PASSWORD {literal(password)}")


@pytest.fixture
def passwords(stage: Stage) -> Iterator[Callable[[str], None]]:
    """Change the role's password; the test's end restores it."""
    yield lambda password: password_is(stage, password)
    password_is(stage, PASSWORD)


def store(stage: Stage, name: str = "orders", **keys: object) -> None:
    text = json.dumps(stage.secret(**keys))
    stage.aws.secrets.put_secret_value(SecretId=name, SecretString=text)


def create_secrets(stage: Stage, way: str) -> None:
    """Create two secrets that the stack finds by name, by ARN or by tag."""
    for name in ("orders", "other"):
        stage.aws.put_secret(name, stage.secret())
        arn = stage.aws.secrets.describe_secret(SecretId=name)["ARN"]
        tags = [{"Key": "reap", "Value": "yes"}]
        stage.aws.secrets.tag_resource(SecretId=name, Tags=tags)  # type: ignore[arg-type] # as boto3 takes it
        if way == "tag":
            stage.monkeypatch.setenv("TARGET_SECRET_TAG", "reap=yes")
        else:
            stage.listed(arn if way == "ARN" else name)


@contextmanager
def rotate(stage: Stage, fetches: list[str], passwords: Callable[[str], None]) -> Iterator[Proxy]:
    """Rotate the password of a warm function's target after its last run."""
    with Proxy(stage.server.port) as proxy:
        stage.target(port=proxy.port)
        run_scheduled(stage, fetches)
        passwords(NEW)
        store(stage, port=proxy.port, password=NEW)
        yield proxy


# -- rotation -----------------------------------------------------------------------------------


def test_a_warm_scheduled_run_reads_no_secret(stage: Stage, fetches: list[str]) -> None:
    stage.target("orders")
    stage.target("other")
    run, number = run_scheduled(stage, fetches)
    assert (run.document["status"], number) == ("ok", 1)
    for _ in range(3):
        run, number = run_scheduled(stage, fetches)
        assert (run.document["status"], number) == ("ok", 0)


@pytest.mark.parametrize("way", ["name", "ARN", "tag"])
def test_after_a_rotation_the_secret_is_read_once_and_cached(
    stage: Stage, fetches: list[str], passwords: Callable[[str], None], way: str
) -> None:
    create_secrets(stage, way)
    run_scheduled(stage, fetches)
    passwords(NEW)
    for name in ("orders", "other"):
        store(stage, name, password=NEW)
    run, number = run_scheduled(stage, fetches)
    assert run.document["status"] == "ok", run.document
    assert number == 1, "one for the server"
    run, number = run_scheduled(stage, fetches)
    assert run.document["status"] == "ok"
    assert number == 0, "the new password was not cached: each run is refused once"


def test_after_a_rotation_the_server_refuses_once(
    stage: Stage, fetches: list[str], passwords: Callable[[str], None]
) -> None:
    with rotate(stage, fetches, passwords) as proxy:
        before = proxy.connections
        for _ in range(3):
            run, _ = run_scheduled(stage, fetches)
            assert run.document["status"] == "ok"
        assert proxy.connections == before + 1 + 3


def test_a_wrong_password_fails_with_a_hint_after_one_reread(
    stage: Stage, fetches: list[str], passwords: Callable[[str], None], output: Output
) -> None:
    with Proxy(stage.server.port) as proxy:
        stage.target(port=proxy.port)
        run_scheduled(stage, fetches)
        passwords(NEW)
        before = proxy.connections
        run, number = run_scheduled(stage, fetches)
        assert run.error()["code"] == "28P01"
        assert "rotation" in run.error()["hint"]
        assert number == 1
        assert proxy.connections == before + 1, "an unchanged password was tried again"
    assert PASSWORD not in output.readouterr().out


def test_a_new_but_wrong_password_is_tried_once(
    stage: Stage, fetches: list[str], passwords: Callable[[str], None], output: Output
) -> None:
    with Proxy(stage.server.port) as proxy:
        stage.target(port=proxy.port)
        run_scheduled(stage, fetches)
        passwords(NEW)
        store(stage, port=proxy.port, password="CANARY")  # noqa: S106 -- of nothing
        before = proxy.connections
        run, number = run_scheduled(stage, fetches)
        assert run.error()["code"] == "28P01"
        assert "rotation" in run.error()["hint"]
        assert (number, proxy.connections - before) == (1, 2)
        store(stage, port=proxy.port, password=NEW)  # corrected
        assert run_scheduled(stage, fetches)[0].document["status"] == "ok"
    assert "CANARY" not in output.readouterr().out


def test_if_the_secret_was_deleted_the_refused_password_is_reported(
    stage: Stage, fetches: list[str], passwords: Callable[[str], None]
) -> None:
    stage.target()
    run_scheduled(stage, fetches)
    passwords(NEW)
    stage.aws.secrets.delete_secret(SecretId="orders", ForceDeleteWithoutRecovery=True)
    run, _ = run_scheduled(stage, fetches)
    assert run.error()["code"] == "28P01"


def test_if_the_secret_became_invalid_the_refused_password_is_reported(
    stage: Stage, fetches: list[str], passwords: Callable[[str], None]
) -> None:
    stage.target()
    run_scheduled(stage, fetches)
    passwords(NEW)
    stage.aws.secrets.put_secret_value(SecretId="orders", SecretString="{}")
    assert run_scheduled(stage, fetches)[0].error()["code"] == "28P01"


def test_a_rotation_rereads_only_its_own_secret(
    stage: Stage, fetches: list[str], passwords: Callable[[str], None]
) -> None:
    stage.role("second", "IN ROLE pg_read_all_stats, pg_signal_backend")
    stage.target("orders")
    stage.target("other", username="second")
    run_scheduled(stage, fetches)
    passwords(NEW)
    store(stage, password=NEW)
    run, number = run_scheduled(stage, fetches)
    assert (run.document["status"], number) == ("ok", 1)


def test_a_moved_server_is_found_by_one_reread(stage: Stage, fetches: list[str]) -> None:
    stage.target(port=unused_port())
    assert run_scheduled(stage, fetches)[0].error()["code"] == "connection"
    store(stage)
    run, number = run_scheduled(stage, fetches)
    assert (run.target()["status"], number) == ("ok", 1)


def test_a_corrected_host_is_used_after_a_reread(stage: Stage, fetches: list[str]) -> None:
    stage.target(host="no-such-host.invalid")
    assert run_scheduled(stage, fetches)[0].error()["code"] == "dns"
    store(stage)
    assert run_scheduled(stage, fetches)[0].target()["status"] == "ok"


def test_a_manual_run_bypasses_the_cache_and_updates_it(
    stage: Stage, fetches: list[str], passwords: Callable[[str], None]
) -> None:
    with rotate(stage, fetches, passwords) as proxy:
        before = proxy.connections
        fetches.clear()
        assert stage.run({"policy": policy()}).document["status"] == "ok"
        assert len(fetches) == 1
        assert proxy.connections == before + 1, "the old password was tried first"
        assert run_scheduled(stage, fetches)[1] == 0, "the manual run did not update the cache"


# -- many secrets -------------------------------------------------------------------------------


def test_secrets_found_by_tag_are_read_in_batches_and_keep_their_own_errors(
    stage: Stage,
) -> None:
    call = BaseClient._make_api_call  # type: ignore[attr-defined] # noqa: SLF001 -- as above
    asked: list[tuple[str, int]] = []

    def delete_listed(client: BaseClient, operation: str, arguments: dict[str, Any]) -> Any:  # noqa: ANN401
        """Delete a secret as soon as it was listed."""
        if operation in FETCHES:
            asked.append((operation, len(arguments.get("SecretIdList", [""]))))
        answer = call(client, operation, arguments)
        if operation == "ListSecrets":
            stage.aws.secrets.delete_secret(SecretId="s07", RecoveryWindowInDays=7)
        return answer

    for n in range(44):
        stage.aws.secrets.create_secret(
            Name=f"s{n:02}",
            SecretString=json.dumps(stage.secret(engine=f"engine-of-{n:02}")),
            Tags=[{"Key": "reap", "Value": "yes"}],
        )
    healthy = json.dumps(stage.secret())
    tags = [{"Key": "reap", "Value": "yes"}]
    stage.aws.secrets.create_secret(Name="healthy", SecretString=healthy, Tags=tags)  # type: ignore[arg-type] # as above
    stage.monkeypatch.setenv("TARGET_SECRET_TAG", "reap=yes")
    stage.monkeypatch.setattr(BaseClient, "_make_api_call", delete_listed)
    leak = stage.session(LEAK)

    run = stage.reap()

    assert sorted(asked) == [("BatchGetSecretValue", n) for n in (5, 20, 20)]
    assert run.document["totals"]["targets"] == 45
    assert run.document["totals"]["failed"] == 44
    for n in range(44):
        message = run.error(f"s{n:02}")["message"]
        expected = "InvalidRequestException" if n == 7 else f"engine engine-of-{n:02} is not"
        assert expected in message, message
    assert "restore" in run.error("s07")["hint"]
    assert run.outcomes("healthy") == {leak.pid: "terminated"}


# -- IAM ----------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Rds:
    """An endpoint of RDS, which accepts a token as a clear-text password over TLS.

    It forwards to the real server's Unix socket, which trusts every login. Without `tls` it accepts
    tokens in plaintext, as RDS never does.
    """

    unix_sock: str
    tls: Tls | None
    refusal: Callable[[str], bytes] | None = None  # the response to a token
    later: Callable[[str], bytes] | None = None  # or the response to the first statement
    full: str = ""  # the role that gets no slot
    tokens: list[str] = field(default_factory=list)
    plaintext: bytes = b""  # all bytes received outside of TLS

    def answer(self, connection: socket.socket, stop: Event) -> None:
        if self.tls is not None:
            self.plaintext += connection.recv(8)
            connection.sendall(b"S")
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.tls.certificate, self.tls.key)
            try:
                connection = context.wrap_socket(connection, server_side=True)
            except (ssl.SSLError, OSError):
                return
        with connection, suppress(ssl.SSLError):
            self._sign_in(connection, stop)

    def _sign_in(self, connection: socket.socket, stop: Event) -> None:
        startup = _message(connection, typed=False)
        role = startup[8:].split(b"\0")[1].decode()
        if role == self.full:
            connection.sendall(error_response("53300", "remaining connection slots are reserved"))
            return
        connection.sendall(b"R" + struct.pack("!ii", 8, 3))
        token = _message(connection, typed=True)[5:-1].decode()
        self.tokens.append(token)
        if self.tls is None:
            self.plaintext += token.encode()
        if self.refusal is not None:
            connection.sendall(self.refusal(token))
            return
        if self.later is not None:
            connection.sendall(b"R" + struct.pack("!ii", 8, 0) + b"Z" + struct.pack("!i", 5) + b"I")
            connection.recv(65536)
            connection.sendall(self.later(token) + b"Z" + struct.pack("!i", 5) + b"I")
            hang(connection, stop)
            return
        with socket.socket(socket.AF_UNIX) as behind:
            behind.connect(self.unix_sock)
            behind.sendall(startup)
            pump(connection, behind, stop)


def _message(connection: socket.socket, *, typed: bool) -> bytes:
    """Read one message of the protocol."""
    head = _read_exactly(connection, 5 if typed else 4)
    (length,) = struct.unpack("!i", head[-4:])
    return head + _read_exactly(connection, length - 4)


def _read_exactly(connection: socket.socket, number: int) -> bytes:
    data = b""
    while len(data) < number:
        more = connection.recv(number - len(data))
        if not more:
            raise ConnectionResetError
        data += more
    return data


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    return make_tls(tmp_path)


@pytest.fixture
def rds(stage: Stage, tls: Tls) -> Rds:
    return Rds(unix_sock=stage.server.unix_sock, tls=tls)


@pytest.fixture
def endpoint(rds: Rds) -> Iterator[Impostor]:
    with Impostor(rds.answer) as listening:
        yield listening


def iam(stage: Stage, endpoint: Impostor, rds: Rds, name: str = "orders", **keys: object) -> str:
    assert rds.tls is not None
    values = {"auth": "iam", "password": None, "sslmode": None, "port": endpoint.port}
    authority = rds.tls.authority.read_text()
    return stage.target(name, **{**values, "sslrootcert": authority, **keys})


def assert_token(token: str, host: str, port: int, region: str) -> None:
    parts = urlsplit(f"https://{token}")
    said = {key: value for key, (value,) in parse_qs(parts.query).items()}
    assert (parts.hostname, parts.port, parts.path) == (host, port, "/")
    assert (said["Action"], said["DBUser"]) == ("connect", REAPER)
    assert said["X-Amz-Expires"] == "900"
    assert f"/{region}/rds-db/aws4_request" in said["X-Amz-Credential"]
    assert len(said["X-Amz-Signature"]) == 64


def assert_kept(output: Output, run: Run, tokens: list[str]) -> None:
    """Assert that logs, metrics, return value and emails contain neither a token nor its signature."""
    assert tokens
    logged = output.readouterr()
    emails = [email.subject + email.body for email in run.emails]
    everything = "\n".join([logged.out, logged.err, json.dumps(run.document), *emails])
    assert "run_id" in everything
    for token in tokens:
        assert token not in everything
        assert token.rpartition("=")[2] not in everything  # the signature
    assert "X-Amz" not in everything


@pytest.mark.parametrize("keys", [{}, {"password": "not-used"}, {"auth": None}], ids=repr)
def test_a_token_is_sent_over_tls_in_place_of_the_password(
    stage: Stage, rds: Rds, endpoint: Impostor, output: Output, keys: dict[str, Any]
) -> None:
    leak = stage.session(LEAK)
    iam(stage, endpoint, rds, **keys)
    run = stage.reap()
    assert run.outcomes() == {leak.pid: "terminated"}, run.document
    assert len(rds.tokens) == 1
    assert_token(rds.tokens[0], HOST, endpoint.port, "eu-central-1")
    assert rds.plaintext == b"\x00\x00\x00\x08\x04\xd2\x16\x2f"  # SSLRequest
    assert_kept(output, run, rds.tokens)


def test_a_token_is_for_the_region_of_the_endpoint(
    stage: Stage, rds: Rds, endpoint: Impostor
) -> None:
    host = "orders.abc.us-west-2.rds.amazonaws.com"
    resolve_here(stage.monkeypatch, host)
    iam(stage, endpoint, rds, host=host, sslmode="verify-ca")
    assert stage.reap().target()["status"] == "ok"
    assert_token(rds.tokens[0], host, endpoint.port, "us-west-2")


@pytest.mark.parametrize("sslmode", ["require", "verify-ca"])
@pytest.mark.parametrize("auth", ["iam", None])
def test_a_token_is_not_sent_to_an_rds_endpoint_without_rdss_certificate(
    stage: Stage, rds: Rds, endpoint: Impostor, sslmode: str, auth: str | None
) -> None:
    host = "orders.abc.us-west-2.rds.amazonaws.com"
    resolve_here(stage.monkeypatch, host)
    iam(stage, endpoint, rds, host=host, sslmode=sslmode, auth=auth, sslrootcert=None)
    run = stage.reap()
    assert endpoint.connections
    assert rds.tokens == []
    assert run.error()["code"] == "tls"


@pytest.mark.parametrize("sslmode", ["require", "verify-ca"])
def test_outside_rds_a_token_needs_a_verified_connection(
    stage: Stage, rds: Rds, endpoint: Impostor, sslmode: str
) -> None:
    iam(stage, endpoint, rds, sslmode=sslmode, sslrootcert=None)
    run = stage.reap()
    assert endpoint.connections == 0
    assert run.error()["code"] == "secret"
    assert "auth iam needs a verified connection" in run.error()["message"]
    assert "Write sslmode verify-full" in run.error()["hint"]


def test_a_token_is_created_without_aws_and_its_secret_is_cached(
    stage: Stage, rds: Rds, endpoint: Impostor, fetches: list[str]
) -> None:
    iam(stage, endpoint, rds)
    assert run_scheduled(stage, fetches)[1] == 1
    run, number = run_scheduled(stage, fetches)
    assert (run.target()["status"], number) == ("ok", 0)
    assert len(rds.tokens) == 2


REFUSALS: dict[str, Callable[[str], bytes]] = {
    "RDS's own": lambda _: error_response(
        "28000", 'PAM authentication failed for user "session_reaper"'
    ),
    "a wrong password": lambda _: error_response("28P01", "password authentication failed"),
    "the token in the message": lambda token: error_response("28000", f"bad token {token}"),
    "the token twice": lambda token: error_response("28000", f"{token} {token}"),
    "the token beside the message": lambda token: error_response(
        "28000", "no", D=token, H=token, W=token
    ),
    "a notice": lambda token: error_response("01000", token, S="WARNING").replace(b"E", b"N", 1),
    "no role": lambda token: error_response("28000", f'role "{token}" does not exist'),
    "no database": lambda token: error_response("3D000", f'database "{token}" does not exist'),
    "no privilege": lambda token: error_response("42501", f"permission denied for {token}"),
    "no protocol": lambda token: b"X" + token.encode(),
    "an unknown method": lambda token: (
        b"R" + struct.pack("!ii", 8 + len(token), 9) + token.encode()
    ),
    "silence": lambda _: b"",
}


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
def test_a_token_that_a_server_repeats_on_refusal_is_not_shown(
    stage: Stage,
    rds: Rds,
    endpoint: Impostor,
    output: Output,
    refusal: Callable[[str], bytes],
) -> None:
    rds.refusal = refusal
    iam(stage, endpoint, rds)
    run = stage.reap()
    assert run.target()["status"] == "failed"
    assert "rds_iam" in run.error()["hint"]
    assert "rds-db:connect" in run.error()["hint"]
    assert_kept(output, run, rds.tokens)


def test_a_token_that_a_server_repeats_later_is_not_shown(
    stage: Stage, rds: Rds, endpoint: Impostor, output: Output
) -> None:
    rds.later = lambda token: error_response("XX000", f"you came in by {token}")
    iam(stage, endpoint, rds)
    run = stage.reap()
    assert run.error()["code"] == "XX000"
    assert_kept(output, run, rds.tokens)


def test_a_full_server_that_repeats_the_token_is_reported_as_full(
    stage: Stage, rds: Rds, endpoint: Impostor, output: Output
) -> None:
    rds.refusal = lambda token: error_response("53300", f"sorry, too many clients already {token}")
    iam(stage, endpoint, rds)
    run = stage.reap(seconds=10)
    assert run.target()["status"] == "full"
    assert_kept(output, run, rds.tokens)


@pytest.mark.parametrize("trouble", ["no TLS", "another authority", "another host"])
def test_no_token_is_sent_to_an_unverified_server(
    stage: Stage, rds: Rds, endpoint: Impostor, tmp_path: Path, trouble: str
) -> None:
    if trouble == "another authority":
        (tmp_path / "other").mkdir()
        other = make_tls(tmp_path / "other").authority.read_text()
        iam(stage, endpoint, rds, sslrootcert=other)
    elif trouble == "another host":
        iam(stage, endpoint, rds, host="127.0.0.2")
        resolve_here(stage.monkeypatch, "127.0.0.2")
    else:
        iam(stage, endpoint, rds, port=stage.server.port)
    run = stage.reap()
    assert run.error()["code"] == "tls"
    assert "IAM" in run.error()["hint"]
    assert rds.tokens == []


def test_no_token_is_sent_in_plaintext(stage: Stage) -> None:
    with Impostor() as listening:
        stage.target(auth="iam", password=None, port=listening.port)
        stage.target("forgotten", password=None, port=listening.port)
        run = stage.reap()
        assert listening.connections == 0
    assert "sslmode disable" in run.error()["message"]
    assert "password is missing" in run.error("forgotten")["message"]


@pytest.mark.parametrize("keys", [{"auth": "iam"}, {}], ids=["auth iam", "no password"])
def test_no_token_of_the_fallback_secret_is_sent_in_plaintext(
    stage: Stage, keys: dict[str, str]
) -> None:
    """The target's secret allows plaintext, but a token would be sent in clear text."""
    rds = Rds(unix_sock=stage.server.unix_sock, tls=None, full=REAPER)
    stage.aws.put_secret("admin", {"username": "root", **keys})
    with Impostor(rds.answer) as listening:
        stage.target(port=listening.port, fallback_secret="admin")  # noqa: S106 -- its name
        run = stage.reap(seconds=10)
    assert rds.tokens == []
    assert rds.plaintext == b""
    assert run.target()["status"] == "full"
    assert "admin" in run.error()["message"]


def test_a_forgotten_password_is_reported(stage: Stage) -> None:
    stage.target(password=None, sslmode=None)
    run = stage.reap()
    assert run.error()["code"] == "secret"
    assert "password is missing" in run.error()["message"]
    assert "Add password, or write auth iam" in run.error()["hint"]
