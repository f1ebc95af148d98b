"""What happened to every target and every condemned session."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Final

from session_reaper.decision.model import Decision
from session_reaper.errors import BlindError, ConnectionLimit, DeadlineError, FullError, TargetError
from session_reaper.policy.enums import Mode, QueryVisibility
from session_reaper.report.text import printable
from session_reaper.sessions.server_facts import Check
from session_reaper.sessions.session import Slots, State
from session_reaper.sessions.snapshot import Snapshot
from session_reaper.targets.target import TargetKey


class Outcome(StrEnum):
    """What happened to a condemned session."""

    TERMINATED = "terminated"  # signalled and seen gone
    CANCELLED = "cancelled"
    WOULD_TERMINATE = "would_terminate"  # observed only
    ESCAPED = "escaped"  # it changed between look and signal, so it was left alone
    DENIED = "denied"  # no privilege
    LINGERING = "lingering"  # signalled, still there when we stopped looking
    SPARED = "spared"  # a limit, the breaker or the clock held


class TargetStatus(StrEnum):
    """How the run went on one target."""

    OK = "ok"
    FAILED = "failed"
    FULL = "full"  # no slot for us either
    BLIND = "blind"  # connected, but other roles' sessions are hidden from us
    BREAKER = "breaker"  # the policy condemned too many: none was touched


UNREACHED = (TargetStatus.FAILED, TargetStatus.FULL, TargetStatus.BLIND)
# Troubles that are no status and no outcome:
FALLBACK = "fallback"  # the role got in by its fallback secret only
EXHAUSTED = "exhausted"  # every slot is taken still, though we got in
_DONE = (Outcome.TERMINATED, Outcome.CANCELLED)
_UNDONE = (Outcome.LINGERING, Outcome.DENIED, Outcome.WOULD_TERMINATE, Outcome.SPARED)


_NO_KEY: Final = TargetKey("")


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What went wrong: a SQLSTATE or a short code, the message, the remedy."""

    code: str
    message: str
    hint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionResult:
    """One condemned session and what happened to it."""

    decision: Decision
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """Something to mend that needs no haste."""

    code: str
    message: str
    sql: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleSetting:
    """A timeout for a role that leaks. It holds for new sessions only."""

    code: str  # of the advice
    role: str
    sql: str
    old: str | None  # what was set for the role itself
    done: bool = False
    error: Failure | None = None

    @property
    def result(self) -> str:
        """What became of it, in words."""
        if self.done:
            return "applied (new sessions only)"
        return "not applied" if self.error else "would be applied"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """A trouble that is over."""

    kind: str
    seconds: float  # how long it was known


@dataclass(frozen=True, kw_only=True)  # no slots: they leave no room for a cached_property
class TargetReport:
    """What one run did on one target."""

    name: str
    secret: str = ""  # its name: what the target is called while the secret cannot be read
    key: TargetKey = _NO_KEY  # what identifies it across runs
    status: TargetStatus = TargetStatus.OK
    error: Failure | None = None
    reader: bool = False  # a replica
    fallback_secret: str | None = None  # whose role had to sign in, for want of a slot
    slots: Slots | None = None  # before; None if we could not look
    used_after: int | None = None  # None if nobody could count
    states: Mapping[State, int] = field(default_factory=dict)  # before; empty if we could not look
    oldest_idle_in_transaction: float | None = None  # seconds, before
    queries: QueryVisibility = QueryVisibility.REDACTED  # how the document shows them
    pressure: tuple[str, ...] = ()  # on each rule that was in force for want of slots
    results: tuple[SessionResult, ...] = ()
    advice: tuple[Advice, ...] = ()
    recorded: Snapshot | None = None  # if that was asked for
    checked: Check | None = None  # if that was asked for
    applied: tuple[RoleSetting, ...] | None = None  # if that was asked for
    told: tuple[str, ...] = ()  # kinds of its troubles that a summary told a while ago
    recovered: tuple[Recovery, ...] = ()  # since the run before

    def count(self, outcome: Outcome) -> int:
        """How many sessions met this outcome."""
        return self._counts[outcome]

    @cached_property
    def _counts(self) -> Counter[Outcome]:
        return Counter(fate.outcome for fate in self.results)

    @cached_property
    def condemned_pids(self) -> frozenset[str]:
        """The pids of all condemned sessions, as text."""
        return frozenset(str(fate.decision.pid) for fate in self.results)

    @property
    def is_reached(self) -> bool:
        """Whether we could deal with it."""
        return self.status not in UNREACHED

    @property
    def is_critical(self) -> bool:
        """Whether applications are shut out still."""
        return self.share_used >= 1 or self.status is TargetStatus.FULL

    @property
    def share_used(self) -> float:
        """Of the slots that ordinary roles can use, after the run; 0 if nobody could count."""
        if self.slots is None or self.used_after is None or self.slots.usable <= 0:
            return 0.0
        return self.used_after / self.slots.usable

    @cached_property
    def issues(self) -> tuple[str, ...]:
        """The kinds of what will be so in the next run, too, unless somebody or something mends it."""
        kinds = [] if self.status is TargetStatus.OK else [str(self.status)]
        if self.status is TargetStatus.FAILED and self.error is not None:
            kinds = [f"{self.status} {printable(self.error.code, 20)}"]
        if self.fallback_secret is not None:
            kinds.append(FALLBACK)
        if self.share_used >= 1:
            kinds.append(EXHAUSTED)
        kinds += [_kind(fate) for fate in self.results if fate.outcome in _UNDONE]
        return tuple(dict.fromkeys(kinds))

    def has_trouble(self, kind: str) -> bool:
        """Whether this kind is among its troubles, of which there may be thousands."""
        return kind in self._trouble_set

    @cached_property
    def _trouble_set(self) -> frozenset[str]:
        return frozenset(self.issues)

    @cached_property
    def new_troubles(self) -> tuple[str, ...]:
        """The troubles that no summary told a while ago."""
        told = frozenset(self.told)
        return tuple(kind for kind in self.issues if kind not in told)

    @property
    def should_notify(self) -> bool:
        """Whether somebody should hear of it. That a session escaped is no news: it is well."""
        return (
            bool(self.recovered)
            or self.checked is not None  # a check shows, too, whether the summary arrives
            or self.applied is not None
            or any(self.count(outcome) for outcome in _DONE)
            or bool(self.new_troubles)
        )


