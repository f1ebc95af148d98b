"""Reads the text of a secret into targets."""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from session_reaper.documents import UNSENDABLE
from session_reaper.errors import TargetError
from session_reaper.targets.connection_options import OPTIONS, find_duplicate, find_unsupported
from session_reaper.targets.providers import rds_region
from session_reaper.targets.target import (
    ANY_AUTH,
    Auth,
    AuthMethod,
    ChannelBinding,
    Instance,
    Secret,
    SslMode,
    Target,
    is_secret_id,
)

_DEFAULT_PORT = 5432
_HIGHEST_PORT = 65535


class SecretError(TargetError):
    """The secret cannot be read, or is no description of a PostgreSQL server.

    `target` is the target's name as far as it is known: the secret's own, if it is not.
    """

    def __init__(self, target: str, message: str, hint: str) -> None:
        super().__init__("secret", message, hint)
        self.target = target


def read_targets(
    secret: Secret, instances: Callable[[], Iterable[Instance]], *, whole_clusters: bool
) -> tuple[Target, ...]:
    """The targets that a secret describes: one, or each instance of its cluster.

    The text is JSON in the shape of RDS's secrets (engine, host, port, username, password, dbname,
    dbInstanceIdentifier, dbClusterIdentifier) or of Aiven's connection information, or a service
    URI, alone or as the key uri. Optional keys: sslmode, sslrootcert, auth, name, fallback_secret.
    `instances` is asked only if RDS has to say where they are; it raises TargetError if it cannot.
    Raises SecretError naming the key; no message holds a value that could be the password.
    """
    read = _Reader(secret)
    given = read.label("name")
    instance = read.identifier("dbInstanceIdentifier")
    cluster = read.identifier("dbClusterIdentifier")
    read.target = given or instance or cluster or secret.name
    read.check_engine(read.optional("engine"))
    managed = is_managed_by_rds(secret) and not read.optional("host")
    target = read.signs_in("" if managed else read.host(), read.port())
    found, unlisted = [], ""
    if managed:
        found = _find_managed(read, instances)
    elif cluster and not instance and whole_clusters:
        found, unlisted = _find_members(cluster, instances)
    for each in found:
        read.check_engine(each.engine)
    running = [each for each in found if whole_clusters or not each.reader]
    placed = [_place(target, each, given, whole=whole_clusters) for each in running]
    if managed and not placed:
        problem = "host is missing, and RDS lists no running instance that has this secret"
        hint = "Add host, if it is in another account or region; else take it off the targets."
        raise read.error(problem, hint)
    targets = placed or [replace(target, unlisted=unlisted)]
    return tuple(read.verified_for_iam(each) for each in targets)


def read_own_endpoint(secret: Secret) -> Target:
    """Read the one target whose host and port the secret itself names, without asking RDS.

    `host` is "" if it names none, and the TLS mode is as written, also for IAM. Raises SecretError.
    """
    read = _Reader(secret)
    read.check_engine(read.optional("engine"))
    return read.signs_in(read.host() if read.optional("host") else "", read.port())


def is_managed_by_rds(secret: Secret) -> bool:
    """Return whether RDS manages the secret: nobody else can give it such a name."""
    return secret.name.startswith("rds!")


def require_verified_for_iam(target: Target) -> Target | None:
    """Return the target with a TLS mode that a token may be sent by; None if there is none.

    A token is a clear-text password to the server: only a verified connection may carry it.
    """
    if target.auth is not Auth.IAM or target.is_verified:
        return target
    if target.sslmode is SslMode.DISABLE or rds_region(target.host) is None:
        return None
    return replace(target, sslmode=SslMode.VERIFY_FULL)


IAM_NEEDS_VERIFICATION: Final = (
    "Write sslmode verify-full, and the PEM text of the server's CA as sslrootcert (an endpoint of"
    " RDS or Aurora needs none)."
)


def _find_managed(read: "_Reader", instances: Callable[[], Iterable[Instance]]) -> list[Instance]:
    """Those whose master secret this is: RDS puts a user and a password into it, and no host."""
    try:
        found = [each for each in instances() if read.secret.arn in each.secret_arns]
    except TargetError as error:
        problem = f"host is missing, and RDS cannot be asked for it: {error.message}"
        raise read.error(problem, error.hint) from None
    return found


def _find_members(
    cluster: str, instances: Callable[[], Iterable[Instance]]
) -> tuple[list[Instance], str]:
    """The instances of a cluster, or why there are none: the secret's own host stands for them."""
    try:
        found = [each for each in instances() if each.cluster == cluster]
    except TargetError as error:
        return [], f"{error.message}. {error.hint}"
    return found, f"RDS lists no running instance of {cluster} in this account and region."


