"""One target, from sign-in to report: look, decide, and what is to be done."""

from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from threading import Semaphore
from typing import Final

from session_reaper.advice import (
    advice_on_connection,
    advice_on_databases,
    advice_on_fallback,
    advice_on_look,
    advice_on_options,
    advice_on_preflight,
    advice_on_timeouts,
    advice_on_way_in,
    in_order,
    missing_timeouts,
    not_applied,
)
from session_reaper.deadline import Deadline
from session_reaper.decide import Decision, Judgement, Verdict, decide
from session_reaper.directory import Directory
from session_reaper.errors import BlindError, DeadlineError, TargetError
from session_reaper.execution import Execution, look_at
from session_reaper.observability import log_decision
from session_reaper.policy import Mode, Policy
from session_reaper.postgres import Server
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
from session_reaper.targets import Target

ADVICE_SECONDS: Final = 3.0  # that the server has to tell why sessions leak, after all else


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """Being signed in to one target."""

    target: Target
    server: Server
    connect: Callable[[], Server]  # another connection, should this one be lost
    by_fallback: Callable[[], Server]  # one by the fallback secret's role
    report: TargetReport  # so far
    deadline: Deadline


Deal = Callable[[Visit], Iterator[TargetReport]]
"""What is done on one server; each report replaces the one before."""


def visited(
    deal: Deal, directory: Directory, target: Target, deadline: Deadline
) -> Iterator[TargetReport]:
    """Sign in to one target and deal with it; whatever happens, there is a report.

    Each report replaces the one before, and the last is true at any moment: a run whose time is up
    has something true to say even of a target that hangs.
    """
    advice = tuple(advice_on_connection(target))
    report = TargetReport(
        name=target.name,
        secret=target.secret_name,
        key=target.key,
        reader=target.reader,
        advice=advice,
    )
    yield failed(report, DeadlineError())
    try:
        with ExitStack() as stack:

            def connect() -> Server:
                return stack.enter_context(closing(sign_in(target, directory, deadline)[0]))

            def by_fallback() -> Server:
                other = directory.authorized(directory.fallback(target, deadline))
                return stack.enter_context(closing(Server.connect(other, deadline)))

            server, signed_in = sign_in(target, directory, deadline)
            stack.enter_context(closing(server))
            advice = (*advice, *advice_on_way_in(target, signed_in))
            fallback = target.fallback_secret if signed_in.instead_of else None
            report = replace(report, advice=advice, fallback_secret=fallback)
            visit = Visit(
                target=target,
                server=server,
                connect=connect,
                by_fallback=by_fallback,
                report=report,
                deadline=deadline,
            )
            for latest in deal(visit):
                report = latest
                yield report
    except TargetError as error:
        report = failed(report, error)
    yield report


def reap(
    policy: Policy, mode: Mode, quota: Semaphore | None, visit: Visit
) -> Iterator[TargetReport]:
    """Look, decide, and do it; `quota` is what the run may still do, on all of its targets."""
    report = yield from _reaped(policy, mode, quota, visit)
    leaks = any(fate.outcome is not Outcome.ESCAPED for fate in report.fates)
    if leaks and report.is_reached and visit.deadline.seconds() > ADVICE_SECONDS:
        with suppress(TargetError):  # what was done stands, whatever more can be said of it
            found = visit.server.preflight(visit.deadline.within(ADVICE_SECONDS))
            report = _advised(visit, report, found, missing_timeouts(report.fates, found))
        yield report


def _reaped(
    policy: Policy, mode: Mode, quota: Semaphore | None, visit: Visit
) -> Generator[TargetReport, None, TargetReport]:
    look = look_at(visit.server, policy.scope(), visit.deadline)
    report = replace(_looked(visit.report, look), queries=policy.queries)
    judgement = decide(look.sessions, look.slots, policy)
    if quota is not None:
        judgement = judgement.held_back(_within(quota, policy))
    report = _judged(report, judgement)
    yield failed(report, DeadlineError())
    for decision in judgement.having(Verdict.SPARE):
        log_decision(report, decision)
    execution = Execution(report, policy, mode, visit.connect, visit.deadline)
    for report in execution.steps(visit.server, judgement.having(Verdict.CONDEMN)):
        yield report
    return report


