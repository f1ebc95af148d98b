"""Sockets to servers, and the TLS around them."""

import re
import socket
import ssl
from functools import cache
from importlib.resources import files
from threading import Lock
from typing import Final

from session_reaper.deadline import Deadline
from session_reaper.errors import TargetError
from session_reaper.sessions.server_facts import Tls
from session_reaper.targets.providers import explain_unknown_authority, rds_region
from session_reaper.targets.target import SslMode, Target

_SSL_REQUEST: Final = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"
_NOT_POSTGRES_HINT: Final = "Check host and port in the secret."


def limit_time(sock: socket.socket, deadline: Deadline) -> None:
    """Have the next call on a socket end by the deadline. Raises TimeoutError once it has passed."""
    seconds = deadline.remaining()
    if seconds == 0:  # as a timeout it would mean "do not block"
        raise TimeoutError
    sock.settimeout(seconds)


def open_socket(host: str, port: int, deadline: Deadline) -> socket.socket:
    """Connect to the first address of a host that answers; all of them share the deadline.

    Raises OSError.
    """
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for index, (family, kind, protocol, _, address) in enumerate(addresses):
        sock = socket.socket(family, kind, protocol)
        try:
            # An address that drops packets must leave time for the others.
            share = deadline.remaining() / (len(addresses) - index)
            limit_time(sock, deadline.capped_at(share))
            sock.connect(address)
            # As in libpq: without it the first packet after a TLS handshake waits 40 ms for an ACK.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:
            sock.close()
            if index == len(addresses) - 1:
                raise
        else:
            return sock
    raise OSError  # getaddrinfo raises rather than finding nothing


def wrap_tls(sock: socket.socket, target: Target, deadline: Deadline) -> ssl.SSLSocket:
    """Wrap a socket in TLS, as the secret asks and never less.

    Raises TargetError, OSError.
    """
    where = f"{target.host}:{target.port}"
    limit_time(sock, deadline)
    sock.sendall(_SSL_REQUEST)
    answer = sock.recv(1)  # no more: what follows belongs to TLS
    limit_time(sock, deadline)
    if answer == b"S":
        with _making_contexts:  # one for each CA, though all targets begin at the same time
            context = _tls_context(target.sslmode, _select_authorities(target))
        try:
            return context.wrap_socket(sock, server_hostname=target.host)
        except ssl.SSLCertVerificationError as error:
            raise _explain_untrusted(error, target) from None
    if answer == b"N":
        raise TargetError(
            "tls",
            f"{where} does not offer TLS",
            "Switch TLS on at the server. Only a secret with sslmode disable is read in plaintext.",
        )
    raise TargetError(
        "protocol",
        f"{where} does not answer as a PostgreSQL server",
        _NOT_POSTGRES_HINT,
    )


_making_contexts: Final = Lock()


@cache  # making one takes longer than signing in
def _tls_context(sslmode: SslMode, authorities: str | None) -> ssl.SSLContext:
    """`authorities`: those that are trusted, in PEM; None means the system's."""
    if sslmode is SslMode.REQUIRE and authorities is None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    try:
        context = ssl.create_default_context(cadata=authorities)
    except (ssl.SSLError, TypeError, ValueError):
        raise TargetError(
            "tls", "sslrootcert in the secret is no PEM certificate", "Store the CA's PEM text."
        ) from None
    # From Python 3.13 on the default refuses CAs that lack what RFC 5280 wants beyond a valid chain;
    # private ones often do, and libpq takes them.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.check_hostname = sslmode is SslMode.VERIFY_FULL
    return context


def describe_tls(sock: socket.socket, target: Target) -> Tls | None:
    """Describe what secures a connection; None for one in plaintext."""
    if not isinstance(sock, ssl.SSLSocket):
        return None
    cipher = sock.cipher()
    return Tls(
        version=sock.version() or "",
        cipher=cipher[0] if cipher else "",
        certificate_until=_read_end_of_validity(sock.getpeercert(binary_form=True) or b""),
        verified=target.is_verified,
    )


_MOMENT: Final = rb"(?:\x17\x0d(\d{12})|\x18\x0f(\d{14}))Z"


def _read_end_of_validity(certificate: bytes) -> str:
    """The end of a certificate's validity: two moments of ASN.1, one behind the other.

    ssl decodes none of a certificate that it has not verified, which is what require means.
    """
    found = re.search(_MOMENT * 2, certificate)
    if not found:
        return ""
    short, whole = found[3], found[4]
    text = (whole or (b"20" if short < b"50" else b"19") + short).decode()
    return re.sub(r"(\d{4})(..)(..)(..)(..)(..)", r"\1-\2-\3T\4:\5:\6Z", text)


def _select_authorities(target: Target) -> str | None:
    """Whom to trust, in PEM: the secret's CA; for RDS its own in the host's region, and Amazon's roots.

    None means the system's, or nobody where the secret wants nothing verified. (To load those of all
    regions takes longer than the whole of a sign-in.)
    """
    region = rds_region(target.host)
    if target.sslrootcert or target.sslmode is SslMode.REQUIRE or region is None:
        return target.sslrootcert
    return _load_rds_authorities(region)


@cache
def _load_rds_authorities(region: str) -> str:
    blocks = (
        (files("session_reaper.postgres") / "aws_certificates.pem").read_text("utf-8").split("\n\n")
    )
    return "\n".join(b for b in blocks if f" {region} " in b or "\n# Amazon RDS " not in f"\n{b}")


# OpenSSL's numbers, of x509_vfy.h.
_EXPIRED, _NOT_YET_VALID, _OTHER_HOST, _OTHER_ADDRESS = 10, 9, 62, 64


def _explain_untrusted(error: ssl.SSLCertVerificationError, target: Target) -> TargetError:
    where = f"{target.host}:{target.port}"
    match error.verify_code:
        case n if n in (_OTHER_HOST, _OTHER_ADDRESS):
            problem = f"the certificate of {where} is for another host"
            hint = (
                "Write as host the name that is in the certificate: the endpoint itself, not an"
                " alias or address of it. (sslmode verify-ca does not look at the name.)"
            )
        case n if n in (_EXPIRED, _NOT_YET_VALID):
            what = "has expired" if n == _EXPIRED else "is not valid yet"
            problem = f"the certificate of {where}, or its CA's, {what}"
            hint = (
                "Renew it at the server (on RDS: modify the instance's CA), or renew sslrootcert."
            )
        case _:
            problem = f"the certificate of {where} is by a CA that is not trusted"
            hint = explain_unknown_authority(target.host)
    return TargetError("tls", f"{problem}: {error.verify_message}", hint)
