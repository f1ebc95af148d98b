"""One target, from sign-in to report: look, decide, and what is to be done."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from threading import Semaphore

from session_reaper.advice import advice_on_connection, advice_on_look
from session_reaper.deadline import Deadline
from session_reaper.decide import Decision, Judgement, Verdict, decide
from session_reaper.errors import DeadlineError, TargetError
from session_reaper.execution import Execution, look_at
from session_reaper.observability import log_decision
from session_reaper.policy import Mode, Policy
from session_reaper.postgres import Server
from session_reaper.report import Failure, Fate, Outcome, TargetReport, TargetStatus, failed
from session_reaper.sessions import EVERYTHING, Look
from session_reaper.targets import Target


def reap(
    policy: Policy, mode: Mode, quota: Semaphore | None, target: Target, deadline: Deadline
) -> Iterator[TargetReport]:
    """Deal with one target; `quota` is what the run may still do, on all of its targets.

    Each report replaces the one before, and the last is true at any moment: a run whose time is up
    has something true to say even of a target that hangs.
    """
    report = TargetReport(name=target.name, advice=tuple(advice_on_connection(target)))
    yield failed(report, DeadlineError())
    try:
        with ExitStack() as stack:

            def connect() -> Server:
                return stack.enter_context(closing(Server.connect(target, deadline)))

            server = connect()
            look = look_at(server, policy.scope(), deadline)
            report = _looked(report, look)
            judgement = decide(look.sessions, look.slots, policy)
            if quota is not None:
                judgement = judgement.held_back(_within(quota, policy))
            report = _judged(report, judgement)
            for decision in judgement.having(Verdict.SPARE):
                log_decision(target.name, decision)
            execution = Execution(report, policy, mode, connect, deadline)
            for latest in execution.steps(server, judgement.having(Verdict.CONDEMN)):
                report = latest
                yield report
    except TargetError as error:
        report = failed(report, error)
    yield report


def record(target: Target, deadline: Deadline) -> Iterator[TargetReport]:
    """Look at one target, at everything, and do nothing."""
    report = TargetReport(name=target.name, advice=tuple(advice_on_connection(target)))
    yield failed(report, DeadlineError())
    try:
        with closing(Server.connect(target, deadline)) as server:
            look = look_at(server, EVERYTHING, deadline)
            report = replace(_looked(report, look), recorded=look)
    except TargetError as error:
        report = failed(report, error)
    yield report


def _looked(report: TargetReport, look: Look) -> TargetReport:
    return replace(
        report,
        slots=look.slots,
        used_after=look.slots.used,
        advice=(*report.advice, *advice_on_look(look)),
    )


def _within(quota: Semaphore, policy: Policy) -> Callable[[Decision], str | None]:
    reason = f"limits.max_per_run of {policy.limits.max_per_run} was reached"

    def limit(decision: Decision) -> str | None:
        if decision.session.signalable and not quota.acquire(blocking=False):
            return reason
        return None

    return limit


def _judged(report: TargetReport, judgement: Judgement) -> TargetReport:
    fates = tuple(
        Fate(decision=decision, outcome=Outcome.SPARED)
        for decision in judgement.decisions
        if decision.verdict is not Verdict.LEAVE
    )
    report = replace(report, fates=fates, pressure=judgement.pressure)
    if judgement.breaker is None:
        return report
    failure = Failure(
        code="breaker",
        message=judgement.breaker,
        hint="If they are leaks, run by hand with a policy whose max_share allows it, or end them"
        " by hand; if not, mend the rule that condemns them.",
    )
    return replace(report, status=TargetStatus.BREAKER, error=failure)