def _place(target: Target, instance: Instance, given: str, *, whole: bool) -> Target:
    group = given or instance.cluster or instance.identifier
    name = group
    if instance.cluster and whole:
        name = f"{given}/{instance.identifier}" if given else instance.identifier
    return replace(
        target,
        name=name,
        group=group,
        host=instance.host,
        port=instance.port,
        reader=instance.reader,
        instance=instance.identifier if instance.cluster and whole else "",
    )


class _Reader:
    """Reads the keys of one secret; its errors name the secret and the key."""

    def __init__(self, secret: Secret) -> None:
        self.secret = secret
        self.target = secret.name
        self.ignored: tuple[str, ...] = ()
        self._document = self._parsed(secret.text)
        problem = find_unsupported(self._document)
        if problem is not None:
            raise self.error(problem.message, problem.hint)

    def _parsed(self, text: str) -> dict[str, Any]:
        if _is_uri(text):
            return self._of_uri(text)
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):  # from None: the JSON error carries the whole secret
            raise SecretError(
                self.target,
                f"secret {self.secret.name} is not JSON, nor a URI that begins with postgres://",
                'Store an object such as {"host": …, "username": …, "password": …}.',
            ) from None
        if isinstance(document, str) and _is_uri(document):
            return self._of_uri(document)
        if not isinstance(document, dict):
            message = f"secret {self.secret.name} is JSON, but no object"
            raise SecretError(self.target, message, "Store an object, or a service URI.")
        return self._flat(_by_our_names(document))

    def _flat(self, given: dict[str, Any]) -> dict[str, Any]:
        """Aiven's API has the parts of the URI beside it, its Terraform provider in a list of one."""
        for key in ("service_uri_params", "pg_params"):
            inner = given.get(key)
            inner = inner[0] if isinstance(inner, list) and inner else inner
            if isinstance(inner, dict):
                given = _by_our_names(inner) | _without_empty(given)
        for key in ("uri", "service_uri"):
            if key in given:
                uri = given[key]
                if not isinstance(uri, str) or not _is_uri(uri):
                    raise self.error(f"{key} is no URI", "It begins with postgres://.")
                given = self._of_uri(uri) | _without_empty(given)
        return given

    def _of_uri(self, uri: str) -> dict[str, Any]:
        """The parts of postgres://user:password@host:port/dbname?sslmode=…, percent-decoded."""
        try:
            parts = urlsplit(uri.strip())
            if "@" in parts.path + parts.query + parts.fragment:  # what is before it is a password
                raise ValueError  # noqa: TRY301
            read = {
                "host": parts.hostname,
                "port": parts.port,
                "username": unquote(parts.username or "", errors="strict"),
                "password": unquote(parts.password or "", errors="strict"),
                "dbname": unquote(parts.path[1:], errors="strict"),
            }
            parameters = [_parameter(text) for text in parts.query.split("&") if text]
        except ValueError:  # from None: it quotes what it cannot read
            hint = "In user and password write : / ? # [ ] @ % as %3A %2F %3F %23 %5B %5D %40 %25;"
            hint += " name one host."
            raise self.error("uri cannot be read", hint) from None
        return {k: v for k, v in read.items() if v not in (None, "")} | self._options(parameters)

    def _options(self, parameters: Iterable[tuple[str, str]]) -> dict[str, str]:
        """The parameters that libpq knows; the names of the others are kept as ignored."""
        given = [(name, value) for name, value in parameters if name in OPTIONS]
        names = [name for name, _ in given]
        twice = find_duplicate(names)
        if twice is not None:
            raise self.error(f"uri has the parameter {twice} twice", "Write it once.")
        for name in names:
            if name in _PARTS_OF_URI:
                problem = f"uri has {name} among its parameters"
                hint = "Write postgres://user:password@host:port/dbname, and no such parameter."
                raise self.error(problem, hint)
        others = (_shown_name(name) for name, _ in parameters if name not in OPTIONS)
        self.ignored = tuple(dict.fromkeys(others))
        return {name: value for name, value in given if value}

    def optional(self, key: str) -> str:
        """Text, or "" if the key is absent or null."""
        value = self._document.get(key, "")
        if not isinstance(value, str) or UNSENDABLE.search(value):
            raise self.error(f"{key} is not text", f"Write {key} as a JSON string.")
        return value

    def required(self, key: str) -> str:
        """Text that is not empty."""
        value = self.optional(key)
        if not value:
            raise self.error(f"{key} is missing", f"Add {key} to the secret.")
        return value

    def label(self, key: str) -> str:
        """Text that names the target wherever it is reported; no URI and no password."""
        value = self.optional(key).strip()
        if _CREDENTIALS.search(value) or self._holds_password(value):
            problem = f"{key} holds a URI or a password"
            raise self.error(problem, f"Write as {key} what reports may call the target.")
        return value

    def identifier(self, key: str) -> str:
        """An identifier of RDS."""
        value = self.optional(key)
        if value and (not _IDENTIFIER.fullmatch(value) or self._holds_password(value)):
            problem = f"{key} is not an identifier of RDS"
            raise self.error(problem, f"Write {key} as RDS lists it: letters, digits and hyphens.")
        return value

    def no_uri(self, key: str) -> str:
        """Text that errors and advice may show."""
        value = self.optional(key)
        if _SCHEME.match(value):
            raise self.error(f"{key} holds a URI", "Store it as uri, and leave out its parts.")
        return value

    def _holds_password(self, value: str) -> bool:
        password = self._document.get("password")
        if not isinstance(password, str) or not password:
            return False
        return value == password or (len(password) >= _LONG_PASSWORD and password in value)

    def host(self) -> str:
        """A host's name or address."""
        value = self.required("host")
        if not re.fullmatch(r"[\w.:%-]+", value, re.ASCII):  # a URI would hold the password
            raise self.error("host is no host name", "Write the name or the address alone.")
        return value

    def port(self) -> int:
        """A port number, PostgreSQL's own by default."""
        value = self._document.get("port", _DEFAULT_PORT)
        if isinstance(value, int | str) and re.fullmatch(r"[0-9]{1,5}", text := str(value)):
            port = int(text)
            if 0 < port <= _HIGHEST_PORT:
                return port
        raise self.error("port is no port number", f"Write 1 to {_HIGHEST_PORT}.")

    def check_engine(self, engine: str) -> None:
        """Refuse what is not PostgreSQL; who says nothing means it."""
        if engine and "postgres" not in engine.lower():
            is_shown = _IDENTIFIER.fullmatch(engine) and not self._holds_password(engine)
            problem = f"engine {engine[:40]} is" if is_shown else "engine is"
            problem += " not PostgreSQL"
            hint = "Take the secret off the targets: there are no sessions to see."
            raise self.error(problem, hint)

    def signs_in(self, host: str, port: int) -> Target:
        """The target at this place. A token may need a stricter TLS mode: see verified_for_iam."""
        sslmode = self._sslmode()
        auth, auth_given = self._auth(), bool(self.optional("auth"))
        if auth is Auth.IAM and sslmode is SslMode.DISABLE:
            if not auth_given:
                raise self._password_missing()
            problem = "auth iam needs TLS: with sslmode disable the token would go out in plaintext"
            raise self.error(problem, "Take sslmode out of the secret, or write another.")
        target = Target(
            name=self.target,
            group=self.target,
            secret_arn=self.secret.arn,
            host=host,
            port=port,
            role=self.required("username") and self.no_uri("username"),
            auth=auth,
            auth_given=auth_given,
            password=self.required("password") if auth is Auth.PASSWORD else "",
            database=self.no_uri("dbname") or "postgres",
            sslmode=sslmode,
            sslrootcert=self._sslrootcert(),
            fallback_secret=self._fallback_secret(),
            channel_binding=self._channel_binding(),
            allowed_auth=self._allowed_auth(),
            ignored_options=self.ignored,
        )
        self._check_authentication(target)
        return target

    def verified_for_iam(self, target: Target) -> Target:
        """The target with a TLS mode that its token may be sent by, if it has one."""
        verified = require_verified_for_iam(target)
        if verified is not None:
            return verified
        if not target.auth_given:
            raise self._password_missing()
        problem = f"auth iam needs a verified connection, and sslmode is {target.sslmode}"
        raise self.error(problem, IAM_NEEDS_VERIFICATION)

    def _check_authentication(self, target: Target) -> None:
        """Refuse options that contradict one another: no server could ever be signed in to."""
        binding = target.channel_binding is ChannelBinding.REQUIRE
        if target.auth is Auth.IAM and (binding or AuthMethod.PASSWORD not in target.allowed_auth):
            if not target.auth_given:
                raise self._password_missing()
            option = "channel_binding" if binding else "require_auth"
            problem = f"{option} does not allow auth iam: a token is sent as a clear-text password"
            raise self.error(problem, f"Remove {option}; a token is sent over verified TLS only.")
        if binding and target.sslmode is SslMode.DISABLE:
            problem = "channel_binding require needs TLS, and sslmode is disable"
            raise self.error(problem, "Write sslmode verify-full, or remove channel_binding.")
        if binding and AuthMethod.SCRAM_SHA_256 not in target.allowed_auth:
            problem = "channel_binding require needs scram-sha-256, and require_auth forbids it"
            raise self.error(
                problem, "Add scram-sha-256 to require_auth, or remove one of the two."
            )
        if self._document.get("ssl") and target.sslmode is SslMode.DISABLE:
            problem = "ssl asks for TLS, and sslmode is disable"
            raise self.error(problem, "Remove one of the two.")

    def _password_missing(self) -> SecretError:
        return self.error("password is missing", "Add password to the secret.")

    def _sslrootcert(self) -> str | None:
        """PEM text, which is looked at only when it is used."""
        value = self.optional("sslrootcert")
        if value and "-----BEGIN " not in value:
            problem = "sslrootcert is not PEM text"
            hint = (
                "Store the CA's PEM text itself, not a path. Without sslrootcert the authorities of"
                " AWS (RDS, Aurora) or of the system are trusted."
            )
            raise self.error(problem, hint)
        return value or None

    def _fallback_secret(self) -> str | None:
        """A secret's name or ARN, which reports may show."""
        value = self.optional("fallback_secret").strip()
        if value and (not is_secret_id(value) or self._holds_password(value)):
            problem = "fallback_secret is not the name or the ARN of a secret"
            raise self.error(problem, "Store the credentials as a secret, and write its name here.")
        return value or None

    def _channel_binding(self) -> ChannelBinding:
        """As libpq reads it, prefer by default."""
        try:
            return ChannelBinding(self.optional("channel_binding") or ChannelBinding.PREFER)
        except ValueError:
            hint = f"Write one of {', '.join(ChannelBinding)}."
            raise self.error("channel_binding is not known", hint) from None

    def _allowed_auth(self) -> frozenset[AuthMethod]:
        """As libpq reads require_auth: methods to allow, or each with ! before it to refuse."""
        written = self.optional("require_auth")
        if not written:
            return ANY_AUTH
        methods = [method.strip() for method in written.split(",")]
        refused = [method.startswith("!") for method in methods]
        names = {method.removeprefix("!") for method in methods}
        if any(refused) != all(refused) or names - _AUTH_METHODS:
            hint = f"Write a comma-separated list of {', '.join(AuthMethod)}; or a list of methods"
            hint += " to refuse, each with ! before it."
            raise self.error("require_auth is not a list of authentication methods", hint)
        allowed = frozenset(each for each in AuthMethod if (each in names) != all(refused))
        if not allowed:
            problem = "require_auth allows no method that the reaper supports"
            raise self.error(problem, f"Allow one of {', '.join(AuthMethod)}.")
        return allowed

    def _auth(self) -> Auth:
        """As it is written; without a word on it, a secret without a password means IAM."""
        inferred = Auth.PASSWORD if self.optional("password") else Auth.IAM
        try:
            return Auth(self.optional("auth") or inferred)
        except ValueError:
            raise self.error("auth is not known", f"Write one of {', '.join(Auth)}.") from None

    def _sslmode(self) -> SslMode:
        """The strictest unless another is written."""
        try:
            return SslMode(self.optional("sslmode") or SslMode.VERIFY_FULL)
        except ValueError:
            hint = f"Write one of {', '.join(SslMode)}."
            if self.optional("sslmode") in ("prefer", "allow"):
                problem = "sslmode prefer and allow are refused: they may end in plaintext"
                raise self.error(problem, hint) from None
            raise self.error("sslmode is not known", hint) from None

    def error(self, problem: str, hint: str) -> SecretError:
        """What is wrong with the secret, as an error."""
        return SecretError(self.target, f"secret {self.secret.name}: {problem}", hint)


