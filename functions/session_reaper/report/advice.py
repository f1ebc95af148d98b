"""Recommendations that stop leaks or prepare for the next run, as pure functions of evidence."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from session_reaper.errors import INSUFFICIENT_PRIVILEGE, ConnectionLostError, TargetError
from session_reaper.grants import quote_identifier
from session_reaper.policy.builtin import find_protection_by_name, is_provider_role
from session_reaper.policy.durations import format_duration
from session_reaper.report.headline import count_of
from session_reaper.report.model import Advice, Failure, Outcome, RoleSetting, SessionResult
from session_reaper.report.text import MOST_NAMED, join_first
from session_reaper.sessions.server_facts import RESERVED_CONNECTIONS_SINCE, ServerFacts, Timeout
from session_reaper.sessions.session import Names, Session, Slots, State
from session_reaper.sessions.snapshot import Snapshot
from session_reaper.targets.providers import Provider, is_proxy, reserved_slot_instructions
from session_reaper.targets.target import SslMode, Target

MANY_IDLE: Final = 10  # idle sessions of one application and role
MANY_IDLE_SHARE: Final = 0.25  # of the slots that ordinary roles can use
OLD_PREPARED: Final = 3600.0  # seconds
HELD_BY_INACTIVE: Final = 10_000  # transactions
HELD_BY_ACTIVE: Final = 10_000_000  # transactions
_ADMIN_OPTION_SINCE: Final = 16  # the major version
_MASTERS: Final = {
    Provider.VANILLA: "a superuser",
    Provider.RDS: "the master user",
    Provider.AURORA: "the master user",
    Provider.AIVEN: "avnadmin",
}

_BYPASS_POOLER = Advice(
    code="bypass-pooler",
    message="The secret's host is a pooler such as PgBouncer or RDS Proxy. It hides the clients'"
    " sessions, so the reaper would terminate the pooler's own. Put the server's own host and port"
    " into the secret.",
    sql=None,
)
_IDLE_TIMEOUT: Final = "idle_in_transaction_session_timeout"
_IDLE_TIMEOUT_CODE: Final = "set-idle-in-transaction-timeout"

_MOST_USEFUL_FIRST: Final = (
    # Let session-reaper do its work.
    "bypass-pooler",
    "grant-signal-backend",
    "grant-functions",
    "mend-fallback-secret",
    # Stop the leaks.
    _IDLE_TIMEOUT_CODE,
    "set-idle-session-timeout",
    "set-transaction-timeout",
    "use-pooler",
    # Unblock vacuum.
    "end-prepared-transactions",
    "drop-replication-slot",
    # Prepare for the next emergency.
    "reserve-slots",
    "set-reserved-connections",
    "grant-reserved-connections",
    "add-fallback-secret",
    "encrypt-connection",
    "verify-certificate",
    "renew-certificate",
    "list-cluster-instances",
    "track-activities",
    "remove-ignored-options",
)


def sort_advice(advice: Iterable[Advice]) -> tuple[Advice, ...]:
    """Remove duplicates and put the most useful advice first."""
    return tuple(sorted(dict.fromkeys(advice), key=lambda a: _MOST_USEFUL_FIRST.index(a.code)))


def advise_on_connection(target: Target) -> Iterator[Advice]:
    """Advise on how the secret says to connect."""
    if target.sslmode is SslMode.DISABLE:
        yield Advice(
            code="encrypt-connection",
            message="The connection is in plaintext, because the secret says sslmode disable. Turn on"
            " TLS at the server, and set sslmode to verify-full in the secret.",
            sql=None,
        )
    if is_proxy(target.host):
        yield _BYPASS_POOLER
    if target.unlisted:
        yield Advice(
            code="list-cluster-instances",
            message=f"Only {target.host} of the cluster was examined: {target.unlisted} If that is"
            " intended, set CLUSTER_TARGETS to endpoint.",
            sql=None,
        )


def advise_on_options(target: Target) -> Iterator[Advice]:
    """List the parameters of the secret's URI that have no effect."""
    if target.ignored_options:
        yield Advice(
            code="remove-ignored-options",
            message="These parameters of the secret's URI have no effect, because libpq does not know"
            f" them: {', '.join(target.ignored_options)}.",
            sql=None,
        )


