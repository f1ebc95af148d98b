"""Opens sockets to servers, and wraps them in TLS."""

import socket
import ssl
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any, Final

from asn1crypto.x509 import Certificate

from session_reaper.deadline import Deadline
from session_reaper.errors import NoTlsError, TargetError, UntrustedError
from session_reaper.sessions.server_facts import Tls
from session_reaper.targets.providers import explain_unknown_authority, find_rds_region
from session_reaper.targets.target import SslMode, Target, is_socket_folder

_SSL_REQUEST: Final = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"
NOT_POSTGRES_HINT: Final = "Check host and port in the secret."
_AWS_CERTIFICATES: Final = Path(__file__).with_name("aws_certificates.pem")


def limit_time(sock: socket.socket, deadline: Deadline) -> None:
    """Make the next call on a socket end by the deadline. Raises TimeoutError if it has passed."""
    seconds = deadline.remaining()
    if seconds == 0:  # a timeout of 0 would make the socket non-blocking
        raise TimeoutError
    sock.settimeout(seconds)


def resolve_host(host: str, port: int) -> tuple[str, ...]:
    """Return the IP addresses of a host; none if the name does not resolve."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return ()
    return tuple(dict.fromkeys(str(address[0]) for *_, address in found))


def open_socket(host: str, port: int, deadline: Deadline) -> socket.socket:
    """Connect to the first address of a host that accepts; all addresses share the deadline.

    A host that begins with a slash is the folder of a Unix socket. Raises OSError.
    """
    addresses: tuple[tuple[int, int, int, str, Any], ...]
    if is_socket_folder(host):
        addresses = ((socket.AF_UNIX, socket.SOCK_STREAM, 0, "", f"{host}/.s.PGSQL.{port}"),)
    else:
        addresses = tuple(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    for index, (family, kind, protocol, _, address) in enumerate(addresses):
        sock = socket.socket(family, kind, protocol)
        try:
            # An address that drops packets must leave time for the others.
            share = deadline.remaining() / (len(addresses) - index)
            limit_time(sock, deadline.capped_at(share))
            sock.connect(address)
            if family != socket.AF_UNIX:
                # As in libpq: otherwise the first packet after a TLS handshake waits 40 ms for an
                # ACK.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:
            sock.close()
            if index == len(addresses) - 1:
                raise
        else:
            return sock
    raise OSError  # not reached: getaddrinfo returns at least one address, or raises


def wrap_tls(
    sock: socket.socket,
    target: Target,
    deadline: Deadline,
    *,
    aws_certificates: Path = _AWS_CERTIFICATES,
) -> ssl.SSLSocket:
    """Negotiate TLS on a socket, with the TLS mode and CA of the secret.

    `aws_certificates` is a PEM file in which a comment above each certificate names it. Raises
    TargetError, OSError.
    """
    where = f"{target.host}:{target.port}"
    limit_time(sock, deadline)
    sock.sendall(_SSL_REQUEST)
    answer = sock.recv(1)  # the bytes after it belong to TLS
    limit_time(sock, deadline)
    if answer == b"S":
        authorities = _select_authorities(target, aws_certificates)
        with _context_lock:  # otherwise targets that start together each create the same context
            context = _create_context(target.sslmode, authorities)
        try:
            return context.wrap_socket(sock, server_hostname=target.host)
        except ssl.SSLCertVerificationError as error:
            raise _explain_untrusted(error, target) from None
    if answer == b"N":
        raise NoTlsError(
            "tls",
            f"{where} does not offer TLS",
            "Enable TLS on the server. The reaper connects in plaintext only if the secret has sslmode"
            " disable.",
        )
    raise TargetError(
        "protocol", f"{where} does not respond like a PostgreSQL server", NOT_POSTGRES_HINT
    )


_context_lock: Final = Lock()


@cache  # creating a context takes longer than a login
def _create_context(sslmode: SslMode, authorities: str | None) -> ssl.SSLContext:
    """Create a context that trusts these CAs (PEM); None means the system's."""
    if sslmode is SslMode.REQUIRE and authorities is None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    try:
        context = ssl.create_default_context(cadata=authorities)
    except (ssl.SSLError, TypeError, ValueError):
        raise TargetError(
            "tls", "sslrootcert in the secret must be a PEM certificate", "Store the CA's PEM text."
        ) from None
    # From Python 3.13 on, the default also refuses CAs without the extensions of RFC 5280. Private
    # CAs often lack them, and libpq accepts such CAs.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.check_hostname = sslmode is SslMode.VERIFY_FULL
    return context


def read_certificate(sock: socket.socket) -> bytes | None:
    """Return the server's certificate in DER; None if the connection is in plaintext."""
    return sock.getpeercert(binary_form=True) if isinstance(sock, ssl.SSLSocket) else None


def describe_tls(sock: socket.socket, target: Target) -> Tls | None:
    """Describe the TLS of a connection; None if it is in plaintext."""
    if not isinstance(sock, ssl.SSLSocket):
        return None
    cipher = sock.cipher()
    return Tls(
        version=sock.version() or "",
        cipher=cipher[0] if cipher else "",
        certificate_until=_read_end_of_validity(read_certificate(sock)),
        verified=target.is_verified,
    )


def _read_end_of_validity(certificate: bytes | None) -> str:
    """Return the end of a DER certificate's validity, as 2027-01-31T00:00:00Z; "" if unreadable.

    The standard library decodes only verified certificates, which sslmode require does not have.
    """
    try:
        end = Certificate.load(certificate or b"").not_valid_after
    except (TypeError, ValueError):
        return ""
    return f"{end:%Y-%m-%dT%H:%M:%SZ}"


def _select_authorities(target: Target, aws_certificates: Path) -> str | None:
    """Return the CAs to trust, in PEM: the secret's, or for RDS those of the host's region.

    None means the system's, or none if the secret wants nothing verified.
    """
    region = find_rds_region(target.host)
    if target.sslrootcert or target.sslmode is SslMode.REQUIRE or region is None:
        return target.sslrootcert
    return _load_aws_authorities(aws_certificates, region)


@cache
def _load_aws_authorities(aws_certificates: Path, region: str) -> str:
    """Return a region's CAs of RDS and Amazon's roots: loading all takes longer than a login."""
    blocks = aws_certificates.read_text("utf-8").split("\n\n")
    return "\n".join(b for b in blocks if f" {region} " in b or "\n# Amazon RDS " not in f"\n{b}")


_OTHER_NAME: Final = (
    "is for another host",
    (
        "Write the name in the certificate as host: the endpoint itself, not an alias or an address of"
        " it. (sslmode verify-ca ignores the name.)"
    ),
)
_RENEW: Final = "Renew it on the server (on RDS: modify the instance's CA), or renew sslrootcert."
# By the codes of OpenSSL's x509_vfy.h.
_PROBLEMS: Final = {
    9: ("or of its CA is not valid yet", _RENEW),
    10: ("or of its CA has expired", _RENEW),
    62: _OTHER_NAME,
    64: _OTHER_NAME,  # an address
}


def _explain_untrusted(error: ssl.SSLCertVerificationError, target: Target) -> TargetError:
    certificate = f"the certificate of {target.host}:{target.port}"
    if error.verify_code in _PROBLEMS:
        problem, hint = _PROBLEMS[error.verify_code]
        return TargetError("tls", f"{certificate} {problem}: {error.verify_message}", hint)
    problem = f"{certificate} was issued by a CA that is not trusted: {error.verify_message}"
    return UntrustedError("tls", problem, explain_unknown_authority(target.host))
