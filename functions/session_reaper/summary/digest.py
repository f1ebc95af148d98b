"""What a reader wants to know of a run in ten seconds.

Email and chat are two ways to write it down.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address, ip_network
from itertools import chain, islice

from session_reaper.decision.model import Decision
from session_reaper.policy.enums import Action, Mode
from session_reaper.report.model import Outcome, Report, SessionResult, TargetReport, TargetStatus
from session_reaper.report.text import printable
from session_reaper.sessions.session import State

MOST_STEPS = 5
_ORDER = [*(outcome for outcome in Outcome if outcome is not Outcome.ESCAPED), Outcome.ESCAPED]
_MOST_NAMES = 5
_NAME_LENGTH = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Sessions of one application, client network and role that met the same end by the same rule."""

    outcome: Outcome
    rule: str
    who: str  # application@client network
    role: str
    count: int
    oldest: Decision  # on the one that is longest in its state

    @property
    def seconds(self) -> float:
        """How long the oldest has been in its state."""
        return self.oldest.session.idle_seconds

    @property
    def query(self) -> str:
        """The oldest one's, redacted."""
        return printable(self.oldest.session.redacted_query)


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureGroup:
    """What several targets suffer from alike."""

    targets: Sequence[TargetReport]
    what: str
    message: str
    hint: str


def group_sessions(fates: Iterable[SessionResult]) -> Sequence[Group]:
    """Who met which end: what was done first, then by number."""
    members: dict[tuple[Outcome, str, str, str], list[Decision]] = defaultdict(list)
    for fate in fates:
        session, rule = fate.decision.session, fate.decision.rule
        who = f"{session.application or '(no name)'}@{mask_client(session.client)}"
        role = session.role_label
        members[fate.outcome, rule.name if rule else "", who, role].append(fate.decision)
    found = [
        Group(
            outcome=outcome,
            rule=printable(rule, 63),
            who=printable(who, 90),
            role=printable(role, 63),
            count=len(decisions),
            oldest=max(decisions, key=lambda decision: decision.session.idle_seconds),
        )
        for (outcome, rule, who, role), decisions in members.items()
    ]
    return sorted(found, key=lambda group: (_ORDER.index(group.outcome), -group.count))


@lru_cache(maxsize=1024)
def mask_client(client: str | None) -> str:
    """The /24 or, of IPv6, the /64 that a client is in: its hosts come and go.

    >>> network("10.0.7.23"), network("2001:db8::17"), network(None)
    ('10.0.7.0/24', '2001:db8::/64', 'local')
    """
    if client is None:
        return "local"
    try:
        bits = 24 if ip_address(client).version == 4 else 64  # noqa: PLR2004 -- IP's two versions
        return str(ip_network(f"{client}/{bits}", strict=False))
    except ValueError:
        return client


# -- is it over? -----------------------------------------------------------------------------------


def write_verdict(report: Report) -> str:
    """Whether it is over, in capitals, and what makes it so."""
    open_ends = "; ".join(_list_open_ends(report))
    ended = " ".join(_describe_results(report))
    spared = report.count(Outcome.SPARED)
    recovered = [target for target in report.targets if target.recovered]
    asked = any(target.checked or target.recorded for target in report.targets)
    applied = any(target.applied is not None for target in report.targets)
    found = [result for target in report.targets for result in target.results]
    is_observed = all(result.outcome is Outcome.WOULD_TERMINATE for result in found)
    observed = found and (report.mode is Mode.OBSERVE or is_observed)
    candidates = (
        (report.mode is Mode.OFF, "OFF: no target was looked at."),
        (open_ends, f"NOT OVER: {open_ends}. {ended}"),
        (asked, "CHECK ONLY: nothing was touched."),
        (applied, "SETTINGS ONLY: no session was touched."),
        (observed, f"OBSERVED ONLY: {ended or 'nothing was touched.'}"),
        (spared, f"PARTLY: {spared} spared. {ended}"),
        (ended, f"OVER: {ended}"),
        (recovered, f"OVER: {join_names(recovered)} recovered."),
        (True, "QUIET: nothing had to be done."),
    )
    return next(said for holds, said in candidates if holds).rstrip()


def _list_open_ends(report: Report) -> Iterator[str]:
    """Each reason why it is not over."""
    left: dict[str, list[TargetReport]] = defaultdict(list)
    for target in report.targets:
        for what in _describe_open_ends(target):
            left[what].append(target)
    for what, targets in left.items():
        of_all = f"{len(targets)} of {_count_of(len(report.targets), 'target')} "
        yield f"{of_all if what == _UNREACHED else ''}{what} {join_names(targets)}"
    for outcome in (Outcome.LINGERING, Outcome.DENIED):
        if report.count(outcome) and report.mode is Mode.ENFORCE:
            yield f"{report.count(outcome)} {outcome}"


_UNREACHED = "not reached:"


def _describe_open_ends(target: TargetReport) -> Iterator[str]:
    """What is left to be done on one target."""
    if target.status is TargetStatus.BLIND:
        yield "blind on"
    elif target.status is TargetStatus.BREAKER:
        yield "the breaker held on"
    elif not target.is_reached and target.slots is None:
        yield _UNREACHED
    elif not target.is_reached:
        yield "settings refused on" if target.applied else "not finished on"
    if target.share_used >= 1:
        yield "every slot is still taken on"
    if target.fallback_secret is not None:
        yield "in by the fallback secret only on"


