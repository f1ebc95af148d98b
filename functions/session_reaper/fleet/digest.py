"""The report of a whole fleet, and the notes on it, for the summary's code to render."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Final

from session_reaper.fleet.message import QUEUE, make_stack_report
from session_reaper.fleet.state import SpokeState
from session_reaper.report.headline import count_of
from session_reaper.report.model import Outcome, StackProblem, TargetReport
from session_reaper.report.text import printable
from session_reaper.summary.prose import Name, Prose

_MOST_NAMED: Final = 5
_LEAKS: Final = (Outcome.TERMINATED, Outcome.CANCELLED, Outcome.WOULD_TERMINATE, Outcome.LINGERING)


def make_invalid_message_report(number: int, first_problem: str) -> TargetReport:
    """Build the report of messages that were refused."""
    cause = f"{count_of(number, 'message')} refused; the first: {first_problem}"
    hint = (
        "The messages stay in the queue until SQS moves them to its dead-letter queue. Read one there;"
        " it shows which account sent it."
    )
    return make_stack_report(QUEUE, StackProblem.INVALID_MESSAGE, cause, hint)


def write_fleet_notes(
    states: Iterable[SpokeState], targets: Sequence[TargetReport], advice: Iterable[str]
) -> tuple[Prose, ...]:
    """Write the totals of the fleet, its top leaking applications, and its recommendations."""
    known = list(states)
    accounts = len({state.spoke.account for state in known})
    number = sum(state.targets for state in known)
    ended = sum(target.count(Outcome.TERMINATED) for target in targets)
    silent = sum(state.is_silent for state in known)
    totals = (
        f"Fleet: {count_of(len(known), 'stack')}{f' ({silent} silent)' if silent else ''}"
        f" in {count_of(accounts, 'account')},"
        f" {count_of(number, 'target')}, {count_of(ended, 'session')} terminated since the last digest."
    )
    return ((totals,), *_list_leaks(targets), *_list_advice(advice))


def _list_leaks(targets: Iterable[TargetReport]) -> Iterator[Prose]:
    sessions: Counter[str] = Counter()
    places: dict[str, set[str]] = defaultdict(set)
    for target in targets:
        for result in target.results:
            if result.outcome in _LEAKS:
                application = result.decision.session.application
                sessions[application] += 1
                places[application].add(target.name)
    if sessions:
        parts: list[Prose] = [
            (
                ", ",
                Name(printable(name, 63) or "(no name)"),
                f" ({count} on {_count_targets(places[name])})",
            )
            for name, count in sessions.most_common(_MOST_NAMED)
        ]
        yield ("Most leaked sessions: ", *tuple(chain.from_iterable(parts))[1:], ".")


def _count_targets(names: set[str]) -> str:
    return count_of(len(names), "target")


def _list_advice(advice: Iterable[str]) -> Iterator[Prose]:
    counts = Counter(advice).most_common(_MOST_NAMED)
    if counts:
        parts: list[Prose] = [
            (", ", Name(printable(code, 63)), f" ({count_of(number, 'target')})")
            for code, number in counts
        ]
        yield ("Most frequent recommendations: ", *tuple(chain.from_iterable(parts))[1:], ".")
