"""TLS connections: what is verified, and what is refused."""

from __future__ import annotations

import json
import ssl
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from session_reaper.deadline import Deadline
from session_reaper.errors import TargetError
from session_reaper.postgres import tls as tls_module
from session_reaper.postgres.tls import open_socket, wrap_tls
from session_reaper.targets.target import Secret

from infra.local.certificates import make_tls
from tests.builders import read_target
from tests.integration.endpoints import resolve_here
from tests.integration.stage import LEAK

if TYPE_CHECKING:
    from collections.abc import Callable

    from infra.local.postgres import Tls
    from tests.integration.stage import Stage

pytestmark = [pytest.mark.tls, pytest.mark.every_major]


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    return make_tls(tmp_path)


@pytest.fixture
def secured(own_server: Callable[..., Stage], tls: Tls) -> Stage:
    stage = own_server(tls=tls)
    hba = stage.server.socket_dir / "data" / "pg_hba.conf"
    hba.write_text("local all all trust\nhostssl all all 127.0.0.1/32 scram-sha-256\n")
    stage.root.run("SELECT pg_reload_conf()")
    return stage


@pytest.fixture
def other_authority(tmp_path: Path) -> str:
    folder = tmp_path / "other"
    folder.mkdir()
    return make_tls(folder).authority.read_text()


@pytest.mark.parametrize("sslmode", ["verify-full", "verify-ca", "require", None])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_trusted_server_is_reaped(
    secured: Stage, tls: Tls, sslmode: str | None, host: str
) -> None:
    leak = secured.session(LEAK)
    secured.target(sslmode=sslmode, sslrootcert=tls.authority.read_text(), host=host)
    run = secured.reap()
    assert run.outcomes() == {leak.pid: "terminated"}
    codes = {advice["code"] for advice in run.target()["advice"]}
    assert ("verify-certificate" in codes) == (sslmode in ("verify-ca", "require"))
    assert "encrypt-connection" not in codes


def test_require_without_an_authority_does_not_verify(secured: Stage) -> None:
    secured.target(sslmode="require")
    assert secured.reap().target()["status"] == "ok"


@pytest.mark.parametrize("sslmode", ["verify-full", "verify-ca", "require", None])
def test_another_authority_is_refused(
    secured: Stage, other_authority: str, sslmode: str | None
) -> None:
    secured.target(sslmode=sslmode, sslrootcert=other_authority)
    error = secured.reap().error()
    assert error["code"] == "tls"
    assert "was issued by a CA that is not trusted" in error["message"]
    assert "sslrootcert" in error["hint"]


@pytest.mark.parametrize("sslmode", ["verify-full", "verify-ca", None])
def test_without_sslrootcert_an_unknown_authority_is_refused(
    secured: Stage, sslmode: str | None
) -> None:
    secured.target(sslmode=sslmode)
    assert "was issued by a CA that is not trusted" in secured.reap().error()["message"]


@pytest.mark.parametrize("sslmode", ["verify-full", "verify-ca"])
def test_an_expired_certificate_is_reported(
    own_server: Callable[..., Stage], tmp_path: Path, sslmode: str
) -> None:
    tls = make_tls(tmp_path, valid=timedelta(minutes=-1))
    stage = own_server(tls=tls)
    stage.target(sslmode=sslmode, sslrootcert=tls.authority.read_text())
    error = stage.reap().error()
    assert error["code"] == "tls"
    assert "has expired" in error["message"]
    assert "Renew it" in error["hint"]


def test_a_server_without_tls_is_reported_and_gets_no_plaintext_login(
    own_server: Callable[..., Stage], tls: Tls
) -> None:
    stage = own_server()
    for sslmode in ("verify-full", "verify-ca", "require"):
        stage.only_target(sslmode=sslmode, sslrootcert=tls.authority.read_text())
        error = stage.reap().error()
        assert (error["code"], "does not offer TLS" in error["message"]) == ("tls", True)
        assert "Enable TLS" in error["hint"]


