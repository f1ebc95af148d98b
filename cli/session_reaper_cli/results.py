"""Shows the report of a run, and derives the exit status from it."""

import json
from enum import IntEnum
from typing import Any, Final
from uuid import uuid4

from rich.console import Console
from session_reaper.decision.explain import ExplainedOutcome
from session_reaper.policy.enums import Mode
from session_reaper.report.document import to_document
from session_reaper.report.model import Report, TargetReport, TargetStatus
from session_reaper.summary.digest import digest_report
from session_reaper.summary.email import WIDTH as EMAIL_WIDTH
from session_reaper.summary.email import render_email
from session_reaper.summary.wording import Wording
from session_reaper.targets.target import Target

from session_reaper_cli.connections.login import Invocation
from session_reaper_cli.terminal import Say
from session_reaper_cli.wording import make_wording

_WORDING: Final = make_wording()
_MOST_BYTES: Final = 1_000_000  # of a summary
_CONDEMNED: Final = (ExplainedOutcome.CONDEMNED, ExplainedOutcome.SPARED)


class ExitStatus(IntEnum):
    """The exit status of a command."""

    DONE = 0  # nothing to do, or all is done
    ATTENTION = 1  # something is left that needs a person
    ERROR = 2  # an error of usage, policy or connection
    HUNG_UP = 129  # SIGHUP, as shells report it
    INTERRUPTED = 130  # Ctrl-C
    TERMINATED = 143  # SIGTERM


def choose_status(target: TargetReport) -> ExitStatus:
    """Return the exit status for what a run left of a target."""
    if target.slots is None:
        return ExitStatus.ERROR
    is_checked = target.checked is not None and target.advice
    is_condemned = any(each.outcome in _CONDEMNED for each in target.explained or ())
    if target.issues or is_checked or is_condemned:
        return ExitStatus.ATTENTION
    return ExitStatus.DONE


def make_report(target: TargetReport, mode: Mode) -> Report:
    """Build the report of a run on one target."""
    return Report(run_id=str(uuid4()), mode=mode, targets=(target,))


def show_summary(report: Report, output: Console, wording: Wording = _WORDING) -> None:
    """Print the summary as the email has it, in narrower lines on a narrower terminal."""
    width = min(output.width, EMAIL_WIDTH)
    digest = digest_report(report, None, wording=wording)
    text = render_email(digest, _MOST_BYTES, width)
    # SQL and names must not be wrapped.
    output.out(text.rstrip(), highlight=False)


def show_report(report: Report, call: Invocation, wording: Wording) -> None:
    """Print a report for people, or for programs."""
    if call.as_json:
        print_json(to_return_value(report, wording), call.output)
    else:
        show_summary(report, call.output, wording)


def suggest_role(report: TargetReport, target: Target, say: Say) -> None:
    """Say what works for a role that cannot see the sessions of others."""
    if report.status is TargetStatus.BLIND:
        say(f"--role {target.role} works on the sessions of this role alone.")


def to_return_value(report: Report, wording: Wording = _WORDING) -> dict[str, Any]:
    """Return what the Lambda would return."""
    digest = digest_report(report, None, wording=wording)
    return to_document(report, verdict=str(digest.verdict), steps=digest.steps_as_text)


def print_json(document: object, output: Console) -> None:
    """Print a document as JSON."""
    output.out(json.dumps(document, indent=2, ensure_ascii=False), highlight=False)