def advise_on_fallback_used(target: Target, connected: Target) -> Iterator[Advice]:
    """Advise to reserve slots where only the fallback secret's role could connect."""
    if connected.instead_of is not None:
        yield Advice(
            code="reserve-slots",
            message=f"Role {target.role} found no free slot, so the reaper connected as role"
            f" {connected.role} of the secret {target.fallback_secret}."
            f" {reserved_slot_instructions(target.host, target.role)}",
            sql=f"GRANT pg_use_reserved_connections TO {quote_identifier(target.role)};",
        )


def advise_on_snapshot(snapshot: Snapshot) -> Iterator[Advice]:
    """Advise on privileges and settings that the snapshot showed to be missing."""
    if not snapshot.can_signal:
        yield Advice(
            code="grant-signal-backend",
            message=f"Role {snapshot.role} can terminate only sessions of roles that it is a member"
            " of. Run this grant. If you may not grant pg_signal_backend, grant the application's"
            " role instead.",
            sql=snapshot.membership.grant("pg_signal_backend", snapshot.role),
        )
    if snapshot.behind_pooler:
        yield _BYPASS_POOLER
    if snapshot.untracked:
        yield Advice(
            code="track-activities",
            message=f"No rule can match {count_of(snapshot.untracked, 'session')} with an unknown"
            " state, because track_activities is off. Turn it on.",
            sql=None,
        )


def advise_on_facts(
    target: Target, found: ServerFacts, slots: Slots, results: Iterable[SessionResult]
) -> Iterator[Advice]:
    """Advise on everything that the server's facts show, except timeouts."""
    if target.sslmode not in (SslMode.VERIFY_FULL, SslMode.DISABLE):
        yield _advise_verification(target)
    if found.tls is not None and "" < found.tls.certificate_until < found.soon:
        yield Advice(
            code="renew-certificate",
            message=f"The server's certificate expires on {found.tls.certificate_until}. Renew it.",
            sql=None,
        )
    if not found.has_reserved_slot and target.fallback_secret is None:
        yield _advise_reserved_slot(found)
    yield from _advise_pooler(found, slots, results)
    yield from _advise_prepared_transactions(found)
    yield from _advise_replication_slots(found)


def advise_on_grants(grants: Collection[str], database: str) -> Iterator[Advice]:
    """Advise the grants that the reaper's statements need and its role lacks."""
    if grants:
        yield Advice(
            code="grant-functions",
            message="The role may not use some functions of PostgreSQL, because their privileges were"
            f" revoked from PUBLIC. Run these grants in database {database}, as a superuser or the"
            " master user.",
            sql="\n".join(grants),
        )


def advise_on_databases(found: ServerFacts) -> Iterator[Advice]:
    """Advise on databases where PostgreSQL itself does not end idle transactions."""
    now = {name: found.find_timeout(_IDLE_TIMEOUT, None, name) for name in found.databases}
    off = [name for name, timeout in now.items() if timeout is not None and timeout.is_off]
    if off:
        yield Advice(
            code=_IDLE_TIMEOUT_CODE,
            message=f"{_IDLE_TIMEOUT} is off for these databases: {join_first(off)}. With it,"
            " PostgreSQL itself ends leaked transactions, even while this function does not run.",
            sql="\n".join(
                f"ALTER DATABASE {quote_identifier(name)} SET {_IDLE_TIMEOUT} = '10min';"
                for name in off[:MOST_NAMED]
            ),
        )


def advise_on_fallback(secret: str, problem: str) -> Advice:
    """Advise that the fallback secret would not help, because of `problem`."""
    message = f"The fallback_secret {secret} could not connect when the server is full: {problem}"
    return Advice(code="mend-fallback-secret", message=message, sql=None)


