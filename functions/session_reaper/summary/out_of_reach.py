"""Sentences on sessions that a rule would have ended, and that the run could not end."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final

from session_reaper.decision.model import Decision
from session_reaper.policy.durations import format_duration
from session_reaper.policy.protections import ProtectedBy, Protection
from session_reaper.report.headline import count_of
from session_reaper.report.model import TargetReport
from session_reaper.report.protected import ProtectedGroup
from session_reaper.report.text import printable
from session_reaper.sessions.lock_chains import Waiter
from session_reaper.summary.prose import Name, Prose, Statement, name_role
from session_reaper.summary.wording import Wording

_MOST_NAMED: Final = 3
_MOST_REASONS: Final = 2  # steps on protections; more would leave no room for others
_REMEDIES: Final = {
    ProtectedBy.SUPERUSER: "only a superuser can end such sessions, with pg_terminate_backend",
    ProtectedBy.OWN_ROLE: "give the reaper a role of its own",
    ProtectedBy.ROLE_DROPPED: "without protect.roles in the policy, sessions of dropped roles are not"
    " protected",
    ProtectedBy.BUILT_IN: "if these are leaks, let the application connect under another name",
}
_PREPARED: Final = (
    "a prepared transaction, which the reaper cannot end. This query prints the statement to run, in"
    " the transaction's own database, as its owner or a superuser: "
)
_LOCKED: Final = (
    "{0}.locktype, {0}.database, {0}.relation, {0}.page, {0}.tuple, {0}.virtualxid,"
    " {0}.transactionid, {0}.classid, {0}.objid, {0}.objsubid"
)
# The statement is made by the server, because a gid may contain data of the application. It leaves
# out prepared transactions that hold nothing that a session waits for: they may be at work. The
# locks of a prepared transaction have no pid, and share its virtual transaction.
_ROLLBACK: Final = Statement(
    "SELECT format('ROLLBACK PREPARED %L', gid) AS run, database, owner, prepared"  # noqa: S608 -- ours
    " FROM pg_prepared_xacts AS p WHERE EXISTS (SELECT FROM pg_locks AS x JOIN pg_locks AS h"
    " USING (virtualtransaction) JOIN pg_locks AS w ON NOT w.granted AND"
    f" ({_LOCKED.format('h')}) IS NOT DISTINCT FROM ({_LOCKED.format('w')})"
    " WHERE x.transactionid = p.transaction AND x.pid IS NULL AND h.pid IS NULL) ORDER BY prepared;"
)


def list_protected_steps(report: TargetReport, wording: Wording) -> Iterator[Prose]:
    """Say for each rule and protection which sessions it spares, and how to include them."""
    by_reason: dict[tuple[str, str], list[ProtectedGroup]] = defaultdict(list)
    for group in report.protected_to_report:
        by_reason[group.rule, group.protection.by].append(group)
    for (rule, by), groups in islice(by_reason.items(), _MOST_REASONS):
        number = sum(group.count for group in groups)
        match, are = ("matches", "is") if number == 1 else ("match", "are")
        yield (
            f"{count_of(number, 'session')} {match} rule ",
            Name(printable(rule, 63)),
            f" but {are} protected (",
            Name(printable(by, 90)),
            f"): {advise_on_protection(groups[0].protection, wording)} (",
            *_name_roles(groups),
            ").",
        )
    rest = [group for groups in list(by_reason.values())[_MOST_REASONS:] for group in groups]
    if rest:
        more = count_of(sum(group.count for group in rest), "more session")
        others = ", ".join(printable(by, 90) for by in dict.fromkeys(g.protection.by for g in rest))
        yield (f"{more} that rules match, also protected: ", Name(others), ".")


def advise_on_protection(protection: Protection, wording: Wording) -> str:
    """Say how to include sessions with this protection, without the end of the sentence."""
    if protection.can_be_lifted:
        return wording.lift
    return _REMEDIES.get(
        protection.kind, f"if these are leaks, change {protection.kind} in the policy"
    )


def _name_roles(groups: Sequence[ProtectedGroup]) -> Prose:
    names = list(dict.fromkeys(group.role for group in groups if group.role is not None))
    if not names:
        return name_role(None)
    more = len(names) - _MOST_NAMED
    shown = ", ".join(printable(name, 63) for name in names[:_MOST_NAMED])
    return ("role ", Name(shown), f" and {more} more" if more > 0 else "")


def list_blocker_steps(report: TargetReport, wording: Wording) -> Iterator[Prose]:
    """Say for each blocker out of reach who waits for it, and how to end it by hand."""
    for blocker in report.blockers:
        waiting = (*_count_waiters(blocker.waiters), " waiting for ")
        if blocker.decision is None:
            yield (*waiting, _PREPARED, _ROLLBACK)
        else:
            yield (*waiting, *_explain_protected_blocker(blocker.decision, blocker.by, wording))


def _explain_protected_blocker(decision: Decision, by: str, wording: Wording) -> Prose:
    session, protection = decision.session, decision.protection
    identity = session.identity
    as_superuser = " as a superuser" if session.superuser else ""
    lift = ""
    if protection is not None and not session.superuser:
        lift = f" To let the reaper do it: {advise_on_protection(protection, wording)}."
    return (
        Name(f"{printable(session.application, 63) or '(no name)'}, pid {identity.pid}"),
        " (",
        *name_role(session.role),
        f"), {session.state} for {format_duration(session.idle_seconds)}, which is protected (",
        Name(printable(by, 90)),
        f"). If it may be ended, run{as_superuser}: ",
        Statement(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"  # noqa: S608 -- validated
            f" WHERE pid = {identity.pid} AND backend_start = '{identity.backend_start}'"
            f" AND state = '{session.state}';"
        ),
        lift,
    )


def _count_waiters(waiters: Sequence[Waiter]) -> Prose:
    if not waiters:
        return ("Sessions are",)
    names = dict.fromkeys(f"{w.application or '(no name)'} as {w.role}" for w in waiters)
    shown = ", ".join(printable(name, 90) for name in list(names)[:_MOST_NAMED])
    more = ", …" if len(names) > _MOST_NAMED else ""
    are = "is" if len(waiters) == 1 else "are"
    longest = format_duration(waiters[0].seconds)
    number = count_of(len(waiters), "session")
    return (f"{number} (", Name(shown + more), f"; the longest for {longest}) {are}")


def describe_protected(group: ProtectedGroup) -> Prose:
    """Write one line on a group of protected sessions."""
    are = "is" if group.count == 1 else "are"
    return (
        f"{count_of(group.count, 'session')} {are} protected (",
        Name(printable(group.protection.by, 90)),
        "): ",
        Name(printable(group.application, 90) or "(no name)"),
        " (",
        *name_role(group.role),
        f"), oldest {format_duration(group.oldest_seconds)}, rule ",
        Name(printable(group.rule, 63)),
        f"; {len(group.waiters)} waiting" if group.waiters else "",
    )
