"""What needs to be mended without haste: pure functions of what was seen."""

from collections.abc import Iterator

from session_reaper.errors import quoted
from session_reaper.preflight import RESERVED_CONNECTIONS_SINCE, Preflight
from session_reaper.providers import Provider, is_proxy, way_in
from session_reaper.report import Advice
from session_reaper.sessions import Look
from session_reaper.targets import SslMode, Target

_BYPASS_POOLER = Advice(
    code="bypass-pooler",
    message="The secret's host is a pooler (PgBouncer, RDS Proxy or the like): it hides the clients'"
    " sessions, and what is terminated are its own. Write the server's own host and port into the"
    " secret.",
    sql=None,
)
_IDLE_TIMEOUT = "idle_in_transaction_session_timeout"


def advice_on_connection(target: Target) -> Iterator[Advice]:
    """What the secret asks for and should not."""
    if target.sslmode is SslMode.DISABLE:
        yield Advice(
            code="encrypt-connection",
            message="The secret says sslmode disable: the connection is plaintext. Switch TLS on"
            " at the server and write verify-full into the secret.",
            sql=None,
        )
    if is_proxy(target.host):
        yield _BYPASS_POOLER
    if target.unlisted:
        yield Advice(
            code="list-cluster-instances",
            message=f"Only {target.host} of the cluster was looked at: {target.unlisted} To have it"
            " so, set CLUSTER_TARGETS to endpoint.",
            sql=None,
        )


def advice_on_way_in(target: Target, signed_in: Target) -> Iterator[Advice]:
    """What it took to get in."""
    if signed_in.instead_of is not None:
        yield Advice(
            code="reserve-slots",
            message=f"Role {target.role} found no slot: role {signed_in.role} of the secret"
            f" {target.fallback_secret} signed in. {way_in(target.host, target.role)}",
            sql=f"GRANT pg_use_reserved_connections TO {quoted(target.role)};",
        )


def advice_on_look(look: Look) -> Iterator[Advice]:
    """What the look showed to be missing."""
    if not look.can_signal:
        yield Advice(
            code="grant-signal-backend",
            message=f"Role {look.role} can terminate sessions only of roles it is a member of. (Where"
            " pg_signal_backend may not be granted: GRANT the application's role to it.)",
            sql=f"GRANT pg_signal_backend TO {quoted(look.role)};",
        )
    if look.behind_pooler:
        yield _BYPASS_POOLER
    if look.untracked:
        yield Advice(
            code="track-activities",
            message=f"{look.untracked} sessions hide their state (track_activities is off):"
            " no rule can match them. Switch it on.",
            sql=None,
        )


def advice_on_preflight(target: Target, found: Preflight) -> Iterator[Advice]:
    """What is missing, and what mends it."""
    if target.sslmode is SslMode.REQUIRE and target.sslrootcert is None:
        yield Advice(
            code="verify-certificate",
            message="The secret says sslmode require and has no sslrootcert: anybody between here and"
            " the server can read the password. Write verify-full, and the CA's PEM text as"
            " sslrootcert (of RDS and Aurora it is built in).",
            sql=None,
        )
    if found.tls is not None and "" < found.tls.certificate_until < found.soon:
        yield Advice(
            code="renew-certificate",
            message=f"The server's certificate ends on {found.tls.certificate_until}.",
            sql=None,
        )
    if not found.has_reserved_slot and target.fallback_secret is None:
        yield _reserved_slot(found)
    without = list(_without_timeout(found))
    if without:
        yield Advice(
            code="set-idle-in-transaction-timeout",
            message=f"No {_IDLE_TIMEOUT} for the databases {', '.join(without)}: PostgreSQL itself"
            " can end leaks, also where this function does not run.",
            sql=" ".join(
                f"ALTER DATABASE {quoted(name)} SET {_IDLE_TIMEOUT} = '10min';" for name in without
            ),
        )


def advice_on_fallback(secret: str, problem: str) -> Advice:
    """Why the fallback secret would not help."""
    message = f"fallback_secret {secret} would not get in when the server is full: {problem}"
    return Advice(code="mend-fallback-secret", message=message, sql=None)


def _reserved_slot(found: Preflight) -> Advice:
    """How the role gets in when the server is full."""
    if found.major < RESERVED_CONNECTIONS_SINCE:
        whose = "the master user" if found.provider is not Provider.VANILLA else "a superuser"
        return Advice(
            code="add-fallback-secret",
            message=f"When every slot is taken role {found.role} does not get in; before PostgreSQL"
            f" 16 it cannot be given a reserved one. Name the secret of {whose} in this secret as"
            " fallback_secret: it is used only then.",
            sql=None,
        )
    if found.reserved_slots == 0:
        vanilla = found.provider is Provider.VANILLA
        how = "then restart the server" if vanilla else "set it to 2 in the provider's parameters"
        return Advice(
            code="set-reserved-connections",
            message=f"reserved_connections is 0: when every slot is taken role {found.role} does not"
            f" get in. Reserve two ({how}), or name a fallback_secret in the secret.",
            sql="ALTER SYSTEM SET reserved_connections = 2;" if vanilla else None,
        )
    return Advice(
        code="grant-reserved-connections",
        message=f"Role {found.role} may not use the {found.reserved_slots} reserved slots.",
        sql=f"GRANT pg_use_reserved_connections TO {quoted(found.role)};",
    )


def _without_timeout(found: Preflight) -> Iterator[str]:
    """The databases in which nothing ends a transaction that idles; none if that is hidden."""
    set_for = {
        t.database: t.value for t in found.timeouts if t.name == _IDLE_TIMEOUT and not t.role
    }
    for name in found.databases:
        if set_for.get(name, set_for.get(None)) == "0":
            yield name
