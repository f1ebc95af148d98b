"""Reads the text of a secret, and resolves it into targets."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

from session_reaper.documents import UNSENDABLE
from session_reaper.errors import TargetError
from session_reaper.targets.connection_options import (
    OPTIONS,
    find_duplicate,
    find_unsupported,
    parse_parameters,
    parse_require_auth,
)
from session_reaper.targets.missing_keys import SERVICE_URI, SHOWABLE_NAME, explain_missing_key
from session_reaper.targets.providers import find_rds_region
from session_reaper.targets.target import (
    Auth,
    AuthMethod,
    ChannelBinding,
    Instance,
    RdsListing,
    Secret,
    SslMode,
    Target,
    is_secret_id,
)

_Choice = TypeVar("_Choice", bound=StrEnum)
_DEFAULT_PORT = 5432
_HIGHEST_PORT = 65535


class SecretError(TargetError):
    """The secret cannot be read, or does not describe a PostgreSQL server.

    `target` is the target's name, or the secret's if the target's is unknown.
    """

    def __init__(self, target: str, message: str, hint: str) -> None:
        super().__init__("secret", message, hint)
        self.target = target


class ParsedSecret(NamedTuple):
    """A secret's text, parsed; `resolve_targets` makes the targets."""

    secret: Secret
    target: Target  # host is "" if RDS has to provide it
    given_name: str  # the key `name`; "" if absent
    lacks_host: bool  # RDS manages the secret and knows the host
    cluster: str  # the cluster whose instances are the targets; "" if there is one target
    whole_clusters: bool

    @property
    def needs_rds(self) -> bool:
        """Whether the targets depend on the instances that RDS lists."""
        return self.lacks_host or bool(self.cluster)

    def covers(self, instance: Instance) -> bool:
        """Return whether the secret is for this instance, if it needs RDS."""
        if self.lacks_host:
            return self.secret.arn in instance.secret_arns
        return self.cluster != "" and instance.cluster == self.cluster

    def error(self, problem: str, hint: str) -> SecretError:
        """Build an error that names the secret."""
        return SecretError(self.target.name, f"secret {self.secret.name}: {problem}", hint)


def parse_secret(secret: Secret, *, whole_clusters: bool) -> ParsedSecret:
    """Parse a secret; `whole_clusters`: a cluster's secret covers each of its instances.

    The text is JSON in the shape of RDS's secrets (engine, host, port, username, password, dbname,
    dbInstanceIdentifier, dbClusterIdentifier) or of Aiven's connection information, or a service
    URI, alone or as the key uri. Optional keys: sslmode, sslrootcert, auth, name, fallback_secret.
    Raises SecretError that names the key; no message contains a value that could be the password.
    """
    read = _Reader(secret)
    given_name = read.label("name")
    instance = read.rds_identifier("dbInstanceIdentifier")
    cluster = read.rds_identifier("dbClusterIdentifier")
    read.target_name = given_name or instance or cluster or secret.name
    read.check_engine()
    lacks_host = is_managed_by_rds(secret) and not read.optional("host")
    covers_cluster = whole_clusters and not instance and not lacks_host
    return ParsedSecret(
        secret=secret,
        target=read.make_target_at(*read.endpoint(is_host_required=not lacks_host)),
        given_name=given_name,
        lacks_host=lacks_host,
        cluster=cluster if covers_cluster else "",
        whole_clusters=whole_clusters,
    )


def resolve_targets(parsed: ParsedSecret, listing: RdsListing) -> tuple[Target, ...]:
    """Return the targets of a secret: one, or each instance of its cluster.

    `listing` has an effect only if the secret needs RDS. Raises SecretError.
    """
    found = [instance for instance in listing.instances if parsed.covers(instance)]
    for instance in found:
        if not _is_postgres(instance.engine):
            raise parsed.error(f"engine {instance.engine} is not PostgreSQL", _NOT_POSTGRES_HINT)
    placed = [
        _make_target_of_instance(parsed, each)
        for each in found
        if parsed.whole_clusters or not each.is_reader
    ]
    if not placed and parsed.lacks_host:
        raise _explain_unknown_host(parsed, listing)
    if not placed and parsed.cluster:
        unlisted = f"RDS lists no running instance of {parsed.cluster} in this account and region."
        if listing.problem:
            unlisted = f"{listing.problem}. {listing.hint}"
        placed = [replace(parsed.target, unlisted=unlisted)]
    return tuple(_secure_iam(parsed, target) for target in placed or [parsed.target])


