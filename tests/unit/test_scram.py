"""Our SCRAM client against scramp's server. Passwords of every kind: tests/integration/test_names.py."""

from __future__ import annotations

import re
from base64 import b64decode
from pathlib import Path
from ssl import PEM_cert_to_DER_cert
from sys import getrefcount

import pytest
import scramp
from asn1crypto.core import OctetBitString
from asn1crypto.x509 import Certificate
from session_reaper.postgres import scram
from session_reaper.postgres.scram import ScramClient, make_verifier

PLAIN, PLUS = "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"
AUTHORITIES = Path("functions/session_reaper/postgres/aws_certificates.pem").read_text("utf-8")
CERTIFICATE, ANOTHER = re.findall(
    r"-----BEGIN.+?-----END CERTIFICATE-----\n", AUTHORITIES, re.DOTALL
)[:2]
"""In PEM; any two will do."""


def log_in(mechanism: str, client: ScramClient, certificate: str | None, password: str) -> None:
    """Log in to a server with that certificate."""
    binding = certificate and ("tls-server-end-point", certificate)
    server_mechanism = scramp.ScramMechanism(mechanism)
    secrets = server_mechanism.make_auth_info(password)
    server = server_mechanism.make_server(lambda _: secrets, channel_binding=binding)
    server.set_client_first(client.get_client_first())
    client.set_server_first(server.get_server_first())
    server.set_client_final(client.get_client_final())
    client.set_server_final(server.get_server_final())


@pytest.mark.parametrize(
    ("offered", "certificate", "mechanism"),
    [([PLAIN], None, PLAIN), ([PLAIN, PLUS], None, PLAIN), ([PLAIN, PLUS], CERTIFICATE, PLUS)],
)
def test_client_and_server_prove_that_they_know_the_password(
    offered: list[str], certificate: str | None, mechanism: str
) -> None:
    der = PEM_cert_to_DER_cert(certificate) if certificate else None
    client = ScramClient(offered, "pencil", der)
    assert client.mechanism_name == mechanism
    log_in(mechanism, client, certificate, "pencil")


def test_every_login_has_a_nonce_of_its_own() -> None:
    firsts = {ScramClient([PLAIN], "pencil", None).get_client_first() for _ in range(1000)}
    assert len(firsts) == 1000
    assert all(re.fullmatch(r"n,,n=\*,r=[\w-]{24}", first) for first in firsts)


def test_another_password_is_refused() -> None:
    with pytest.raises(scramp.ScramException, match="invalid-proof"):
        log_in(PLAIN, ScramClient([PLAIN], "pencil", None), None, "pen")


def test_another_channel_is_refused() -> None:
    client = ScramClient([PLUS], "pencil", PEM_cert_to_DER_cert(CERTIFICATE))
    with pytest.raises(scramp.ScramException, match="channel-bindings-dont-match"):
        log_in(PLUS, client, ANOTHER, "pencil")


@pytest.mark.parametrize("password", ["pencil", "naïve\u00a0名", "\u200b"])
def test_a_verifier_is_for_its_password_only(password: str) -> None:
    iterations, salt, stored_key, server_key = re.fullmatch(
        r"SCRAM-SHA-256\$(\d+):([^$:]+)\$([^$:]+):([^$:]+)", make_verifier(password)
    ).groups()  # type: ignore[union-attr] # a mismatch fails the test

    def authenticate(given: str) -> None:
        mechanism = scramp.ScramMechanism(PLAIN)
        info = (b64decode(salt), b64decode(stored_key), b64decode(server_key), int(iterations))
        server = mechanism.make_server(lambda _: info)
        client = ScramClient([PLAIN], given, None)
        server.set_client_first(client.get_client_first())
        client.set_server_first(server.get_server_first())
        server.set_client_final(client.get_client_final())
        client.set_server_final(server.get_server_final())

    authenticate(password)
    with pytest.raises(scramp.ScramException):
        authenticate(password + "x")


def test_no_server_fills_the_memory_with_its_certificates() -> None:
    large = Certificate.load(PEM_cert_to_DER_cert(CERTIFICATE))
    large["signature_value"] = OctetBitString(bytes(90_000))
    der = large.dump(force=True)
    known = getrefcount(der)
    ScramClient([PLUS], "pencil", der)
    assert getrefcount(der) == known


def test_thousands_of_servers_cost_no_key_twice() -> None:
    derived = scram._salt_password.cache_info  # noqa: SLF001 -- a second key would only be slower
    scram._salt_password.cache_clear()  # noqa: SLF001
    for _ in range(2):
        for number in range(5000):
            scram._salt_password("pencil", number.to_bytes(2), 1)  # noqa: SLF001
    assert derived().misses == 5000
