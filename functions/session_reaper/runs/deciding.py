"""Decides on the sessions of one target in a part of its time."""

from collections.abc import Sequence
from typing import Final

from session_reaper.deadline import Deadline
from session_reaper.decision.decide import decide
from session_reaper.decision.model import Decisions
from session_reaper.errors import DeadlineError, TargetError
from session_reaper.policy.model import Policy
from session_reaper.sessions.session import Session
from session_reaper.sessions.snapshot import Snapshot

_DECIDING_SHARE: Final = 0.5  # of the time left; the rest is for signals, also of other targets
_HINT: Final = (
    "Give the rules with query or waiting_for_client further conditions, such as role or a longer"
    " time, so that the reaper reads fewer queries. Or raise the function's timeout."
)


def decide_in_time(
    snapshot: Snapshot,
    policy: Policy,
    deadline: Deadline,
    *,
    only: Sequence[Session] | None = None,
    freed: int = 0,
) -> Decisions:
    """Decide on the sessions of a snapshot within a share of the time left.

    `only`: some of the sessions. `freed`: as for `decide`. Raises TargetError if it takes longer.

    All targets decide at the same time and share one interpreter, so many sessions of other targets
    delay this one too.
    """
    within = deadline.capped_at_share(_DECIDING_SHARE)
    sessions = snapshot.sessions if only is None else only
    try:
        return decide(
            sessions,
            snapshot.slots,
            policy,
            freed=freed,
            among=snapshot.sessions,
            check_time=within.check,
        )
    except DeadlineError:
        cause = f"deciding on {len(sessions):,} sessions took longer than the run has time for"
        raise TargetError("deadline", cause, _HINT) from None