def read_own_endpoint(secret: Secret) -> Target:
    """Read the target at the host and port in the secret itself.

    `host` is "" if the secret has none. The TLS mode is as written, also for IAM. Raises
    SecretError.
    """
    read = _Reader(secret)
    read.check_engine()
    return read.make_target_at(*read.endpoint(is_host_required=False))


def is_managed_by_rds(secret: Secret) -> bool:
    """Return whether RDS manages the secret; only AWS services can create such a name."""
    return secret.name.startswith("rds!")


def require_verified_for_iam(target: Target) -> Target | None:
    """Return the target with a TLS mode over which a token may be sent; None if there is none.

    To the server a token is a clear-text password, so the connection has to be verified.
    """
    if target.auth is not Auth.IAM or target.is_verified:
        return target
    if target.sslmode is SslMode.DISABLE or find_rds_region(target.host) is None:
        return None
    return replace(target, sslmode=SslMode.VERIFY_FULL)


IAM_NEEDS_VERIFICATION: Final = (
    "Write sslmode verify-full, and the PEM text of the server's CA as sslrootcert (not needed for"
    " an endpoint of RDS or Aurora)."
)
_NOT_POSTGRES_HINT: Final = (
    "Remove the secret from the targets: the reaper supports only PostgreSQL."
)


def _secure_iam(parsed: ParsedSecret, target: Target) -> Target:
    verified = require_verified_for_iam(target)
    if verified is not None:
        return verified
    if not target.is_auth_given:
        raise parsed.error(*_PASSWORD_MISSING)
    problem = f"auth iam needs a verified connection, but sslmode is {target.sslmode}"
    raise parsed.error(problem, IAM_NEEDS_VERIFICATION)


def _explain_unknown_host(parsed: ParsedSecret, listing: RdsListing) -> SecretError:
    if listing.problem:
        problem = f"host is missing, and RDS cannot provide it: {listing.problem}"
        return parsed.error(problem, listing.hint)
    problem = "host is missing, and RDS lists no running instance that has this secret"
    hint = "Add host if the instance is in another account or region; otherwise remove the secret"
    return parsed.error(problem, f"{hint} from the targets.")


def _make_target_of_instance(parsed: ParsedSecret, instance: Instance) -> Target:
    """Return the secret's target at an instance."""
    name = group = parsed.given_name or instance.cluster or instance.identifier
    is_member = parsed.whole_clusters and instance.cluster != ""
    if is_member:
        given = parsed.given_name
        name = f"{given}/{instance.identifier}" if given else instance.identifier
    return replace(
        parsed.target,
        name=name,
        group=group,
        host=instance.host,
        port=instance.port,
        is_reader=instance.is_reader,
        instance=instance.identifier if is_member else "",
    )


def _is_postgres(engine: str) -> bool:
    return not engine or re.search(r"postgres|pgsql|postgis|\bpg\b", engine.lower()) is not None