def apply(
    policy: Policy, mode: Mode, codes: Collection[str], visit: Visit
) -> Iterator[TargetReport]:
    """Give the roles that leak by the policy the timeouts of these codes, and terminate nothing."""
    visit = replace(visit, report=replace(visit.report, applied=()))
    report = yield from _reaped(policy, Mode.OBSERVE, None, visit)
    if report.status is not TargetStatus.OK:  # who leaks is not known, or doubted by the breaker
        return
    found = visit.server.preflight(visit.deadline)
    missing = missing_timeouts(report.fates, found)
    asked = [setting for setting in missing if setting.code in codes]
    applied: tuple[RoleSetting, ...] = ()
    for setting in asked:
        if mode is Mode.ENFORCE:
            yield failed(replace(report, applied=applied), DeadlineError())
            applied += (_applied(visit, setting, found, reader=report.reader),)
        else:
            applied += (setting,)
    report = replace(report, applied=applied)
    done = {setting.sql for setting in applied if setting.done}
    report = _advised(visit, report, found, [each for each in missing if each.sql not in done])
    refusals = [setting.error for setting in applied if setting.error is not None]
    if refusals:
        message = f"{len(refusals)} of {len(applied)} settings not applied: {refusals[0].message}"
        report = failed(report, TargetError(refusals[0].code, message, refusals[0].hint))
    yield report


def _applied(visit: Visit, setting: RoleSetting, found: Preflight, *, reader: bool) -> RoleSetting:
    try:
        visit.server.alter(setting.sql, visit.deadline)
    except TargetError as error:
        return replace(setting, error=not_applied(error, setting, found, reader=reader))
    return replace(setting, done=True)


def _advised(
    visit: Visit, report: TargetReport, found: Preflight, missing: Collection[RoleSetting]
) -> TargetReport:
    """What is to be mended where something was condemned, by the server's facts."""
    slots = report.slots
    more = advice_on_preflight(visit.target, found, slots, report.fates) if slots else ()
    advice = in_order([*report.advice, *advice_on_timeouts(missing), *more])
    return replace(report, advice=advice)


def record(visit: Visit) -> Iterator[TargetReport]:
    """Look at everything, and do nothing."""
    look = look_at(visit.server, EVERYTHING, visit.deadline)
    yield replace(_looked(visit.report, look), recorded=look)


def check(visit: Visit) -> Iterator[TargetReport]:
    """Tell what the server is and what is to be mended, and do nothing."""
    server = visit.server.preflight(visit.deadline)
    look = visit.server.look(NOTHING, visit.deadline)
    behind_pooler = look.behind_pooler or is_proxy(visit.target.host)
    look = replace(look, behind_pooler=behind_pooler)
    found = _looked(visit.report, look)
    advice = in_order(
        [
            *found.advice,
            *advice_on_databases(server),
            *advice_on_preflight(visit.target, server, look.slots, ()),
            *_advice_on_fallback(visit),
            *advice_on_options(visit.target),
        ]
    )
    report = replace(found, advice=advice, checked=Check(server=server, look=look))
    yield report if look.can_see else failed(report, BlindError(look.role))


def _advice_on_fallback(visit: Visit) -> Iterator[Advice]:
    """Whether the fallback secret would help: in the emergency it is too late to find out."""
    if visit.target.fallback_secret is None:
        return
    try:
        found = visit.by_fallback().preflight(visit.deadline)
    except TargetError as error:
        yield advice_on_fallback(visit.target.fallback_secret, f"{error.message}. {error.hint}")
    else:
        if not found.has_reserved_slot:
            problem = f"role {found.role} has no reserved slot either."
            yield advice_on_fallback(visit.target.fallback_secret, problem)


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
