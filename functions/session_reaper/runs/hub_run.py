"""A run of a fleet's hub: receive, merge, publish, save, and only then delete the messages."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any, Final

from session_reaper.aws.fleet_table import load_spoke_states, save_spoke_states
from session_reaper.aws.sns import PUBLISH_SECONDS, publish
from session_reaper.aws.sqs import QueueMessage, delete_messages, receive_rounds, return_messages
from session_reaper.deadline import Deadline
from session_reaper.errors import ConfigurationError
from session_reaper.fleet.digest import digest_fleet, make_invalid_message_report, report_on_fleet
from session_reaper.fleet.message import QUEUE, Spoke, SpokeReport, read_spoke_report
from session_reaper.fleet.state import (
    SpokeNews,
    SpokeResult,
    SpokeState,
    add_message,
    conclude_refused,
)
from session_reaper.observability import logger
from session_reaper.report.headline import write_headline
from session_reaper.report.model import Report
from session_reaper.report.text import printable
from session_reaper.runs.rendering import render
from session_reaper.settings import HubSettings

_LOAD_SECONDS: Final = 10.0
_RECEIVE_SHARE: Final = 0.5  # of the time; the rest is for the digest, the table and the deletions
_PUBLISH_SHARE: Final = 0.5  # of the time left; the rest is for the table and the deletions
_MOST_MESSAGES: Final = 4_000  # of one run; the next one goes on
_MOST_SESSIONS: Final = 500_000  # as above; a hostile stack can report 300,000 in a message
_MOST_STACKS: Final = 3_000  # an account could invent any number
_HIDDEN_SECONDS: Final = 60.0  # beyond the end of the run
_HEADLINES: Final = 100  # of one log line: CloudWatch cuts lines of more than 1 MB


@dataclass(slots=True, kw_only=True)
class _Inbox:
    """The messages of one run, merged by stack."""

    news: dict[Spoke, SpokeNews]
    received: set[str] = field(default_factory=set)  # ids of messages
    refused: dict[str, str] = field(default_factory=dict)  # the handle of each by its id
    first_problem: str = ""  # of the refused messages
    sessions: int = 0  # that the messages report
    is_complete: bool = False  # every message from before the run was received, none by another run


def run_hub(settings: HubSettings, run_id: str, now: float, end: Deadline) -> dict[str, Any]:
    """Run once; return the numbers of messages and stacks, and the verdict of the digest.

    Raises QueueError if the table or the queue cannot be read, and PublishError if the digest was
    not published; nothing is deleted then. Raises InternalError at the end if a bug made it a
    minimal one.
    """
    states = load_spoke_states(settings.memory_table, end.capped_at(_LOAD_SECONDS))
    queue = states.pop(QUEUE, SpokeState(spoke=QUEUE))
    inbox = _receive(settings, states, now, end)
    refused = _conclude_refused(inbox, queue, now, settings.remind_after)
    fleet = report_on_fleet(
        run_id,
        inbox.news,
        refused.targets,
        now,
        settings.remind_after,
        is_complete=inbox.is_complete,
    )
    _log_targets(fleet.report)
    rendered = render(
        fleet.report,
        partial(digest_fleet, fleet, settings.location),
        now,
        is_due=fleet.report.should_notify,
        bug="a bug in the digest",
    )
    if rendered.summary is not None:
        within = end.capped_at_share(_PUBLISH_SHARE, PUBLISH_SECONDS)
        for failure in publish(rendered.summary, [settings.topic_arn], within).values():
            raise failure
    before = {**states, QUEUE: queue}
    after = {**fleet.states, QUEUE: refused.state}
    changed = [state for spoke, state in after.items() if state != before.get(spoke)]
    saved = save_spoke_states(settings.memory_table, changed, end)
    unsaved = {state.spoke for state in changed} - set(saved)
    done = [news.handles for spoke, news in inbox.news.items() if spoke not in unsaved]
    delete_messages(settings.queue_url, [*chain.from_iterable(done)], end)
    return_messages(settings.queue_url, list(inbox.refused.values()), end)
    answer = {
        "run_id": run_id,
        "messages": len(inbox.received),
        "refused": len(inbox.refused),
        "stacks": len(fleet.states),
        "complete": inbox.is_complete,
        "published": fleet.report.should_notify,
        "verdict": rendered.verdict,
    }
    logger.info("digest", extra=answer)
    if rendered.bug is not None:
        raise rendered.bug
    return answer


def _receive(
    settings: HubSettings, states: Mapping[Spoke, SpokeState], now: float, end: Deadline
) -> _Inbox:
    """Receive and merge the messages from before `now`, or as many as one run may."""
    inbox = _Inbox(news={spoke: SpokeNews(state=state) for spoke, state in states.items()})
    within = end.capped_at_share(_RECEIVE_SHARE)
    hidden = int(end.remaining() + _HIDDEN_SECONDS)
    for found in receive_rounds(settings.queue_url, hidden, now, within):
        for message in found.messages:
            inbox.received.add(message.id)
            _add(inbox, message)
            if inbox.sessions >= _MOST_SESSIONS:
                return inbox
        # What another run has received may say that a stack is not silent.
        inbox.is_complete = found.is_last and found.hidden <= len(inbox.received)
        if len(inbox.received) >= _MOST_MESSAGES:
            break
    return inbox


def _add(inbox: _Inbox, message: QueueMessage) -> None:
    """Add one message; an invalid one stays in the queue, which moves it to the dead letters."""
    try:
        report = _read(inbox, message.body)
    except ConfigurationError as error:
        problem = printable(str(error))
        inbox.refused[message.id] = message.handle
        inbox.first_problem = inbox.first_problem or problem
        logger.warning("refused a message", extra={"error": problem})
        return
    inbox.sessions += sum(len(target.results) for target in report.targets)
    news = inbox.news.setdefault(report.spoke, SpokeNews(state=SpokeState(spoke=report.spoke)))
    add_message(news, report, message.sent_at, message.handle)


def _read(inbox: _Inbox, body: str) -> SpokeReport:
    report = read_spoke_report(body)
    if report.spoke not in inbox.news and len(inbox.news) >= _MOST_STACKS:
        raise ConfigurationError("stack", f"the hub knows {_MOST_STACKS:,} others already")
    return report


def _conclude_refused(
    inbox: _Inbox, queue: SpokeState, now: float, remind_after: float
) -> SpokeResult:
    """Report refused messages as one issue, which a stack of another version causes in each run."""
    if not inbox.refused:
        return SpokeResult(targets=(), state=queue)
    invalid = make_invalid_message_report(len(inbox.refused), inbox.first_problem)
    return conclude_refused(queue, invalid, now, remind_after)


def _log_targets(report: Report) -> None:
    """Log what happened on each target that has news, because a large digest leaves out some."""
    headlines = [write_headline(each) for each in report.targets if each.should_notify]
    for start in range(0, len(headlines), _HEADLINES):
        logger.info("targets", extra={"targets": headlines[start : start + _HEADLINES]})