def _describe_results(report: Report) -> Iterator[str]:
    if report.count(Outcome.TERMINATED):
        yield f"{_count_of(report.count(Outcome.TERMINATED), 'session')} terminated and seen gone."
    if report.count(Outcome.CANCELLED):
        yield f"{_count_of(report.count(Outcome.CANCELLED), 'session')} cancelled."
    if report.count(Outcome.WOULD_TERMINATE):
        would = _count_of(report.count(Outcome.WOULD_TERMINATE), "session")
        yield f"In mode enforce {would} would be terminated; nothing was touched."


def join_names(targets: Sequence[TargetReport]) -> str:
    """The first names, and how many more."""
    shown = ", ".join(_short_name(target.name) for target in targets[:_MOST_NAMES])
    more = len(targets) - _MOST_NAMES
    return f"{to_code_span(shown)} and {more} more" if more > 0 else to_code_span(shown)


def _short_name(name: str) -> str:
    """Cut the middle of a long name: its end tells targets of equal names apart."""
    name = printable(name)
    return name if len(name) <= _NAME_LENGTH else f"{name[:20]}…{name[-(_NAME_LENGTH - 21) :]}"


def _count_of(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


# -- what is wrong, and what to do -----------------------------------------------------------------


def group_failures(targets: Iterable[TargetReport]) -> Sequence[FailureGroup]:
    """What is wrong with targets, those alike together: half a fleet has one cause, not fifty."""
    alike: dict[tuple[str, str, str], list[TargetReport]] = defaultdict(list)
    for target in targets:
        if target.error:
            alike[target.status, target.error.code, target.error.hint].append(target)
    return [
        FailureGroup(
            targets=members,
            what=f"{status} ({code})",
            message=printable(members[0].error.message) if members[0].error else "",
            hint=printable(hint, 1200),
        )
        for (status, code, hint), members in alike.items()
    ]


def list_steps(report: Report) -> Sequence[str]:
    """What the reader is to do, the most urgent first."""
    shown, _ = report.split_new_and_known()
    exhausted = [target for target in shown if target.share_used >= 1]
    shutting = [f"{join_names(exhausted)}: {_SHUT_OUT}"] if exhausted else []
    mending = (
        f"{join_names(trouble.targets)}: {trouble.hint}" for trouble in group_failures(shown)
    )
    others = (
        f"{join_names([target])}: {step}"
        for target in shown
        for step in _list_target_steps(target, report)
    )
    return list(islice(chain(shutting, mending, others), MOST_STEPS))


_SHUT_OUT = (
    "applications get no slot. See who holds them: SELECT usename, application_name, state, count(*)"
    " FROM pg_stat_activity GROUP BY 1, 2, 3; then give their pools a limit, or the policy a rule."
)


def _list_target_steps(target: TargetReport, report: Report) -> Iterator[str]:
    if target.applied is not None:  # who leaks was only asked for the settings' sake
        return
    if target.fallback_secret is not None:
        yield "our own role finds no slot: reserve some for it, as the advice says."
    of: dict[Outcome, list[Group]] = defaultdict(list)
    for group in group_sessions(target.results):
        of[group.outcome].append(group)
    if any(_is_cancel(group) for group in of[Outcome.LINGERING]):
        yield (
            "a query goes on in spite of its cancel: give the rule escalate_after, or end the"
            " session by hand with pg_terminate_backend."
        )
    elif of[Outcome.LINGERING]:
        yield (
            "a lingering session was signalled, and ends when the server comes to it; if it is"
            " there in the next run, too, end its client, or restart the server."
        )
    if of[Outcome.DENIED]:
        yield "our role may not end some of these sessions: the advice says what to grant."
    if of[Outcome.WOULD_TERMINATE]:
        yield (
            "are these leaks? Then set Mode to enforce. Are they not? Then protect them in the"
            " policy."
        )
    ended = [*of[Outcome.TERMINATED], *of[Outcome.CANCELLED], *of[Outcome.WOULD_TERMINATE]]
    if ended:
        yield _describe_leak(max(ended, key=lambda group: group.count))
    going_on = target.status is TargetStatus.OK and report.mode is Mode.ENFORCE
    if of[Outcome.SPARED] and going_on:
        yield "some were spared, for the reason given: the next run goes on with them."


def _is_cancel(group: Group) -> bool:
    rule = group.oldest.rule
    return rule is not None and rule.action is Action.CANCEL and rule.escalate_after is None


def _describe_leak(group: Group) -> str:
    """Where the leak is to be looked for."""
    who = f"{to_code_span(group.who)} as {to_code_span(group.role)}"
    if group.oldest.session.state is State.ACTIVE:
        return f"find out why {who} runs so long: {to_code_span(group.query)}"
    if group.oldest.session.state is State.IDLE:
        return f"find out why {who} keeps idle sessions; give its pool a limit."
    return f"find the transaction that {who} leaves open, last at {to_code_span(group.query)}"


def to_code_span(text: str) -> str:
    """What comes from outside, such that no chat makes a link, a mention or emphasis of it."""
    return "`{}`".format(text.replace("`", "\u2019"))
