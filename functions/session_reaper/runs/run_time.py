"""Divides the time that Lambda gives a run."""

from collections.abc import Callable
from time import monotonic
from typing import Final, NamedTuple

from session_reaper.aws.dynamodb import STATE_SECONDS
from session_reaper.aws.sns import PUBLISH_SECONDS
from session_reaper.deadline import Deadline

_POLICY_SECONDS: Final = 10.0
_MARGIN_SECONDS: Final = 0.5
_OUTCOMES_SECONDS: Final = 0.25
# Shares of the whole time; the shorter of seconds and share applies.
_POLICY_SHARE: Final = 0.3
_NOTIFY_SHARE: Final = 0.3
_OUTCOMES_SHARE: Final = 0.1
_MARGIN_SHARE: Final = 1 / 12


class RunTime(NamedTuple):
    """The deadlines of a run.

    `policy` is for loading the policy, `targets` for the work on the targets, `outcomes` for
    logging the outcomes of signalled sessions before the summary, and `end` for everything; Lambda
    ends the run a little later.
    """

    policy: Deadline
    targets: Deadline
    outcomes: Deadline
    end: Deadline


def share_time(seconds: float, clock: Callable[[], float] = monotonic) -> RunTime:
    """Divide the seconds that Lambda gives a run."""
    outcomes_seconds = min(_OUTCOMES_SECONDS, _OUTCOMES_SHARE * seconds)
    notify_seconds = min(
        STATE_SECONDS + PUBLISH_SECONDS, _NOTIFY_SHARE * seconds + outcomes_seconds
    )
    return RunTime(
        policy=Deadline(min(_POLICY_SECONDS, _POLICY_SHARE * seconds), clock),
        targets=Deadline(seconds - notify_seconds, clock),
        # A job may record its result for as long again after its deadline.
        outcomes=Deadline(seconds - notify_seconds + 2 * outcomes_seconds, clock),
        end=Deadline(seconds - min(_MARGIN_SECONDS, _MARGIN_SHARE * seconds), clock),
    )
