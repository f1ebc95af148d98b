"""The client's side of SCRAM, as libpq does it, on top of scramp."""

import hashlib
import hmac
import secrets
from base64 import b64encode
from functools import lru_cache
from typing import Final

import scramp
from scramp.core import CBindData, ClientStage
from scramp.utils import b64enc, saslprep, xor

MAX_ITERATIONS: Final = 200_000
"""The most that scram_iterations may be: deriving the key takes 0.1 s then, which no deadline interrupts.

PostgreSQL's default is 4,096.
"""

# PostgreSQL's own, for the verifiers that we make.
_ITERATIONS: Final = 4096
_SALT_BYTES: Final = 16

# As many as libpq's. scramp's own nonce has 64 characters, each of which it checks in Python.
_NONCE_BYTES: Final = 18

# PostgreSQL uses the role of the startup message instead; scramp does not accept an empty name.
_IGNORED_USERNAME: Final = "*"


class ScramClient(scramp.ScramClient):  # type: ignore[misc] # scramp ships no types
    """A client for any password that PostgreSQL accepts, which derives its key only once.

    `mechanisms`: SCRAM-SHA-256 and its variant with channel binding, as the server offers them.
    `certificate`: the server's, in DER, for channel binding; None without it.
    """

    def __init__(self, mechanisms: list[str], password: str, certificate: bytes | None) -> None:
        binding = None
        if certificate is not None:
            binding = ("tls-server-end-point", _get_binding(certificate))
        nonce = secrets.token_urlsafe(_NONCE_BYTES)
        super().__init__(mechanisms, _IGNORED_USERNAME, "", binding, nonce)
        self._given_password = password

    def get_client_final(self) -> str:
        """Return the message with the client's proof (RFC 5802, section 3)."""
        self._set_stage(ClientStage.get_client_final)
        salted = _salt_password(self._given_password, bytes(self.salt), int(self.iterations))
        client_key = _sign(salted, "Client Key")
        stored_key = hashlib.sha256(client_key).digest()
        message = f"c={b64enc(self.gs2_header.make_cbind_input(self.cb))},r={self.nonce}"
        signed = f"{self.client_first_bare},{self.server_first},{message}"
        self.server_signature = _sign(_sign(salted, "Server Key"), signed)
        return f"{message},p={b64enc(xor(client_key, _sign(stored_key, signed)))}"


def make_verifier(password: str) -> str:
    """Make the SCRAM verifier of a password, which the server stores instead of it.

    A statement that sets a verifier keeps the password out of the server's log.
    """
    salt = secrets.token_bytes(_SALT_BYTES)
    salted = _salt_password(password, salt, _ITERATIONS)
    stored_key = hashlib.sha256(_sign(salted, "Client Key")).digest()
    keys = ":".join(b64encode(key).decode() for key in (stored_key, _sign(salted, "Server Key")))
    return f"SCRAM-SHA-256${_ITERATIONS}:{b64encode(salt).decode()}${keys}"


def _prepare_password(password: str) -> bytes:
    """Prepare a password with SASLprep; use it unchanged if that fails, as PostgreSQL does."""
    try:
        # RFC 3454 maps U+200B both to a space and to nothing; PostgreSQL uses the space.
        prepared = saslprep(password.replace("\u200b", " "))
    except scramp.ScramException:
        prepared = ""
    return (prepared or password).encode()


@lru_cache(maxsize=10_000)  # a run has at most some thousand targets
def _salt_password(password: str, salt: bytes, iterations: int) -> bytes:
    """Derive the salted password, which RFC 5802 allows a client to keep. It takes 0.7 ms."""
    return hashlib.pbkdf2_hmac("sha256", _prepare_password(password), salt, iterations)


_KEPT_BYTES: Final = 4096  # RDS's certificates have fewer than 2,000


def _get_binding(certificate: bytes) -> bytes:
    """Return the channel binding data of a certificate (RFC 5929, section 4.1)."""
    # A hostile server may show another certificate of 100 kB at each login.
    derive = _derive_binding_once if len(certificate) <= _KEPT_BYTES else _derive_binding
    return derive(certificate)


def _derive_binding(certificate: bytes) -> bytes:
    return bytes(CBindData.from_der(certificate))


# Deriving takes 0.1 ms, and a server shows the same certificate in every run.
_derive_binding_once: Final = lru_cache(maxsize=2_000)(_derive_binding)


def _sign(key: bytes, message: str) -> bytes:
    return hmac.digest(key, message.encode(), "sha256")