def _advise_reserved_slot(found: ServerFacts) -> Advice:
    """Advise how the role can connect when the server is full."""
    if found.major < RESERVED_CONNECTIONS_SINCE:
        return Advice(
            code="add-fallback-secret",
            message=f"Role {found.role} cannot connect when every slot is in use, and before"
            " PostgreSQL 16 no slots can be reserved for it. In this target's secret, add the key"
            f" fallback_secret with the name of the secret of {_MASTERS[found.provider]} on this"
            " server. It is used only when the server is full.",
            sql=None,
        )
    if found.reserved_slots == 0:
        vanilla = found.provider is Provider.VANILLA
        how = (
            "run this statement and restart the server"
            if vanilla
            else "set reserved_connections to 2 in the provider's parameters"
        )
        return Advice(
            code="set-reserved-connections",
            message=f"Role {found.role} cannot connect when every slot is in use, because"
            f" reserved_connections is 0. To reserve two slots, {how}. Or add a fallback_secret to"
            " this target's secret.",
            sql="ALTER SYSTEM SET reserved_connections = 2;" if vanilla else None,
        )
    return Advice(
        code="grant-reserved-connections",
        message=f"Role {found.role} may not use the {found.reserved_slots} reserved slots, so it"
        " cannot connect when every other slot is in use.",
        sql=found.membership.grant("pg_use_reserved_connections", found.role),
    )


def _advise_verification(target: Target) -> Advice:
    """Advise on an sslmode that accepts another server than the secret's."""
    if target.sslmode is SslMode.REQUIRE and target.sslrootcert is None:
        problem = (
            "require and has no sslrootcert, so the certificate is not checked. A server in between"
            " could impersonate this one and record enough to guess the password offline. Set"
            " verify-full, and the PEM text of the CA as sslrootcert. (For RDS and Aurora the CAs"
            " are built in.)"
        )
    else:
        problem = (
            f"{target.sslmode}, which accepts the certificate of another host. A server in between"
            " with a certificate from the same CA could impersonate this one and record enough to"
            " guess the password offline. Set verify-full."
        )
    return Advice(code="verify-certificate", message=f"The secret says sslmode {problem}", sql=None)


def _advise_pooler(
    found: ServerFacts, slots: Slots, results: Iterable[SessionResult]
) -> Iterator[Advice]:
    """Advise a pooler for applications with many idle sessions, including those this run ended."""
    held = Counter({(idle.application, idle.role): idle.number for idle in found.idle})
    held.update(
        (result.decision.session.application, result.decision.session.role_label)
        for result in results
        if result.outcome is Outcome.TERMINATED and result.decision.session.state is State.IDLE
    )
    many = [
        f"{application or '(no application name)'} as {role} held {number}"
        for (application, role), number in held.most_common()
        if number >= max(MANY_IDLE, MANY_IDLE_SHARE * slots.usable)
        # The customer cannot change the provider's own pools.
        and not is_provider_role(role)
        and not find_protection_by_name(Names(role, "", application))
    ]
    if many:
        yield Advice(
            code="use-pooler",
            message=f"{join_first(many)} idle sessions, of {slots.usable} slots in all. Put a pooler"
            " (PgBouncer, RDS Proxy) in front of the server, or make the application's pools"
            " smaller.",
            sql=None,
        )


def _advise_prepared_transactions(found: ServerFacts) -> Iterator[Advice]:
    """Advise to end prepared transactions that were left behind."""
    old = [prepared for prepared in found.prepared if prepared.seconds >= OLD_PREPARED]
    if old:
        oldest = format_duration(max(prepared.seconds for prepared in old))
        databases = join_first(sorted({prepared.database for prepared in old}))
        yield Advice(
            code="end-prepared-transactions",
            message=f"Prepared transactions older than an hour: {len(old)}, the oldest {oldest}, in"
            f" {databases}. They hold locks and block vacuum. List them, then end each one in its own"
            " database with COMMIT PREPARED or ROLLBACK PREPARED and its gid.",
            sql="SELECT gid, owner, database, prepared FROM pg_prepared_xacts ORDER BY prepared;",
        )


def _advise_replication_slots(found: ServerFacts) -> Iterator[Advice]:
    """Advise on replication slots that hold back vacuum."""
    holding = [
        slot
        for slot in found.replication_slots
        if slot.held >= (HELD_BY_ACTIVE if slot.active else HELD_BY_INACTIVE)
    ]
    if holding:
        slots = join_first(
            [
                f"{slot.name} ({'active' if slot.active else 'inactive'}) by {slot.held:,} transactions"
                for slot in holding
            ]
        )
        # The name of a slot consists of a-z, 0-9 and _, so it needs no quoting.
        drops = [
            f"SELECT pg_drop_replication_slot('{s.name}');"
            for s in holding[:MOST_NAMED]
            if not s.active
        ]
        yield Advice(
            code="drop-replication-slot",
            message=f"Replication slots hold back vacuum: {slots}. Drop an inactive slot if it is not"
            " needed any more. If a slot is active, check why its consumer lags behind.",
            sql="\n".join(drops) or None,
        )