class _Reader:
    """Reads the keys of one secret; its errors name the secret and the key."""

    def __init__(self, secret: Secret) -> None:
        self._secret = secret
        self.target_name = secret.name
        self._ignored: tuple[str, ...] = ()
        self._document = self._parse(secret.text.removeprefix(_BYTE_ORDER_MARK))
        option = find_unsupported(self._document)
        if option is not None:  # its value may hold a credential
            problem = f"connection option {option} holds an unsupported value"
            raise self.error(problem, OPTIONS[option].hint)

    def _parse(self, text: str) -> dict[str, Any]:
        if SERVICE_URI.match(text):
            return self._parse_uri(text)
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):  # from None: the JSON error contains the whole secret
            raise self.error(
                "the text must be JSON or a URI that begins with postgres://",
                'Store an object such as {"host": …, "username": …, "password": …}.',
            ) from None
        if isinstance(document, str) and SERVICE_URI.match(document):
            return self._parse_uri(document)
        if not isinstance(document, dict):
            raise self.error("the JSON must be an object", "Store an object, or a service URI.")
        return self._flatten(_rename_keys(document))

    def _flatten(self, given: dict[str, Any]) -> dict[str, Any]:
        """Merge the parts of Aiven's URI: an object in its API, a list of one in Terraform."""
        for key in ("service_uri_params", "pg_params"):
            inner = given.get(key)
            inner = inner[0] if isinstance(inner, list) and inner else inner
            if isinstance(inner, dict):
                given = _rename_keys(inner) | given
        for key in ("uri", "service_uri"):
            if key in given:
                uri = given[key]
                if not isinstance(uri, str) or not SERVICE_URI.match(uri):
                    problem = f"{key} must be a URI that begins with postgres://"
                    raise self.error(problem, _URI_HINT)
                given = self._parse_uri(uri) | given
        return given

    def _parse_uri(self, uri: str) -> dict[str, Any]:
        """Split postgres://user:password@host:port/dbname?sslmode=…, and decode its parts."""
        try:
            uri = uri.strip()
            if re.search(r"[\t\r\n]", uri):  # urlsplit would remove them, also from the host
                raise ValueError  # noqa: TRY301 -- as urlsplit does
            parts = urlsplit(uri)
            # An @ here follows a password that contains an unencoded delimiter.
            if "@" in parts.path + parts.query + parts.fragment:
                raise ValueError  # noqa: TRY301 -- as urlsplit does
            read = {
                "host": parts.hostname,
                "port": parts.port,
                "username": unquote(parts.username or "", errors="strict"),
                "password": unquote(parts.password or "", errors="strict"),
                "dbname": unquote(parts.path[1:], errors="strict"),
            }
            parameters = parse_parameters(parts.query)
        except ValueError:  # from None: the error quotes parts of the URI
            hint = "Write : / ? # [ ] @ % in user and password as %3A %2F %3F %23 %5B %5D %40 %25;"
            raise self.error("uri is invalid", f"{hint} write one host.") from None
        return {k: v for k, v in read.items() if v not in (None, "")} | self._keep_known_options(
            parameters
        )

    def _keep_known_options(self, parameters: Sequence[tuple[str, str]]) -> dict[str, str]:
        """Return the parameters that libpq knows; keep the names of the others."""
        duplicate = find_duplicate(name for name, _ in parameters)
        if duplicate is not None:
            raise self.error(f"uri has the parameter {duplicate} twice", "Write it once.")
        given = {name: value for name, value in parameters if name in OPTIONS}
        for name in given:
            if name in _PARTS_OF_URI:
                raise self.error(f"uri must not have {name} as a parameter", _URI_HINT)
        others = [name for name, _ in parameters if name not in OPTIONS]
        # Any other name may be the rest of a password.
        shown = (n if SHOWABLE_NAME.fullmatch(n) else "(name not shown)" for n in others)
        self._ignored = tuple(dict.fromkeys(shown))
        return {name: value for name, value in given.items() if value}

    def optional(self, key: str) -> str:
        """Read a text; "" if the key is absent or null."""
        value = self._document.get(key, "")
        if not isinstance(value, str) or UNSENDABLE.search(value):
            raise self.error(f"{key} must be text", f"Write {key} as a JSON string.")
        return value

    def required(self, key: str) -> str:
        """Read a text that is not empty."""
        value = self.optional(key)
        if not value:
            hint = explain_missing_key(self._document, key) or f"Add {key} to the secret."
            raise self.error(f"{key} is missing", hint)
        return value

    def label(self, key: str) -> str:
        """Read a name that reports may show: neither a URI nor a password."""
        value = self.optional(key).strip()
        if _CREDENTIALS.search(value) or self._contains_password(value):
            problem = f"{key} contains a URI or a password"
            raise self.error(problem, f"Write a name that reports may show as {key}.")
        return value

    def rds_identifier(self, key: str) -> str:
        """Read an identifier of RDS."""
        value = self.optional(key)
        if value and (not _IDENTIFIER.fullmatch(value) or self._contains_password(value)):
            problem = f"{key} must be an RDS identifier"
            raise self.error(problem, "Write it as RDS lists it: letters, digits and hyphens.")
        return value

    def text_but_uri(self, key: str) -> str:
        """Read a text that errors and advice may show."""
        value = self.optional(key)
        if _SCHEME.match(value):
            raise self.error(f"{key} must not be a URI", "Store the URI as uri, without its parts.")
        return value

    def _contains_password(self, value: str) -> bool:
        password = self._document.get("password")
        if not isinstance(password, str) or not password:
            return False
        return value == password or (len(password) >= _LONG_PASSWORD and password in value)

    def endpoint(self, *, is_host_required: bool) -> tuple[str, int]:
        """Read the host, "" if it is absent, and the port, which Terraform's endpoint holds too."""
        written = self.required("host") if is_host_required else self.optional("host")
        host, own_port = _split_port(written)
        if written and (not _HOST.fullmatch(host) or host.count(":") == 1):
            problem = "host must be a host name or an IP address"  # a URI would hold the password
            raise self.error(problem, "Write only the name or the address, or one with :port.")
        port = self._read_port("the port in host", own_port) if own_port else 0
        if "port" not in self._document:
            return host, port or _DEFAULT_PORT
        given = self._read_port("port", self._document["port"])
        if port and port != given:
            problem = "the port in host is not the one in port"
            raise self.error(problem, "Write the host without a port, or the same port in both.")
        return host, given

    def _read_port(self, subject: str, value: object) -> int:
        if isinstance(value, int | str) and re.fullmatch(r"[0-9]{1,5}", text := str(value)):
            port = int(text)
            if 0 < port <= _HIGHEST_PORT:
                return port
        raise self.error(f"{subject} must be a port number", f"Write 1 to {_HIGHEST_PORT}.")

    def check_engine(self) -> None:
        """Refuse an engine other than PostgreSQL; an absent one counts as PostgreSQL."""
        engine = self.optional("engine")
        if not _is_postgres(engine):
            is_shown = _IDENTIFIER.fullmatch(engine) and not self._contains_password(engine)
            subject = f"engine {engine[:40]}" if is_shown else "engine"
            raise self.error(f"{subject} is not PostgreSQL", _NOT_POSTGRES_HINT)

    def make_target_at(self, host: str, port: int) -> Target:
        """Build the target at this endpoint, with the TLS mode as written."""
        sslmode = self._read_sslmode()
        auth, is_auth_given = self._read_auth(), bool(self.optional("auth"))
        if auth is Auth.IAM and sslmode is SslMode.DISABLE:
            if not is_auth_given:
                raise self.error(*_PASSWORD_MISSING)
            problem = (
                "auth iam needs TLS: with sslmode disable the token would be sent in plaintext"
            )
            raise self.error(problem, "Remove sslmode from the secret, or write another.")
        target = Target(
            name=self.target_name,
            group=self.target_name,
            secret_arn=self._secret.arn,
            host=host,
            port=port,
            role=self.required("username") and self.text_but_uri("username"),
            auth=auth,
            is_auth_given=is_auth_given,
            password=self.required("password") if auth is Auth.PASSWORD else "",
            database=self._read_database(),
            sslmode=sslmode,
            sslrootcert=self._read_sslrootcert(),
            fallback_secret=self._read_fallback_secret(),
            channel_binding=self._read_choice(
                "channel_binding", ChannelBinding, ChannelBinding.PREFER
            ),
            allowed_auth=self._read_allowed_auth(),
            ignored_options=self._ignored,
        )
        self._check_authentication(target)
        return target

    def _read_database(self) -> str:
        """Read dbname; * is any database, as in the secrets of CloudNativePG and in .pgpass."""
        name = self.text_but_uri("dbname")
        return "postgres" if name in ("", "*") else name

    def _check_authentication(self, target: Target) -> None:
        """Refuse options that contradict each other, with which no login can succeed."""
        binding = target.channel_binding is ChannelBinding.REQUIRE
        if target.auth is Auth.IAM and (binding or AuthMethod.PASSWORD not in target.allowed_auth):
            if not target.is_auth_given:
                raise self.error(*_PASSWORD_MISSING)
            option = "channel_binding" if binding else "require_auth"
            problem = f"{option} does not allow auth iam: a token is sent as a clear-text password"
            raise self.error(problem, f"Remove {option}; a token is sent over verified TLS only.")
        if binding and target.sslmode is SslMode.DISABLE:
            problem = "channel_binding require needs TLS, but sslmode is disable"
            raise self.error(problem, "Write sslmode verify-full, or remove channel_binding.")
        if binding and AuthMethod.SCRAM_SHA_256 not in target.allowed_auth:
            problem = "channel_binding require needs scram-sha-256, but require_auth forbids it"
            hint = "Add scram-sha-256 to require_auth, or remove one of the two options."
            raise self.error(problem, hint)
        if self._document.get("ssl") and target.sslmode is SslMode.DISABLE:
            problem = "ssl requests TLS, but sslmode is disable"
            raise self.error(problem, "Remove one of the two options.")

    def _read_sslrootcert(self) -> str | None:
        """Read PEM text, which is parsed only when it is used."""
        value = self.optional("sslrootcert")
        if value and "-----BEGIN " not in value:
            problem = "sslrootcert must be PEM text"
            hint = (
                "Store the CA's PEM text itself, not a path. Without sslrootcert, the CAs of AWS (for"
                " RDS and Aurora) or of the system are trusted."
            )
            raise self.error(problem, hint)
        return value or None

    def _read_fallback_secret(self) -> str | None:
        """Read a secret's name or ARN, which reports may show."""
        value = self.optional("fallback_secret").strip()
        if value and (not is_secret_id(value) or self._contains_password(value)):
            problem = "fallback_secret must be the name or the ARN of a secret"
            raise self.error(problem, "Store the credentials as a secret, and write its name here.")
        return value or None

    def _read_allowed_auth(self) -> frozenset[AuthMethod]:
        """Read require_auth."""
        allowed = parse_require_auth(self.optional("require_auth"))
        if allowed is None:
            problem = "require_auth must be a list of authentication methods"
            hint = f"Write a comma-separated list of {', '.join(AuthMethod)}; or a list of methods"
            raise self.error(problem, f"{hint} to refuse, each with ! before it.")
        if not allowed:
            problem = "require_auth allows no method that the reaper supports"
            raise self.error(problem, f"Allow one of {', '.join(AuthMethod)}.")
        return allowed

    def _read_auth(self) -> Auth:
        """Read auth; the default is IAM if the secret has no password, under any name."""
        has_password = self.optional("password") or explain_missing_key(self._document, "password")
        return self._read_choice("auth", Auth, Auth.PASSWORD if has_password else Auth.IAM)

    def _read_sslmode(self) -> SslMode:
        """Read sslmode; the default is the strictest."""
        if self.optional("sslmode") in ("prefer", "allow"):
            problem = "sslmode prefer and allow are refused: they may connect in plaintext"
            raise self.error(problem, f"Write one of {', '.join(SslMode)}.")
        return self._read_choice("sslmode", SslMode, SslMode.VERIFY_FULL)

    def _read_choice(self, key: str, choices: type[_Choice], default: _Choice) -> _Choice:
        """Read one of several values; the default if the key is absent or empty."""
        try:
            return choices(self.optional(key) or default)
        except ValueError:
            hint = f"Write one of {', '.join(choices)}."
            raise self.error(f"{key} has an unknown value", hint) from None

    def error(self, problem: str, hint: str) -> SecretError:
        """Build an error that names the secret."""
        return SecretError(self.target_name, f"secret {self._secret.name}: {problem}", hint)