def test_a_certificate_for_another_host_is_refused_by_verify_full_only(
    secured: Stage, tls: Tls
) -> None:
    resolve_here(secured.monkeypatch, "db.example")
    authority = tls.authority.read_text()
    for sslmode in (None, "verify-full"):
        secured.only_target(sslrootcert=authority, host="db.example", sslmode=sslmode)
        error = secured.reap().error()
        assert error["code"] == "tls"
        assert "is for another host" in error["message"]
        assert "endpoint itself" in error["hint"]
    secured.only_target(sslrootcert=authority, host="db.example", sslmode="verify-ca")
    assert secured.reap().target()["status"] == "ok"


def test_an_rds_endpoint_is_verified_by_the_authorities_of_its_region(
    secured: Stage, tls: Tls, tmp_path: Path
) -> None:
    """The shipped certificates, and the test's CA as that of one region."""
    resolve_here(secured.monkeypatch, ".rds.amazonaws.com")
    shipped = Path(tls_module.__file__).with_name("aws_certificates.pem").read_text()
    certificates = tmp_path / "aws_certificates.pem"
    own = f"# Amazon RDS eu-west-1 Root CA\n{tls.authority.read_text()}"
    certificates.write_text(f"{shipped}\n{own}")

    def connect(region: str, sslmode: str | None) -> None:
        host, deadline = f"orders.abc.{region}.rds.amazonaws.com", Deadline(10)
        document = secured.secret(host=host, sslmode=sslmode)
        target = read_target(Secret(name="orders", arn="arn", text=json.dumps(document)))
        sock = open_socket(target.host, target.port, deadline)
        with sock, wrap_tls(sock, target, deadline, aws_certificates=certificates) as secure:
            assert secure.version()

    connect("eu-west-1", "verify-ca")
    with pytest.raises(TargetError, match="is for another host"):  # but its CA is trusted
        connect("eu-west-1", None)
    for sslmode in (None, "verify-ca"):
        with pytest.raises(TargetError, match="was issued by a CA that is not trusted") as caught:
            connect("eu-west-2", sslmode)
        assert "make certs" in caught.value.hint


def test_targets_with_one_authority_share_a_context(
    secured: Stage, tls: Tls, other_authority: str
) -> None:
    made: list[str | None] = []
    make = ssl.create_default_context

    def create_counted(*, cadata: str | None = None) -> ssl.SSLContext:
        made.append(cadata)
        return make(cadata=cadata)

    secured.monkeypatch.setattr(ssl, "create_default_context", create_counted)
    authority = tls.authority.read_text()
    for _ in range(4):
        for each, status in ((authority, "ok"), (other_authority, "failed")):
            secured.only_target(sslmode=None, sslrootcert=each)
            assert secured.reap().target()["status"] == status
    assert sorted(made, key=str) == sorted([authority, other_authority])


def test_plaintext_that_the_server_refuses_is_reported(secured: Stage) -> None:
    secured.target(sslmode="disable")
    run = secured.reap()
    assert run.error()["code"] == "28000"
    assert "TLS" in run.error()["hint"]


@pytest.mark.parametrize("pem", ["nonsense", "é", "-----BEGIN CERTIFICATE-----\nAAAA"])
def test_an_invalid_authority_is_reported(secured: Stage, pem: str) -> None:
    secured.target(sslrootcert=pem, sslmode=None)
    assert secured.reap().error()["code"] in {"tls", "secret"}


def test_each_target_is_verified_by_its_own_authorities(
    secured: Stage, tls: Tls, other_authority: str
) -> None:
    right = tls.authority.read_text()
    for authority, status in (
        (right, "ok"),
        (other_authority, "failed"),
        (other_authority + right, "ok"),
    ):
        secured.only_target(sslmode=None, sslrootcert=authority)
        assert secured.reap().target()["status"] == status
