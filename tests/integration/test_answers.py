"""A server that answers nonsense fails alone: what happens on another target is reported."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.stage import ACTIVE, LEAK, Run, policy, rule
from tests.integration.wire import Proxy, RewriteRows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.stage import Stage

_HUGE = json.loads("1" + "0" * 400)
# Of each JSON type, and what a wrong implementation may let pass; written into the text as they are.
_VALUES = {
    "null": "null",
    "true": "true",
    "text": '"x"',
    "age as text": '"12.5"',
    "empty text": '""',
    "negative": "-1",
    "fraction": "0.5",
    "400 digits": str(_HUGE),
    "5,000 digits": "9" * 5000,
    "infinite": "1e999",
    "NaN": "NaN",
    "object": "{}",
    "list": "[]",
    "list of lists": "[[[]]]",
    "nested 100,000 times": "[" * 100_000 + "]" * 100_000,
    "lone surrogate": r'"\ud800"',
    "NUL": r'"\u0000"',
    "a megabyte": '"' + "x" * 1_000_000 + '"',
}
# The places at which PostgreSQL itself could answer such a value.
_NAMES = r"role|sessions/0/(6|7|8|10|25|26)|waits/0/(2|3)"
_ALLOWED = {
    "null": r"checkpointer|checkpointer_started|sessions|states|states/\d+|lock_waiters|waits|waits/0/(2|3)"
    r"|sessions/0/(2|3|4|6|7|8|9|10|11|12|14|16|17|18|19|20|21|22|23|24|25|26)",
    "true": r"can_see|can_signal|reader|inherits|sessions/0/(17|21|22|23|24)|waits/0/1",
    "text": rf"{_NAMES}|states/\d+",
    "age as text": _NAMES,
    "empty text": rf"{_NAMES}|sessions/0/11",
    "negative": r"sessions/0/(18|19)",
    "fraction": r"oldest_idle_in_transaction|sessions/0/(13|14|15|16)|waits/0/4",
    "list": r"sessions|states|lock_waiters|waits|waits/0/5",
}


def _is_allowed(place: str, name: str) -> bool:
    return re.fullmatch(_ALLOWED.get(name, "(?!)"), place) is not None


def _places(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every place in a document, the inner ones too; of a list of rows the first row's."""
    if path:
        yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _places(item, (*path, key))
    elif isinstance(value, list) and value:
        yield from _places(value[0], (*path, 0))
        if path and isinstance(path[-1], int):  # a row: each of its columns
            for index, item in enumerate(value[1:], 1):
                yield from _places(item, (*path, index))


class Mutation:
    """Replaces one place of each answer of one kind, and counts how often it did."""

    def __init__(self) -> None:
        self.kind = "sessions"  # a key that only this answer has
        self.place: tuple[str | int, ...] = ()
        self.text = ""
        self.sent = 0
        self.last: Any = None  # the answer as the server gave it

    def __call__(self, value: bytes) -> bytes:
        if not value.startswith(b"{"):
            return value
        document = json.loads(value)
        if self.kind not in document:
            return value
        self.last = json.loads(value)
        if not self.place:
            return value
        inner: Any = document
        for key in self.place[:-1]:
            inner = inner[key]
        inner[self.place[-1]] = "MUTATED"
        self.sent += 1
        return json.dumps(document).replace('"MUTATED"', self.text).encode()


@pytest.fixture
def mutation(stage: Stage) -> Iterator[Mutation]:
    """A leak that another session waits for, seen through two secrets, one of them by a liar."""
    stage.session(LEAK, query="SELECT pg_advisory_xact_lock(7)", tcp=True)
    stage.session(ACTIVE, query="SELECT pg_advisory_xact_lock(7)")
    stage.target("orders")
    made = Mutation()
    with Proxy(stage.server.port, says=RewriteRows(made)) as proxy:
        stage.target("odd", port=proxy.port)
        yield made


def _observe(stage: Stage) -> Run:
    rules = (rule("blockers", blocks=1, blocks_for="0s"), rule(idle_for="0s"))
    return stage.run({"mode": "observe", "policy": policy(*rules)})


@pytest.mark.parametrize("name", _VALUES)
def test_every_place_of_the_snapshot_is_validated(
    stage: Stage, mutation: Mutation, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    _observe(stage)
    places = [*_places(mutation.last)]
    assert len(places) > 50
    mutation.text = _VALUES[name]
    for number, place in enumerate(places, 1):
        caplog.clear()
        mutation.place = place
        run = _observe(stage)
        at = "/".join(map(str, place))
        assert mutation.sent == number, at
        odd = run.target("odd")
        if _is_allowed(at, name):
            assert odd["error"] is None or odd["error"]["code"] == "42501", (at, odd["error"])
        else:
            assert odd["status"] == "failed", at
            assert odd["error"]["code"] == "answer", (at, odd["error"])
            whole = "JSON" in odd["error"]["message"]
            assert whole or str(place[0]) in odd["error"]["message"], (at, odd["error"])
        assert list(run.outcomes("orders").values()) == ["would_terminate"], at
        assert "orders" in run.email.body, at
        logged = [vars(record) for record in caplog.records if record.message == "outcome"]
        assert "orders" in {line["target"] for line in logged}, at


@pytest.mark.parametrize("name", _VALUES)
def test_every_place_of_the_server_s_facts_is_validated(
    stage: Stage, mutation: Mutation, name: str
) -> None:
    mutation.kind = "timeouts"
    _observe(stage)
    places = [*_places(mutation.last)]
    assert len(places) > 15
    mutation.text = _VALUES[name]
    for number, place in enumerate(places, 1):
        mutation.place = place
        run = _observe(stage)
        assert mutation.sent == number, place
        # Advice is all that rests on them.
        assert run.target("odd")["status"] == "ok", place
        assert list(run.outcomes("orders").values()) == ["would_terminate"], place
        assert "orders" in run.email.body, place


@pytest.mark.parametrize("name", _VALUES)
def test_every_place_of_a_verification_is_validated(
    stage: Stage, mutation: Mutation, name: str
) -> None:
    mutation.kind = "remaining"
    mutation.text = _VALUES[name]
    places = ["started", "checkpointer", "checkpointer_started", "remaining", "used"]
    for number, key in enumerate(places, 1):
        victim = stage.session(LEAK, role="victim")
        mutation.place = (key,)
        rules = policy(rule(role=["victim"]))
        run = stage.run({"policy": rules, "targets": ["odd"]})
        assert mutation.sent >= number, key
        outcome = run.outcomes("odd")[victim.pid]
        allowed = (key, name) in {("used", "null"), ("remaining", "null"), ("remaining", "list")}
        assert outcome == ("terminated" if allowed else "lingering"), (key, run.target("odd"))
        if not allowed:
            assert run.target("odd")["status"] == "failed", key
            assert run.target("odd")["slots"]["used_after"] is None, key
