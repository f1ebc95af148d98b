"""The commands `check` and `record`."""

from contextlib import closing
from typing import Final

from session_reaper.policy.enums import Mode
from session_reaper.report.document import to_recordings
from session_reaper.runs.operations import Operation, check, record

from session_reaper_cli.connections.login import Invocation, log_in
from session_reaper_cli.local_run import LocalRun, OpenTarget, run_operation
from session_reaper_cli.results import (
    ExitStatus,
    make_report,
    print_json,
    show_report,
    show_summary,
    to_return_value,
)
from session_reaper_cli.wording import make_wording

# A check applies no policy.
_WORDING: Final = make_wording()._replace(
    add_rule="`session-reaper reap` shows which of them the policy would terminate."
)


def run_check(call: Invocation) -> ExitStatus:
    """Show what the Lambda's check says of the server. Raises TargetError."""
    run = _run(check, call)
    show_report(make_report(run.report, Mode.OBSERVE), call, _WORDING)
    return run.status


def run_record(call: Invocation) -> ExitStatus:
    """Print a recording of the server, which `replay` reads. Raises TargetError."""
    run = _run(record, call)
    report = make_report(run.report, Mode.OBSERVE)
    if run.report.recorded is None:
        show_summary(report, call.output)
        return ExitStatus.ERROR
    print_json({**to_return_value(report), "snapshots": to_recordings(report)}, call.output)
    return ExitStatus.DONE


def _run(operation: Operation, call: Invocation) -> LocalRun:
    server, call = log_in(call)
    with closing(server):
        return run_operation(operation, OpenTarget(server=server, call=call))
