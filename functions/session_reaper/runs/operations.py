"""One target, from sign-in to report: look, decide, and what is to be done."""

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from threading import Semaphore
from typing import Final

from session_reaper.decision.decide import decide
from session_reaper.decision.limits import describe_pressure
from session_reaper.decision.model import Decision, Decisions, Verdict
from session_reaper.errors import BlindError, TargetError
from session_reaper.observability import log_spared
from session_reaper.policy.enums import Mode
from session_reaper.policy.model import Policy
from session_reaper.postgres.server import Server
from session_reaper.report.advice import (
    advise_on_connection,
    advise_on_databases,
    advise_on_facts,
    advise_on_fallback,
    advise_on_fallback_used,
    advise_on_grants,
    advise_on_options,
    advise_on_snapshot,
    advise_on_timeouts,
    explain_refused_setting,
    find_missing_timeouts,
    sort_advice,
)
from session_reaper.report.model import (
    Advice,
    Failure,
    Outcome,
    RoleSetting,
    SessionResult,
    TargetReport,
    TargetStatus,
    record_error,
)
from session_reaper.runs.connect import connect_to_target
from session_reaper.runs.discovery import TargetDiscovery
from session_reaper.runs.target_session import TargetJob, TargetSession
from session_reaper.runs.termination import Termination, take_visible_snapshot
from session_reaper.sessions.server_facts import Check, ServerFacts
from session_reaper.sessions.snapshot import ALL_SESSIONS, NO_SESSIONS, Snapshot
from session_reaper.targets.providers import is_proxy
from session_reaper.targets.target import Target

_SPARED_SHARE: Final = 0.1  # of the time left, for logging who is spared: the rest is for signals
ADVICE_SECONDS: Final = 3.0  # that the server has to tell why sessions leak, after all else


Operation = Callable[[TargetSession], TargetReport]
"""What is done on one server; returns the complete report."""


def create_report(target: Target) -> TargetReport:
    """Build the report of a target that nothing is known of yet."""
    return TargetReport(
        name=target.name,
        secret=target.secret_name,
        key=target.key,
        reader=target.reader,
        advice=tuple(advise_on_connection(target)),
    )


def run_on_target(operation: Operation, directory: TargetDiscovery, job: TargetJob) -> TargetReport:
    """Connect to one target and run the operation; whatever happens, there is a report.

    What the job's progress holds is true at any moment: a run whose time is over has something true
    to say even of a target that hangs.
    """
    target, deadline = job.target, job.deadline
    try:
        with ExitStack() as stack:

            def connect() -> Server:
                return stack.enter_context(
                    closing(connect_to_target(target, directory, deadline)[0])
                )

            def by_fallback() -> Server:
                other = directory.with_iam_token(directory.fallback(target, deadline))
                return stack.enter_context(closing(Server.connect(other, deadline)))

            server, connected = connect_to_target(target, directory, deadline)
            stack.enter_context(closing(server))
            report = create_report(target)
            report = replace(
                report,
                advice=(*report.advice, *advise_on_fallback_used(target, connected)),
                fallback_secret=target.fallback_secret if connected.instead_of else None,
            )
            session = TargetSession(
                job=job, server=server, connect=connect, by_fallback=by_fallback, report=report
            )
            session.record(report)
            return operation(session)
    except TargetError as error:
        return record_error(job.progress.result.latest, error)


def reap(
    policy: Policy, mode: Mode, quota: Semaphore | None, session: TargetSession
) -> TargetReport:
    """Take a snapshot, decide, and terminate; `quota` is what the run may still do on all targets."""
    report = _reap(policy, mode, quota, session)
    session.job.progress.complete(report)
    leaks = any(fate.outcome is not Outcome.ESCAPED for fate in report.results)
    if leaks and report.is_reached and session.deadline.remaining() > ADVICE_SECONDS:
        with suppress(TargetError):  # what was done stands, whatever more can be said of it
            found = session.server.preflight(session.deadline.capped_at(ADVICE_SECONDS))
            report = _add_advice(
                session, report, found, find_missing_timeouts(report.results, found)
            )
    return report


def _reap(
    policy: Policy, mode: Mode, quota: Semaphore | None, session: TargetSession
) -> TargetReport:
    look = take_visible_snapshot(session.server, policy.scope(), session.deadline)
    report = replace(_add_snapshot(session.report, look), queries=policy.queries)
    judgement = decide(look.sessions, look.slots, policy)
    if quota is not None:
        judgement = judgement.hold_back(_limit_by_quota(quota, policy))
    report = _add_decisions(report, judgement)
    session.record(report)
    within = session.deadline.capped_at(_SPARED_SHARE * session.deadline.remaining())
    log_spared(report, judgement.having(Verdict.SPARE), within)
    termination = Termination(session, report, look, policy, mode)
    return termination.run([*judgement.having(Verdict.CONDEMN), *judgement.having(Verdict.OBSERVE)])


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
    # An observe-only rule changes nothing, so the sessions that it reports cause no setting.
    leaks = [result for result in report.results if result.decision.verdict is not Verdict.OBSERVE]
    missing = find_missing_timeouts(leaks, found)
    asked = [setting for setting in missing if setting.code in codes]
    applied: tuple[RoleSetting, ...] = ()
    for setting in asked:
        if mode is Mode.ENFORCE:
            session.record(replace(report, applied=applied))
            applied += (_apply_setting(session, setting, found, reader=report.reader),)
        else:
            applied += (setting,)
    report = replace(report, applied=applied)
    done = {setting.sql for setting in applied if setting.done}
    report = _add_advice(session, report, found, [each for each in missing if each.sql not in done])
    refusals = [setting.error for setting in applied if setting.error is not None]
    if refusals:
        message = f"{len(refusals)} of {len(applied)} settings not applied: {refusals[0].message}"
        report = record_error(report, TargetError(refusals[0].code, message, refusals[0].hint))
    return report


