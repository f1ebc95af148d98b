"""The command `reap`: observes, or shows the condemned sessions, asks, and terminates them."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Final

from rich.padding import Padding
from rich.text import Text
from session_reaper.deadline import Deadline
from session_reaper.decision.model import Decision, Verdict
from session_reaper.errors import ConfigurationError, ConnectionLostError
from session_reaper.policy.enums import Mode
from session_reaper.policy.protections import ProtectedBy
from session_reaper.report.headline import count_of
from session_reaper.report.model import Outcome, SessionResult
from session_reaper.runs.operations import reap
from session_reaper.runs.quota import Quota, make_quota
from session_reaper.runs.request import choose_lowest_mode
from session_reaper.sessions.session import Identity
from session_reaper.sessions.snapshot import NO_SESSIONS
from session_reaper.summary.groups import group_sessions

from session_reaper_cli.connections.login import Invocation, log_in
from session_reaper_cli.local_run import LocalRun, OpenTarget, run_operation
from session_reaper_cli.results import ExitStatus, make_report, show_report, suggest_role
from session_reaper_cli.stopping import count_interrupts
from session_reaper_cli.terminal import ask, is_interactive, make_console
from session_reaper_cli.wording import make_wording

_PROBE_SECONDS: Final = 5.0


def run_reap(call: Invocation, *, role: str, enforce: bool, unasked: bool) -> ExitStatus:
    """Reap one server. `role`: work on the sessions of this role only; "" means all.

    Raises ConfigurationError, TargetError.
    """
    mode = Mode.ENFORCE if enforce else Mode.OBSERVE
    mode = choose_lowest_mode(mode, call.policy.mode)
    if mode is Mode.OFF:
        raise ConfigurationError("policy: mode", "is off; write observe or enforce")
    if mode is Mode.ENFORCE and not unasked and not is_interactive():
        problem = "it asks before it terminates, which needs a terminal; write --yes in scripts"
        raise ConfigurationError("--enforce", problem)
    finish = partial(_finish, mode=mode, call=call, enforces=enforce)
    server, connected = log_in(call)
    with closing(server):
        is_own = role == connected.target.role
        quota = make_quota(call.policy)
        opened = OpenTarget(server=server, call=connected, quota=quota, may_be_partial=is_own)
        shown: Mapping[int, Identity] = {}
        if mode is not Mode.ENFORCE or not unasked:
            observed = run_operation(reap, opened)
            condemned = [result for result in observed.report.results if _would_terminate(result)]
            if mode is not Mode.ENFORCE or observed.report.error is not None or not condemned:
                return finish(observed)
            _show_condemned(condemned)
            if not ask(f"Terminate {count_of(len(condemned), 'session')}?"):
                call.say("Nothing was signalled.")
                return ExitStatus.ATTENTION
            opened = _replace_if_lost(opened)
            shown = {each.decision.pid: each.decision.session.identity for each in condemned}
            # The list has used up the first quota.
            quota = _limit_to(shown, make_quota(call.policy))
        opened = replace(opened, mode=mode, quota=quota)
        with count_interrupts() as interrupts, closing(opened.server):
            call.stop_remark.withdraw()
            done = run_operation(reap, opened, interrupts)
            missing = shown.keys() - {each.decision.pid for each in done.report.results}
            if missing:
                number = count_of(len(missing), "session")
                call.say(f"{number} of those shown have changed or ended, and were left alone.")
            return finish(done)


def _would_terminate(result: SessionResult) -> bool:
    is_condemned = result.decision.verdict is Verdict.CONDEMN
    return is_condemned and result.outcome is Outcome.WOULD_TERMINATE


def _show_condemned(condemned: Sequence[SessionResult]) -> None:
    """Show every session that would be terminated, by group."""
    messages = make_console(stderr=True)
    for group in group_sessions(condemned):
        head = f"{count_of(group.count, 'session')}: {group.application} (role {group.role})"
        messages.print(Text(f"{head}, oldest {group.age}"))
        messages.print(_indent(f"{group.rule}: {group.reason}"))
        pids = ", ".join(map(str, sorted(decision.pid for decision in group.decisions)))
        messages.print(_indent(f"pid {pids}"))


def _indent(text: str) -> Padding:
    return Padding(Text(text), (0, 0, 0, 2), expand=False)


def _limit_to(shown: Mapping[int, Identity], quota: Quota) -> Quota:
    """Spare every session that the user has not seen, or that has changed since then."""

    def limit(decision: Decision) -> str | None:
        if shown.get(decision.pid) == decision.session.identity:
            return quota(decision)
        return "not as it was shown before the question; run the command again"

    return limit


def _replace_if_lost(opened: OpenTarget) -> OpenTarget:
    """Connect again if the connection was lost while the user thought."""
    try:
        opened.server.take_snapshot(NO_SESSIONS, Deadline(_PROBE_SECONDS))
    except ConnectionLostError:
        opened.server.close()
        return replace(opened, server=log_in(opened.call)[0])
    return opened


def _finish(run: LocalRun, mode: Mode, call: Invocation, *, enforces: bool) -> ExitStatus:
    wording = make_wording(call.policy.mode, enforces=enforces)
    show_report(make_report(run.report, mode), call, wording)
    role = call.target.role
    suggest_role(run.report, call.target, call.say)
    protections = [decision.protection for decision in run.report.protected]
    own = sum(p is not None and p.kind is ProtectedBy.OWN_ROLE for p in protections)
    if own:
        call.say(
            f"{count_of(own, 'session')} that a rule matches: protected, because {role} is the role"
            f" of this command. --role {role} works on them."
        )
    return run.status
