"""The terminations that a run may still do on all its targets together."""

from collections.abc import Callable
from threading import Semaphore

from session_reaper.decision.model import Decision
from session_reaper.policy.model import Policy

Quota = Callable[[Decision], str | None]
"""Returns why a condemned session is spared, None if the run may terminate it."""


def allow_all(_: Decision) -> str | None:
    """Spare no session."""
    return None


def make_quota(policy: Policy) -> Quota:
    """Make the quota of one run from `limits.max_per_run`; safe to use from several threads."""
    most = policy.limits.max_per_run
    if most is None:
        return allow_all
    left = Semaphore(most)
    reason = f"limits.max_per_run of {most} was reached"

    def limit(decision: Decision) -> str | None:
        if decision.session.signalable and not left.acquire(blocking=False):
            return reason
        return None

    return limit
