"""Recommendations that stop leaks or prepare for the next run, as pure functions of evidence."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from typing import Final

from session_reaper.grants import quote_identifier
from session_reaper.policy.builtin import find_protection_by_name, is_provider_role
from session_reaper.policy.durations import format_duration
from session_reaper.report.headline import count_of
from session_reaper.report.model import Advice, Outcome, SessionResult
from session_reaper.report.text import MOST_NAMED, join_first
from session_reaper.report.timeouts import IDLE_TIMEOUT_CODE
from session_reaper.sessions.server_facts import (
    NEWEST_TESTED,
    RESERVED_CONNECTIONS_SINCE,
    TESTED_VERSIONS,
    ServerFacts,
)
from session_reaper.sessions.session import Names, Slots, State
from session_reaper.sessions.snapshot import Snapshot
from session_reaper.targets.providers import MASTERS, Provider, is_proxy, reserved_slot_instructions
from session_reaper.targets.target import SslMode, Target, is_socket_folder

MANY_IDLE: Final = 10  # idle sessions of one application and role
MANY_IDLE_SHARE: Final = 0.25  # of the slots that ordinary roles can use
OLD_PREPARED: Final = 3600.0  # seconds
HELD_BY_INACTIVE: Final = 10_000  # transactions
HELD_BY_ACTIVE: Final = 10_000_000  # transactions

_BYPASS_POOLER = Advice(
    code="bypass-pooler",
    message="The host is a pooler such as PgBouncer or RDS Proxy. It hides the clients' sessions, so"
    " the reaper would terminate the pooler's own. Connect to the server's own host and port.",
)

_MOST_USEFUL_FIRST: Final = (
    # Let session-reaper do its work.
    "bypass-pooler",
    "grant-signal-backend",
    "grant-functions",
    "mend-fallback-secret",
    # Stop the leaks.
    IDLE_TIMEOUT_CODE,
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
    "allow-pause-check",
    "track-activities",
    "remove-ignored-options",
    "untested-version",
)


def sort_advice(advice: Iterable[Advice]) -> tuple[Advice, ...]:
    """Remove duplicates and put the most useful advice first."""
    return tuple(sorted(dict.fromkeys(advice), key=lambda a: _MOST_USEFUL_FIRST.index(a.code)))


def advise_on_connection(target: Target) -> Iterator[Advice]:
    """Advise on how the target says to connect."""
    if target.sslmode is SslMode.DISABLE and not is_socket_folder(target.host):
        yield Advice(
            code="encrypt-connection",
            message="The connection is in plaintext, because of sslmode disable. Turn on TLS at the"
            " server, and set sslmode to verify-full.",
        )
    if is_proxy(target.host):
        yield _BYPASS_POOLER
    if target.unlisted:
        yield Advice(
            code="list-cluster-instances",
            message=f"Only {target.host} of the cluster was examined: {target.unlisted} If that is"
            " intended, set CLUSTER_TARGETS to endpoint.",
        )
    if target.pause_unknown:
        yield Advice(
            code="allow-pause-check",
            message="The reaper connected without knowing whether this server belongs to a paused"
            f" Aurora cluster, which the connection wakes: {target.pause_unknown}. Allow the"
            " function's role rds:DescribeDBClusters, rds:DescribeDBInstances and"
            " cloudwatch:GetMetricData, and check that the function can reach both APIs (in a VPC:"
            " through endpoints or a NAT). If no cluster may pause, set PAUSED_CLUSTERS to connect.",
        )


def advise_on_version(found: ServerFacts) -> Iterator[Advice]:
    """Tell that the server's version is unknown to this release."""
    if not found.is_tested:
        remedy = "Upgrade the server."
        if found.major > NEWEST_TESTED:
            remedy = (
                f"It is treated as {NEWEST_TESTED}. Look for a newer release, and only observe until"
                " the right sessions are named."
            )
        yield Advice(
            code="untested-version",
            message=f"This release was tested with {TESTED_VERSIONS}, and the server is PostgreSQL"
            f" {found.version}. {remedy}",
        )


def advise_on_options(target: Target) -> Iterator[Advice]:
    """List the parameters of the secret's URI that have no effect."""
    if target.ignored_options:
        yield Advice(
            code="remove-ignored-options",
            message="These parameters of the URI have no effect, because libpq does not know"
            f" them: {', '.join(target.ignored_options)}.",
        )


def advise_on_fallback_used(target: Target, role: str) -> Advice:
    """Advise to reserve slots where only the fallback secret's role could connect."""
    return Advice(
        code="reserve-slots",
        message=f"Role {target.role} found no free slot, so the reaper connected as role"
        f" {role} of the secret {target.fallback_secret}."
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
        )
    if not found.has_reserved_slot and target.fallback_secret is None:
        yield _advise_reserved_slot(found, has_secret=bool(target.secret_arn))
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


def advise_on_fallback(secret: str, problem: str) -> Advice:
    """Advise that the fallback secret would not help, because of `problem`."""
    message = f"The fallback_secret {secret} would not help on a full server: {problem}"
    return Advice(code="mend-fallback-secret", message=message)


def _advise_reserved_slot(found: ServerFacts, *, has_secret: bool) -> Advice:
    """Advise how the role can connect when the server is full."""
    if found.major < RESERVED_CONNECTIONS_SINCE:
        master = MASTERS[found.provider]
        fallback = (
            "In this target's secret, add the key fallback_secret with the name of the secret of"
            f" {master} on this server. It is used only when the server is full."
            if has_secret
            else f"Then connect as {master}. A secret of the function can name that role's secret as"
            " fallback_secret."
        )
        return Advice(
            code="add-fallback-secret",
            message=f"Role {found.role} cannot connect when every slot is in use, and before"
            f" PostgreSQL 16 no slots can be reserved for it. {fallback}",
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
            f" reserved_connections is 0. To reserve two slots, {how}."
            + (" Or add a fallback_secret to this target's secret." if has_secret else ""),
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
            "require without sslrootcert, so the certificate is not checked. A server in between"
            " could impersonate this one and record enough to guess the password offline. Set"
            " verify-full, and the server's CA as sslrootcert. (For RDS and Aurora the CAs are built"
            " in.)"
        )
    else:
        problem = (
            f"{target.sslmode}, which accepts the certificate of another host. A server in between"
            " with a certificate from the same CA could impersonate this one and record enough to"
            " guess the password offline. Set verify-full."
        )
    return Advice(code="verify-certificate", message=f"sslmode is {problem}")


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
