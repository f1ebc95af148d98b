"""A target whose server gives an invalid answer fails alone; the other targets are reported.

tests/unit/test_rows.py tries every place of every answer. Here a sample of them goes through a
whole run, and so does every unusual value that is allowed.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from tests.answers import (
    BAD_VALUES,
    FACTS,
    SNAPSHOT,
    VERIFICATION,
    Place,
    is_allowed,
    list_places,
    path_of,
    replace_at,
)
from tests.integration.stage import ACTIVE, LEAK, REAPER, policy, rule
from tests.integration.wire import Proxy, RewriteRows, as_another_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.stage import Run, Stage

EVERY_NTH = {True: 9, False: 18}
"""Thorough or not: with the 18 bad values every place is tried, twice or once."""
KEY_OF = {"snapshot": "sessions", "facts": "timeouts", "verification": "remaining"}


class Lie:
    """Replaces one place of each answer of one kind, and counts how often it did.

    `last` is the answer as the server gave it.
    """

    def __init__(self, kind: str, place: Place = (), text: str = "") -> None:
        self._key = KEY_OF[kind]  # only this kind of answer has it
        self._place = place
        self._text = text
        self.told = 0
        self.last: Any = None

    def __call__(self, value: bytes) -> bytes:
        answer = json.loads(value) if value.startswith(b"{") else {}
        if self._key not in answer:
            return value
        self.last = answer
        if not self._place:
            return value
        self.told += 1
        return replace_at(answer, self._place, self._text)


PLACES = [*list_places(SNAPSHOT)]


@pytest.fixture
def liars(stage: Stage) -> Iterator[Liars]:
    """A leak that another session waits for; one target that reports it truthfully."""
    # Every liar connects as the reaper, and all at the same time.
    stage.root.run(f"ALTER ROLE {REAPER} CONNECTION LIMIT -1")
    stage.cleanup(stage.root.run, f"ALTER ROLE {REAPER} CONNECTION LIMIT 5")
    stage.session(LEAK, query="SELECT pg_advisory_xact_lock(7)", tcp=True)
    stage.session(ACTIVE, query="SELECT pg_advisory_xact_lock(7)")
    stage.target("orders")
    with ExitStack() as stack:
        yield Liars(stage, stack)


class Liars:
    """Targets on the stage's server, each of which changes one value of the server's answers."""

    def __init__(self, stage: Stage, stack: ExitStack) -> None:
        self._stage = stage
        self._stack = stack
        self._number = 0

    def add(self, name: str, lie: Lie) -> Lie:
        self._number += 1
        says = RewriteRows(as_another_server(self._number, lie))
        proxy = self._stack.enter_context(Proxy(self._stage.server.port, says=says))
        self._stage.target(name, port=proxy.port)
        return lie

    def observe(self) -> Run:
        rules = (rule("blockers", blocks=1, blocks_for="0s"), rule(idle_for="0s"))
        run = self._stage.run({"mode": "observe", "policy": policy(*rules)})
        assert list(run.outcomes("orders").values()) == ["would_terminate"]
        assert "orders" in run.email.body
        return run


@pytest.mark.every_major
def test_the_answers_of_this_server_have_the_places_that_the_unit_tests_try(
    liars: Liars, stage: Stage
) -> None:
    snapshot, facts = Lie("snapshot"), Lie("facts")
    for name, lie in {"snapshot": snapshot, "facts": facts}.items():
        liars.add(name, lie)
    verification = liars.add("verification", Lie("verification"))
    liars.observe()
    stage.run({"policy": policy(), "targets": ["verification"]})
    assert [*list_places(snapshot.last)] == PLACES
    assert {*list_places(facts.last)} <= {*list_places(FACTS)} | {
        ("timeouts", 0, column) for column in range(4)
    }
    assert facts.last.keys() == FACTS.keys()
    assert [*list_places(verification.last)] == [*list_places(VERIFICATION)]


@pytest.mark.thorough
@pytest.mark.parametrize("name", BAD_VALUES)
def test_a_target_with_an_invalid_snapshot_fails_alone(
    liars: Liars, name: str, caplog: pytest.LogCaptureFixture, *, is_thorough: bool
) -> None:
    allowed = [place for place in PLACES if is_allowed("snapshot", place, name)]
    refused = [place for place in PLACES if place not in allowed]
    every_nth = EVERY_NTH[is_thorough]
    lies = {
        path_of(place): liars.add(path_of(place), Lie("snapshot", place, BAD_VALUES[name]))
        for place in allowed + refused[[*BAD_VALUES].index(name) % every_nth :: every_nth]
    }

    run = liars.observe()

    assert {lie.told for lie in lies.values()} == {1}
    for place in map(path_of, allowed):
        error = run.target(place)["error"]
        assert error is None or error["code"] == "42501", (place, error)
    for place in lies.keys() - set(map(path_of, allowed)):
        error = run.error(place)
        assert run.target(place)["status"] == "failed", place
        assert error["code"] == "answer", (place, error)
        assert "JSON" in error["message"] or place.split("/")[0] in error["message"], (place, error)
    logged = [vars(record) for record in caplog.records if record.message == "outcome"]
    assert "orders" in {line["target"] for line in logged}


@pytest.mark.parametrize("name", BAD_VALUES)
def test_a_target_with_invalid_facts_is_reaped_all_the_same(
    liars: Liars, name: str, *, is_thorough: bool
) -> None:
    """Only advice depends on the facts."""
    places = [
        place
        for place in list_places(FACTS)
        if len(place) == 1
        or place[0] in ("databases", "timeouts")  # the other lists are empty here
    ]
    allowed = [place for place in places if is_allowed("facts", place, name)]
    refused = [place for place in places if place not in allowed]
    every_nth = EVERY_NTH[is_thorough]
    lies = {
        path_of(place): liars.add(path_of(place), Lie("facts", place, BAD_VALUES[name]))
        for place in allowed + refused[[*BAD_VALUES].index(name) % every_nth :: every_nth]
    }

    run = liars.observe()

    assert {lie.told for lie in lies.values()} == {1}
    assert {run.target(place)["status"] for place in lies} == {"ok"}


@pytest.mark.parametrize(
    ("key", "text", "is_accepted"),
    [
        ("started", '"x"', False),
        ("checkpointer", "-1", False),
        ("checkpointer_started", "0.5", False),
        ("remaining", "[[[]]]", False),
        ("used", "NaN", False),
        ("used", "null", False),
        ("can_see", "null", False),
        ("started", "[" * 100_000 + "]" * 100_000, False),
        ("checkpointer", "null", False),  # another server's, so it seems
        ("remaining", "null", True),
        ("remaining", "[]", True),
    ],
    ids=lambda value: str(value)[:10],
)
def test_sessions_are_lingering_after_an_invalid_verification(
    stage: Stage, liars: Liars, key: str, text: str, *, is_accepted: bool
) -> None:
    victim = stage.session(LEAK, role="victim")
    lie = liars.add("odd", Lie("verification", (key,), text))

    run = stage.run({"policy": policy(rule(role=["victim"])), "targets": ["odd"]})

    assert lie.told >= 1
    assert run.outcomes("odd")[victim.pid] == ("terminated" if is_accepted else "lingering")
    if not is_accepted:
        assert run.target("odd")["status"] == "failed"
        assert run.target("odd")["slots"]["used_after"] is None
