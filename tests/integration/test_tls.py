"""Connections by TLS: what is verified, and what is refused."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest

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
    assert run.target()["advice"] == []


def test_require_without_an_authority_is_not_verified_as_the_secret_says(secured: Stage) -> None:
    secured.target(sslmode="require")
    assert secured.reap().target()["status"] == "ok"


@pytest.mark.parametrize("sslmode", ["verify-full", "verify-ca", "require", None])
def test_another_authority_is_refused(
    secured: Stage, other_authority: str, sslmode: str | None
) -> None:
    secured.target(sslmode=sslmode, sslrootcert=other_authority)
    assert secured.reap().error()["code"] == "tls"


@pytest.mark.parametrize("sslmode", ["verify-full", "verify-ca", None])
def test_an_authority_that_no_secret_gave_is_refused(secured: Stage, sslmode: str | None) -> None:
    secured.target(sslmode=sslmode)
    assert secured.reap().error()["code"] == "tls"


def test_another_host_is_refused_by_verify_full_only(
    secured: Stage, tls: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve = socket.getaddrinfo

    def resolved(host: str, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        return resolve("127.0.0.1" if host == "db.example" else host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    for name, sslmode in {"absent": None, "full": "verify-full", "ca": "verify-ca"}.items():
        authority = tls.authority.read_text()
        secured.target(name, sslrootcert=authority, host="db.example", sslmode=sslmode)
    run = secured.reap()
    assert run.error("absent")["code"] == "tls"
    assert run.error("full")["code"] == "tls"
    assert run.target("ca")["status"] == "ok"


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
