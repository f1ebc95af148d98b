"""The report of a run: what happened on every target and to every condemned session."""

from collections import Counter
from collections.abc import KeysView, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Final, NamedTuple

from session_reaper.decision.explain import Explanation
from session_reaper.decision.model import Decision
from session_reaper.decision.out_of_reach import UnreachableBlocker
from session_reaper.errors import BlindError, ConnectionLimit, DeadlineError, FullError, TargetError
from session_reaper.policy.enums import Mode
from session_reaper.policy.model import Policy
from session_reaper.report.protected import ProtectedGroup, group_protected
from session_reaper.report.text import NAME_LENGTH, printable
from session_reaper.sessions.server_facts import Check
from session_reaper.sessions.session import Slots, State
from session_reaper.sessions.snapshot import HOLDERS_FROM, Holder, Snapshot
from session_reaper.targets.target import TargetKey


class Outcome(StrEnum):
    """The outcome of a condemned session."""

    TERMINATED = "terminated"  # signalled and seen gone
    CANCELLED = "cancelled"
    WOULD_TERMINATE = "would_terminate"  # only observed
    ESCAPED = "escaped"  # changed between snapshot and signal, so it was left alone
    DENIED = "denied"  # the role lacks the privilege
    LINGERING = "lingering"  # signalled, but not seen gone
    SPARED = "spared"  # held back by a limit, the breaker or lack of time


class TargetStatus(StrEnum):
    """The result of a run on one target."""

    OK = "ok"
    FAILED = "failed"
    FULL = "full"  # the server has no slot for the reaper either
    BLIND = "blind"  # connected, but other roles' sessions are hidden
    BREAKER = "breaker"  # the policy condemned too many sessions, so none was terminated
    PAUSED = "paused"  # an Aurora cluster without connections, which was not woken


_FINE: Final = (TargetStatus.OK, TargetStatus.PAUSED)
_UNREACHED: Final = (TargetStatus.FAILED, TargetStatus.FULL, TargetStatus.BLIND)
DONE: Final = (Outcome.TERMINATED, Outcome.CANCELLED)
"""The outcomes of sessions for which the run did what their rule says."""

_SHORT_OF_SLOTS: Final = 0.8  # share of the used slots from which protected sessions are reported
_CODE_LENGTH: Final = 20  # characters
_NO_KEY: Final = TargetKey("")


class IssueKind(StrEnum):
    """A kind of issue that a target can have for longer than one run."""

    FAILED = "failed"  # detail: the error's code
    FULL = "full"
    BLIND = "blind"
    BREAKER = "breaker"
    SECRET = "secret"  # noqa: S105 -- a secret that failed where another worked; detail: it, and the code
    FALLBACK = "fallback"  # only the fallback secret's role could connect
    EXHAUSTED = "exhausted"  # every slot is in use after the run, although the reaper connected
    LINGERING = "lingering"  # detail: the pid
    DENIED = "denied"
    WOULD_TERMINATE = "would_terminate"  # detail: rule and role
    SPARED = "spared"
    PROTECTED = "protected"  # detail: rule and protection, where slots are short or sessions wait
    BLOCKER = "blocker"  # a blocker out of reach; detail: rule, and what puts it out of reach
    CONFIGURATION = "configuration"  # of the stack; detail: a hash of the error, not at the hub
    SILENT = "silent"  # at the hub: no report of the stack arrives
    INVALID_MESSAGE = "invalid-message"  # at the hub
    UNDELIVERED = "undelivered"  # detail: the summary line, and how many were lost before it


class StackProblem(StrEnum):
    """A problem of a whole stack, which a fleet's hub reports beside the targets."""

    SILENT = "silent"  # no report arrived in time
    CONFIGURATION = "configuration"  # its runs cannot begin
    INVALID_MESSAGE = "invalid-message"  # the hub could not read a report
    ENDED = "ended"  # there was one


class IssueKey(NamedTuple):
    """Identifies an issue of one target across runs."""

    kind: IssueKind
    detail: tuple[str, ...] = ()


class Failure(NamedTuple):
    """An error: a SQLSTATE or a short code, the step that failed, the cause, and how to fix it."""

    code: str
    cause: str
    hint: str
    step: str = ""

    @property
    def message(self) -> str:
        """The step and the cause in one sentence."""
        return f"{self.step}: {self.cause}" if self.step else self.cause


class FailedSecret(NamedTuple):
    """A secret that did not work, so that another secret of the server was used."""

    name: str
    failure: Failure


