"""Connects to a server: asks for the password, and waits for a slot while the server is full."""

import getpass
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from rich.console import Console
from session_reaper.deadline import Deadline
from session_reaper.errors import ConfigurationError, FullError, PasswordNeededError, TargetError
from session_reaper.policy.durations import format_duration
from session_reaper.policy.model import Policy
from session_reaper.postgres.server import CONNECT_SECONDS, Server
from session_reaper.report.emergency import EMERGENCY_AGE_IN_WORDS, write_emergency_sql
from session_reaper.targets.providers import emergency_instructions
from session_reaper.targets.target import Auth, Target

from session_reaper_cli.policies import restrict_to_role
from session_reaper_cli.stopping import StopRemark
from session_reaper_cli.terminal import Say, is_interactive

_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.05, 0.5  # seconds between two attempts
_FIRST_FALLBACK: Final = 2  # the first attempt after which the fallback secret is also tried

_Connected = TypeVar("_Connected", bound=Server)


@dataclass(frozen=True, slots=True, kw_only=True)
class Invocation:
    """One invocation of a command that works on a server.

    `wait`: for how many seconds to wait for a slot. `policy`: what to do on a full server must
    spare what it protects. `output` is for results, `say` for everything else. `stop_remark`:
    withdrawn before the first change.
    """

    target: Target
    wait: float
    policy: Policy
    output: Console
    say: Say
    stop_remark: StopRemark
    as_json: bool = False


def log_in(call: Invocation) -> tuple[Server, Invocation]:
    """Connect, retrying while the server is full; ask for a missing password.

    The invocation's target then has the password and the role that were used. Raises
    ConfigurationError, and TargetError: FullError says what to do now.
    """
    return log_in_with(connect, call)


def log_in_with(
    connect: Callable[[Target], _Connected], call: Invocation
) -> tuple[_Connected, Invocation]:
    """Connect like `log_in`, with another function that connects once."""
    target = call.target
    try:
        return _wait_for_slot(connect, call)
    except PasswordNeededError:
        if not is_interactive():
            raise
    # It is read from the terminal itself, without echo, and never becomes an argument of a process.
    password = getpass.getpass(f"Password of {target.role} on {target.name}: ")
    return _wait_for_slot(connect, replace(call, target=replace(target, password=password)))


def _wait_for_slot(
    connect: Callable[[Target], _Connected], call: Invocation
) -> tuple[_Connected, Invocation]:
    target = call.target
    deadline, pause, attempt, refusal = Deadline(call.wait), _SHORTEST_PAUSE, 0, ""
    while True:
        attempt += 1
        try:
            return connect(target), call
        except FullError as error:
            full = error
        if target.fallback_secret and attempt >= _FIRST_FALLBACK and not refusal:
            try:
                fallback = _find_fallback(target)
                return connect(fallback), replace(call, target=fallback)
            except FullError:
                pass
            except (ConfigurationError, TargetError) as error:
                refusal = f" (fallback_secret {target.fallback_secret}: {error})"
        if deadline.remaining() < pause:
            hint = full.hint
            if full.limit is None:
                hint = _instruct(target, call.policy)
            cause = full.cause + refusal
            raise FullError(full.code, cause, hint, limit=full.limit, step=full.step)
        if attempt == 1:
            call.say(
                f"{target.name} has no free slot ({full.cause})."
                f" Trying again for {format_duration(call.wait)}; Ctrl-C stops."
            )
        # Other clients that were refused also retry; the jitter avoids retrying at the same
        # moments.
        time.sleep(random.uniform(pause / 2, pause))  # noqa: S311 -- not cryptographic
        pause = min(2 * pause, _LONGEST_PAUSE)


def connect(target: Target) -> Server:
    """Connect once. Raises TargetError."""
    return Server.connect(with_token(target), Deadline(CONNECT_SECONDS))


def with_token(target: Target) -> Target:
    """Return the target with an IAM token as its password, if it has to use one."""
    if target.auth is not Auth.IAM:
        return target
    from session_reaper.aws.rds import with_iam_token  # noqa: PLC0415 -- boto3 takes 150 ms

    return with_iam_token(target)


def _instruct(target: Target, policy: Policy) -> str:
    """Write what to do about a full server.

    Our own role is an application's as a rule, so the statement does not spare its sessions.
    """
    sql = write_emergency_sql(restrict_to_role(policy, target.role), target.role)
    now = emergency_instructions(target.host, str(sql))
    return f"{now} {_OTHERWISE}"


_OTHERWISE: Final = (
    f"If it ends no session, the leaks may be younger: lower the {EMERGENCY_AGE_IN_WORDS} in it. With that"
    " login, this command works too: `top` shows who holds the slots, `reap` how to free them. Without it, add --wait"
    " 10m and restart a part of the application: the command takes the first slot that becomes free."
)


def _find_fallback(target: Target) -> Target:
    from session_reaper_cli.connections.secret import find_fallback_target  # noqa: PLC0415 -- as above

    return find_fallback_target(target, Deadline(CONNECT_SECONDS))
