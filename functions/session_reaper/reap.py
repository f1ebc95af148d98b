"""One target, from sign-in to report: look, decide, terminate, verify."""

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace

from session_reaper.advice import advice_on_connection, advice_on_look
from session_reaper.deadline import Deadline
from session_reaper.decide import Decision, Judgement, Verdict, decide
from session_reaper.errors import BlindError, DeadlineError, FullError, TargetError
from session_reaper.observability import log_decision
from session_reaper.policy import Mode, Policy
from session_reaper.postgres import Server, Signal
from session_reaper.report import Failure, Fate, Outcome, TargetReport, TargetStatus
from session_reaper.sessions import Identity, Look
from session_reaper.targets import Target

VERIFY_SECONDS = 2.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.004, 0.064  # seconds between two looks of verify


def reap(target: Target, policy: Policy, mode: Mode, deadline: Deadline) -> Iterator[TargetReport]:
    """Deal with one target.

    Each report replaces the one before, and the last is true at any moment: a run whose time is up
    has something true to say even of a target that hangs.
    """
    report = TargetReport(name=target.name, advice=tuple(advice_on_connection(target)))
    yield failed(report, DeadlineError())
    try:
        with closing(Server.connect(target, deadline)) as server:
            look = server.look(policy.idle_floors(), deadline)
            if not look.can_see:
                raise BlindError(look.role)
            report = _looked(report, look)
            judgement = decide(look.sessions, look.slots, policy)
            report = _judged(report, judgement, mode)
            condemned = judgement.having(Verdict.CONDEMN)
            if mode is Mode.OBSERVE:
                _log(target, condemned)
            elif condemned:
                # Until more is known: each may have been signalled, none was seen gone.
                yield failed(report, DeadlineError())
                report = _executed(report, condemned, target, server, deadline)
            _log(target, judgement.having(Verdict.SPARE))
    except TargetError as error:
        report = failed(report, error)
    yield report


def _log(target: Target, decisions: Iterable[Decision]) -> None:
    for decision in decisions:
        log_decision(target.name, decision)


def failed(report: TargetReport, error: TargetError) -> TargetReport:
    """What is known of a target, and that it ended with an error."""
    status = TargetStatus.FAILED
    if isinstance(error, FullError):
        status = TargetStatus.FULL
    elif isinstance(error, BlindError):
        status = TargetStatus.BLIND
    failure = Failure(code=error.code, message=error.message, hint=error.hint)
    return replace(report, status=status, error=failure)


def _looked(report: TargetReport, look: Look) -> TargetReport:
    return replace(
        report,
        slots=look.slots,
        used_after=look.slots.used,
        advice=(*report.advice, *advice_on_look(look)),
    )


def _judged(report: TargetReport, judgement: Judgement, mode: Mode) -> TargetReport:
    expected = Outcome.LINGERING if mode is Mode.ENFORCE else Outcome.WOULD_TERMINATE
    fates = tuple(
        Fate(
            decision=decision,
            outcome=Outcome.SPARED if decision.verdict is Verdict.SPARE else expected,
        )
        for decision in judgement.decisions
        if decision.verdict is not Verdict.LEAVE
    )
    if judgement.breaker is None:
        return replace(report, fates=fates)
    failure = Failure(
        code="breaker",
        message=judgement.breaker,
        hint="If they are leaks, run by hand with a policy whose max_share allows it, or end them"
        " by hand; if not, mend the rule that condemns them.",
    )
    return replace(report, fates=fates, status=TargetStatus.BREAKER, error=failure)


# -- terminate and verify -------------------------------------------------------------------------


def _executed(
    report: TargetReport,
    condemned: Sequence[Decision],
    target: Target,
    server: Server,
    deadline: Deadline,
) -> TargetReport:
    signals, error = _signal_all(target, server, condemned, deadline)
    sent = [d.session.identity for d in condemned if signals.get(_pid(d)) is Signal.SENT]
    remaining: Collection[int] = {identity.pid for identity in sent}
    used_after = report.used_after
    if sent:
        try:
            if error is None or isinstance(error, DeadlineError):
                remaining, used_after = _verify(server, sent, deadline)
            else:  # the connection is lost, the kills are not: another connection looks for them
                with closing(Server.connect(target, deadline)) as witness:
                    remaining, used_after = _verify(witness, sent, deadline)
        except TargetError as unverified:
            used_after = None
            error = error or unverified
    fates = tuple(
        fate if fate.outcome is Outcome.SPARED else _fate(fate.decision, signals, remaining)
        for fate in report.fates
    )
    report = replace(report, fates=fates, used_after=used_after)
    return report if error is None else failed(report, error)


def _signal_all(
    target: Target, server: Server, condemned: Sequence[Decision], deadline: Deadline
) -> tuple[Mapping[int, Signal], TargetError | None]:
    """What became of each signal, by pid; a pid that is missing was not signalled for sure."""
    signals: dict[int, Signal] = {}
    error: TargetError | None = None
    # No more than half of the time that is left: the other half is for proving it.
    deadline = deadline.within(deadline.seconds() / 2)
    for decision in condemned:
        log_decision(target.name, decision)  # before the signal, and whether or not it comes to it
        if error is None:
            try:
                signals[_pid(decision)] = server.terminate(decision.session.identity, deadline)
            except DeadlineError as over:
                error = over
            except TargetError as lost:
                error = lost  # the answer is lost: as far as we know, it was signalled
                signals[_pid(decision)] = Signal.SENT
    return signals, error


def _verify(
    server: Server, sent: Collection[Identity], deadline: Deadline
) -> tuple[Collection[int], int]:
    """Poll until all are gone or the time for it is over: who is still there, the slots used."""
    over = deadline.within(VERIFY_SECONDS)
    pause = _FIRST_PAUSE
    remaining, used = server.verify(sent, deadline)
    while remaining and over.seconds() > pause:
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
        try:
            remaining, used = server.verify(sent, deadline)
        except DeadlineError:
            break
    return remaining, used


def _fate(decision: Decision, signals: Mapping[int, Signal], remaining: Collection[int]) -> Fate:
    match signals.get(_pid(decision)):
        case Signal.SENT:
            gone = _pid(decision) not in remaining
            outcome = Outcome.TERMINATED if gone else Outcome.LINGERING
        case Signal.ESCAPED:
            outcome = Outcome.ESCAPED
        case Signal.DENIED:
            outcome = Outcome.DENIED
        case None:
            outcome = Outcome.SPARED
            reason = f"{decision.reason}; spared: the run ended before its turn"
            decision = replace(decision, reason=reason)
    return Fate(decision=decision, outcome=outcome)


def _pid(decision: Decision) -> int:
    return decision.session.identity.pid
