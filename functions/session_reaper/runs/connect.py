"""The way in: to a server that is full, after a rotation, by the fallback secret."""

import random
import time
from itertools import count
from typing import Final

from session_reaper.deadline import Deadline
from session_reaper.errors import DeadlineError, FullError, TargetError
from session_reaper.postgres.server import Server
from session_reaper.runs.discovery import TargetDiscovery
from session_reaper.targets.providers import Provider, provider_of, reserved_slot_instructions
from session_reaper.targets.target import Auth, Target

FULL_SECONDS: Final = 8.0  # how long a full server is asked again, at most
_FULL_SHARE: Final = 0.25  # of the time that is left: the rest is for what is to be done inside
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.02, 0.5  # seconds between two tries
_ALONE: Final = 2  # tries before the fallback secret's role takes part

_IAM_HINT: Final = (
    "An IAM token stood in for the password (the secret says auth iam, or has no password). It takes"
    " GRANT rds_iam TO the role, rds-db:connect for the function's role, and as host the endpoint"
    " itself. "
)


def connect_to_target(
    target: Target, directory: TargetDiscovery, deadline: Deadline
) -> tuple[Server, Target]:
    """Sign in; also the target as it was signed in to: by a new password, or by the fallback's role.

    Raises TargetError; FullError, with what to do now, if there is no slot for any role of ours.
    """
    patience = deadline.capped_at(min(FULL_SECONDS, _FULL_SHARE * deadline.remaining()))
    pause = _SHORTEST_PAUSE
    fallback: Target | None = None
    refused = ""
    for tries in count(1):
        try:
            return _connect_or_reread(target, directory, deadline)
        except FullError as error:
            full = error
        if target.fallback_secret and not refused and (tries >= _ALONE or full.limit):
            try:
                fallback = fallback or directory.fallback(target, deadline)
                return Server.connect(directory.with_iam_token(fallback), deadline), fallback
            except FullError:
                pass
            except TargetError as error:
                refused = f" (fallback_secret {target.fallback_secret}: {error.message})"
        if full.limit or patience.remaining() < pause:
            hint = full.hint if full.limit else reserved_slot_instructions(target.host, target.role)
            cause = full.cause + refused
            raise FullError(full.code, cause, hint, limit=full.limit, step=full.step)
        # Those that the server has refused try again, too, and not all at the same moment.
        time.sleep(random.uniform(pause / 2, pause))  # noqa: S311 -- nothing secret
        pause = min(2 * pause, _LONGEST_PAUSE)
    raise AssertionError  # count() does not end


def _connect_or_reread(
    target: Target, directory: TargetDiscovery, deadline: Deadline
) -> tuple[Server, Target]:
    """Signed in; if that fails, by what the secret says now, should it be something else."""
    try:
        return Server.connect(directory.with_iam_token(target), deadline), target
    except (FullError, DeadlineError):
        raise
    except TargetError as error:
        if not deadline.remaining():  # all that hang end here at once: now the summary is to go out
            raise
        if target.auth is Auth.IAM:
            error = _explain_token_refused(target, error)
        try:
            now = directory.again(target, deadline)
        except TargetError:
            raise error from None
        if now == target:
            raise error from None
    return Server.connect(directory.with_iam_token(now), deadline), now


def _explain_token_refused(target: Target, error: TargetError) -> TargetError:
    """What is to be said if a token did not get in."""
    rds = provider_of(target.host) in (Provider.RDS, Provider.AURORA)
    if target.auth_given or rds:
        return TargetError(error.code, error.cause, _IAM_HINT + error.hint, step=error.step)
    # Only RDS knows what to do with a token: it is more likely that the password was forgotten.
    problem = "password is missing, and an IAM token in its place did not get in"
    message = f"secret {target.secret_arn}: {problem}: {error.message}"
    return TargetError("secret", message, "Add password, or write auth iam.")