class SessionResult(NamedTuple):
    """One condemned session and what happened to it."""

    decision: Decision
    outcome: Outcome


class Advice(NamedTuple):
    """A recommendation, with SQL statements (one per line) where there are any."""

    code: str
    message: str
    sql: str | None = None


class RoleSetting(NamedTuple):
    """A timeout for a role that leaks sessions. It applies to new sessions only."""

    code: str  # of the advice
    role: str
    sql: str
    old: str | None  # the role's own setting before
    excess: str | None = None  # the timeout in effect if it is longer than the rule's time
    done: bool = False
    error: Failure | None = None

    @property
    def result(self) -> str:
        """The result in words."""
        if self.done:
            return "applied (new sessions only)"
        return "not applied" if self.error else "would be applied"


class UnchangedRole(NamedTuple):
    """The reason why an `apply` run has no setting for a role.

    `role`: None for all roles. `code`: None for all requested codes.
    """

    role: str | None
    code: str | None
    reason: str


class Recovery(NamedTuple):
    """An issue that has ended."""

    issue: IssueKey
    seconds: float  # between the first report of the issue and its end


@dataclass(frozen=True, kw_only=True)  # no slots: they leave no room for a cached_property
class TargetReport:
    """The report of one run on one target."""

    name: str
    secret: str = ""  # the secret's name, which stands for the target while it cannot be read
    key: TargetKey = _NO_KEY  # identifies the target across runs
    also: tuple[str, ...] = ()  # names of the other secrets of the same server
    also_keys: tuple[TargetKey, ...] = ()  # the keys of their targets
    failed_secrets: tuple[FailedSecret, ...] = ()  # although another one worked
    status: TargetStatus = TargetStatus.OK
    error: Failure | None = None
    reader: bool = False  # a replica
    fallback_secret: str | None = None  # the secret whose role had to connect instead
    slots: Slots | None = None  # before; None without a snapshot
    used_after: int | None = None  # None if it could not be counted
    lock_waiters: int = 0  # processes that waited for a lock, before
    holders: tuple[Holder, ...] = ()  # before; empty unless many slots are used
    states: Mapping[State, int] = field(default_factory=dict)  # before; empty without a snapshot
    oldest_idle_in_transaction: float | None = None  # seconds, before
    policy: Policy | None = None  # the one that decided
    role: str = ""  # the reaper's own
    pressure: tuple[str, ...] = ()  # one sentence for each rule that `when` put in force
    results: tuple[SessionResult, ...] = ()
    protected: tuple[Decision, ...] = ()  # that a rule would have condemned, and none did
    blockers: tuple[UnreachableBlocker, ...] = ()  # that a rule would have ended
    advice: tuple[Advice, ...] = ()
    recorded: Snapshot | None = None  # of a `record` run
    explained: tuple[Explanation, ...] | None = None  # of an `explain` run
    checked: Check | None = None  # of a `check` run
    applied: tuple[RoleSetting, ...] | None = None  # of an `apply` run
    unchanged: tuple[UnchangedRole, ...] = ()  # of an `apply` run
    stack_problem: StackProblem | None = None  # if the hub reports on a stack instead of a target
    reported_issues: tuple[IssueKey, ...] = ()  # at the hub: that a stack reports without details
    known_issues: tuple[IssueKey, ...] = ()  # reported less than REMIND_AFTER ago
    recovered: tuple[Recovery, ...] = ()  # since the previous run

    @cached_property
    def counts(self) -> Counter[Outcome]:
        """The number of sessions by outcome."""
        return Counter(result.outcome for result in self.results)

    @cached_property
    def condemned_pids(self) -> frozenset[str]:
        """The pids of all condemned sessions, as text."""
        return frozenset(str(result.decision.pid) for result in self.results)

    @property
    def is_reached(self) -> bool:
        """Whether the run could work on the target."""
        return self.status not in _UNREACHED

    @property
    def is_fine(self) -> bool:
        """Whether the run had no problem with the target."""
        return self.status in _FINE

    @property
    def is_exhausted(self) -> bool:
        """Whether every slot is in use after the run."""
        return self.share_used >= 1

    @property
    def is_crowded(self) -> bool:
        """Whether to name the holders: many slots are used, also after the run if that is known."""
        return bool(self.holders) and (self.used_after is None or self.share_used >= HOLDERS_FROM)

    @property
    def is_critical(self) -> bool:
        """Whether applications still cannot connect."""
        return self.is_exhausted or self.status is TargetStatus.FULL

    @property
    def share_used(self) -> float:
        """The used share of the slots for ordinary roles after the run; 0 if it is unknown."""
        if self.slots is None or self.used_after is None or self.slots.usable <= 0:
            return 0.0
        return self.used_after / self.slots.usable

    @cached_property
    def issues(self) -> KeysView[IssueKey]:
        """The issues that the next run finds again unless something changes, maybe thousands."""
        keys = []
        if self.stack_problem not in (None, StackProblem.ENDED):
            keys.append(IssueKey(IssueKind(str(self.stack_problem))))
        elif self.status is TargetStatus.FAILED and self.error is not None:
            keys.append(IssueKey(IssueKind.FAILED, (self.error.code,)))
        elif not self.is_fine:
            keys.append(IssueKey(IssueKind(self.status.value)))
        keys += [
            IssueKey(IssueKind.SECRET, (each.name, each.failure.code))
            for each in self.failed_secrets
        ]
        if self.fallback_secret is not None:
            keys.append(IssueKey(IssueKind.FALLBACK))
        if self.is_exhausted:
            keys.append(IssueKey(IssueKind.EXHAUSTED))
        keys += [_make_issue(IssueKind.BLOCKER, b.rule.name, b.by) for b in self.blockers]
        keys += [
            _make_issue(IssueKind.PROTECTED, group.rule, group.protection.by)
            for group in self.protected_to_report
        ]
        keys += self.reported_issues
        found = (_find_issue(result) for result in self.results)
        return dict.fromkeys([*keys, *(key for key in found if key is not None)]).keys()

    @cached_property
    def protected_to_report(self) -> Sequence[ProtectedGroup]:
        """The protected groups that matter: slots are short, or other sessions wait for them.

        The blockers among them are reported as such.
        """
        blockers = {id(each.decision) for each in self.blockers}
        decisions = [
            each
            for each in self.protected
            if id(each) not in blockers
            and (self.share_used >= _SHORT_OF_SLOTS or each.session.waiters)
        ]
        return group_protected(decisions)

    @cached_property
    def new_issues(self) -> tuple[IssueKey, ...]:
        """The issues that were not reported less than REMIND_AFTER ago."""
        known = frozenset(self.known_issues)
        return tuple(key for key in self.issues if key not in known)

    @property
    def should_notify(self) -> bool:
        """Whether something is new. Escaped sessions are healthy and do not count."""
        if self.explained is not None:  # the caller gets the answer
            return False
        return (
            bool(self.recovered)
            or self.checked is not None  # a check also shows whether the summary arrives
            or self.applied is not None
            or any(self.counts[outcome] for outcome in DONE)
            or bool(self.new_issues)
        )


