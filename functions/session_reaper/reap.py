"""One target, from sign-in to report: look, decide, and what is to be done."""

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from threading import Semaphore
from typing import Final

from session_reaper.advice import (
    advice_on_connection,
    advice_on_databases,
    advice_on_fallback,
    advice_on_grants,
    advice_on_look,
    advice_on_options,
    advice_on_preflight,
    advice_on_timeouts,
    advice_on_way_in,
    in_order,
    missing_timeouts,
    not_applied,
)
from session_reaper.decide import Decision, Judgement, Verdict, decide
from session_reaper.directory import Directory
from session_reaper.errors import BlindError, TargetError
from session_reaper.observability import log_decision
from session_reaper.policy import Mode, Policy
from session_reaper.postgres.server import Server
from session_reaper.preflight import Check, Preflight
from session_reaper.providers import is_proxy
from session_reaper.report import (
    Advice,
    Failure,
    Fate,
    Outcome,
    RoleSetting,
    TargetReport,
    TargetStatus,
    failed,
)
from session_reaper.sessions import EVERYTHING, NOTHING, Look
from session_reaper.sign_in import sign_in
from session_reaper.target_session import TargetJob, TargetSession
from session_reaper.targets import Target
from session_reaper.termination import Termination, take_snapshot

ADVICE_SECONDS: Final = 3.0  # that the server has to tell why sessions leak, after all else


Operation = Callable[[TargetSession], TargetReport]
"""What is done on one server; returns the complete report."""


def initial_report(target: Target) -> TargetReport:
    """Build the report of a target that nothing is known of yet."""
    return TargetReport(
        name=target.name,
        secret=target.secret_name,
        key=target.key,
        reader=target.reader,
        advice=tuple(advice_on_connection(target)),
    )


def run_on_target(operation: Operation, directory: Directory, job: TargetJob) -> TargetReport:
    """Connect to one target and run the operation; whatever happens, there is a report.

    What the job's progress holds is true at any moment: a run whose time is over has something true
    to say even of a target that hangs.
    """
    target, deadline = job.target, job.deadline
    try:
        with ExitStack() as stack:

            def connect() -> Server:
                return stack.enter_context(closing(sign_in(target, directory, deadline)[0]))

            def by_fallback() -> Server:
                other = directory.authorized(directory.fallback(target, deadline))
                return stack.enter_context(closing(Server.connect(other, deadline)))

            server, connected = sign_in(target, directory, deadline)
            stack.enter_context(closing(server))
            report = initial_report(target)
            report = replace(
                report,
                advice=(*report.advice, *advice_on_way_in(target, connected)),
                fallback_secret=target.fallback_secret if connected.instead_of else None,
            )
            session = TargetSession(
                job=job, server=server, connect=connect, by_fallback=by_fallback, report=report
            )
            session.record(report)
            return operation(session)
    except TargetError as error:
        return failed(job.progress.result.latest, error)


def reap(
    policy: Policy, mode: Mode, quota: Semaphore | None, session: TargetSession
) -> TargetReport:
    """Take a snapshot, decide, and terminate; `quota` is what the run may still do on all targets."""
    report = _reap(policy, mode, quota, session)
    session.job.progress.complete(report)
    leaks = any(fate.outcome is not Outcome.ESCAPED for fate in report.fates)
    if leaks and report.is_reached and session.deadline.remaining() > ADVICE_SECONDS:
        with suppress(TargetError):  # what was done stands, whatever more can be said of it
            found = session.server.preflight(session.deadline.capped_at(ADVICE_SECONDS))
            report = _advised(session, report, found, missing_timeouts(report.fates, found))
    return report


def _reap(
    policy: Policy, mode: Mode, quota: Semaphore | None, session: TargetSession
) -> TargetReport:
    look = take_snapshot(session.server, policy.scope(), session.deadline)
    report = replace(_looked(session.report, look), queries=policy.queries)
    judgement = decide(look.sessions, look.slots, policy)
    if quota is not None:
        judgement = judgement.held_back(_within(quota, policy))
    report = _judged(report, judgement)
    session.record(report)
    for decision in judgement.having(Verdict.SPARE):
        log_decision(report, decision)
    termination = Termination(session, report, look, policy, mode)
    return termination.run(judgement.having(Verdict.CONDEMN))


