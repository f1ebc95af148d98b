"""Connects to a target: retries while it is full, rereads its secret, uses the fallback secret."""

import random
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from session_reaper.aws.rds import with_iam_token
from session_reaper.deadline import Deadline
from session_reaper.errors import DeadlineError, FullError, TargetError
from session_reaper.policy.model import Policy
from session_reaper.postgres.server import Server
from session_reaper.report.emergency import instruct_on_full_server
from session_reaper.runs.discovery import TargetDiscovery
from session_reaper.targets.providers import Provider, find_provider
from session_reaper.targets.target import Auth, Target

FULL_SECONDS: Final = 8.0  # for retries on a full server, at most
_FULL_SHARE: Final = 0.25  # of the time left, at most
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.02, 0.5  # seconds between two attempts
_LEAVING_SECONDS: Final = 1.0  # for retries after another visit has left its slot, at least
_OTHERS_SHARE: Final = 0.75  # of the time left, to wait for other visits, at most
_FIRST_FALLBACK: Final = 2  # the first attempt after which the fallback secret is also tried

_IAM_HINT: Final = (
    "The password was an IAM token (the secret has auth iam, or no password). A token requires"
    " GRANT rds_iam TO the role, rds-db:connect for the function's role, and the endpoint itself as"
    " host. "
)


def connect_to_target(  # noqa: PLR0913 -- the target, and all that the retries depend on
    target: Target,
    discovery: TargetDiscovery,
    deadline: Deadline,
    policy: Policy,
    *,
    may_wait: bool = True,
    when_full: Callable[[], None] = lambda: None,
    may_get_slot: Callable[[], bool] = lambda: False,
) -> tuple[Server, Target]:
    """Connect; return the server, and the target with the password and the role that were used.

    `policy`: what the instructions for a full server must spare. `may_wait`: retry for some seconds
    while the server is full, and call `when_full` before. `may_get_slot`: whether another
    connection of the run may be to this server, so that its slot is worth waiting for. Raises
    TargetError; FullError, with what to do now, if none of the roles gets a slot.
    """
    retries = deadline.capped_at_share(_FULL_SHARE, FULL_SECONDS if may_wait else 0)
    others = deadline.capped_at_share(_OTHERS_SHARE)
    waiting = others.capped_at(0)
    pause = _SHORTEST_PAUSE
    fallback: Target | None = None
    refusal = ""
    attempt = 0
    while True:
        attempt += 1
        is_slot_expected = may_get_slot()
        try:
            return _connect_or_reread(target, discovery, deadline)
        except FullError as error:
            full = error
        when_full()
        may_fall_back = full.limit or attempt >= _FIRST_FALLBACK or not may_wait
        if target.fallback_secret and may_fall_back and not refusal:
            try:
                fallback = fallback or discovery.resolve_fallback(target, deadline)
                return Server.connect(with_iam_token(fallback), deadline), fallback
            except FullError:
                pass
            except TargetError as error:
                refusal = f" (fallback_secret {target.fallback_secret}: {error.message})"
        if is_slot_expected:
            waiting = others.capped_at(_LEAVING_SECONDS)
        may_retry = not full.limit and retries.remaining() >= pause
        if not may_retry and waiting.remaining() < pause:
            hint = full.hint
            if full.limit is None:
                hint = instruct_on_full_server(target.host, target.role, policy)
            cause = full.cause + refusal
            raise FullError(full.code, cause, hint, limit=full.limit, step=full.step)
        # Other clients that were refused also retry; the jitter avoids retrying at the same
        # moments.
        time.sleep(random.uniform(pause / 2, pause))  # noqa: S311 -- not cryptographic
        pause = min(2 * pause, _LONGEST_PAUSE)


def _connect_or_reread(
    target: Target, discovery: TargetDiscovery, deadline: Deadline
) -> tuple[Server, Target]:
    """Connect; if that fails, reread the secret and try once more if it has changed."""
    try:
        return Server.connect(with_iam_token(target), deadline), target
    except (FullError, DeadlineError):
        raise
    except TargetError as error:
        # At the deadline all hanging targets fail at once, and rereading would delay the summary.
        if not deadline.remaining():
            raise
        if target.auth is Auth.IAM:
            error = _explain_refused_token(target, error)
        current = target
        with suppress(TargetError):
            current = discovery.reread(target, deadline)
        if current == target:
            raise error from None
    return Server.connect(with_iam_token(current), deadline), current


def _explain_refused_token(target: Target, error: TargetError) -> TargetError:
    """Add to an error that the login used an IAM token."""
    is_rds = find_provider(target.host) in (Provider.RDS, Provider.AURORA)
    if target.is_auth_given or is_rds:
        return TargetError(error.code, error.cause, _IAM_HINT + error.hint, step=error.step)
    # Other servers do not accept tokens, so the password was probably forgotten.
    problem = "password is missing, and connecting with an IAM token in its place failed"
    message = f"secret {target.secret_arn}: {problem}: {error.message}"
    return TargetError("secret", message, "Add password, or write auth iam.")
