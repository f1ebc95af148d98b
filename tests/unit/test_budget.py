"""One budget of memory for the answers of all servers."""

from __future__ import annotations

from threading import Thread

import pytest
from session_reaper.deadline import Deadline
from session_reaper.postgres.budget import MemoryBudget, MemoryClaim, NoMemoryLeftError


def test_a_claim_is_given_back_once() -> None:
    budget = MemoryBudget(100)
    claim = budget.claim(40, Deadline(1))
    assert budget.available == 60
    claim.release()
    claim.release()
    assert budget.available == 100


def test_a_claim_is_given_back_with_the_last_reference_to_it() -> None:
    budget = MemoryBudget(100)
    claim = budget.claim(40, Deadline(1))
    holders = [claim, claim]
    del claim
    holders.pop()
    assert budget.available == 60
    holders.clear()
    assert budget.available == 100


def test_a_claim_takes_no_more_than_half_of_what_is_available() -> None:
    budget = MemoryBudget(100)
    large = budget.claim(50, Deadline(1))
    with pytest.raises(NoMemoryLeftError):
        budget.claim(26, Deadline(0))
    small = budget.claim(25, Deadline(0))
    assert budget.available == 25
    del large, small


def test_a_claim_waits_until_another_is_released() -> None:
    budget = MemoryBudget(100)
    first = budget.claim(50, Deadline(1))
    found: list[MemoryClaim] = []
    thread = Thread(target=lambda: found.append(budget.claim(50, Deadline(10))))
    thread.start()
    thread.join(0.05)
    assert not found
    assert budget.available == 50  # a claim that waits holds nothing
    first.release()
    thread.join()
    assert len(found) == 1
    assert budget.available == 50


def test_a_claim_grows_only_into_what_is_available() -> None:
    budget = MemoryBudget(100)
    claim = budget.claim(10, Deadline(1))
    claim.resize(100)
    assert budget.available == 0
    with pytest.raises(NoMemoryLeftError):
        claim.resize(101)
    claim.resize(30)
    assert budget.available == 70
    claim.release()
    assert budget.available == 100


def test_large_answers_are_decoded_one_at_a_time_and_small_ones_at_once() -> None:
    budget = MemoryBudget(100)
    with budget.turn(1_000_000, Deadline(1)):
        with budget.turn(1_000, Deadline(0)):
            pass
        with pytest.raises(NoMemoryLeftError), budget.turn(1_000_000, Deadline(0)):
            pass
    with budget.turn(1_000_000, Deadline(0)):
        pass
