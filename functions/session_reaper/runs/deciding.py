"""Decides on the sessions of one target in a part of its time."""

from collections.abc import Sequence
from typing import Final

from session_reaper.deadline import Deadline
from session_reaper.decision.decide import decide
from session_reaper.decision.model import Decisions
from session_reaper.errors import DeadlineError, TargetError
from session_reaper.policy.model import Policy
from session_reaper.sessions.session import Session, Slots

_DECIDING_SHARE: Final = 0.5  # of the time left; the rest is for signals, also of other targets
_HINT: Final = (
    "Give the rules with query or waiting_for_client further conditions, such as role or a longer"
    " time, so that the reaper reads fewer queries. Or raise the function's timeout."
)


def decide_in_time(  # noqa: PLR0913 -- what `decide` takes, and a deadline
    sessions: Sequence[Session],
    slots: Slots,
    policy: Policy,
    deadline: Deadline,
    *,
    freed: int = 0,
    among: Sequence[Session] | None = None,
) -> Decisions:
    """Decide on every session within a share of the time left. Raises TargetError if it takes longer.

    The arguments are those of `decide`.

    All targets decide at the same time and share one interpreter, so many sessions of other targets
    delay this one too.
    """
    within = deadline.capped_at(_DECIDING_SHARE * deadline.remaining())
    try:
        return decide(sessions, slots, policy, freed=freed, among=among, check_time=within.check)
    except DeadlineError:
        cause = f"deciding on {len(sessions):,} sessions took longer than the run has time for"
        raise TargetError("deadline", cause, _HINT) from None
