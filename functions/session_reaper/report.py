"""What became of every target and every condemned session."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

from session_reaper.decide import Decision
from session_reaper.durations import format_duration
from session_reaper.errors import (
    BlindError,
    ConfigurationError,
    ConnectionLimit,
    DeadlineError,
    FullError,
    TargetError,
)
from session_reaper.policy import Mode, Queries
from session_reaper.preflight import Check
from session_reaper.redaction import redact, redact_for_matching
from session_reaper.sessions import Look, Slots, State
from session_reaper.targets import TargetKey


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
class Fate:
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


@dataclass(frozen=True, slots=True, kw_only=True)
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
    queries: Queries = Queries.REDACTED  # how the document shows them
    pressure: tuple[str, ...] = ()  # on each rule that was in force for want of slots
    fates: tuple[Fate, ...] = ()
    advice: tuple[Advice, ...] = ()
    recorded: Look | None = None  # if that was asked for
    checked: Check | None = None  # if that was asked for
    applied: tuple[RoleSetting, ...] | None = None  # if that was asked for
    told: tuple[str, ...] = ()  # kinds of its troubles that a summary told a while ago
    recovered: tuple[Recovery, ...] = ()  # since the run before

    def count(self, outcome: Outcome) -> int:
        """How many sessions met this outcome."""
        return sum(fate.outcome is outcome for fate in self.fates)

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

    @property
    def troubles(self) -> tuple[str, ...]:
        """The kinds of what will be so in the next run, too, unless somebody or something mends it."""
        kinds = [] if self.status is TargetStatus.OK else [str(self.status)]
        if self.status is TargetStatus.FAILED and self.error is not None:
            kinds = [f"{self.status} {clean(self.error.code, 20)}"]
        if self.fallback_secret is not None:
            kinds.append(FALLBACK)
        if self.share_used >= 1:
            kinds.append(EXHAUSTED)
        kinds += [_kind(fate) for fate in self.fates if fate.outcome in _UNDONE]
        return tuple(dict.fromkeys(kinds))

    @property
    def is_news(self) -> bool:
        """Whether somebody should hear of it. That a session escaped is no news: it is well."""
        return (
            bool(self.recovered)
            or self.checked is not None  # a check shows, too, whether the summary arrives
            or self.applied is not None
            or any(fate.outcome in _DONE for fate in self.fates)
            or any(kind not in self.told for kind in self.troubles)
        )


def _kind(fate: Fate) -> str:
    """Each lingering session is a trouble of its own, and each rule and role that was observed."""
    decision = fate.decision
    if fate.outcome is Outcome.LINGERING:
        return f"{fate.outcome} {decision.pid}"
    if fate.outcome is Outcome.WOULD_TERMINATE and decision.rule is not None:
        rule, role = clean(decision.rule.name, 63), clean(decision.session.role, 63)
        return f"{fate.outcome} {rule} {role}"
    return fate.outcome.value


def failed(report: TargetReport, error: TargetError) -> TargetReport:
    """What is known of a target, and that it ended with an error."""
    status = TargetStatus.FAILED
    # The applications still get slots where only our own role has too few.
    if isinstance(error, FullError) and error.limit is not ConnectionLimit.ROLE:
        status = TargetStatus.FULL
    elif isinstance(error, BlindError):
        status = TargetStatus.BLIND
    failure = Failure(code=clean(error.code, 20), message=error.message, hint=error.hint)
    return replace(report, status=status, error=failure)


def crashed(report: TargetReport, error: Exception) -> TargetReport:
    """What is known of a target, and that a bug of ours ended its work."""
    failure = Failure(
        code="internal",
        message=f"session-reaper has a bug: {type(error).__name__}",
        hint="Please report it with the traceback in the log.",
    )
    return replace(report, status=TargetStatus.FAILED, error=failure)


def unfinished(report: TargetReport, bug: Exception | None) -> TargetReport:
    """Build the report of a target whose job did not end: a bug ended it, or the time was over."""
    if bug is not None:
        return crashed(report, bug)
    return report if report.error is not None else failed(report, DeadlineError())


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
    untold: tuple[str, ...] = ()  # of earlier runs, whose summaries did not go out

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
    def is_news(self) -> bool:
        """Whether any target has news, or an earlier run had."""
        return bool(self.untold) or any(target.is_news for target in self.targets)

    def told_apart(self) -> tuple[Sequence[TargetReport], Sequence[TargetReport]]:
        """The targets to tell of, the urgent first; and those whose trouble was told before.

        If there is no news (NOTIFY is always), all trouble is told, or that the targets are well.
        """
        targets = sorted(self.targets, key=urgency)
        news = [target for target in targets if target.is_news]
        known = [target for target in targets if target.troubles and not target.is_news]
        return (news, known) if news else (known or targets, ())

    @property
    def is_critical(self) -> bool:
        """Whether it tells anew that somebody must act at once: an application is shut out."""
        return any(
            kind in (TargetStatus.FULL, EXHAUSTED) and kind not in target.told
            for target in self.targets
            for kind in target.troubles
        )

    @property
    def severity(self) -> str:
        """For subscribers to filter by: critical, warning (somebody has to mend it), or info."""
        if self.is_critical:
            return "critical"
        kinds = (kind for target in self.told_apart()[0] for kind in target.troubles)
        passing = (Outcome.WOULD_TERMINATE, Outcome.SPARED)
        return "info" if all(kind.startswith(passing) for kind in kinds) else "warning"

    @property
    def summary(self) -> str:
        """What happened where, on one line: trouble first, then by sessions concerned."""
        if self.mode is Mode.OFF:
            return "mode is off: no target was looked at"
        if not self.targets:
            return "no targets"
        shown, known = self.told_apart()
        if not any(target.troubles or target.is_news for target in shown):
            shown = shown[:1]
        headlines = [headline(target) for target in shown if target.slots is not None]
        unreached = [target for target in shown if target.slots is None]
        if len(unreached) == 1:
            headlines.insert(0, headline(unreached[0]))
        elif unreached:  # one cause, mostly
            names = ", ".join(clean(target.name, 80) for target in unreached[:_MOST_HEADLINES])
            more = ", …" if len(unreached) > _MOST_HEADLINES else ""
            lost = f"{len(unreached)} of {len(self.targets)} targets not reached ({names}{more})"
            headlines.insert(0, lost)
        quiet = len(self.targets) - len(shown) - len(known)
        said = [
            *headlines[:_MOST_HEADLINES],
            *_counted(len(headlines[_MOST_HEADLINES:]), "more with news"),
            *_counted(len(known), "told before"),
            *_counted(len(self.untold), "not delivered before"),
            *_counted(quiet, "quiet"),
        ]
        return "; ".join(said)


_MOST_HEADLINES = 3


def _counted(number: int, what: str) -> Iterator[str]:
    if number:
        yield f"{number} {what}"


def urgency(target: TargetReport) -> tuple[bool, bool, int]:
    """A sort key: who shuts applications out, then other trouble, then by sessions concerned."""
    return (not target.is_critical, target.status is TargetStatus.OK, -len(target.fates))


_PHRASES = {
    Outcome.TERMINATED: "terminated",
    Outcome.CANCELLED: "cancelled",
    Outcome.WOULD_TERMINATE: "would be terminated",
    Outcome.LINGERING: "lingering",
    Outcome.DENIED: "denied",
    Outcome.ESCAPED: "escaped",
    Outcome.SPARED: "spared",
}


def clean(text: str, most: int = 400, kept: str = "") -> str:
    """Printable characters and those `kept`, `most` of them: names and messages come from outside."""
    if len(text) <= most and text.isprintable():
        return text
    text = text[: most + 1]
    line = "".join(c if c.isprintable() or c in kept else "?" for c in text)
    return line if len(line) <= most else line[: most - 1] + "…"


_WHERE = re.compile(
    r"^(connecting|securing the connection|logging in) to \S+: "
)  # a subject is short, the body has it


def headline(target: TargetReport) -> str:
    """What happened on one target, on one line."""
    name = f"{target.name} (reader)" if target.reader else target.name
    if target.slots is None:
        what = _WHERE.sub("", target.error.message) if target.error else "nothing is known"
        return clean(f"{name}: {target.status}, {what}")
    counts = [(target.count(outcome), phrase) for outcome, phrase in _PHRASES.items()]
    said = [f"{number} {phrase}" for number, phrase in counts if number]
    if said:
        number, phrase = said[0].split(" ", 1)
        said[0] = f"{number} session{'' if number == '1' else 's'} {phrase}"
    elif target.recorded is not None:
        said = ["recorded"]
    elif target.checked is not None:
        said = [_checked(target.checked, len(target.advice))]
    elif target.status is TargetStatus.OK and not target.recovered and target.applied is None:
        said = ["nothing to terminate"]
    if target.applied is not None:
        said.insert(0, _applied(target.applied))
    if target.recovered:
        ended = (f"{e.kind} for {format_duration(e.seconds)}" for e in target.recovered)
        said.append(f"recovered ({', '.join(ended)})")
    if target.status is not TargetStatus.OK:
        said.insert(0, str(target.status))
    if target.fallback_secret is not None:
        said.append("signed in by the fallback secret")
    said.append(_slots_line(target.slots, target.used_after))
    return clean(f"{name}: {', '.join(said)}")


def _applied(settings: Iterable[RoleSetting]) -> str:
    counts = Counter(setting.result for setting in settings)
    said = [f"{n} setting{'' if n == 1 else 's'} {result}" for result, n in counts.items()]
    return ", ".join(said) or "nothing to apply"


def _checked(check: Check, shortcomings: int) -> str:
    what = f"{check.server.provider} PostgreSQL {check.server.version}"
    return f"checked {what}, {shortcomings or 'nothing'} to mend"


def _slots_line(slots: Slots, used_after: int | None) -> str:
    """Slots used of those that ordinary roles can use, before and, where it changed, after."""
    before = f"slots {slots.used}/{slots.usable}"
    if used_after is None or used_after == slots.used:
        return before
    return f"{before} → {used_after}/{slots.usable}"


# -- the return value ------------------------------------------------------------------------------


def as_document(report: Report) -> dict[str, Any]:
    """The report as the JSON document of the contract."""
    outcomes = Counter(fate.outcome for target in report.targets for fate in target.fates)
    return {
        "run_id": report.run_id,
        "mode": str(report.mode),
        "status": report.status.value,
        "summary": report.summary,
        "totals": {
            "targets": len(report.targets),
            "failed": report.failed,
            **{o.value: outcomes[o] for o in Outcome if o is not Outcome.SPARED},
        },
        "targets": [_target(target) for target in report.targets],
    }


def fitting(document: dict[str, Any], most: int) -> dict[str, Any]:
    """The document, or what of it fits into so many bytes of JSON.

    What does not are sessions, of each target alike, first those that were spared; it then says
    how many as `sessions_left_out`.
    """
    size = len(json.dumps(document))  # ASCII: no encoding of it is longer
    if size <= most or not any(target["sessions"] for target in document["targets"]):
        return document
    share = 0.95 * most / size
    targets = [_shortened(target, share) for target in document["targets"]]
    return fitting({**document, "targets": targets}, most)


def _shortened(target: dict[str, Any], share: float) -> dict[str, Any]:
    sessions = sorted(target["sessions"], key=lambda s: s["outcome"] == Outcome.SPARED.value)
    kept = sessions[: int(share * len(sessions))]
    left_out = target.get("sessions_left_out", 0) + len(sessions) - len(kept)
    return {**target, "sessions": kept, **({"sessions_left_out": left_out} if left_out else {})}


def _target(target: TargetReport) -> dict[str, Any]:
    return {
        "name": target.name,
        "secret": target.secret,
        "status": target.status.value,
        "error": target.error
        and {
            "code": target.error.code,
            "message": target.error.message,
            "hint": target.error.hint,
        },
        "slots": target.slots
        and {
            "max": target.slots.max,
            "reserved": target.slots.reserved,
            "usable": target.slots.usable,
            "used_before": target.slots.used,
            "used_after": target.used_after,
        },
        # All else of a target is always there; these only if they say something.
        **({"reader": True} if target.reader else {}),
        **({"fallback_secret": target.fallback_secret} if target.fallback_secret else {}),
        **({"pressure": list(target.pressure)} if target.pressure else {}),
        **({"check": _check(target.checked)} if target.checked else {}),
        **({} if target.applied is None else {"applied": [asdict(s) for s in target.applied]}),
        **({"recovered": [asdict(each) for each in target.recovered]} if target.recovered else {}),
        "sessions": list(_sessions(target)),
        "advice": [
            {"code": advice.code, "message": advice.message, "sql": advice.sql}
            for advice in target.advice
        ],
    }


def _check(check: Check) -> dict[str, Any]:
    server, look = check.server, check.look
    return {
        "version": server.version,
        "provider": server.provider.value,
        "tls": server.tls and asdict(server.tls),
        "in_recovery": look.reader,
        "behind_pooler": look.behind_pooler,
        "role": {
            "name": server.role,
            "superuser": server.superuser,
            "connection_limit": server.connection_limit,
            "sees": look.can_see,
            "signals": look.can_signal,
            "reserved_slot": server.has_reserved_slot,
        },
        "timeouts": [asdict(timeout) for timeout in server.timeouts],
    }


def _sessions(target: TargetReport) -> Iterator[dict[str, Any]]:
    for fate in target.fates:
        yield {**describe(fate.decision, target.queries), "outcome": fate.outcome.value}


_MOST_OF_A_QUERY = 2000  # characters, where it is shown in full: a server may keep a megabyte of it


def describe(decision: Decision, queries: Queries) -> dict[str, Any]:
    """A decision on a session as JSON."""
    session = decision.session
    is_full = queries is Queries.FULL
    return {
        "pid": session.identity.pid,
        "role": session.role,
        "database": session.database,
        "application": session.application,
        "client": session.client,
        "state": session.state.value,
        "idle_seconds": _tenths(session.idle_seconds),
        "transaction_seconds": _tenths(session.transaction_seconds),
        "connected_seconds": _tenths(session.connected_seconds),
        "rule": decision.rule and decision.rule.name,
        "reason": decision.reason,
        "query": clean(session.query, _MOST_OF_A_QUERY, "\n\t")
        if is_full
        else redact(session.query),
        **({"query_id": session.query_id} if session.query_id else {}),
    }


def _tenths(seconds: float | None) -> float | None:
    return None if seconds is None else int(seconds * 10) / 10  # as reasons say it, rounded down


MAX_RECORDING = 5_000_000  # bytes of JSON: Lambda returns 6 MB with all around it


def recordings(report: Report) -> dict[str, Any]:
    """The looks of a run as JSON, by target: the engine can decide on them again, elsewhere.

    Raises ConfigurationError if Lambda could not return so much.
    """
    looks = {t.name: as_recording(t.recorded) for t in report.targets if t.recorded is not None}
    size = len(json.dumps(looks))
    if size > MAX_RECORDING:
        problem = f"the looks are {size:,} bytes, Lambda returns {MAX_RECORDING:,}: name one target"
        raise ConfigurationError("event.record", problem)
    return looks


def as_recording(look: Look) -> dict[str, Any]:
    """A look as JSON, its queries redacted."""
    document = asdict(look)
    for session in document["sessions"]:
        session["query"] = redact_for_matching(session["query"])
    return document