def _make_issue(kind: IssueKind, *names: str) -> IssueKey:
    return IssueKey(kind, tuple(printable(name, NAME_LENGTH) for name in names))


def _find_issue(result: SessionResult) -> IssueKey | None:
    """Return the issue of a session: one per lingering session, or per observed rule and role."""
    decision = result.decision
    match result.outcome:
        case Outcome.LINGERING:
            return IssueKey(IssueKind.LINGERING, (str(decision.pid),))
        case Outcome.WOULD_TERMINATE:
            rule = decision.rule.name if decision.rule else ""
            return _make_issue(IssueKind.WOULD_TERMINATE, rule, decision.session.role_label)
        case Outcome.DENIED | Outcome.SPARED:
            return IssueKey(IssueKind(result.outcome.value))
    return None


def record_error(report: TargetReport, error: TargetError) -> TargetReport:
    """Return the report with an error that ended the work on the target."""
    status = TargetStatus.FAILED
    # At the limit of our own role, applications still get slots.
    if isinstance(error, FullError) and error.limit is not ConnectionLimit.ROLE:
        status = TargetStatus.FULL
    elif isinstance(error, BlindError):
        status = TargetStatus.BLIND
    code = printable(error.code, _CODE_LENGTH)
    failure = Failure(code=code, cause=error.cause, hint=error.hint, step=error.step)
    return replace(report, status=status, error=failure)


def record_breaker(report: TargetReport, cause: str) -> TargetReport:
    """Return the report of a target on which the breaker stopped all terminations."""
    failure = Failure(
        code="breaker",
        cause=cause,
        hint="If the spared sessions are leaks, run by hand with a policy whose max_share and max_condemned"
        " allow it, or terminate them yourself. If they are not, correct the rule that condemns them.",
    )
    return replace(report, status=TargetStatus.BREAKER, error=failure)