def apply(
    policy: Policy, mode: Mode, codes: Collection[str], session: TargetSession
) -> TargetReport:
    """Give the roles that leak by the policy the timeouts of these codes, and terminate nothing."""
    session = replace(session, report=replace(session.report, applied=()))
    report = _reap(policy, Mode.OBSERVE, None, session)
    if report.status is not TargetStatus.OK:  # who leaks is not known, or doubted by the breaker
        return report
    session.record(report)
    found = session.server.preflight(session.deadline)
    missing = missing_timeouts(report.fates, found)
    asked = [setting for setting in missing if setting.code in codes]
    applied: tuple[RoleSetting, ...] = ()
    for setting in asked:
        if mode is Mode.ENFORCE:
            session.record(replace(report, applied=applied))
            applied += (_applied(session, setting, found, reader=report.reader),)
        else:
            applied += (setting,)
    report = replace(report, applied=applied)
    done = {setting.sql for setting in applied if setting.done}
    report = _advised(session, report, found, [each for each in missing if each.sql not in done])
    refusals = [setting.error for setting in applied if setting.error is not None]
    if refusals:
        message = f"{len(refusals)} of {len(applied)} settings not applied: {refusals[0].message}"
        report = failed(report, TargetError(refusals[0].code, message, refusals[0].hint))
    return report


def _applied(
    session: TargetSession, setting: RoleSetting, found: Preflight, *, reader: bool
) -> RoleSetting:
    try:
        session.server.alter(setting.sql, session.deadline)
    except TargetError as error:
        return replace(setting, error=not_applied(error, setting, found, reader=reader))
    return replace(setting, done=True)


def _advised(
    session: TargetSession, report: TargetReport, found: Preflight, missing: Collection[RoleSetting]
) -> TargetReport:
    """What is to be mended where something was condemned, by the server's facts."""
    slots = report.slots
    more = [*advice_on_preflight(session.target, found, slots, report.fates)] if slots else []
    if report.count(Outcome.DENIED):
        more += _advice_on_grants(session)
    advice = in_order([*report.advice, *advice_on_timeouts(missing), *more])
    return replace(report, advice=advice)


def record(session: TargetSession) -> TargetReport:
    """Record a snapshot of everything, and do nothing."""
    look = take_snapshot(session.server, EVERYTHING, session.deadline)
    return replace(_looked(session.report, look), recorded=look)


def check(session: TargetSession) -> TargetReport:
    """Tell what the server is and what is to be mended, and do nothing."""
    server = session.server.preflight(session.deadline)
    look = session.server.look(NOTHING, session.deadline)
    behind_pooler = look.behind_pooler or is_proxy(session.target.host)
    look = replace(look, behind_pooler=behind_pooler)
    found = _looked(session.report, look)
    advice = in_order(
        [
            *found.advice,
            *advice_on_databases(server),
            *advice_on_preflight(session.target, server, look.slots, ()),
            *_advice_on_grants(session),
            *_advice_on_fallback(session),
            *advice_on_options(session.target),
        ]
    )
    report = replace(found, advice=advice, checked=Check(server=server, look=look))
    return report if look.can_see else failed(report, BlindError(look.role, look.membership))


def _advice_on_grants(session: TargetSession) -> Iterator[Advice]:
    with suppress(TargetError):  # everything else that was found stands
        grants = session.server.missing_grants(session.deadline)
        yield from advice_on_grants(grants, session.target.database)


def _advice_on_fallback(session: TargetSession) -> Iterator[Advice]:
    """Whether the fallback secret would help: in the emergency it is too late to find out."""
    if session.target.fallback_secret is None:
        return
    try:
        found = session.by_fallback().preflight(session.deadline)
    except TargetError as error:
        yield advice_on_fallback(session.target.fallback_secret, f"{error.message}. {error.hint}")
    else:
        if not found.has_reserved_slot:
            problem = f"role {found.role} has no reserved slot either."
            yield advice_on_fallback(session.target.fallback_secret, problem)


def _looked(report: TargetReport, look: Look) -> TargetReport:
    return replace(
        report,
        reader=report.reader or look.reader,
        slots=look.slots,
        used_after=look.slots.used,
        states=look.states,
        oldest_idle_in_transaction=look.oldest_idle_in_transaction,
        advice=tuple(dict.fromkeys([*report.advice, *advice_on_look(look)])),
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
