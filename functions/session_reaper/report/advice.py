"""What needs to be mended without haste: pure functions of what was seen."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from session_reaper.errors import ConnectionLostError, TargetError, quote_identifier
from session_reaper.policy.builtin import find_protection_by_name, is_provider_role
from session_reaper.policy.durations import format_duration
from session_reaper.report.model import Advice, Failure, Outcome, RoleSetting, SessionResult
from session_reaper.sessions.server_facts import RESERVED_CONNECTIONS_SINCE, ServerFacts, Timeout
from session_reaper.sessions.session import Names, Session, Slots, State
from session_reaper.sessions.snapshot import Snapshot
from session_reaper.targets.providers import Provider, is_proxy, reserved_slot_instructions
from session_reaper.targets.target import SslMode, Target

MANY_IDLE: Final = 10  # sessions of one application
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
    message="The secret's host is a pooler (PgBouncer, RDS Proxy or the like): it hides the clients'"
    " sessions, and what is terminated are its own. Write the server's own host and port into the"
    " secret.",
    sql=None,
)
_IDLE_TIMEOUT: Final = "idle_in_transaction_session_timeout"
_IDLE_TIMEOUT_CODE: Final = "set-idle-in-transaction-timeout"

_MOST_USEFUL_FIRST: Final = (
    # What keeps us from the work.
    "bypass-pooler",
    "grant-signal-backend",
    "grant-functions",
    "mend-fallback-secret",
    # What ends the leaks.
    _IDLE_TIMEOUT_CODE,
    "set-idle-session-timeout",
    "set-transaction-timeout",
    "use-pooler",
    # What else holds vacuum back.
    "end-prepared-transactions",
    "drop-replication-slot",
    # The next emergency.
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
    """Each once, the most useful first."""
    return tuple(sorted(dict.fromkeys(advice), key=lambda a: _MOST_USEFUL_FIRST.index(a.code)))


def advise_on_connection(target: Target) -> Iterator[Advice]:
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


def advise_on_options(target: Target) -> Iterator[Advice]:
    """List the parameters of the secret's URI that have no effect here."""
    if target.ignored_options:
        yield Advice(
            code="remove-ignored-options",
            message="The secret's URI has parameters that are not libpq's and have no effect here:"
            f" {', '.join(target.ignored_options)}.",
            sql=None,
        )


def advise_on_fallback_used(target: Target, signed_in: Target) -> Iterator[Advice]:
    """What it took to get in."""
    if signed_in.instead_of is not None:
        yield Advice(
            code="reserve-slots",
            message=f"Role {target.role} found no slot: role {signed_in.role} of the secret"
            f" {target.fallback_secret} signed in. {reserved_slot_instructions(target.host, target.role)}",
            sql=f"GRANT pg_use_reserved_connections TO {quote_identifier(target.role)};",
        )


