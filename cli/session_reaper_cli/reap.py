"""The command `reap`: observes, or shows the victims, asks, and terminates them."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import Final

from rich.console import Console
from rich.padding import Padding
from rich.text import Text
from session_reaper.deadline import Deadline
from session_reaper.decision.model import Decision, Verdict
from session_reaper.errors import ConfigurationError, ConnectionLostError
from session_reaper.policy.enums import Mode
from session_reaper.policy.protections import ProtectedBy
from session_reaper.postgres.server import Server
from session_reaper.report.headline import count_of
from session_reaper.report.model import Outcome, SessionResult
from session_reaper.runs.operations import reap
from session_reaper.runs.quota import Quota, allow_all, make_quota
from session_reaper.runs.request import choose_lowest_mode
from session_reaper.sessions.session import Identity
from session_reaper.sessions.snapshot import NO_SESSIONS
from session_reaper.summary.groups import group_sessions
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
    suggest_role,
    to_return_value,
)
from session_reaper_cli.stopping import Interrupts, count_interrupts
from session_reaper_cli.terminal import ask, is_interactive
from session_reaper_cli.wording import make_wording

_PROBE_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReapOptions:
    """The options of `reap`. `role`: work on the sessions of this role only; "" means all."""

    target: Target
    login: LoginOptions
    role: str
    enforce: bool
    unasked: bool
    as_json: bool


def run_reap(options: ReapOptions, output: Console, messages: Console, say: Say) -> ExitStatus:
    """Reap one server. Raises ConfigurationError, TargetError."""
    mode = Mode.ENFORCE if options.enforce else Mode.OBSERVE
    mode = choose_lowest_mode(mode, options.login.policy.mode)
    if mode is Mode.OFF:
        raise ConfigurationError("policy: mode", "is off; write observe or enforce")
    if mode is Mode.ENFORCE and not options.unasked and not is_interactive():
        problem = "it asks before it terminates, which needs a terminal; write --yes in scripts"
        raise ConfigurationError("--enforce", problem)
    with ExitStack() as stack:
        server, target = log_in(options.target, options.login, say)
        stack.enter_context(closing(server))
        job = _Job(options=options, target=target, say=say)
        if mode is not Mode.ENFORCE or options.unasked:
            with count_interrupts() as interrupts, closing(server):
                done = job.reap(server, mode, allow_all, interrupts)
                return _finish(done, mode, options, output, say)
        with count_interrupts() as interrupts:
            shown = job.reap(server, Mode.OBSERVE, allow_all, interrupts)
        victims = [result for result in shown.report.results if _is_victim(result)]
        if shown.stopped_by is not None or shown.report.error is not None or not victims:
            return _finish(shown, mode, options, output, say)
        _show_victims(victims, messages)
        if not ask(f"Terminate {count_of(len(victims), 'session')}?"):
            say("Nothing was signalled.")
            return ExitStatus.ATTENTION
        server = _replace_if_lost(server, target, options.login, say)
        identities = {each.decision.pid: each.decision.session.identity for each in victims}
        # The server is closed before an interrupt is heeded: it would say that nothing was signalled.
        with count_interrupts() as interrupts, closing(server):
            done = job.reap(server, mode, _limit_to(identities), interrupts)
            missing = identities.keys() - {each.decision.pid for each in done.report.results}
            if missing:
                number = count_of(len(missing), "session")
                say(f"{number} of those shown changed or ended: left alone.")
            return _finish(done, mode, options, output, say)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """The values that stay the same while the command runs."""

    options: ReapOptions
    target: Target
    say: Say

    def reap(self, server: Server, mode: Mode, quota: Quota, interrupts: Interrupts) -> LocalRun:
        """Reap the server once."""
        policy = self.options.login.policy
        opened = OpenTarget(
            server=server,
            target=self.target,
            policy=policy,
            mode=mode,
            quota=partial(_find_limit, (make_quota(policy), quota)),
            may_be_partial=self.options.role == self.target.role,
        )
        return run_operation(reap, opened, interrupts, self.say)


def _find_limit(limits: Sequence[Quota], decision: Decision) -> str | None:
    """Return the reason of the last limit that holds a session back; only then the first counts it."""
    for limit in reversed(limits):
        reason = limit(decision)
        if reason is not None:
            return reason
    return None


def _is_own(decision: Decision) -> bool:
    protection = decision.protection
    return protection is not None and protection.kind is ProtectedBy.OWN_ROLE


def _is_victim(result: SessionResult) -> bool:
    is_condemned = result.decision.verdict is Verdict.CONDEMN
    return is_condemned and result.outcome is Outcome.WOULD_TERMINATE


def _show_victims(victims: Sequence[SessionResult], messages: Console) -> None:
    """Show every session that would be terminated, by group."""
    for group in group_sessions(victims):
        head = f"{count_of(group.count, 'session')}: {group.application} (role {group.role})"
        messages.print(Text(f"{head}, oldest {group.age}"))
        messages.print(_indent(f"{group.rule}: {group.reason}"))
        pids = ", ".join(str(pid) for pid in sorted(group.pids))
        messages.print(_indent(f"pid {pids}"))


def _indent(text: str) -> Padding:
    return Padding(Text(text), (0, 0, 0, 2), expand=False)


def _limit_to(shown: Mapping[int, Identity]) -> Quota:
    """Spare every session other than those that the user has seen, as they were."""

    def limit(decision: Decision) -> str | None:
        if shown.get(decision.pid) == decision.session.identity:
            return None
        return "not as it was shown before the question; run the command again"

    return limit


def _replace_if_lost(server: Server, target: Target, options: LoginOptions, say: Say) -> Server:
    """Return the server, or a new connection if this one was lost while the user thought."""
    try:
        server.take_snapshot(NO_SESSIONS, Deadline(_PROBE_SECONDS))
    except ConnectionLostError:
        server.close()
        return log_in(target, options, say)[0]
    return server


def _finish(
    run: LocalRun, mode: Mode, options: ReapOptions, output: Console, say: Say
) -> ExitStatus:
    report = make_report(run.report, mode)
    wording = make_wording(options.login.policy.mode, enforces=options.enforce)
    if options.as_json:
        print_json(to_return_value(report, wording), output)
    else:
        show_summary(report, output, wording)
    role = options.target.role
    suggest_role(run.report, options.target, say)
    own = sum(_is_own(decision) for decision in run.report.protected)
    if own:
        say(
            f"{count_of(own, 'session')} that a rule matches: protected, because {role} is the role"
            f" of this command. --role {role} works on them."
        )
    return run.status
