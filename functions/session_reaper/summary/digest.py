"""The content of a summary, for email and Slack to render."""

from collections.abc import Mapping
from itertools import islice
from typing import Final, NamedTuple

from session_reaper.deadline import Deadline
from session_reaper.report.headline import write_summary_line
from session_reaper.report.known_issues import MOST_UNDELIVERED
from session_reaper.report.model import Report
from session_reaper.report.text import printable
from session_reaper.summary.console_links import FunctionLocation, link_to_console
from session_reaper.summary.groups import FailureGroup, TargetDigest, group_failures, join_names
from session_reaper.summary.prose import Name, Prose, to_plain
from session_reaper.summary.steps import list_steps
from session_reaper.summary.verdict import RunVerdict, choose_verdict
from session_reaper.summary.wording import OF_FUNCTION, Wording

_MOST_STEPS: Final = 5
_LINE_LENGTH: Final = 200  # characters of an undelivered summary


class Digest(NamedTuple):
    """The content of a run's summary, computed once for all renderers."""

    report: Report
    summary: str  # the line of the subject
    verdict: RunVerdict
    steps: tuple[Prose, ...]  # what to do, most urgent first
    shown: tuple[TargetDigest, ...]  # targets to report, most urgent first
    failures: tuple[FailureGroup, ...]  # of the shown targets without a snapshot
    known: Name | None  # targets with known issues only
    quiet: int  # number of other targets
    undelivered: tuple[str, ...]  # summary lines of earlier runs, newest first
    more_undelivered: int  # number of older ones
    links: Mapping[str, str]  # URLs of the console by name
    notes: tuple[Prose, ...]  # on a whole fleet
    wording: Wording

    @property
    def steps_as_text(self) -> tuple[str, ...]:
        """The steps as the return value has them."""
        return tuple(map(to_plain, self.steps))

    @property
    def examined(self) -> tuple[TargetDigest, ...]:
        """The shown targets that are not part of a failure group."""
        return tuple(t for t in self.shown if t.report.slots is not None or not t.report.error)


def digest_report(
    report: Report,
    location: FunctionLocation | None,
    deadline: Deadline | None = None,
    notes: tuple[Prose, ...] = (),
    wording: Wording = OF_FUNCTION,
) -> Digest:
    """Digest a run; sessions are grouped only when a renderer asks for them.

    Their comment tags are read until the deadline.
    """
    new, known = report.new_and_known
    undelivered = report.undelivered[:MOST_UNDELIVERED]
    shown = tuple(TargetDigest(report=target, deadline=deadline) for target in new)
    return Digest(
        report=report,
        summary=write_summary_line(report),
        verdict=choose_verdict(report, wording),
        steps=tuple(islice(list_steps(shown, report, wording), _MOST_STEPS)),
        shown=shown,
        failures=tuple(group_failures(t for t in new if t.slots is None)),
        known=join_names(known) if known else None,
        quiet=len(report.targets) - len(new) - len(known),
        undelivered=tuple(printable(line, _LINE_LENGTH) for line in undelivered),
        more_undelivered=len(report.undelivered) - len(undelivered) + report.undelivered_before,
        links=link_to_console(location, report.run_id),
        notes=notes,
        wording=wording,
    )