_PASSWORD_MISSING: Final = ("password is missing", "Add password to the secret.")
_URI_HINT: Final = "Write postgres://user:password@host:port/dbname."
_PARTS_OF_URI: Final = ("host", "port", "user", "password", "dbname")
_LONG_PASSWORD: Final = 8  # characters; a shorter password may occur in a name by chance
_SCHEME: Final = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]*://")
_CREDENTIALS: Final = re.compile(
    r"://|:[^@\s]+@|\b(?:password|passwd|pwd|token|secret)\s*[=:]", re.IGNORECASE
)
_HOST: Final = re.compile(r"[\w.:%-]+", re.ASCII)
_BYTE_ORDER_MARK: Final = "\ufeff"
_IDENTIFIER: Final = re.compile(r"[A-Za-z0-9_.-]{1,255}")


def _split_port(host: str) -> tuple[str, str]:
    """Split a name, IPv4 address or bracketed IPv6 address from its port, "" if it has none."""
    found = re.fullmatch(r"\[([^][]*:[^][]*)](?::([0-9]+))?", host)
    found = found or re.fullmatch(r"([^][:]+):([0-9]+)", host)
    return (found[1], found[2] or "") if found else (host, "")


def _rename_keys(document: dict[str, Any]) -> dict[str, Any]:
    """Use RDS's names for Aiven's keys, and drop nulls and empty texts."""
    given = {key: value for key, value in document.items() if value not in (None, "")}
    names = {"user": "username", "database": "dbname"}
    return {ours: given[theirs] for theirs, ours in names.items() if theirs in given} | given
