"""A certificate authority for one test or demo, and a server certificate from it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from infra.local.postgres import Tls

if TYPE_CHECKING:
    from pathlib import Path

_VALID = timedelta(days=7)
_CLOCK_SKEW = timedelta(hours=1)


def make_tls(folder: Path, *, valid: timedelta = _VALID) -> Tls:
    """Write a new authority and a certificate for localhost and 127.0.0.1 into ``folder``.

    The folder must exist; files of an earlier call are replaced. Both are valid from an hour ago
    until ``valid`` from now, and have the extensions that Python 3.13 and later require.
    """
    tls = Tls(
        authority=folder / "authority.pem",
        certificate=folder / "server.pem",
        key=folder / "server.key",
    )
    issuer = ec.generate_private_key(ec.SECP256R1())
    subject = ec.generate_private_key(ec.SECP256R1())
    until = datetime.now(UTC) + valid
    authority = _make_authority(issuer, until)
    tls.authority.write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    certificate = _make_certificate(subject, issuer, until)
    tls.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    tls.key.touch(mode=0o600)
    tls.key.write_bytes(
        subject.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return tls


def _make_authority(key: ec.EllipticCurvePrivateKey, until: datetime) -> x509.Certificate:
    return (
        _make_builder("session-reaper local authority", key, key, until)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_make_usage(authority=True), critical=True)
        .sign(key, hashes.SHA256())
    )


def _make_certificate(
    key: ec.EllipticCurvePrivateKey, issuer: ec.EllipticCurvePrivateKey, until: datetime
) -> x509.Certificate:
    names = x509.SubjectAlternativeName(
        [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
    )
    return (
        _make_builder("localhost", key, issuer, until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_make_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(names, critical=False)
        .sign(issuer, hashes.SHA256())
    )


def _make_builder(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: ec.EllipticCurvePrivateKey,
    until: datetime,
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name("session-reaper local authority"))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()), critical=False
        )
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _make_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