# -- the timeouts of roles --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Remedy:
    """A timeout by which PostgreSQL itself ends sessions in a state."""

    setting: str
    value: str
    helps: Callable[[Session], bool]
    description: str  # of the sessions
    warning: str


_REMEDIES: Final[Mapping[str, _Remedy]] = MappingProxyType(
    {
        _IDLE_TIMEOUT_CODE: _Remedy(
            setting=_IDLE_TIMEOUT,
            value="10min",
            helps=lambda session: (
                session.state in (State.IDLE_IN_TRANSACTION, State.IDLE_IN_TRANSACTION_ABORTED)
            ),
            description="idle in a transaction",
            warning="",
        ),
        "set-idle-session-timeout": _Remedy(
            setting="idle_session_timeout",
            value="1h",
            helps=lambda session: session.state is State.IDLE,
            description="idle",
            warning=" The application's pool must reconnect when one of its sessions is ended.",
        ),
        "set-transaction-timeout": _Remedy(
            setting="transaction_timeout",
            value="1h",
            helps=lambda session: (
                session.state is State.ACTIVE and session.transaction_seconds is not None
            ),
            description="in a long transaction",
            warning=" Choose a value above the longest healthy transaction.",
        ),
    }
)

APPLICABLE: Final[Collection[str]] = _REMEDIES.keys()
"""The codes that the event `apply` accepts."""


def find_missing_timeouts(
    results: Iterable[SessionResult], found: ServerFacts
) -> tuple[RoleSetting, ...]:
    """Find the timeouts known to be off for roles that leak sessions, largest leak first."""
    missing: Counter[RoleSetting] = Counter()
    for result in results:
        session = result.decision.session
        if session.role is None:  # there is no role to set a timeout for
            continue
        for code, remedy in _REMEDIES.items():
            if result.outcome is not Outcome.ESCAPED and remedy.helps(session):
                now = found.find_timeout(remedy.setting, session.role, session.database)
                if now is not None and now.is_off:
                    missing[_create_setting(code, session.role, now)] += 1
    return tuple(setting for setting, _ in missing.most_common())


def _create_setting(code: str, role: str, now: Timeout) -> RoleSetting:
    """Set the timeout for the role, or for the role in this database if it is off there."""
    remedy = _REMEDIES[code]
    place = quote_identifier(role)
    if now.role and now.database:
        place += f" IN DATABASE {quote_identifier(now.database)}"
    return RoleSetting(
        code=code,
        role=role,
        sql=f"ALTER ROLE {place} SET {remedy.setting} = '{remedy.value}';",
        old=now.value if now.role else None,
    )


def advise_on_timeouts(missing: Collection[RoleSetting]) -> Iterator[Advice]:
    """Advise the statements that set the missing timeouts, one advice for each timeout."""
    for code, remedy in _REMEDIES.items():
        settings = [setting for setting in missing if setting.code == code]
        if settings:
            roles = join_first([*dict.fromkeys(setting.role for setting in settings)])
            yield Advice(
                code=code,
                message=f"These roles leak sessions {remedy.description}, and their"
                f" {remedy.setting} is off: {roles}. With this timeout PostgreSQL itself ends such"
                f" sessions. It applies to new sessions only.{remedy.warning}",
                sql="\n".join(setting.sql for setting in settings[:MOST_NAMED]),
            )


def explain_refused_setting(
    error: TargetError, setting: RoleSetting, found: ServerFacts, *, reader: bool
) -> Failure:
    """Describe why a setting was not made, and who can make it."""
    hint = error.hint
    if reader:
        hint = "This is a replica. Run the statement on its writer."
    elif isinstance(error, ConnectionLostError):
        hint = f"It is unknown whether the setting was made, so apply it again. {hint}"
    elif error.code == INSUFFICIENT_PRIVILEGE:
        needs = "CREATEROLE"
        if found.major >= _ADMIN_OPTION_SINCE:
            needs += f" and ADMIN OPTION on {setting.role}"
        hint = (
            f"Run it as {_MASTERS[found.provider]}: {setting.sql} (Role {found.role} would need"
            f" {needs} to run it, and these privileges allow much more.)"
        )
    return Failure(code=error.code, cause=error.cause, hint=hint, step=error.step)