def record_unfinished(report: TargetReport, bug: Exception | None) -> TargetReport:
    """Return the report of a target whose job a bug or the end of the run's time has cut off."""
    if bug is not None:
        failure = Failure(
            code="internal",
            cause=f"session-reaper has a bug: {type(bug).__name__}",
            hint="Please report it with the traceback in the log.",
        )
        return replace(report, status=TargetStatus.FAILED, error=failure)
    return report if report.error is not None else record_error(report, DeadlineError())


class RunStatus(StrEnum):
    """The result of a run as a whole."""

    OK = "ok"
    PARTIAL = "partial"  # a target was not reached, or its breaker tripped
    FAILED = "failed"  # no target was reached


class Severity(StrEnum):
    """The urgency of a summary; subscribers can filter by it."""

    CRITICAL = "critical"  # applications cannot connect
    WARNING = "warning"  # a person has to fix something
    INFO = "info"


@dataclass(frozen=True, kw_only=True)  # no slots: they leave no room for a cached_property
class Report:
    """The report of one run on all its targets."""

    run_id: str
    mode: Mode
    targets: tuple[TargetReport, ...]
    configuration_error: str = ""  # why the run could not begin
    state_problem: str = ""  # why known issues may be reported again
    undelivered: tuple[str, ...] = ()  # unpublished summary lines of earlier runs, newest first
    undelivered_before: int = 0  # number of older ones, whose lines are not kept

    @property
    def mode_label(self) -> str:
        """The mode in words."""
        return "unknown" if self.configuration_error else str(self.mode)

    @cached_property
    def counts(self) -> Counter[Outcome]:
        """The number of sessions of all targets by outcome."""
        return Counter(result.outcome for target in self.targets for result in target.results)

    @property
    def totals(self) -> dict[str, int]:
        """The numbers of targets, and of sessions by outcome."""
        return {
            "targets": len(self.targets),
            "failed": self.failed,
            **{outcome.value: self.counts[outcome] for outcome in Outcome},
            "protected": sum(len(target.protected) for target in self.targets),
        }

    @property
    def number_of_targets(self) -> int:
        """The number of targets, without what a hub reports on whole stacks."""
        return sum(target.stack_problem is None for target in self.targets)

    @property
    def failed(self) -> int:
        """The number of targets that were not reached."""
        return sum(not target.is_reached for target in self.targets)

    @property
    def status(self) -> RunStatus:
        """The result of a run as a whole."""
        if self.configuration_error:
            return RunStatus.FAILED
        if all(target.is_fine for target in self.targets):
            return RunStatus.OK
        return RunStatus.FAILED if self.failed == len(self.targets) else RunStatus.PARTIAL

    @property
    def should_notify(self) -> bool:
        """Whether a target has something new to report, or an earlier summary was not published."""
        return bool(self.undelivered) or any(target.should_notify for target in self.targets)

    @cached_property
    def new_and_known(self) -> tuple[Sequence[TargetReport], Sequence[TargetReport]]:
        """The targets to report, most urgent first, and those with only known issues.

        If nothing is new (NOTIFY is always), the targets to report are those with known issues, or
        else all.
        """
        targets = sorted(self.targets, key=rank_by_urgency)
        new = [target for target in targets if target.should_notify]
        known = [target for target in targets if target.issues and not target.should_notify]
        return (new, known) if new else (known or targets, ())

    @property
    def is_critical(self) -> bool:
        """Whether the run has a new issue that keeps applications from connecting."""
        return any(
            key.kind in (IssueKind.FULL, IssueKind.EXHAUSTED)
            for target in self.targets
            for key in target.new_issues
        )

    @cached_property
    def severity(self) -> Severity:
        """The urgency of the reported issues."""
        if self.configuration_error:
            return Severity.WARNING
        if self.is_critical:
            return Severity.CRITICAL
        passing = (IssueKind.WOULD_TERMINATE, IssueKind.SPARED)
        keys = (key for target in self.new_and_known[0] for key in target.issues)
        return Severity.INFO if all(key.kind in passing for key in keys) else Severity.WARNING


def rank_by_urgency(target: TargetReport) -> tuple[bool, bool, int]:
    """Sort first the targets where applications cannot connect, then other issues, then by size."""
    return (not target.is_critical, target.is_fine, -len(target.results))
