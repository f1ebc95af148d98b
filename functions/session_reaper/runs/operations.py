"""The operations that a run can do on one target: reap, apply, record, explain and check."""

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from functools import partial
from threading import Semaphore
from typing import Final

from session_reaper.decision.explain import explain
from session_reaper.decision.limits import describe_pressure
from session_reaper.decision.model import Decision, Decisions, Verdict
from session_reaper.decision.out_of_reach import find_unreachable_blockers
from session_reaper.errors import BlindError, FullError, TargetError
from session_reaper.observability import log_spared
from session_reaper.policy.enums import Mode
from session_reaper.policy.model import Policy
from session_reaper.postgres.server import Server
from session_reaper.report.advice import (
    advise_on_connection,
    advise_on_facts,
    advise_on_fallback,
    advise_on_fallback_used,
    advise_on_grants,
    advise_on_options,
    advise_on_snapshot,
    advise_on_version,
    sort_advice,
)
from session_reaper.report.model import (
    Advice,
    Outcome,
    RoleSetting,
    SessionResult,
    TargetReport,
    TargetStatus,
    record_breaker,
    record_error,
)
from session_reaper.report.timeouts import (
    advise_on_databases,
    advise_on_timeouts,
    explain_refused_setting,
    explain_unchanged,
    find_missing_timeouts,
)
from session_reaper.runs.connect import connect_to_target, connect_with_fallback
from session_reaper.runs.deciding import decide_in_time
from session_reaper.runs.discovery import TargetDiscovery
from session_reaper.runs.request import RunRequest
from session_reaper.runs.target_session import TargetJob, TargetSession
from session_reaper.runs.termination import Termination, take_visible_snapshot
from session_reaper.runs.visits import VisitedError, Visits
from session_reaper.sessions.server_facts import Check, ServerFacts
from session_reaper.sessions.snapshot import ALL_SESSIONS, NO_SESSIONS, Snapshot
from session_reaper.targets.providers import is_proxy
from session_reaper.targets.target import Endpoint, Target

_SPARED_SHARE: Final = 0.1  # of the time left, for logging spared sessions; the rest is for signals
ADVICE_SECONDS: Final = 3.0  # for the statement that finds out why sessions leak


Operation = Callable[[TargetSession], TargetReport]
"""Does its work on one server and returns the complete report."""


def choose_operation(request: RunRequest, policy: Policy, mode: Mode) -> Operation:
    """Return the operation that a request asks for."""
    if request.record:
        return record
    if request.check:
        return partial(check, policy)
    if request.apply:
        return partial(apply, policy, mode, request.apply)
    limit = policy.limits.max_per_run
    quota = None if limit is None else limit_by_quota(Semaphore(limit), policy)
    if request.explain:
        return partial(explain_target, policy, quota)
    return partial(reap, policy, mode, quota)


def create_report(target: Target) -> TargetReport:
    """Build the report of a target before anything is known about it."""
    return TargetReport(
        name=target.name,
        secret=target.secret_name,
        key=target.key,
        reader=target.is_reader,
        advice=tuple(advise_on_connection(target)),
    )


def run_on_target(
    operation: Operation, discovery: TargetDiscovery, job: TargetJob, visits: Visits
) -> TargetReport:
    """Connect to one target and run the operation; an error becomes part of the report.

    The report in the job's progress is always true, so the run can end at any moment. Raises
    PostponeError.
    """
    target, deadline = job.target, job.deadline
    try:
        turn = visits.begin(target, deadline)
        with ExitStack() as stack:

            def connect() -> Server:
                return stack.enter_context(
                    closing(connect_to_target(target, discovery, deadline, job.policy)[0])
                )

            def connect_by_fallback(target: Target) -> Server:
                server = connect_with_fallback(target, discovery, deadline)
                return stack.enter_context(closing(server))

            server, connected = connect_to_target(
                target,
                discovery,
                turn,
                job.policy,
                may_wait=not visits.is_full(target),
                when_full=partial(visits.end_turn, target),
            )
            stack.enter_context(closing(server))
            report = create_report(target)
            report = replace(
                report,
                advice=(*report.advice, *advise_on_fallback_used(target, connected)),
                fallback_secret=target.fallback_secret if connected.instead_of else None,
            )

            def admit(report: TargetReport, snapshot: Snapshot) -> TargetReport:
                named = visits.admit(target, connected, server, snapshot, deadline)
                return replace(report, name=named.name, secret=named.secret_name, key=named.key)

            session = TargetSession(
                job=job,
                server=server,
                connect=connect,
                connect_by_fallback=connect_by_fallback,
                others=visits.list_others(target),
                report=report,
                admit=admit,
            )
            session.record(report)
            return operation(session)
    except VisitedError:
        return create_report(target)
    except TargetError as error:
        if isinstance(error, FullError) and error.limit is None:
            visits.record_full(target)
        return record_error(job.progress.result.latest, error)
    finally:
        visits.end(target)


Quota = Callable[[Decision], str | None]
"""Returns why a condemned session is spared, None if the run may terminate it."""


