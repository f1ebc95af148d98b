"""What a reader wants to know of a run in ten seconds, for email and Slack to render."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property, lru_cache
from ipaddress import ip_address, ip_network
from itertools import chain, islice
from typing import Final

from session_reaper.decision.model import Decision
from session_reaper.policy.durations import format_duration
from session_reaper.policy.enums import Action, Mode
from session_reaper.report.headline import (
    OUTCOME_PHRASES,
    count_of,
    write_headline,
    write_recoveries,
    write_settings,
    write_summary_line,
)
from session_reaper.report.model import (
    Outcome,
    Report,
    SessionResult,
    Severity,
    TargetReport,
    TargetStatus,
)
from session_reaper.report.text import printable, truncate
from session_reaper.sessions.session import State
from session_reaper.settings import FunctionLocation
from session_reaper.summary.console_links import ConsoleLink, link_to_console
from session_reaper.summary.prose import Name, Prose, Statement, split_hint, to_plain

_MOST_STEPS: Final = 5
_MOST_NAMES: Final = 5
_NAME_LENGTH: Final = 60
_NAME_TAIL: Final = 39  # the end of a long name tells it from similar ones
_QUERY_LENGTH: Final = 200
_ORDER: Final = [
    *(outcome for outcome in Outcome if outcome is not Outcome.ESCAPED),
    Outcome.ESCAPED,
]


class VerdictWord(StrEnum):
    """The first word of a summary."""

    ACTION_NEEDED = "ACTION NEEDED"
    RESOLVED = "RESOLVED"
    RECOVERED = "RECOVERED"
    OBSERVED = "OBSERVED"
    QUIET = "QUIET"
    CHECKED = "CHECKED"
    RECORDED = "RECORDED"
    APPLIED = "APPLIED"
    OFF = "OFF"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunVerdict:
    """Whether a run leaves something to do, and why."""

    word: VerdictWord
    detail: Prose

    def __str__(self) -> str:
        return f"{self.word}: {to_plain(self.detail)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Sessions of one application, client network and role with the same outcome and rule."""

    outcome: Outcome
    rule: str
    application: str  # application@client network
    role: str
    count: int
    oldest: Decision  # on the session that is longest in its state

    @property
    def headline(self) -> str:
        """How many sessions met which outcome."""
        return f"{count_of(self.count, 'session')} {OUTCOME_PHRASES[self.outcome]}"

    @property
    def age(self) -> str:
        """How long the oldest session has been in its state."""
        return format_duration(self.oldest.session.idle_seconds)

    @property
    def query(self) -> str:
        """The oldest session's last statement, redacted."""
        return printable(self.oldest.session.redacted_query, _QUERY_LENGTH)

    @property
    def reason(self) -> str:
        """Why the oldest session was condemned."""
        return printable(self.oldest.reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureGroup:
    """Targets with the same failure."""

    targets: Sequence[TargetReport]
    title: str
    message: str
    hint: Prose


@dataclass(frozen=True, kw_only=True)  # no slots: they leave no room for a cached_property
class TargetDigest:
    """One target that the summary reports."""

    report: TargetReport

    @cached_property
    def headline(self) -> str:
        """What happened, on one line."""
        return write_headline(self.report)

    @cached_property
    def groups(self) -> Sequence[Group]:
        """The condemned sessions by outcome, the largest group of each first."""
        return group_sessions(self.report.results)


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """What a summary says of a run, computed once for all renderers."""

    report: Report
    summary: str  # the line of the subject
    severity: Severity
    verdict: RunVerdict
    steps: tuple[Prose, ...]  # what to do, most urgent first
    shown: tuple[TargetDigest, ...]  # targets with news, most urgent first
    failures: tuple[FailureGroup, ...]  # of those shown, the ones without a snapshot
    known: Name | None  # targets with known issues only
    quiet: int  # number of other targets
    links: tuple[ConsoleLink, ...]

    @property
    def steps_as_text(self) -> tuple[str, ...]:
        """The steps as the return value has them."""
        return tuple(map(to_plain, self.steps))

    @property
    def examined(self) -> tuple[TargetDigest, ...]:
        """The shown targets that are not part of a failure group."""
        return tuple(t for t in self.shown if t.report.slots is not None or not t.report.error)


def digest_report(report: Report, place: FunctionLocation | None) -> Digest:
    """Digest a run; sessions are grouped only when a renderer asks for them."""
    news, known = report.split_new_and_known()
    shown = tuple(TargetDigest(report=target) for target in news)
    return Digest(
        report=report,
        summary=write_summary_line(report),
        severity=report.severity,
        verdict=judge_run(report),
        steps=tuple(islice(_list_steps(shown, report), _MOST_STEPS)),
        shown=shown,
        failures=tuple(_group_failures(t for t in news if t.slots is None)),
        known=_join_names(known) if known else None,
        quiet=len(report.targets) - len(news) - len(known),
        links=tuple(link_to_console(place, report.run_id)),
    )


def group_sessions(results: Iterable[SessionResult]) -> Sequence[Group]:
    """Group sessions by outcome, rule, application, client network and role, largest first."""
    members: dict[tuple[Outcome, str, str, str], list[Decision]] = defaultdict(list)
    for result in results:
        session, rule = result.decision.session, result.decision.rule
        application = f"{session.application or '(no name)'}@{mask_client(session.client)}"
        key = (result.outcome, rule.name if rule else "", application, session.role)
        members[key].append(result.decision)
    groups = [
        Group(
            outcome=outcome,
            rule=printable(rule, 63),
            application=printable(application, 90),
            role=printable(role, 63),
            count=len(decisions),
            oldest=max(decisions, key=lambda decision: decision.session.idle_seconds),
        )
        for (outcome, rule, application, role), decisions in members.items()
    ]
    return sorted(groups, key=lambda group: (_ORDER.index(group.outcome), -group.count))


@lru_cache(maxsize=1024)
def mask_client(client: str | None) -> str:
    """Return the /24 network of a client, or the /64 of an IPv6 one: single hosts come and go.

    >>> mask_client("10.0.7.23"), mask_client("2001:db8::17"), mask_client(None)
    ('10.0.7.0/24', '2001:db8::/64', 'local')
    """
    if client is None:
        return "local"
    try:
        bits = 24 if ip_address(client).version == 4 else 64  # noqa: PLR2004 -- IP's two versions
        return str(ip_network(f"{client}/{bits}", strict=False))
    except ValueError:
        return client


# -- the verdict -----------------------------------------------------------------------------------


def judge_run(report: Report) -> RunVerdict:
    """Tell whether a run leaves something to do."""
    if report.mode is Mode.OFF:
        return _verdict(VerdictWord.OFF, "no target was examined, because the mode is off.")
    results = " ".join(_list_results(report))
    open_ends = chain.from_iterable(("; ", *each) for each in _list_open_ends(report))
    joined = tuple(islice(open_ends, 1, None))
    if joined:
        return _verdict(VerdictWord.ACTION_NEEDED, *joined, f". {results}".rstrip())
    return _judge_manual_run(report) or _judge_reaping(report, results)


def _verdict(word: VerdictWord, *detail: str | Name | Statement) -> RunVerdict:
    return RunVerdict(word=word, detail=detail)


def _judge_manual_run(report: Report) -> RunVerdict | None:
    """Tell what a run found or changed that does not terminate sessions."""
    recorded = sum(target.recorded is not None for target in report.targets)
    if recorded:
        found = f"{_count_were(recorded, 'target', 'targets')} recorded."
        return _verdict(VerdictWord.RECORDED, f"{found} Nothing was changed.")
    if any(target.checked for target in report.targets):
        issues = count_of(sum(len(target.advice) for target in report.targets), "issue")
        return _verdict(VerdictWord.CHECKED, f"{issues} found. Nothing was changed.")
    applied = [target.applied for target in report.targets if target.applied is not None]
    if applied:
        settings = write_settings(chain.from_iterable(applied))
        return _verdict(VerdictWord.APPLIED, f"{settings}. No session was touched.")
    return None


def _judge_reaping(report: Report, results: str) -> RunVerdict:
    if report.count(Outcome.TERMINATED) or report.count(Outcome.CANCELLED):
        return _verdict(VerdictWord.RESOLVED, results)
    if report.count(Outcome.SPARED) and report.mode is Mode.ENFORCE:
        return _verdict(VerdictWord.ACTION_NEEDED, f"no session was terminated. {results}")
    if results:
        return _verdict(VerdictWord.OBSERVED, results)
    recovered = [target for target in report.targets if target.recovered]
    if recovered:
        is_one = len(recovered) == 1
        ended = write_recoveries(chain.from_iterable(target.recovered for target in recovered[:1]))
        end = f" has recovered ({printable(ended)})." if is_one else " have recovered."
        return _verdict(VerdictWord.RECOVERED, _join_names(recovered), end)
    return _verdict(VerdictWord.QUIET, "there was nothing to terminate.")


def _list_results(report: Report) -> Iterator[str]:
    """List what happened to sessions; in an `apply` run they are only the evidence for settings."""
    if any(target.applied is not None for target in report.targets):
        return
    if number := report.count(Outcome.TERMINATED):
        yield f"{_count_were(number, 'session', 'sessions')} terminated and verified gone."
    if number := report.count(Outcome.CANCELLED):
        yield f"{_count_were(number, 'query', 'queries')} cancelled."
    if number := report.count(Outcome.WOULD_TERMINATE):
        cause = (
            "In mode enforce" if report.mode is Mode.OBSERVE else "If all rules had mode enforce"
        )
        yield f"{cause}, {count_of(number, 'session')} would be terminated."
    number = report.count(Outcome.SPARED)
    if number and report.mode is Mode.ENFORCE:
        yield f"{_count_were(number, 'session', 'sessions')} spared."
    if report.mode is Mode.OBSERVE and any(target.results for target in report.targets):
        yield "Nothing was touched."


def _count_were(number: int, singular: str, plural: str) -> str:
    return f"1 {singular} was" if number == 1 else f"{number} {plural} were"


def _list_open_ends(report: Report) -> Iterator[Prose]:
    """List everything that the run leaves to do."""
    targets_by_problem: dict[str, list[TargetReport]] = defaultdict(list)
    for target in report.targets:
        for problem in _list_problems(target):
            targets_by_problem[problem].append(target)
    for problem, targets in targets_by_problem.items():
        of_all = f"{len(targets)} of {count_of(len(report.targets), 'target')} "
        yield (f"{of_all if problem == _UNREACHED else ''}{problem} ", _join_names(targets))
    if report.mode is Mode.ENFORCE:
        if number := report.count(Outcome.LINGERING):
            has = "was signalled but has" if number == 1 else "were signalled but have"
            yield (f"{count_of(number, 'session')} {has} not exited",)
        if number := report.count(Outcome.DENIED):
            yield (f"the reaper's role may not terminate {count_of(number, 'session')}",)


_UNREACHED: Final = "could not be reached:"


def _list_problems(target: TargetReport) -> Iterator[str]:
    """List what is left to do on one target, in words that its name follows."""
    if target.status is TargetStatus.BLIND:
        yield "the reaper cannot see other sessions on"
    elif target.status is TargetStatus.FULL:
        yield "no connection slot is left on"
    elif target.status is TargetStatus.BREAKER:
        yield "the breaker stopped all terminations on"
    elif not target.is_reached and target.slots is None:
        yield _UNREACHED
    elif not target.is_reached:
        yield "settings were refused on" if target.applied else "the run was not completed on"
    if target.is_exhausted:
        yield "every slot is still in use on"
    if target.fallback_secret is not None:
        yield "the reaper could connect only with the fallback secret on"


def _join_names(targets: Sequence[TargetReport]) -> Name:
    """Join the first names, and say how many more there are."""
    names = [
        truncate(printable(target.name), _NAME_LENGTH, tail=_NAME_TAIL)
        for target in targets[:_MOST_NAMES]
    ]
    more = len(targets) - _MOST_NAMES
    return Name(", ".join(names) + (f" and {more} more" if more > 0 else ""))


# -- failures and steps ----------------------------------------------------------------------------


def _group_failures(targets: Iterable[TargetReport]) -> Iterator[FailureGroup]:
    """Group targets by failure: half a fleet that fails has one cause, not fifty."""
    alike: dict[tuple[str, str, str], list[TargetReport]] = defaultdict(list)
    for target in targets:
        if target.error:
            alike[target.status, target.error.code, target.error.hint].append(target)
    for (status, code, hint), members in alike.items():
        message = members[0].error.message if members[0].error else ""
        yield FailureGroup(
            targets=members,
            title=f"{status} ({printable(code, 20)})",
            message=printable(message),
            hint=split_hint(hint),
        )


def _list_steps(shown: Sequence[TargetDigest], report: Report) -> Iterator[Prose]:
    """List what the reader should do, most urgent first."""
    unexplained = [t.report for t in shown if t.report.is_exhausted and not t.report.results]
    if unexplained:
        yield (_join_names(unexplained), ": ", *_FREE_SLOTS)
    for failure in _group_failures(target.report for target in shown):
        yield (_join_names(failure.targets), ": ", *_begin_with_words(failure.hint))
    for target in shown:
        for step in _list_target_steps(target, report):
            yield (_join_names([target.report]), ": ", *step)


_FREE_SLOTS: Final[Prose] = (
    "Applications cannot connect. List who holds the slots: ",
    Statement(
        "SELECT usename, application_name, state, count(*) FROM pg_stat_activity GROUP BY 1, 2, 3;"
    ),
    " Then limit the pools of these applications, or add a rule for such sessions to the policy.",
)


def _begin_with_words(hint: Prose) -> Prose:
    is_bare = all(not part for part in hint if isinstance(part, str))
    return ("As a superuser or the master user, run: ", *hint) if is_bare else hint


def _list_target_steps(target: TargetDigest, report: Report) -> Iterator[Prose]:
    if target.report.applied is not None:  # its sessions are only the evidence for the settings
        return
    if target.report.fallback_secret is not None:
        yield (
            "The reaper's own role finds no free slot. Follow the recommendation reserve-slots.",
        )
    groups: dict[Outcome, list[Group]] = defaultdict(list)
    for group in target.groups:
        groups[group.outcome].append(group)
    if groups[Outcome.LINGERING]:
        yield _explain_lingering(groups[Outcome.LINGERING])
    if groups[Outcome.DENIED]:
        yield (_DENIED,)
    leaks = [each for outcome in _LEAKS for each in groups[outcome]] or groups[Outcome.SPARED]
    if leaks:
        yield _explain_leak(max(leaks, key=lambda group: group.count))
    if groups[Outcome.WOULD_TERMINATE]:
        yield (_WOULD_TERMINATE,)
    if target.report.is_exhausted and target.report.results:
        yield _FREE_SLOTS
    is_going_on = target.report.status is TargetStatus.OK and report.mode is Mode.ENFORCE
    if groups[Outcome.SPARED] and is_going_on:
        yield ("No action is needed for the spared sessions: the next run continues with them.",)


_DENIED: Final = (
    "The reaper's role may not terminate some of these sessions. The recommendations say what to"
    " grant."
)
_WOULD_TERMINATE: Final = (
    "If these sessions are leaks, set the mode to enforce. Otherwise protect them in the policy."
)
_CANCELLED_IN_VAIN: Final = (
    " still runs its query although it was cancelled. Add escalate_after to the rule, or terminate"
    " the session by hand with pg_terminate_backend."
)
_NOT_EXITED: Final = (
    " was signalled but has not exited. If it is still there in the next run, stop its client; if"
    " that does not help, restart the server."
)
_LEAKS: Final = (
    Outcome.TERMINATED,
    Outcome.CANCELLED,
    Outcome.WOULD_TERMINATE,
    Outcome.LINGERING,
    Outcome.DENIED,
)


def _explain_lingering(groups: Sequence[Group]) -> Prose:
    cancelled = next((group for group in groups if _is_cancel(group)), None)
    if cancelled:
        return (*_culprit(cancelled), _CANCELLED_IN_VAIN)
    return (*_culprit(groups[0]), _NOT_EXITED)


def _is_cancel(group: Group) -> bool:
    rule = group.oldest.rule
    return rule is not None and rule.action is Action.CANCEL and rule.escalate_after is None


def _explain_leak(group: Group) -> Prose:
    """Say where to look for a leak."""
    match group.oldest.session.state:
        case State.ACTIVE:
            problem = " runs for so long."
        case State.IDLE:
            problem = " keeps idle sessions, and limit the size of its pool."
        case _:
            problem = " leaves transactions open."
    query = (" Last statement: ", Statement(group.query)) if group.query else ()
    return ("Find out why ", *_culprit(group), problem, *query)


def _culprit(group: Group) -> Prose:
    return (Name(group.application), " (role ", Name(group.role), ")")
