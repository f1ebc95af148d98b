"""A target: one PostgreSQL instance, and how to connect to it."""

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple


class SslMode(StrEnum):
    """The protection of a connection; libpq's names and meanings."""

    VERIFY_FULL = "verify-full"  # a trusted certificate for this host
    VERIFY_CA = "verify-ca"  # a trusted certificate for any host
    REQUIRE = "require"  # TLS; the certificate is verified only if the secret has sslrootcert
    DISABLE = "disable"  # plaintext


class Auth(StrEnum):
    """The credential of the role."""

    PASSWORD = "password"  # noqa: S105 -- the value in the secret
    IAM = "iam"  # a token in place of the password, made for each connection


class ChannelBinding(StrEnum):
    """The binding of SCRAM to the TLS channel; libpq's names and meanings."""

    DISABLE = "disable"
    PREFER = "prefer"
    REQUIRE = "require"


class AuthMethod(StrEnum):
    """A method by which a server authenticates a role; libpq's names in require_auth."""

    NONE = "none"  # the server does not authenticate the role
    PASSWORD = "password"  # noqa: S105 -- libpq's name for a clear-text password
    MD5 = "md5"
    SCRAM_SHA_256 = "scram-sha-256"


ANY_AUTH: Final = frozenset(AuthMethod)


class TargetKey(NamedTuple):
    """Identifies a target across runs; the secret's text cannot choose any part of it."""

    secret: str  # the ARN, or the configured id while the secret cannot be read
    instance: str = ""  # RDS's identifier if the secret covers the instances of a cluster


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """One secret of Secrets Manager."""

    name: str
    arn: str
    text: str = field(repr=False)


class Instance(NamedTuple):
    """One instance of RDS or Aurora, as the RDS API lists it."""

    identifier: str
    cluster: str  # the cluster's identifier; "" if the instance has none
    engine: str
    host: str
    port: int
    is_reader: bool  # a member of a cluster that is not its writer
    secret_arns: tuple[str, ...]  # the managed master secrets of the instance and its cluster
    cluster_hosts: tuple[str, ...] = ()  # the cluster's writer, reader and custom endpoints
    cluster_port: int = 0
    may_pause: bool = False  # Aurora Serverless with a minimum capacity of 0
    pauses_with_writer: bool = False  # the writer, or a reader of failover tier 0 or 1


class RdsListing(NamedTuple):
    """The running instances of this account and region, or the reason why they are unknown."""

    instances: tuple[Instance, ...] = ()
    problem: str = ""  # "" if the listing succeeded
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The host and the port of a server; only endpoints built with `of` can be compared."""

    host: str
    port: int

    @classmethod
    def of(cls, host: str, port: int) -> "Endpoint":
        """Build an endpoint whose host is in lower case and without a final dot."""
        return cls(host.lower().removesuffix("."), port)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One PostgreSQL instance, and how to connect to it.

    `addresses`: the IP addresses of the host when the run began; empty if they are not known.
    `is_alternate`: the run is not about this target, but about another one of the same server.
    `via`: a tunnel's end that leads to the host; only the command has one.
    """

    name: str
    group: str  # shared by the instances of a cluster
    secret_arn: str
    host: str
    port: int
    role: str
    auth: Auth
    is_auth_given: bool  # False: IAM is assumed because the secret has no password
    password: str = field(repr=False)  # or an IAM token; "" until the token is made
    database: str
    sslmode: SslMode
    sslrootcert: str | None = field(repr=False)  # PEM
    fallback_secret: str | None  # used if the server has no slot for this role
    instead_of: str | None = None  # the target's own role, if this is the fallback secret's
    is_reader: bool = False
    unlisted: str = ""  # why only this host of the cluster is a target
    channel_binding: ChannelBinding = ChannelBinding.PREFER
    allowed_auth: frozenset[AuthMethod] = ANY_AUTH
    instance: str = ""  # RDS's identifier if the secret covers the instances of a cluster
    ignored_options: tuple[str, ...] = ()  # names of URI parameters that libpq does not have
    pause_unknown: str = ""  # why a scheduled run does not know whether the cluster is paused
    addresses: tuple[str, ...] = field(default=(), compare=False)
    is_alternate: bool = field(default=False, compare=False)
    via: Endpoint | None = field(default=None, compare=False)

    @property
    def endpoint(self) -> Endpoint:
        """Host and port, for comparison."""
        return Endpoint.of(self.host, self.port)

    @property
    def key(self) -> TargetKey:
        """Identity across runs."""
        return TargetKey(self.secret_arn, self.instance)

    @property
    def is_encrypted(self) -> bool:
        """Whether connections use TLS; as in libpq, those over a Unix socket never do."""
        return self.sslmode is not SslMode.DISABLE and not is_socket_folder(self.host)

    @property
    def is_verified(self) -> bool:
        """Whether TLS proves the server's identity, so that a clear-text password may be sent."""
        has_own_ca = self.sslmode is SslMode.VERIFY_CA and self.sslrootcert is not None
        return self.is_encrypted and (self.sslmode is SslMode.VERIFY_FULL or has_own_ca)

    @property
    def secret_name(self) -> str:
        """Name of the target's secret."""
        return name_of_secret(self.secret_arn)


def is_socket_folder(host: str) -> bool:
    """Return whether a host is the folder of a Unix socket; only the command accepts one."""
    return host.startswith("/")


# An AWS service that manages a secret names it SERVICE!NAME.
_NAME_FORM: Final = r"(?:[a-z-]+!)?[A-Za-z0-9/_+=.@-]{1,512}"
_ARN_FORM: Final = re.compile(r"arn:.*:secret:(.+)-\w{6}")
_ID_FORM: Final = re.compile(
    rf"(?:arn:[a-z0-9-]+:secretsmanager:[a-z0-9-]+:[0-9]{{12}}:secret:)?{_NAME_FORM}"
)


def is_secret_id(text: str) -> bool:
    """Return whether the text has the form of a secret's name or ARN, so that it may be shown.

    A URI or DSN, which may contain a password, does not have this form.
    """
    return _ID_FORM.fullmatch(text) is not None


def name_of_secret(secret_id: str) -> str:
    """Return the name in a secret's ARN without the suffix that AWS appends, or a name as it is."""
    arn = _ARN_FORM.fullmatch(secret_id)
    return arn[1] if arn else secret_id