def reap(policy: Policy, mode: Mode, quota: Quota | None, session: TargetSession) -> TargetReport:
    """Take a snapshot, decide, and terminate what `quota` does not hold back."""
    report = _reap(policy, mode, quota, session)
    session.job.progress.complete(report)
    report = _find_waiters_of_protected(session, policy, report)
    has_leaks = any(result.outcome is not Outcome.ESCAPED for result in report.results)
    if has_leaks and report.is_reached and session.deadline.remaining() > ADVICE_SECONDS:
        with suppress(TargetError):  # a run succeeds without advice
            facts = session.server.read_facts(session.deadline.capped_at(ADVICE_SECONDS))
            missing = find_missing_timeouts(report.results, facts)
            report = _add_advice(session, report, facts, missing)
    return report


def _reap(policy: Policy, mode: Mode, quota: Quota | None, session: TargetSession) -> TargetReport:
    snapshot = take_visible_snapshot(
        session.server, policy.scope(), session.deadline, may_be_partial=session.may_be_partial
    )
    report = _add_policy(_begin_report(session, snapshot), policy)
    session.record(report)
    decisions = decide_in_time(snapshot.sessions, snapshot.slots, policy, session.deadline)
    if quota is not None:
        decisions = decisions.hold_back(quota)
    report = _add_decisions(report, decisions)
    report = _add_unreachable(report, decisions, snapshot)
    session.record(report)
    logging_deadline = session.deadline.capped_at(_SPARED_SHARE * session.deadline.remaining())
    log_spared(report, decisions.having(Verdict.SPARE), logging_deadline)
    termination = Termination(session, report, snapshot, policy, mode)
    return termination.run([*decisions.having(Verdict.CONDEMN), *decisions.having(Verdict.OBSERVE)])


def _find_waiters_of_protected(
    session: TargetSession, policy: Policy, report: TargetReport
) -> TargetReport:
    """Find out who waits for protected sessions, if the snapshot had to do without lock waits."""
    scope = policy.scope()
    is_asked = report.protected and report.lock_waiters and not scope.waits
    if not is_asked or not report.is_reached or session.deadline.remaining() < ADVICE_SECONDS:
        return report
    try:
        deadline = session.deadline.capped_at(ADVICE_SECONDS)
        later = session.server.take_snapshot(replace(scope, waits=True), deadline)
    except TargetError:  # a run succeeds without
        return report
    waiters = {s.identity: s.waiters for s in later.sessions}
    protected = tuple(
        replace(d, session=replace(d.session, waiters=waiters.get(d.session.identity, ())))
        for d in report.protected
    )
    return replace(report, protected=protected)


def apply(
    policy: Policy, mode: Mode, codes: Collection[str], session: TargetSession
) -> TargetReport:
    """Set the timeouts with these codes for the roles whose sessions leak; terminate nothing."""
    session = replace(session, report=replace(session.report, applied=()))
    report = _reap(policy, Mode.OBSERVE, None, session)
    if report.status is not TargetStatus.OK:  # it is not certain which roles leak
        return report
    session.record(report)
    facts = session.server.read_facts(session.deadline)
    # An observe-only rule changes nothing, so the sessions that it reports cause no setting.
    leaks = [result for result in report.results if result.decision.verdict is not Verdict.OBSERVE]
    missing = find_missing_timeouts(leaks, facts)
    requested = [setting for setting in missing if setting.code in codes]
    report = replace(report, unchanged=explain_unchanged(leaks, facts, codes))
    applied: tuple[RoleSetting, ...] = ()
    for setting in requested:
        if mode is Mode.ENFORCE:
            session.record(replace(report, applied=applied))
            applied += (_apply_setting(session, setting, facts, reader=report.reader),)
        else:
            applied += (setting,)
    report = replace(report, applied=applied)
    done = {setting.sql for setting in applied if setting.done}
    report = _add_advice(session, report, facts, [each for each in missing if each.sql not in done])
    refusals = [setting.error for setting in applied if setting.error is not None]
    if refusals:
        message = f"{len(refusals)} of {len(applied)} settings not applied: {refusals[0].message}"
        report = record_error(report, TargetError(refusals[0].code, message, refusals[0].hint))
    return report


def _apply_setting(
    session: TargetSession, setting: RoleSetting, facts: ServerFacts, *, reader: bool
) -> RoleSetting:
    try:
        session.server.alter(setting.sql, session.deadline)
    except TargetError as error:
        return replace(setting, error=explain_refused_setting(error, setting, facts, reader=reader))
    return replace(setting, done=True)


def _add_advice(
    session: TargetSession,
    report: TargetReport,
    facts: ServerFacts,
    missing: Collection[RoleSetting],
) -> TargetReport:
    """Add what the server's facts recommend to a report with condemned sessions."""
    slots = report.slots
    more = [*advise_on_facts(session.target, facts, slots, report.results)] if slots else []
    if report.count(Outcome.DENIED):
        more += _advise_on_grants(session)
    advice = sort_advice([*report.advice, *advise_on_timeouts(missing), *more])
    return replace(report, advice=advice)


