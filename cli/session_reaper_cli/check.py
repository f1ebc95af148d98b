"""The commands `check` and `record`."""

from contextlib import closing
from dataclasses import replace
from typing import Final

from rich.console import Console
from session_reaper.policy.enums import Mode
from session_reaper.report.document import to_recordings
from session_reaper.runs.operations import Operation, check, record
from session_reaper.targets.target import Target

from session_reaper_cli.connections.login import LoginOptions, Say, log_in
from session_reaper_cli.local_run import (
    LocalRun,
    OpenTarget,
    run_operation,
)
from session_reaper_cli.results import (
    ExitStatus,
    make_report,
    print_json,
    show_summary,
    to_return_value,
)
from session_reaper_cli.stopping import count_interrupts
from session_reaper_cli.wording import make_wording

# A check applies no policy.
_WORDING: Final = replace(
    make_wording(), add_rule="`session-reaper reap` shows which of them the policy would terminate."
)


def run_check(
    target: Target, options: LoginOptions, output: Console, say: Say, *, as_json: bool
) -> ExitStatus:
    """Show what the Lambda's check says of the server. Raises TargetError."""
    run = _run(check, target, options, say)
    report = make_report(run.report, Mode.OBSERVE)
    if as_json:
        print_json(to_return_value(report, _WORDING), output)
    else:
        show_summary(report, output, _WORDING)
    return run.status


def run_record(target: Target, options: LoginOptions, output: Console, say: Say) -> ExitStatus:
    """Print a recording of the server, which `replay` reads. Raises TargetError."""
    run = _run(record, target, options, say)
    report = make_report(run.report, Mode.OBSERVE)
    if run.report.recorded is None:
        show_summary(report, output)
        return run.status if run.stopped_by else ExitStatus.ERROR
    print_json({**to_return_value(report), "snapshots": to_recordings(report)}, output)
    return ExitStatus.DONE


def _run(operation: Operation, target: Target, options: LoginOptions, say: Say) -> LocalRun:
    server, target = log_in(target, options, say)
    with closing(server):
        opened = OpenTarget(server=server, target=target, policy=options.policy)
        with count_interrupts() as interrupts:
            return run_operation(operation, opened, interrupts, say)
