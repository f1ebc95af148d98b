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
from session_reaper.summary.digest import Digest, digest_report
from session_reaper.summary.email import render_email
from session_reaper.targets.target import Target

from session_reaper_cli.connections.login import Say

_MOST_BYTES: Final = 1_000_000  # of a summary
_CONDEMNED: Final = (ExplainedOutcome.CONDEMNED, ExplainedOutcome.SPARED)


class ExitStatus(IntEnum):
    """The exit status of a command."""

    DONE = 0  # nothing to do, or all is done
    ATTENTION = 1  # something is left that needs a person
    ERROR = 2  # an error of usage, policy or connection
    INTERRUPTED = 130  # Ctrl-C, as shells report it


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


def show_summary(report: Report, output: Console) -> None:
    """Print the summary as the email has it."""
    # Its lines are at most 72 columns wide, and SQL or names must not be wrapped.
    output.out(render_email(_digest(report), _MOST_BYTES).rstrip(), highlight=False)


def suggest_role(report: TargetReport, target: Target, say: Say) -> None:
    """Say what works for a role that cannot see the sessions of others."""
    if report.status is TargetStatus.BLIND:
        say(f"--role {target.role} works on the sessions of this role alone.")


def to_return_value(report: Report) -> dict[str, Any]:
    """Return what the Lambda would return."""
    digest = _digest(report)
    return to_document(report, verdict=str(digest.verdict), steps=digest.steps_as_text)


def print_json(document: object, output: Console) -> None:
    """Print a document as JSON."""
    output.out(json.dumps(document, indent=2, ensure_ascii=False), highlight=False)


def _digest(report: Report) -> Digest:
    return digest_report(report, None)
