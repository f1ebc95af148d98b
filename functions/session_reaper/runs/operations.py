"""The operations that a run can do on one target: reap, apply, record, explain and check."""

from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Final

from session_reaper.decision.explain import explain
from session_reaper.decision.limits import describe_pressure
from session_reaper.decision.model import Decisions, Verdict
from session_reaper.decision.out_of_reach import find_unreachable_blockers
from session_reaper.errors import BlindError, TargetError
from session_reaper.observability import log_spared
from session_reaper.policy.enums import Mode
from session_reaper.policy.model import Policy
from session_reaper.report.advice import (
    advise_on_facts,
    advise_on_fallback,
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
from session_reaper.runs.deciding import decide_in_time
from session_reaper.runs.quota import allow_all
from session_reaper.runs.request import RunRequest
from session_reaper.runs.target_session import TargetSession
from session_reaper.runs.termination import Termination, take_visible_snapshot
from session_reaper.sessions.server_facts import Check, ServerFacts
from session_reaper.sessions.snapshot import ALL_SESSIONS, NO_SESSIONS, Snapshot, SnapshotScope
from session_reaper.targets.providers import is_proxy
from session_reaper.targets.target import Endpoint

_SPARED_SHARE: Final = 0.1  # of the time left, for logging spared sessions; the rest is for signals
ADVICE_SECONDS: Final = 3.0  # for the statement that finds out why sessions leak


Operation = Callable[[TargetSession], TargetReport]
"""Does its work on one server and returns the complete report."""


def choose_operation(request: RunRequest) -> Operation:
    """Return the operation that a request asks for."""
    if request.record:
        return record
    if request.check:
        return check
    if request.apply:
        return partial(apply, request.apply)
    return explain_target if request.explain else reap


def reap(session: TargetSession) -> TargetReport:
    """Take a snapshot, decide, and terminate what the run's quota does not hold back."""
    report = _reap(session)
    session.job.progress.complete(report)
    report = _find_waiters_of_protected(session, report)
    has_leaks = any(result.outcome is not Outcome.ESCAPED for result in report.results)
    if has_leaks and report.is_reached and session.job.deadline.remaining() > ADVICE_SECONDS:
        with suppress(TargetError):  # a run succeeds without advice
            facts = session.server.read_facts(session.job.deadline.capped_at(ADVICE_SECONDS))
            missing = find_missing_timeouts(report.results, facts)
            report = _add_advice(session, report, facts, missing)
    return report


def _reap(session: TargetSession) -> TargetReport:
    snapshot, report, decisions = _decide(session, session.job.policy.scope())
    report = _add_results(report, decisions)
    session.record(report)
    spared = decisions.having(Verdict.SPARE)
    log_spared(report, spared, session.job.deadline.capped_at_share(_SPARED_SHARE))
    termination = Termination(session, report, snapshot)
    return termination.run([*decisions.having(Verdict.CONDEMN), *decisions.having(Verdict.OBSERVE)])


def _decide(
    session: TargetSession, scope: SnapshotScope
) -> tuple[Snapshot, TargetReport, Decisions]:
    """Take a snapshot and decide; return also the report so far, with what is out of reach."""
    policy = session.job.policy
    snapshot = take_visible_snapshot(session, session.server, scope)
    report = _begin_report(session, snapshot, policy)
    session.record(report)
    decisions = decide_in_time(snapshot, policy, session.job.deadline).hold_back(session.job.quota)
    report = replace(
        report,
        pressure=describe_pressure(decisions),
        protected=decisions.protected,
        blockers=tuple(find_unreachable_blockers(decisions, snapshot.prepared_waiters)),
    )
    return snapshot, report, decisions


def _find_waiters_of_protected(session: TargetSession, report: TargetReport) -> TargetReport:
    """Find out who waits for protected sessions, if the snapshot had to do without lock waits."""
    scope = session.job.policy.scope()
    is_asked = report.protected and report.lock_waiters and not scope.waits
    if not is_asked or not report.is_reached or session.job.deadline.remaining() < ADVICE_SECONDS:
        return report
    try:
        deadline = session.job.deadline.capped_at(ADVICE_SECONDS)
        later = session.server.take_snapshot(scope._replace(waits=True), deadline)
    except TargetError:  # a run succeeds without
        return report
    waiters = {s.identity: s.waiters for s in later.sessions}
    protected = tuple(
        d._replace(session=replace(d.session, waiters=waiters.get(d.session.identity, ())))
        for d in report.protected
    )
    return replace(report, protected=protected)


def apply(codes: Collection[str], session: TargetSession) -> TargetReport:
    """Set the timeouts with these codes for the roles whose sessions leak; terminate nothing."""
    is_enforced = session.job.mode is Mode.ENFORCE
    session = replace(
        session,
        job=session.job._replace(mode=Mode.OBSERVE, quota=allow_all),
        report=replace(session.report, applied=()),
    )
    report = _reap(session)
    if report.status is not TargetStatus.OK:  # it is not certain which roles leak
        return report
    session.record(report)
    facts = session.server.read_facts(session.job.deadline)
    # An observe-only rule changes nothing, so the sessions that it reports cause no setting.
    leaks = [result for result in report.results if result.decision.verdict is not Verdict.OBSERVE]
    missing = find_missing_timeouts(leaks, facts)
    requested = [setting for setting in missing if setting.code in codes]
    report = replace(report, unchanged=explain_unchanged(leaks, facts, codes))
    applied: tuple[RoleSetting, ...] = ()
    for setting in requested:
        if is_enforced:
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
        session.server.alter(setting.sql, session.job.deadline)
    except TargetError as error:
        return setting._replace(error=explain_refused_setting(error, setting, facts, reader=reader))
    return setting._replace(done=True)


def _add_advice(
    session: TargetSession,
    report: TargetReport,
    facts: ServerFacts,
    missing: Collection[RoleSetting],
) -> TargetReport:
    """Add what the server's facts recommend to a report with condemned sessions."""
    slots = report.slots
    more = [*advise_on_facts(session.job.target, facts, slots, report.results)] if slots else []
    if report.counts[Outcome.DENIED]:
        more += _advise_on_grants(session)
    advice = sort_advice([*report.advice, *advise_on_timeouts(missing), *more])
    return replace(report, advice=advice)


def record(session: TargetSession) -> TargetReport:
    """Record a snapshot of all sessions, and signal none."""
    snapshot = take_visible_snapshot(session, session.server, ALL_SESSIONS)
    return replace(_begin_report(session, snapshot), recorded=snapshot)


def explain_target(session: TargetSession) -> TargetReport:
    """Report every session and the decision on it, and signal none."""
    _, report, decisions = _decide(session, ALL_SESSIONS)
    return replace(report, explained=tuple(explain(decisions, session.job.policy)))


def check(session: TargetSession) -> TargetReport:
    """Report the server's facts and what to fix, and signal no session."""
    facts = session.server.read_facts(session.job.deadline)
    snapshot = session.server.take_snapshot(NO_SESSIONS, session.job.deadline)
    behind_pooler = snapshot.behind_pooler or is_proxy(session.job.target.host)
    snapshot = replace(snapshot, behind_pooler=behind_pooler)
    report = _begin_report(session, snapshot)
    advice = sort_advice(
        [
            *report.advice,
            *advise_on_databases(facts, session.job.policy),
            *advise_on_facts(session.job.target, facts, snapshot.slots, ()),
            *_advise_on_grants(session),
            *_advise_on_fallbacks(session),
            *advise_on_options(session.job.target),
            *advise_on_version(facts),
        ]
    )
    report = replace(report, advice=advice, checked=Check(server=facts, snapshot=snapshot))
    if snapshot.can_see:
        return report
    return record_error(report, BlindError(snapshot.role, snapshot.membership))


def _advise_on_grants(session: TargetSession) -> Iterator[Advice]:
    with suppress(TargetError):  # a run succeeds without this advice
        grants = session.server.find_missing_grants(session.job.deadline)
        yield from advise_on_grants(grants, session.job.target.database)


def _advise_on_fallbacks(session: TargetSession) -> Iterator[Advice]:
    """Advise if a fallback secret would not help on a full server.

    Each secret of the server may have one, which is used if that secret's turn comes.
    """
    checked = set[tuple[str, Endpoint]]()
    for target in (session.job.target, *session.list_others()):
        fallback = target.fallback_secret
        if fallback is None or (fallback, target.endpoint) in checked:
            continue
        checked.add((fallback, target.endpoint))
        try:
            facts = session.connect_by_fallback(target).read_facts(session.job.deadline)
        except TargetError as error:
            yield advise_on_fallback(fallback, f"{error.message}. {error.hint}")
        else:
            if not facts.has_reserved_slot:
                problem = f"role {facts.role} has no reserved slot either."
                yield advise_on_fallback(fallback, problem)


def _begin_report(
    session: TargetSession, snapshot: Snapshot, policy: Policy | None = None
) -> TargetReport:
    """Build the report of an operation that may run on this server; see `TargetSession.admit`.

    `policy`: the one that will decide.
    """
    named, report = session.admit(snapshot), session.report
    return replace(
        report,
        name=named.name,
        secret=named.secret_name,
        key=named.key,
        policy=policy,
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


def _add_results(report: TargetReport, decisions: Decisions) -> TargetReport:
    results = tuple(
        SessionResult(decision=decision, outcome=Outcome.SPARED)
        for decision in decisions.decisions
        if decision.verdict.is_reported
    )
    report = replace(report, results=results) if results else report
    return report if decisions.breaker is None else record_breaker(report, decisions.breaker)