def record(session: TargetSession) -> TargetReport:
    """Record a snapshot of all sessions, and signal none."""
    snapshot = take_visible_snapshot(session.server, ALL_SESSIONS, session.deadline)
    return replace(_begin_report(session, snapshot), recorded=snapshot)


def explain_target(policy: Policy, quota: Quota | None, session: TargetSession) -> TargetReport:
    """Report every session and the decision on it, and signal none."""
    snapshot = take_visible_snapshot(
        session.server, ALL_SESSIONS, session.deadline, may_be_partial=session.may_be_partial
    )
    report = _add_policy(_begin_report(session, snapshot), policy)
    session.record(report)
    decisions = decide_in_time(snapshot.sessions, snapshot.slots, policy, session.deadline)
    if quota is not None:
        decisions = decisions.hold_back(quota)
    return replace(
        _add_unreachable(report, decisions, snapshot),
        pressure=describe_pressure(decisions),
        explained=tuple(explain(decisions, policy)),
    )


def check(policy: Policy, session: TargetSession) -> TargetReport:
    """Report the server's facts and what to fix, and signal no session."""
    facts = session.server.read_facts(session.deadline)
    snapshot = session.server.take_snapshot(NO_SESSIONS, session.deadline)
    behind_pooler = snapshot.behind_pooler or is_proxy(session.target.host)
    snapshot = replace(snapshot, behind_pooler=behind_pooler)
    report = _begin_report(session, snapshot)
    advice = sort_advice(
        [
            *report.advice,
            *advise_on_databases(facts, policy),
            *advise_on_facts(session.target, facts, snapshot.slots, ()),
            *_advise_on_grants(session),
            *_advise_on_fallbacks(session),
            *advise_on_options(session.target),
            *advise_on_version(facts),
        ]
    )
    report = replace(report, advice=advice, checked=Check(server=facts, snapshot=snapshot))
    if snapshot.can_see:
        return report
    return record_error(report, BlindError(snapshot.role, snapshot.membership))


def _advise_on_grants(session: TargetSession) -> Iterator[Advice]:
    with suppress(TargetError):  # a run succeeds without this advice
        grants = session.server.find_missing_grants(session.deadline)
        yield from advise_on_grants(grants, session.target.database)


def _advise_on_fallbacks(session: TargetSession) -> Iterator[Advice]:
    """Advise if a fallback secret would not help on a full server.

    Each secret of the server may have one, which is used if that secret's turn comes.
    """
    checked: set[tuple[str, Endpoint]] = set()
    for target in (session.target, *session.others):
        fallback = target.fallback_secret
        if fallback is None or (fallback, target.endpoint) in checked:
            continue
        checked.add((fallback, target.endpoint))
        try:
            facts = session.connect_by_fallback(target).read_facts(session.deadline)
        except TargetError as error:
            yield advise_on_fallback(fallback, f"{error.message}. {error.hint}")
        else:
            if not facts.has_reserved_slot:
                problem = f"role {facts.role} has no reserved slot either."
                yield advise_on_fallback(fallback, problem)


def _begin_report(session: TargetSession, snapshot: Snapshot) -> TargetReport:
    """Build the report of an operation that may run on this server; see `TargetSession.admit`."""
    report = session.admit(session.report, snapshot)
    return replace(
        report,
        reader=report.reader or snapshot.reader,
        role=snapshot.role,
        slots=snapshot.slots,
        used_after=snapshot.slots.used,
        holders=snapshot.holders,
        lock_waiters=snapshot.lock_waiters,
        states=snapshot.states,
        oldest_idle_in_transaction=snapshot.oldest_idle_in_transaction,
        advice=tuple(dict.fromkeys([*report.advice, *advise_on_snapshot(snapshot)])),
    )


def _add_policy(report: TargetReport, policy: Policy) -> TargetReport:
    return replace(report, policy=policy, queries=policy.queries, comment_tags=policy.comment_tags)


def _add_unreachable(
    report: TargetReport, decisions: Decisions, snapshot: Snapshot
) -> TargetReport:
    """Add the sessions that the policy would end but for a protection."""
    blockers = tuple(find_unreachable_blockers(decisions, snapshot.prepared_waiters))
    return replace(report, protected=decisions.protected, blockers=blockers)


def limit_by_quota(quota: Semaphore, policy: Policy) -> Quota:
    """Count the terminations that the run may still do on all targets together."""
    reason = f"limits.max_per_run of {policy.limits.max_per_run} was reached"

    def limit(decision: Decision) -> str | None:
        if decision.session.signalable and not quota.acquire(blocking=False):
            return reason
        return None

    return limit


def _add_decisions(report: TargetReport, decisions: Decisions) -> TargetReport:
    results = tuple(
        SessionResult(decision=decision, outcome=Outcome.SPARED)
        for decision in decisions.decisions
        if decision.verdict.is_reported
    )
    report = replace(report, results=results, pressure=describe_pressure(decisions))
    if decisions.breaker is None:
        return report
    return record_breaker(report, decisions.breaker)
