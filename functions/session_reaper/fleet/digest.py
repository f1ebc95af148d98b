"""The report of a whole fleet, and the notes on it, for the summary's code to render."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Final, NamedTuple

from session_reaper.fleet.message import QUEUE, Spoke, make_stack_report
from session_reaper.fleet.state import SpokeNews, SpokeState, conclude
from session_reaper.policy.enums import Mode
from session_reaper.report.headline import count_of
from session_reaper.report.model import Outcome, Report, StackProblem, TargetReport
from session_reaper.report.text import printable
from session_reaper.summary.console_links import FunctionLocation
from session_reaper.summary.digest import Digest, digest_report
from session_reaper.summary.prose import Name, Prose, join_prose, to_plain
from session_reaper.summary.wording import OF_HUB
from session_reaper.targets.target import TargetKey

_MOST_NAMED: Final = 5
_LEAKS: Final = (Outcome.TERMINATED, Outcome.CANCELLED, Outcome.WOULD_TERMINATE, Outcome.LINGERING)


def make_invalid_message_report(number: int, first_problem: str) -> TargetReport:
    """Build the report of messages that were refused."""
    cause = f"{count_of(number, 'message')} refused; the first: {first_problem}"
    hint = (
        "If a stack is newer than the hub, update the hub. Otherwise read a message in the dead-letter"
        " queue, where SQS moves it after ten tries: it shows which account sent it."
    )
    report = make_stack_report(QUEUE, StackProblem.INVALID_MESSAGE, cause, hint)
    return replace(report, name="the hub's queue")


class FleetReport(NamedTuple):
    """The report of all stacks with the notes on it, and their states after its digest."""

    report: Report
    notes: tuple[Prose, ...]
    states: Mapping[Spoke, SpokeState]


def report_on_fleet(  # noqa: PLR0913 -- what a run of the hub knows
    run_id: str,
    news_by_spoke: Mapping[Spoke, SpokeNews],
    refused: Sequence[TargetReport],
    now: float,
    remind_after: float,
    *,
    is_complete: bool,
) -> FleetReport:
    """Compare the news of each stack with its known issues; return one report on all stacks.

    The most urgent targets come first, and equally urgent ones in the order of their accounts.

    `refused`: the report of messages that could not be read. `is_complete`: as in `conclude`.
    """
    results = {
        spoke: conclude(news, now, remind_after, is_complete=is_complete)
        for spoke, news in sorted(news_by_spoke.items())
    }
    found = chain.from_iterable(result.targets for result in results.values())
    targets = sorted(
        (*found, *refused), key=lambda t: (not t.is_critical, _URGENCY.index(t.stack_problem))
    )
    states = {spoke: result.state for spoke, result in results.items()}
    latest = filter(None, (news.latest for news in news_by_spoke.values()))
    advice = chain.from_iterable(report.advice for report in latest)
    # The highest mode of the stacks: with "off", nothing would be reported.
    mode = max([Mode.OBSERVE, *(news.mode for news in news_by_spoke.values())])
    return FleetReport(
        report=Report(run_id=run_id, mode=mode, targets=tuple(targets)),
        notes=_write_notes(states.values(), targets, advice),
        states=states,
    )


_URGENCY: Final = (
    StackProblem.CONFIGURATION,
    StackProblem.SILENT,
    None,
    StackProblem.ENDED,
    StackProblem.INVALID_MESSAGE,
)


def digest_fleet(fleet: FleetReport, location: FunctionLocation | None) -> Digest:
    """Digest the report; the subject begins with the verdict, because it is about many accounts."""
    digest = digest_report(fleet.report, location, notes=fleet.notes, wording=OF_HUB)
    leaks = _find_leaks(target.report for target in digest.shown)
    steps = (*digest.steps, _advise_on_leaks(leaks)) if leaks else digest.steps
    subject = " ".join([str(digest.verdict), *map(to_plain, _list_leaks(leaks))])
    # Only those that were reported since the last run are known to be quiet; the notes have all.
    return digest._replace(summary=subject, steps=steps, quiet=0)


def _write_notes(
    states: Collection[SpokeState], targets: Sequence[TargetReport], advice: Iterable[str]
) -> tuple[Prose, ...]:
    """Write the totals of the fleet, its top leaking applications, and its recommendations."""
    accounts = len({state.spoke.account for state in states})
    number = sum(state.targets for state in states)
    ended = sum(target.counts[Outcome.TERMINATED] for target in targets)
    silent = sum(state.is_silent for state in states)
    totals = (
        f"Fleet: {count_of(len(states), 'stack')}{f' ({silent} silent)' if silent else ''}"
        f" in {count_of(accounts, 'account')},"
        f" {count_of(number, 'target')}, {count_of(ended, 'session')} terminated since the last digest."
    )
    return ((totals,), *_list_leaks(_find_leaks(targets)), *_list_advice(advice))


_Leaks = Mapping[str, Sequence[tuple[str, TargetKey]]]
"""The target of each leaked session by application, the one with the most sessions first."""


def _find_leaks(targets: Iterable[TargetReport]) -> _Leaks:
    places: dict[str, list[tuple[str, TargetKey]]] = defaultdict(list)
    for target in targets:
        place = (target.name, target.key)
        for result in target.results:
            if result.outcome in _LEAKS:
                places[result.decision.session.application].append(place)
    return dict(sorted(places.items(), key=lambda item: -len(item[1])))


def _name_application(name: str) -> Name:
    return Name(printable(name, 63) or "(no name)")


def _list_leaks(leaks: _Leaks) -> Iterator[Prose]:
    if leaks:
        parts = (
            (_name_application(name), f" ({len(each)} on {count_of(len({*each}), 'target')})")
            for name, each in islice(leaks.items(), _MOST_NAMED)
        )
        yield ("Most leaked sessions: ", *join_prose(parts, ", "), ".")


def _advise_on_leaks(leaks: _Leaks) -> Prose:
    first, *others = leaks
    more = f" and {count_of(len(others), 'other application')} leak" if others else " leaks"
    return ("Find out why ", _name_application(first), f"{more} sessions.")


def _list_advice(advice: Iterable[str]) -> Iterator[Prose]:
    counts = Counter(advice).most_common(_MOST_NAMED)
    if counts:
        parts = (
            (Name(printable(code, 63)), f" ({count_of(number, 'target')})")
            for code, number in counts
        )
        yield ("Most frequent recommendations: ", *join_prose(parts, ", "), ".")
