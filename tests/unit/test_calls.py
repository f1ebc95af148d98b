"""A call to AWS ends by its deadline, whatever the service does."""

from __future__ import annotations

import threading
from functools import partial
from itertools import cycle, repeat
from threading import Event
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from session_reaper.aws.clients import MAX_PAGES, PendingCall, call, iterate_pages
from session_reaper.deadline import Deadline
from session_reaper.errors import NoAnswerError, NoThreadError
from session_reaper.runs.run_time import share_time

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


@pytest.fixture
def service() -> str:
    """A service name of this test only: each service has its own threads."""
    return uuid4().hex


@pytest.fixture
def over() -> Iterator[Event]:
    """An event that is set when the test ends, so that no thread is left."""
    event = Event()
    yield event
    event.set()


def test_a_call_returns_what_the_operation_returns(service: str) -> None:
    assert call(service, lambda: 7, Deadline(60)) == 7


@pytest.mark.parametrize("error", [TimeoutError("its own"), RuntimeError("its own"), KeyError("a")])
def test_a_call_raises_what_the_operation_raises(service: str, error: Exception) -> None:
    def operation() -> None:
        raise error

    with pytest.raises(type(error), match=str(error.args[0])):
        call(service, operation, Deadline(60))


def test_a_call_that_does_not_end_is_abandoned_at_its_deadline(service: str, over: Event) -> None:
    with pytest.raises(NoAnswerError, match=r"no answer in \d\.\d s"):
        call(service, partial(over.wait, 60), Deadline(1))


def test_hanging_calls_do_not_delay_other_calls(service: str, over: Event) -> None:
    deadline = Deadline(2)
    hanging = [PendingCall(service, over.wait, deadline) for _ in range(3)]
    answered = PendingCall(service, lambda: 7, deadline)
    for pending in hanging:
        with pytest.raises(NoAnswerError):
            pending.result()
    assert answered.result() == 7


def test_no_call_starts_without_time_left(service: str) -> None:
    began = Event()
    with pytest.raises(NoAnswerError, match="no time is left"):
        call(service, began.set, Deadline(0))
    assert not began.is_set()


def test_a_call_without_a_free_thread_until_its_deadline_never_starts(
    service: str, over: Event
) -> None:
    hanging = [PendingCall(service, over.wait, Deadline(60)) for _ in range(16)]
    began = Event()
    with pytest.raises(NoAnswerError, match="no answer in"):
        call(service, began.set, Deadline(1))
    over.set()
    for pending in hanging:
        pending.result()
    assert call(service, lambda: 7, Deadline(60)) == 7
    assert not began.is_set()


def test_without_a_new_thread_a_call_fails_and_is_not_made_later(
    service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    began = Event()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(NoThreadError, match="no thread for the call"):
            call(service, began.set, Deadline(60))
    # The executor has kept the first call in its queue.
    assert call(service, lambda: 7, Deadline(60)) == 7
    assert not began.is_set()


def list_pages(tokens: Iterable[Any], deadline: Deadline) -> list[Mapping[str, Any]]:
    return list(iterate_pages(({"next": token} for token in tokens), "next", deadline))


def test_a_list_ends_at_the_page_without_a_next_token() -> None:
    assert len(list_pages(["a", "b", None, "c"], Deadline(60))) == 3
    assert len(list_pages(["a", {"b": 1}, ""], Deadline(60))) == 3


@pytest.mark.parametrize("tokens", [repeat("a"), cycle(["a", "b"]), repeat({"key": {"S": "a"}})])
def test_a_list_that_repeats_a_token_is_an_error(tokens: Iterable[object]) -> None:
    with pytest.raises(NoAnswerError, match="repeats itself"):
        list_pages(tokens, Deadline(60))


def test_a_list_of_more_than_1000_pages_is_an_error() -> None:
    with pytest.raises(NoAnswerError, match="more than 1,000 pages"):
        list_pages(range(1, MAX_PAGES + 2), Deadline(60))


def test_an_incomplete_list_is_an_error_at_the_deadline() -> None:
    with pytest.raises(NoAnswerError, match="not complete in time"):
        list_pages(["a", None], Deadline(0))
    assert len(list_pages([None], Deadline(0))) == 1


@pytest.mark.parametrize("seconds", [0.5, 1, 3, 10, 60, 900])
def test_each_part_of_a_run_ends_before_the_next_and_all_before_the_function_times_out(
    seconds: float,
) -> None:
    run_time = share_time(seconds, clock=lambda: 0.0)
    assert run_time.policy.remaining() <= 0.3 * seconds
    assert run_time.targets.remaining() >= 0.59 * seconds
    assert run_time.end.remaining() - run_time.targets.remaining() >= min(15, 0.2 * seconds)
    assert seconds - run_time.end.remaining() >= min(0.5, seconds / 12)