def _apply_setting(
    session: TargetSession, setting: RoleSetting, found: ServerFacts, *, reader: bool
) -> RoleSetting:
    try:
        session.server.alter(setting.sql, session.deadline)
    except TargetError as error:
        return replace(setting, error=explain_refused_setting(error, setting, found, reader=reader))
    return replace(setting, done=True)


def _add_advice(
    session: TargetSession,
    report: TargetReport,
    found: ServerFacts,
    missing: Collection[RoleSetting],
) -> TargetReport:
    """What is to be mended where something was condemned, by the server's facts."""
    slots = report.slots
    more = [*advise_on_facts(session.target, found, slots, report.results)] if slots else []
    if report.count(Outcome.DENIED):
        more += _advice_on_grants(session)
    advice = sort_advice([*report.advice, *advise_on_timeouts(missing), *more])
    return replace(report, advice=advice)


def record(session: TargetSession) -> TargetReport:
    """Record a snapshot of everything, and do nothing."""
    look = take_visible_snapshot(session.server, ALL_SESSIONS, session.deadline)
    return replace(_add_snapshot(session.report, look), recorded=look)


def check(session: TargetSession) -> TargetReport:
    """Tell what the server is and what is to be mended, and do nothing."""
    server = session.server.preflight(session.deadline)
    look = session.server.look(NO_SESSIONS, session.deadline)
    behind_pooler = look.behind_pooler or is_proxy(session.target.host)
    look = replace(look, behind_pooler=behind_pooler)
    found = _add_snapshot(session.report, look)
    advice = sort_advice(
        [
            *found.advice,
            *advise_on_databases(server),
            *advise_on_facts(session.target, server, look.slots, ()),
            *_advice_on_grants(session),
            *_advice_on_fallback(session),
            *advise_on_options(session.target),
        ]
    )
    report = replace(found, advice=advice, checked=Check(server=server, snapshot=look))
    return report if look.can_see else record_error(report, BlindError(look.role, look.membership))


def _advice_on_grants(session: TargetSession) -> Iterator[Advice]:
    with suppress(TargetError):  # everything else that was found stands
        grants = session.server.find_missing_grants(session.deadline)
        yield from advise_on_grants(grants, session.target.database)


def _advice_on_fallback(session: TargetSession) -> Iterator[Advice]:
    """Whether the fallback secret would help: in the emergency it is too late to find out."""
    if session.target.fallback_secret is None:
        return
    try:
        found = session.by_fallback().preflight(session.deadline)
    except TargetError as error:
        yield advise_on_fallback(session.target.fallback_secret, f"{error.message}. {error.hint}")
    else:
        if not found.has_reserved_slot:
            problem = f"role {found.role} has no reserved slot either."
            yield advise_on_fallback(session.target.fallback_secret, problem)


def _add_snapshot(report: TargetReport, look: Snapshot) -> TargetReport:
    return replace(
        report,
        reader=report.reader or look.reader,
        slots=look.slots,
        used_after=look.slots.used,
        states=look.states,
        oldest_idle_in_transaction=look.oldest_idle_in_transaction,
        advice=tuple(dict.fromkeys([*report.advice, *advise_on_snapshot(look)])),
    )


def _limit_by_quota(quota: Semaphore, policy: Policy) -> Callable[[Decision], str | None]:
    reason = f"limits.max_per_run of {policy.limits.max_per_run} was reached"

    def limit(decision: Decision) -> str | None:
        if decision.session.signalable and not quota.acquire(blocking=False):
            return reason
        return None

    return limit


def _add_decisions(report: TargetReport, judgement: Decisions) -> TargetReport:
    fates = tuple(
        SessionResult(decision=decision, outcome=Outcome.SPARED)
        for decision in judgement.decisions
        if decision.verdict.is_reported
    )
    report = replace(report, results=fates, pressure=describe_pressure(judgement))
    if judgement.breaker is None:
        return report
    failure = Failure(
        code="breaker",
        message=judgement.breaker,
        hint="If they are leaks, run by hand with a policy whose max_share or max_condemned allows it, or end them"
        " by hand; if not, mend the rule that condemns them.",
    )
    return replace(report, status=TargetStatus.BREAKER, error=failure)
