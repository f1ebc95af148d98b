"""The memory budget that the answers of all servers share."""

from __future__ import annotations

from threading import Thread

import pytest
from session_reaper.deadline import Deadline
from session_reaper.errors import DeadlineError
from session_reaper.postgres.budget import UNCLAIMED_BYTES, MemoryBudget, NoMemoryLeftError


def test_released_memory_is_available_again() -> None:
    budget = MemoryBudget(100)
    budget.claim(40, Deadline(1))
    assert budget.available == 60
    budget.release(40)
    assert budget.available == 100


def test_a_claim_takes_at_most_half_of_the_available_memory() -> None:
    budget = MemoryBudget(100)
    budget.claim(50, Deadline(1))
    with pytest.raises(NoMemoryLeftError):
        budget.claim(26, Deadline(0))
    budget.claim(25, Deadline(0))
    assert budget.available == 25


def test_a_claim_waits_until_another_is_released() -> None:
    budget = MemoryBudget(100)
    budget.claim(50, Deadline(1))
    thread = Thread(target=lambda: budget.claim(50, Deadline(10)))
    thread.start()
    thread.join(0.05)
    assert thread.is_alive()
    assert budget.available == 50  # the waiting claim has taken nothing yet
    budget.release(50)
    thread.join()
    assert budget.available == 50


def test_a_claim_grows_only_into_available_memory() -> None:
    budget = MemoryBudget(100)
    budget.claim(10, Deadline(1))
    budget.resize(10, 100)
    assert budget.available == 0
    with pytest.raises(NoMemoryLeftError):
        budget.resize(100, 101)
    budget.resize(100, 30)
    assert budget.available == 70


SMALL, LARGE = 5_000, UNCLAIMED_BYTES + 1


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_answers_are_decoded_one_at_a_time(size: int) -> None:
    budget = MemoryBudget(100)
    with (
        budget.decode_in_turn(size, Deadline(1)),
        pytest.raises(DeadlineError),
        budget.decode_in_turn(size, Deadline(0)),
    ):
        pass
    with budget.decode_in_turn(size, Deadline(0)):
        pass


def test_a_small_answer_does_not_wait_for_a_large_one_nor_a_tiny_one_for_any() -> None:
    budget = MemoryBudget(100)
    with (
        budget.decode_in_turn(LARGE, Deadline(1)),
        budget.decode_in_turn(SMALL, Deadline(0)),
        budget.decode_in_turn(1_000, Deadline(0)),
    ):
        pass