_AUTH_METHODS: Final = frozenset({*AuthMethod, "gss", "sspi", "oauth"})  # that libpq knows
_PARTS_OF_URI: Final = ("host", "port", "user", "password", "dbname")
_LONG_PASSWORD: Final = 8  # characters: a shorter one may be part of a name by chance
_SCHEME: Final = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]*://")
_CREDENTIALS: Final = re.compile(
    r"://|:[^@\s]+@|\b(?:password|passwd|pwd|token|secret)\s*[=:]", re.IGNORECASE
)
_IDENTIFIER: Final = re.compile(r"[A-Za-z0-9_.-]{1,255}")
_PARAMETER_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,39}")


def _parameter(text: str) -> tuple[str, str]:
    """A parameter of a URI; unlike in a form, + stands for itself."""
    name, _, value = text.partition("=")
    return unquote(name, errors="strict"), unquote(value, errors="strict")


def _shown_name(name: str) -> str:
    """A parameter's name, if it looks like one: the rest of a password does not."""
    return name if _PARAMETER_NAME.fullmatch(name) else "(a name that is not shown)"


def _is_uri(text: str) -> bool:
    return re.match(r"\s*postgres(ql)?://", text) is not None


def _by_our_names(document: dict[str, Any]) -> dict[str, Any]:
    """What a document says; null counts as absent."""
    said = {key: value for key, value in document.items() if value is not None}
    theirs = {"user": "username", "database": "dbname"}
    return {ours: said[key] for key, ours in theirs.items() if key in said} | said


def _without_empty(document: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if value != ""}
