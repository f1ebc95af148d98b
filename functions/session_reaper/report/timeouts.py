"""Advice on the timeouts by which PostgreSQL itself ends leaked sessions, and their settings."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from session_reaper.errors import INSUFFICIENT_PRIVILEGE, ConnectionLostError, TargetError
from session_reaper.grants import quote_identifier
from session_reaper.policy.durations import format_duration
from session_reaper.policy.enums import Action, Mode
from session_reaper.policy.model import CLOCKS, Match, Policy
from session_reaper.report.model import (
    Advice,
    Failure,
    Outcome,
    RoleSetting,
    SessionResult,
    UnchangedRole,
)
from session_reaper.report.text import MOST_NAMED, join_first
from session_reaper.sessions.server_facts import ServerFacts, Timeout
from session_reaper.sessions.session import State
from session_reaper.targets.providers import MASTERS

IDLE_TIMEOUT_CODE: Final = "set-idle-in-transaction-timeout"
_IDLE_TIMEOUT: Final = "idle_in_transaction_session_timeout"
_ADMIN_OPTION_SINCE: Final = 16  # the major version
_MINUTE, _HOUR = 60, 3600  # seconds
_LONGEST_TIMEOUT: Final = 24 * 24 * _HOUR  # PostgreSQL's is 2,147,483,647 milliseconds


class _Remedy(NamedTuple):
    """A timeout by which PostgreSQL itself ends sessions in these states."""

    setting: str
    states: Collection[State]
    shortest: int  # seconds
    clock: str  # one of CLOCKS, which counts as the timeout does
    description: str  # of the sessions
    warning: str


_REMEDIES: Final[Mapping[str, _Remedy]] = {
    IDLE_TIMEOUT_CODE: _Remedy(
        setting=_IDLE_TIMEOUT,
        states=(State.IDLE_IN_TRANSACTION, State.IDLE_IN_TRANSACTION_ABORTED),
        shortest=10 * _MINUTE,
        clock="idle_for",
        description="idle in a transaction",
        warning="",
    ),
    "set-idle-session-timeout": _Remedy(
        setting="idle_session_timeout",
        states=(State.IDLE,),
        shortest=_HOUR,
        clock="idle_for",
        description="idle",
        warning=" The application's pool must reconnect when one of its sessions is ended.",
    ),
    "set-transaction-timeout": _Remedy(
        setting="transaction_timeout",
        states=(State.ACTIVE,),
        shortest=_HOUR,
        clock="transaction_for",
        description="in a long transaction",
        warning=" Choose a value above the longest healthy transaction.",
    ),
}

APPLICABLE: Final[Collection[str]] = _REMEDIES.keys()
"""The codes that the event `apply` accepts."""


@dataclass(slots=True, kw_only=True)
class _Leak:
    """The leaked sessions of one role that one timeout would end, in the place where it is set."""

    code: str
    role: str
    database: str | None  # if the role has a setting of its own in this database
    allowed: float  # seconds: the longest time of the rules, or the shortest timeout to advise
    timeouts: list[Timeout | None] = field(default_factory=list)  # of each session; None: not there

    @property
    def excess(self) -> Timeout | None:
        """Return a timeout in effect that is known to be off or longer than allowed."""
        return next((t for t in self.timeouts if t and t.exceeds(self.allowed)), None)


def find_missing_timeouts(
    results: Iterable[SessionResult], found: ServerFacts
) -> tuple[RoleSetting, ...]:
    """Find the timeouts known not to end a role's leaks in the rule's time, largest leak first.

    A timeout longer than the rule's time, such as Aurora's default of a day, is no better than
    none.
    """
    leaks = sorted(_find_leaks(results, found), key=lambda leak: -len(leak.timeouts))
    return tuple(_create_setting(leak, now) for leak in leaks if (now := leak.excess))


def explain_unchanged(
    results: Collection[SessionResult], found: ServerFacts, codes: Collection[str]
) -> tuple[UnchangedRole, ...]:
    """Explain for each role that leaks why the timeouts with these codes need no setting."""
    leaks = _find_leaks(results, found)
    requested = [leak for leak in leaks if leak.code in codes]
    explained = {leak.role for leak in requested}
    reasons = [
        UnchangedRole(role=leak.role, code=leak.code, reason=_explain(leak, found))
        for leak in requested
        if leak.excess is None
    ]
    for leak in leaks:
        if leak.role not in explained:
            remedy = _REMEDIES[leak.code]
            reason = f"its condemned sessions are {remedy.description}: request {leak.code}"
            reasons.append(UnchangedRole(role=leak.role, code=None, reason=reason))
    if not leaks:
        reason = "the policy condemns no session, so no role is known to leak"
        if results:
            reason = "the roles of the condemned sessions were dropped, or no timeout ends them"
        reasons.append(UnchangedRole(role=None, code=None, reason=reason))
    return tuple(dict.fromkeys(reasons))


def advise_on_timeouts(missing: Collection[RoleSetting]) -> Iterator[Advice]:
    """Advise the statements that set the missing timeouts, one advice for each timeout."""
    for code, remedy in _REMEDIES.items():
        settings = [setting for setting in missing if setting.code == code]
        if settings:
            yield Advice(
                code=code,
                message=f"These roles leak sessions {remedy.description}, and their"
                f" {remedy.setting} is {_describe_excess(settings)}. With this timeout PostgreSQL"
                f" itself ends such sessions. It applies to new sessions only.{remedy.warning}",
                sql="\n".join(setting.sql for setting in settings[:MOST_NAMED]),
            )


def advise_on_databases(found: ServerFacts, policy: Policy) -> Iterator[Advice]:
    """Advise on databases where PostgreSQL itself ends idle transactions too late or not at all."""
    remedy = _REMEDIES[IDLE_TIMEOUT_CODE]
    rules = (
        rule.match
        for rule in policy.rules
        if rule.action is Action.TERMINATE
        and rule.mode is not Mode.OFF
        and set(rule.match.state) & set(remedy.states)
    )
    allowed = max([remedy.shortest, *(_find_time(match, remedy) for match in rules)])
    now = {name: found.find_timeout(_IDLE_TIMEOUT, None, name) for name in found.databases}
    late = {name: timeout for name, timeout in now.items() if timeout and timeout.exceeds(allowed)}
    off = [name for name, timeout in late.items() if timeout.is_off]
    longer = [f"{name} ({timeout.value})" for name, timeout in late.items() if not timeout.is_off]
    if late:
        too_long = f"longer than {format_duration(allowed)} for these databases"
        problems = _join_named({"off for these databases": off, too_long: longer})
        yield Advice(
            code=IDLE_TIMEOUT_CODE,
            message=f"{_IDLE_TIMEOUT} is {problems}. With it, PostgreSQL itself ends leaked"
            " transactions, even while session-reaper does not run.",
            sql="\n".join(
                f"ALTER DATABASE {quote_identifier(name)}"
                f" SET {_IDLE_TIMEOUT} = '{_write_timeout(allowed)}';"
                for name in [*late][:MOST_NAMED]
            ),
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
            f"Run it as {MASTERS[found.provider]}: {setting.sql} (Role {found.role} would need"
            f" {needs} to run it, and these privileges allow much more.)"
        )
    return Failure(code=error.code, cause=error.cause, hint=hint, step=error.step)


def _find_leaks(results: Iterable[SessionResult], found: ServerFacts) -> list[_Leak]:
    """Group the condemned sessions by the timeout that would end them, and where it is set."""
    leaks: dict[tuple[str, str, str | None], _Leak] = {}
    for result in results:
        session, rule = result.decision.session, result.decision.rule
        if session.role is None or result.outcome is Outcome.ESCAPED:
            continue
        for code, remedy in _REMEDIES.items():
            if session.state in remedy.states:
                now = found.find_timeout(remedy.setting, session.role, session.database)
                database = now.database if now and now.role else None
                leak = leaks.setdefault(
                    (code, session.role, database),
                    _Leak(code=code, role=session.role, database=database, allowed=remedy.shortest),
                )
                leak.allowed = max(leak.allowed, _find_time(rule.match, remedy) if rule else 0)
                leak.timeouts.append(now)
    return list(leaks.values())


def _find_time(match: Match, remedy: _Remedy) -> float:
    """Return a rule's time until it condemns: by the timeout's own clock, else its longest one."""
    own: float | None = getattr(match, remedy.clock)
    return own if own is not None else max(getattr(match, clock) or 0 for clock in CLOCKS)


def _create_setting(leak: _Leak, now: Timeout) -> RoleSetting:
    """Set the timeout for the role, or for the role in this database if it has a setting there."""
    place = quote_identifier(leak.role)
    if leak.database:
        place += f" IN DATABASE {quote_identifier(leak.database)}"
    value = _write_timeout(leak.allowed)
    return RoleSetting(
        code=leak.code,
        role=leak.role,
        sql=f"ALTER ROLE {place} SET {_REMEDIES[leak.code].setting} = '{value}';",
        old=now.value if now.role else None,
        excess=None if now.is_off else now.value,
    )


def _describe_excess(settings: Collection[RoleSetting]) -> str:
    off = [*dict.fromkeys(setting.role for setting in settings if setting.excess is None)]
    longer = [*dict.fromkeys(f"{each.role} ({each.excess})" for each in settings if each.excess)]
    return _join_named({"off": off, "longer than the rule's time": longer})


def _join_named(names: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{what}: {join_first(each)}" for what, each in names.items() if each)


def _explain(leak: _Leak, found: ServerFacts) -> str:
    """Explain why a timeout needs no setting, or why that is not known."""
    setting = _REMEDIES[leak.code].setting
    if None in leak.timeouts:
        return f"PostgreSQL {found.major} does not have {setting}"
    values = dict.fromkeys(timeout.value for timeout in leak.timeouts if timeout)
    if None in values:
        return (
            f"a setting of the reaper's own role or database hides the server's {setting}; remove it,"
            f" such as with ALTER ROLE {quote_identifier(found.role)} RESET {setting}"
        )
    shown = ", ".join(str(value) for value in values)
    if any(timeout and timeout.seconds is None for timeout in leak.timeouts):
        return (
            f"its {setting} is {shown}, which the reaper cannot read; write a decimal number with a"
            f" unit, such as {_write_timeout(leak.allowed)}"
        )
    return (
        f"its {setting} is already {shown}, at most {format_duration(leak.allowed)};"
        " sessions that began before that keep their old value"
    )


def _write_timeout(seconds: float) -> str:
    """Write a timeout in PostgreSQL's units, rounded up to a second."""
    whole = min(-int(-seconds // 1), _LONGEST_TIMEOUT)
    for size, unit in ((_HOUR, "h"), (_MINUTE, "min")):
        if whole % size == 0:
            return f"{whole // size}{unit}"
    return f"{whole}s"