def _kind(fate: SessionResult) -> str:
    """Each lingering session is a trouble of its own, and each rule and role that was observed."""
    decision = fate.decision
    if fate.outcome is Outcome.LINGERING:
        return f"{fate.outcome} {decision.pid}"
    if fate.outcome is Outcome.WOULD_TERMINATE and decision.rule is not None:
        rule, role = printable(decision.rule.name, 63), printable(decision.session.role_label, 63)
        return f"{fate.outcome} {rule} {role}"
    return fate.outcome.value


def record_error(report: TargetReport, error: TargetError) -> TargetReport:
    """What is known of a target, and that it ended with an error."""
    status = TargetStatus.FAILED
    # The applications still get slots where only our own role has too few.
    if isinstance(error, FullError) and error.limit is not ConnectionLimit.ROLE:
        status = TargetStatus.FULL
    elif isinstance(error, BlindError):
        status = TargetStatus.BLIND
    failure = Failure(code=printable(error.code, 20), message=error.message, hint=error.hint)
    return replace(report, status=status, error=failure)


def record_bug(report: TargetReport, error: Exception) -> TargetReport:
    """What is known of a target, and that a bug of ours ended its work."""
    failure = Failure(
        code="internal",
        message=f"session-reaper has a bug: {type(error).__name__}",
        hint="Please report it with the traceback in the log.",
    )
    return replace(report, status=TargetStatus.FAILED, error=failure)


def record_unfinished(report: TargetReport, bug: Exception | None) -> TargetReport:
    """Build the report of a target whose job did not end: a bug ended it, or the time was over."""
    if bug is not None:
        return record_bug(report, bug)
    return report if report.error is not None else record_error(report, DeadlineError())


class RunStatus(StrEnum):
    """How the run went as a whole."""

    OK = "ok"
    PARTIAL = "partial"  # a target was not reached, or its breaker held
    FAILED = "failed"  # no target was reached


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What one run did."""

    run_id: str
    mode: Mode
    targets: tuple[TargetReport, ...]
    memory_problem: str = ""  # why what was told before may be told again
    undelivered: tuple[str, ...] = ()  # of earlier runs, whose summaries did not go out

    def count(self, outcome: Outcome) -> int:
        """How many sessions met this outcome."""
        return sum(target.count(outcome) for target in self.targets)

    @property
    def failed(self) -> int:
        """How many targets were not reached."""
        return sum(target.status in UNREACHED for target in self.targets)

    @property
    def status(self) -> RunStatus:
        """The verdict of the run."""
        if all(target.status is TargetStatus.OK for target in self.targets):
            return RunStatus.OK
        return RunStatus.FAILED if self.failed == len(self.targets) else RunStatus.PARTIAL

    @property
    def should_notify(self) -> bool:
        """Whether any target has news, or an earlier run had."""
        return bool(self.undelivered) or any(target.should_notify for target in self.targets)

    def split_new_and_known(self) -> tuple[Sequence[TargetReport], Sequence[TargetReport]]:
        """The targets to tell of, the urgent first; and those whose trouble was told before.

        If there is no news (NOTIFY is always), all trouble is told, or that the targets are well.
        """
        targets = sorted(self.targets, key=urgency_key)
        news = [target for target in targets if target.should_notify]
        known = [target for target in targets if target.issues and not target.should_notify]
        return (news, known) if news else (known or targets, ())

    @property
    def is_critical(self) -> bool:
        """Whether it tells anew that somebody must act at once: an application is shut out."""
        return any(
            kind in (TargetStatus.FULL, EXHAUSTED)
            for target in self.targets
            for kind in target.new_troubles
        )

    @property
    def severity(self) -> str:
        """For subscribers to filter by: critical, warning (somebody has to mend it), or info."""
        if self.is_critical:
            return "critical"
        kinds = (kind for target in self.split_new_and_known()[0] for kind in target.issues)
        passing = (Outcome.WOULD_TERMINATE, Outcome.SPARED)
        return "info" if all(kind.startswith(passing) for kind in kinds) else "warning"


def urgency_key(target: TargetReport) -> tuple[bool, bool, int]:
    """A sort key: who shuts applications out, then other trouble, then by sessions concerned."""
    return (not target.is_critical, target.status is TargetStatus.OK, -len(target.results))


# -- the return value ------------------------------------------------------------------------------
