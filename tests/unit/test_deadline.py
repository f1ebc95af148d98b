from __future__ import annotations

from threading import Lock

import pytest
from session_reaper.deadline import Deadline
from session_reaper.errors import DeadlineError


class Clock:
    """Stands in for time.monotonic; a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_counts_down_to_zero_and_stays_there(clock: Clock) -> None:
    deadline = Deadline(10, clock)
    assert deadline.remaining() == 10
    clock.now += 4
    assert deadline.remaining() == 6
    clock.now += 100
    assert deadline.remaining() == 0


def test_after_the_deadline_a_step_raises(clock: Clock) -> None:
    deadline = Deadline(10, clock)
    clock.now += 9
    deadline.check()
    clock.now += 1
    with pytest.raises(DeadlineError):
        deadline.check()


@pytest.mark.parametrize(("asked", "given"), [(3, 3), (10, 10), (99, 10)])
def test_a_capped_deadline_never_ends_after_the_original(
    clock: Clock, asked: float, given: float
) -> None:
    whole = Deadline(10, clock)
    part = whole.capped_at(asked)
    assert part.remaining() == given
    clock.now += 11
    assert part.remaining() == 0


def test_a_deadline_in_the_past_has_no_time_left(clock: Clock) -> None:
    assert Deadline(-1, clock).remaining() == 0
    assert Deadline(-1, clock).capped_at(5).remaining() == 0
    assert clock.now == 1000


def test_an_extended_deadline_adds_to_the_remaining_time(clock: Clock) -> None:
    deadline = Deadline(1, clock)
    clock.now += 5
    assert deadline.extended_by(2).remaining() == 2
    assert Deadline(1, clock).extended_by(2).remaining() == 3


@pytest.mark.parametrize(("at_most", "given"), [(1.5, 1.5), (99, 2.5)])
def test_a_share_is_of_the_time_that_is_left(clock: Clock, at_most: float, given: float) -> None:
    whole = Deadline(20, clock)
    clock.now += 10
    assert whole.capped_at_share(0.25, at_most).remaining() == given
    clock.now += 11
    assert whole.capped_at_share(0.25).remaining() == 0


def test_a_lock_is_held_for_the_block_or_not_at_all() -> None:
    lock = Lock()
    with Deadline(10).hold(lock):
        assert lock.locked()
        with pytest.raises(DeadlineError), Deadline(0).hold(lock):
            pytest.fail("the lock was held twice")
        assert lock.locked()
    assert not lock.locked()
