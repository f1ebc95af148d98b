"""Connections by TLS: what is verified, and what is refused."""

from __future__ import annotations

import socket
import ssl
from datetime import timedelta
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import pytest
from session_reaper.postgres import tls as tls_module

from infra.local.certificates import make_tls
from tests.integration.stage import LEAK

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

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
def test_a_trusted_server_is_read(secured: Stage, tls: Tls, sslmode: str | None, host: str) -> None:
    leak = secured.session(LEAK)
    secured.target(sslmode=sslmode, sslrootcert=tls.authority.read_text(), host=host)
    run = secured.reap()
    assert run.outcomes() == {leak.pid: "terminated"}
    codes = {advice["code"] for advice in run.target()["advice"]}
    assert ("verify-certificate" in codes) == (sslmode in ("verify-ca", "require"))
    assert "encrypt-connection" not in codes


def test_require_without_an_authority_is_not_verified_as_the_secret_says(secured: Stage) -> None:
    secured.target(sslmode="require")
    assert secured.reap().target()["status"] == "ok"


@pytest.mark.parametrize("sslmode", ["verify-full", "verify-ca", "require", None])
def test_another_authority_is_refused(
    secured: Stage, other_authority: str, sslmode: str | None
) -> None:
    secured.target(sslmode=sslmode, sslrootcert=other_authority)
    error = secured.reap().error()
    assert error["code"] == "tls"
    assert "is by a CA that is not trusted" in error["message"]
    assert "sslrootcert" in error["hint"]


@pytest.mark.parametrize("sslmode", ["verify-full", "verify-ca", None])
def test_an_authority_that_no_secret_gave_is_refused(secured: Stage, sslmode: str | None) -> None:
    secured.target(sslmode=sslmode)
    assert "is by a CA that is not trusted" in secured.reap().error()["message"]


@pytest.mark.parametrize("sslmode", ["verify-full", "verify-ca"])
def test_a_certificate_that_has_expired_is_told(
    own_server: Callable[..., Stage], tmp_path: Path, sslmode: str
) -> None:
    tls = make_tls(tmp_path, valid=timedelta(minutes=-1))
    stage = own_server(tls=tls)
    stage.target(sslmode=sslmode, sslrootcert=tls.authority.read_text())
    error = stage.reap().error()
    assert error["code"] == "tls"
    assert "has expired" in error["message"]
    assert "Renew it" in error["hint"]


def test_a_server_without_tls_is_told_and_not_spoken_to_in_plaintext(
    own_server: Callable[..., Stage], tls: Tls
) -> None:
    stage = own_server()
    authority = tls.authority.read_text()
    for sslmode in ("verify-full", "verify-ca", "require"):
        stage.target(sslmode, sslmode=sslmode, sslrootcert=authority)
    run = stage.reap()
    for sslmode in ("verify-full", "verify-ca", "require"):
        error = run.error(sslmode)
        assert (error["code"], "does not offer TLS" in error["message"]) == ("tls", True)
        assert "Switch TLS on" in error["hint"]


@pytest.fixture
def led_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every host's name leads to the loopback."""
    resolve = socket.getaddrinfo

    def resolved(host: str, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        local = "127.0.0.1" if "." in host and not host[0].isdigit() else host
        return resolve(local, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolved)


@pytest.mark.usefixtures("led_here")
def test_another_host_is_refused_by_verify_full_only(secured: Stage, tls: Tls) -> None:
    for name, sslmode in {"absent": None, "full": "verify-full", "ca": "verify-ca"}.items():
        authority = tls.authority.read_text()
        secured.target(name, sslrootcert=authority, host="db.example", sslmode=sslmode)
    run = secured.reap()
    for name in ("absent", "full"):
        assert run.error(name)["code"] == "tls"
        assert "is for another host" in run.error(name)["message"]
        assert "endpoint itself" in run.error(name)["hint"]
    assert run.target("ca")["status"] == "ok"


@pytest.mark.usefixtures("led_here")
def test_rds_is_trusted_by_its_own_authorities_and_nobody_elses(
    secured: Stage, tls: Tls, tmp_path: Path
) -> None:
    """The file in the artifact, with the test's authority as that of one region."""
    package = files("session_reaper.postgres")
    authority = f"# Amazon RDS eu-west-1 Root CA\n{tls.authority.read_text()}"
    roots = (package / "aws_certificates.pem").read_text()
    (tmp_path / "aws_certificates.pem").write_text(f"{roots}\n{authority}")
    secured.monkeypatch.setattr(tls_module, "files", lambda _: tmp_path)
    tls_module._load_rds_authorities.cache_clear()  # noqa: SLF001 -- of the file that is shipped
    secured.cleanup(tls_module._load_rds_authorities.cache_clear)  # noqa: SLF001 -- and of the test's
    for region in ("eu-west-1", "eu-west-2"):
        host = f"orders.abc.{region}.rds.amazonaws.com"
        secured.target(f"full-{region}", host=host, sslmode=None)
        secured.target(f"ca-{region}", host=host, sslmode="verify-ca")
    run = secured.reap()
    assert run.target("ca-eu-west-1")["status"] == "ok"
    assert "is for another host" in run.error("full-eu-west-1")["message"]  # but trusted
    for name in ("full-eu-west-2", "ca-eu-west-2"):
        assert "is by a CA that is not trusted" in run.error(name)["message"]
        assert "make certs" in run.error(name)["hint"]


def test_one_context_is_made_for_all_targets_of_one_authority(
    secured: Stage, tls: Tls, other_authority: str
) -> None:
    made: list[str | None] = []
    make = ssl.create_default_context

    def counted(*, cadata: str | None = None) -> ssl.SSLContext:
        made.append(cadata)
        return make(cadata=cadata)

    secured.monkeypatch.setattr(ssl, "create_default_context", counted)
    authority = tls.authority.read_text()
    for n in range(4):
        secured.target(f"right-{n}", sslmode=None, sslrootcert=authority)
        secured.target(f"wrong-{n}", sslmode=None, sslrootcert=other_authority)
    run = secured.reap()
    assert run.document["totals"]["failed"] == 4
    assert sorted(made, key=str) == sorted([authority, other_authority])


def test_plaintext_is_refused_by_the_server_and_told(secured: Stage) -> None:
    secured.target(sslmode="disable")
    run = secured.reap()
    assert run.error()["code"] == "28000"
    assert "TLS" in run.error()["hint"]


@pytest.mark.parametrize("pem", ["nonsense", "é", "-----BEGIN CERTIFICATE-----\nAAAA"])
def test_an_authority_that_is_none_is_told(secured: Stage, pem: str) -> None:
    secured.target(sslrootcert=pem, sslmode=None)
    assert secured.reap().error()["code"] in {"tls", "secret"}


def test_several_targets_with_authorities_of_their_own(
    secured: Stage, tls: Tls, other_authority: str
) -> None:
    secured.target("right", sslmode=None, sslrootcert=tls.authority.read_text())
    secured.target("wrong", sslmode=None, sslrootcert=other_authority)
    authorities = other_authority + tls.authority.read_text()
    secured.target("both", sslmode=None, sslrootcert=authorities)
    run = secured.reap()
    statuses = {target["name"]: target["status"] for target in run.document["targets"]}
    assert statuses == {"right": "ok", "wrong": "failed", "both": "ok"}