def advise_on_snapshot(look: Snapshot) -> Iterator[Advice]:
    """What the look showed to be missing."""
    if not look.can_signal:
        yield Advice(
            code="grant-signal-backend",
            message=f"Role {look.role} can terminate sessions only of roles it is a member of. (Where"
            " pg_signal_backend may not be granted: GRANT the application's role to it.)",
            sql=look.membership.grant("pg_signal_backend", look.role),
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


def advise_on_facts(
    target: Target, found: ServerFacts, slots: Slots, fates: Iterable[SessionResult]
) -> Iterator[Advice]:
    """What the server's facts show, other than timeouts. Of `fates`, those terminated count."""
    if target.sslmode not in (SslMode.VERIFY_FULL, SslMode.DISABLE):
        yield _advise_verification(target)
    if found.tls is not None and "" < found.tls.certificate_until < found.soon:
        yield Advice(
            code="renew-certificate",
            message=f"The server's certificate ends on {found.tls.certificate_until}.",
            sql=None,
        )
    if not found.has_reserved_slot and target.fallback_secret is None:
        yield _advise_reserved_slot(found)
    yield from _advise_pooler(found, slots, fates)
    yield from _advise_prepared_transactions(found)
    yield from _advise_replication_slots(found)


def advise_on_grants(grants: Collection[str], database: str) -> Iterator[Advice]:
    """Advise the grants that the reaper's statements need and its role lacks."""
    if grants:
        yield Advice(
            code="grant-functions",
            message="The role may not use some functions of PostgreSQL that everybody may use unless"
            f" that was revoked. Grant them in database {database}, as a superuser or the master user.",
            sql="\n".join(grants),
        )


def advise_on_databases(found: ServerFacts) -> Iterator[Advice]:
    """Where nothing ends a transaction that idles, whoever may leak it."""
    now = {name: found.in_effect(_IDLE_TIMEOUT, None, name) for name in found.databases}
    off = [name for name, timeout in now.items() if timeout is not None and timeout.is_off]
    if off:
        yield Advice(
            code=_IDLE_TIMEOUT_CODE,
            message=f"No {_IDLE_TIMEOUT} for the databases {', '.join(off)}: PostgreSQL itself"
            " can end leaks, also where this function does not run.",
            sql="\n".join(
                f"ALTER DATABASE {quote_identifier(name)} SET {_IDLE_TIMEOUT} = '10min';"
                for name in off
            ),
        )


def advise_on_fallback(secret: str, problem: str) -> Advice:
    """Why the fallback secret would not help."""
    message = f"fallback_secret {secret} would not get in when the server is full: {problem}"
    return Advice(code="mend-fallback-secret", message=message, sql=None)


def _advise_reserved_slot(found: ServerFacts) -> Advice:
    """How the role gets in when the server is full."""
    if found.major < RESERVED_CONNECTIONS_SINCE:
        return Advice(
            code="add-fallback-secret",
            message=f"When every slot is taken role {found.role} does not get in; before PostgreSQL"
            f" 16 it cannot be given a reserved one. Name the secret of {_MASTERS[found.provider]} on"
            " this server in this secret as fallback_secret: it is used only then.",
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
        sql=found.membership.grant("pg_use_reserved_connections", found.role),
    )


def _advise_verification(target: Target) -> Advice:
    """Why the server could be somebody else."""
    if target.sslmode is SslMode.REQUIRE and target.sslrootcert is None:
        problem = (
            "require and has no sslrootcert: another server in between can pose as this one, and"
            " guess the password offline from the answer to its challenge. Write verify-full, and"
            " the CA's PEM text as sslrootcert (of RDS and Aurora it is built in)."
        )
    else:
        problem = (
            f"{target.sslmode}, which accepts the certificate of another host: a server in between"
            " with one by the same CA can pose as this one, and guess the password offline from the"
            " answer to its challenge. Write verify-full."
        )
    return Advice(code="verify-certificate", message=f"The secret says sslmode {problem}", sql=None)


def _advise_pooler(
    found: ServerFacts, slots: Slots, fates: Iterable[SessionResult]
) -> Iterator[Advice]:
    """Who holds many sessions for nothing; what this run has ended was held as well."""
    held = Counter({(idle.application, idle.role): idle.number for idle in found.idle})
    held.update(
        (fate.decision.session.application, fate.decision.session.role_label)
        for fate in fates
        if fate.outcome is Outcome.TERMINATED and fate.decision.session.state is State.IDLE
    )
    many = [
        f"{application or '(no application name)'} as {role} held {number}"
        for (application, role), number in held.most_common()
        if number >= max(MANY_IDLE, MANY_IDLE_SHARE * slots.usable)
        # The pools of the providers are theirs.
        and not is_provider_role(role)
        and not find_protection_by_name(Names(role, "", application))
    ]
    if many:
        yield Advice(
            code="use-pooler",
            message=f"{', '.join(many)} idle sessions, of {slots.usable} slots in all. Put a pooler"
            " (PgBouncer, RDS Proxy) before the server, or make the application's pools smaller.",
            sql=None,
        )


def _advise_prepared_transactions(found: ServerFacts) -> Iterator[Advice]:
    """The transactions that were prepared, and that nobody came back to."""
    old = [prepared for prepared in found.prepared if prepared.seconds >= OLD_PREPARED]
    if old:
        oldest = format_duration(max(prepared.seconds for prepared in old))
        databases = ", ".join(sorted({prepared.database for prepared in old}))
        yield Advice(
            code="end-prepared-transactions",
            message=f"Prepared transactions older than an hour: {len(old)}, the oldest {oldest}, in"
            f" {databases}. They hold locks, and vacuum back: end each by COMMIT PREPARED or ROLLBACK"
            " PREPARED with its gid, in its database.",
            sql="SELECT gid, owner, database, prepared FROM pg_prepared_xacts ORDER BY prepared;",
        )


def _advise_replication_slots(found: ServerFacts) -> Iterator[Advice]:
    """The replication slots for which vacuum has to wait."""
    holding = [
        slot
        for slot in found.replication_slots
        if slot.held >= (HELD_BY_ACTIVE if slot.active else HELD_BY_INACTIVE)
    ]
    if holding:
        said = ", ".join(
            f"{slot.name} ({'active' if slot.active else 'inactive'}) by {slot.held:,} transactions"
            for slot in holding
        )
        # A name is made of a-z, 0-9 and _.
        drops = [f"SELECT pg_drop_replication_slot('{s.name}');" for s in holding if not s.active]
        yield Advice(
            code="drop-replication-slot",
            message=f"Replication slots hold vacuum back: {said}. Drop an inactive one only if nobody"
            " needs it any more; of an active one the consumer is behind.",
            sql="\n".join(drops) or None,
        )


# -- the timeouts of roles --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Remedy:
    """A timeout that ends by itself what had to be condemned."""

    setting: str
    value: str
    helps: Callable[[Session], bool]
    doing: str  # its sessions
    warning: str


_REMEDIES: Final[Mapping[str, _Remedy]] = MappingProxyType(
    {
        _IDLE_TIMEOUT_CODE: _Remedy(
            setting=_IDLE_TIMEOUT,
            value="10min",
            helps=lambda session: (
                session.state in (State.IDLE_IN_TRANSACTION, State.IDLE_IN_TRANSACTION_ABORTED)
            ),
            doing="idle in a transaction",
            warning="",
        ),
        "set-idle-session-timeout": _Remedy(
            setting="idle_session_timeout",
            value="1h",
            helps=lambda session: session.state is State.IDLE,
            doing="idle",
            warning=" A pool must be able to connect again when one of its sessions is ended.",
        ),
        "set-transaction-timeout": _Remedy(
            setting="transaction_timeout",
            value="1h",
            helps=lambda session: (
                session.state is State.ACTIVE and session.transaction_seconds is not None
            ),
            doing="in a long transaction",
            warning=" It must be longer than the longest that is healthy.",
        ),
    }
)

APPLICABLE: Final[Collection[str]] = _REMEDIES.keys()
"""The codes that the event `apply` may ask for."""


def find_missing_timeouts(
    fates: Iterable[SessionResult], found: ServerFacts
) -> tuple[RoleSetting, ...]:
    """What is to be set for the roles that leak, where it is known to be 0; who leaks most first."""
    missing: Counter[RoleSetting] = Counter()
    for fate in fates:
        session = fate.decision.session
        for code, remedy in _REMEDIES.items():
            if session.role is None:  # there is no role to set a timeout for
                continue
            if fate.outcome is not Outcome.ESCAPED and remedy.helps(session):
                now = found.in_effect(remedy.setting, session.role, session.database)
                if now is not None and now.is_off:
                    missing[_create_setting(code, session.role, now)] += 1
    return tuple(setting for setting, _ in missing.most_common())


def _create_setting(code: str, role: str, now: Timeout) -> RoleSetting:
    """The remedy at the role, or at the role in this database if it is there that it is 0."""
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
    """The statements for all roles, by what they mend."""
    for code, remedy in _REMEDIES.items():
        settings = [setting for setting in missing if setting.code == code]
        if settings:
            roles = ", ".join(dict.fromkeys(setting.role for setting in settings))
            yield Advice(
                code=code,
                message=f"Roles that leak sessions {remedy.doing}, without {remedy.setting}:"
                f" {roles}. With it PostgreSQL itself ends such sessions; it holds for new sessions"
                f" only.{remedy.warning}",
                sql="\n".join(setting.sql for setting in settings),
            )


def explain_refused_setting(
    error: TargetError, setting: RoleSetting, found: ServerFacts, *, reader: bool
) -> Failure:
    """Why a setting was not made, and who can make it."""
    hint = error.hint
    if reader:
        hint = "This is a replica: what is set for a role is set on its writer."
    elif isinstance(error, ConnectionLostError):
        hint = f"Whether it is set is not known: apply it again. {hint}"
    elif error.code == "42501":
        needs = "CREATEROLE"
        if found.major >= _ADMIN_OPTION_SINCE:
            needs += f" and ADMIN OPTION on {setting.role}"
        hint = (
            f"Run it as {_MASTERS[found.provider]}: {setting.sql} (To do it itself role"
            f" {found.role} would need {needs}: no small gift.)"
        )
    return Failure(code=error.code, message=error.message, hint=hint)
