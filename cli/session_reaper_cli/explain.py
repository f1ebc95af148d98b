"""The command `explain`: the decision on every session."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Final

from rich.padding import Padding
from rich.text import Text
from session_reaper.decision.explain import ExplainedOutcome, Explanation
from session_reaper.policy.durations import format_duration
from session_reaper.policy.enums import Mode
from session_reaper.policy.patterns import is_literal
from session_reaper.report.model import TargetReport
from session_reaper.report.text import printable
from session_reaper.runs.operations import explain_target
from session_reaper.summary.groups import mask_client

from session_reaper_cli.connections.login import Invocation, log_in
from session_reaper_cli.local_run import OpenTarget, run_operation
from session_reaper_cli.policies import restrict_to_role
from session_reaper_cli.results import (
    ExitStatus,
    make_report,
    print_json,
    suggest_role,
    to_return_value,
)

_STYLES: Final = {
    ExplainedOutcome.CONDEMNED: "red",
    ExplainedOutcome.SPARED: "yellow",
    ExplainedOutcome.KEPT: "green",
    ExplainedOutcome.PROTECTED: "cyan",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Globs over the sessions to show."""

    application: str
    role: str
    state: str

    def match(self, explanation: Explanation) -> bool:
        """Return whether to show a session."""
        session = explanation.decision.session
        return (
            fnmatchcase(session.application, self.application)
            and fnmatchcase(session.role or "", self.role)
            and fnmatchcase(session.state, self.state)
        )


def run_explain(call: Invocation, filters: Filters) -> ExitStatus:
    """Show the decision on every session. Raises TargetError."""
    server, call = log_in(call)
    if is_literal(filters.role):
        call = replace(call, policy=restrict_to_role(call.policy, filters.role))
    is_own = filters.role == call.target.role
    with closing(server):
        opened = OpenTarget(server=server, call=call, may_be_partial=is_own)
        run = run_operation(explain_target, opened)
    found = run.report.explained
    shown = None if found is None else tuple(filter(filters.match, found))
    report = replace(run.report, explained=shown)
    if call.as_json:
        print_json(to_return_value(make_report(report, Mode.OBSERVE)), call.output)
    else:
        for line in _describe(report):
            call.output.print(line)
        if report.explained == ():
            call.say("No session matches." if found else "No session to explain.")
    suggest_role(report, call.target, call.say)
    return replace(run, report=report).status


def _describe(report: TargetReport) -> Iterator[Text | Padding]:
    if report.error is not None:
        yield Text(f"Error: {report.error.message}. {report.error.hint}")
    for sentence in report.pressure:
        yield Text(sentence)
    for each in report.explained or ():
        yield from _describe_session(each)


def _describe_session(explanation: Explanation) -> Iterator[Text | Padding]:
    session = explanation.decision.session
    application = printable(session.application, 63) or "(no name)"
    yield Text.assemble(
        (f"{explanation.outcome}", _STYLES.get(explanation.outcome, "")),
        f"  pid {session.identity.pid}  {application}@{mask_client(session.client)}"
        f" (role {printable(session.role_label, 63)}), {session.state} for"
        f" {format_duration(session.idle_seconds)}",
    )
    rule = f"{explanation.rule.name}: " if explanation.rule else ""
    yield Padding(Text(f"{rule}{printable(explanation.reason, 600)}"), (0, 0, 0, 4), expand=False)
