"""The time that a secret has to connect, if others lead to the same server."""

from __future__ import annotations

import json

import pytest
from session_reaper.deadline import Deadline
from session_reaper.runs.visits import Visits
from session_reaper.targets.target import Secret, Target

from tests.builders import read_target

TEXT = json.dumps({"host": "db.example", "username": "reaper", "password": "x"})


def secrets_of_one_server(number: int) -> list[Target]:
    return [read_target(Secret(name=str(n), arn=str(n), text=TEXT)) for n in range(number)]


@pytest.mark.parametrize(
    ("number", "seconds", "expected"), [(1, 40, 40), (4, 40, 10), (1000, 40, 3), (1000, 2, 0.5)]
)
def test_any_number_of_secrets_leaves_the_first_one_time_for_a_login(
    number: int, seconds: float, expected: float
) -> None:
    targets = secrets_of_one_server(number)
    turn = Visits(targets).begin(targets[0], Deadline(seconds, clock=lambda: 0.0))
    assert turn.remaining() == expected
