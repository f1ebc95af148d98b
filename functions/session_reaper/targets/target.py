"""A target: one PostgreSQL instance, and how to connect to it."""

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final


class SslMode(StrEnum):
    """How the connection is secured; the names and meanings of libpq."""

    VERIFY_FULL = "verify-full"  # trusted certificate, of this very host
    VERIFY_CA = "verify-ca"  # trusted certificate
    REQUIRE = "require"  # TLS; the certificate is checked only if there is an sslrootcert
    DISABLE = "disable"  # plaintext


class Auth(StrEnum):
    """How the role proves who it is."""

    PASSWORD = "password"  # noqa: S105 -- the secret's word for it
    IAM = "iam"  # a token that stands in for the password, made anew for each connection


class ChannelBinding(StrEnum):
    """Whether SCRAM is bound to the TLS channel; the names and meanings of libpq."""

    DISABLE = "disable"
    PREFER = "prefer"  # where the server offers it
    REQUIRE = "require"  # no other authentication is accepted


class AuthMethod(StrEnum):
    """A method by which the server may authenticate the role; libpq's names in require_auth."""

    NONE = "none"  # the server asks for nothing
    PASSWORD = "password"  # noqa: S105 -- libpq's name: the password in clear text
    MD5 = "md5"
    SCRAM_SHA_256 = "scram-sha-256"


ANY_AUTH: Final = frozenset(AuthMethod)


@dataclass(frozen=True, slots=True)
class TargetKey:
    """Identifies a target across runs; no part of it is chosen by the secret's text."""

    secret: str  # the ARN, or the id as configured while the secret cannot be read
    instance: str = ""  # RDS's identifier where the secret covers a cluster's instances


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """What Secrets Manager holds under one name."""

    name: str
    arn: str
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One instance of RDS or Aurora, as the RDS API lists it."""

    identifier: str
    cluster: str  # its identifier, or "" of an instance without one
    engine: str
    host: str
    port: int
    reader: bool  # of its cluster, not the writer
    secret_arns: tuple[str, ...]  # the master secrets that RDS manages for it and for its cluster
    cluster_hosts: tuple[str, ...] = ()  # writer, reader and custom endpoints that lead to it
    cluster_port: int = 0  # of those


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where to sign in, and how."""

    name: str
    group: str  # what its secret is called as a target: several instances may share it
    secret_arn: str
    host: str
    port: int
    role: str
    auth: Auth
    auth_given: bool  # else it is IAM because there is no password
    password: str = field(repr=False)  # or an IAM token; "" until one is made
    database: str
    sslmode: SslMode
    sslrootcert: str | None = field(repr=False)  # PEM
    fallback_secret: str | None  # whose role may get in where this one finds the server full
    instead_of: str | None = None  # the target's own role, where the fallback's signs in
    reader: bool = False
    unlisted: str = ""  # why this host alone stands for its cluster
    channel_binding: ChannelBinding = ChannelBinding.PREFER
    allowed_auth: frozenset[AuthMethod] = ANY_AUTH
    instance: str = ""  # RDS's identifier where the secret covers a cluster's instances
    ignored_options: tuple[str, ...] = ()  # URI parameters that are not libpq's, by name

    @property
    def key(self) -> TargetKey:
        """What identifies it across runs."""
        return TargetKey(self.secret_arn, self.instance)

    @property
    def is_verified(self) -> bool:
        """Whether TLS proves that the server is the secret's: a clear-text password may be sent."""
        own_authority = self.sslmode is SslMode.VERIFY_CA and self.sslrootcert is not None
        return self.sslmode is SslMode.VERIFY_FULL or own_authority

    @property
    def secret_name(self) -> str:
        """What its secret is called."""
        return name_of_secret(self.secret_arn)


# A service of AWS that manages a secret names it SERVICE!NAME.
_NAME_OF_ONE: Final = r"(?:[a-z-]+!)?[A-Za-z0-9/_+=.@-]{1,512}"
_ID_OF_ONE: Final = re.compile(
    rf"(?:arn:[a-z0-9-]+:secretsmanager:[a-z0-9-]+:[0-9]{{12}}:secret:)?{_NAME_OF_ONE}"
)


def is_secret_id(text: str) -> bool:
    """Return whether the text has the form of a secret's name or ARN, so that it may be shown.

    A URI or a DSN with a password in it has not.
    """
    return _ID_OF_ONE.fullmatch(text) is not None


def name_of_secret(secret_id: str) -> str:
    """The name in an ARN, which adds six characters; a name is one already."""
    return re.sub(r"^arn:.*:secret:(.+)-\w{6}$", r"\1", secret_id)
