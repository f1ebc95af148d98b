"""Several secrets of one server: the time that each has to connect, and which of them works."""

from __future__ import annotations

import json
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from time import sleep
from typing import TYPE_CHECKING, Any, cast

import pytest
from session_reaper.deadline import Deadline
from session_reaper.runs.merge import SecretResult, merge_results
from session_reaper.runs.target_report import create_report
from session_reaper.runs.visits import VisitedError, Visits
from session_reaper.sessions.snapshot import ServerIdentity
from session_reaper.targets.target import Secret, Target

from tests.builders import a_snapshot, read_target

if TYPE_CHECKING:
    from collections.abc import Callable

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


# -- one server, and roles with different rights ----------------------------------------------------

HERE = ServerIdentity(started=1, checkpointer=2, checkpointer_started=3)


class RenamingServer:
    """A server that does something else while a visit gets the name of its session back."""

    address = "192.0.2.1"
    certificate = None
    application_name = "session-reaper 0123456789abcdef"

    def __init__(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        self._meanwhile = meanwhile

    def rename(self, *_: object) -> None:
        """Rename no session."""
        self._meanwhile()


def wait_for_leader(visits: Visits, target: Target, leader: Target) -> None:
    deadline = Deadline(30)
    while visits.find_leader(target) != leader.key:
        assert deadline.remaining(), f"{leader.key} does not lead the visit of {target.key}"
        sleep(0.01)


def test_of_three_roles_that_connect_at_once_the_one_with_most_rights_works() -> None:
    """The second one has found the first one, and the third one takes over both meanwhile."""
    slow = [read_target(Secret(name=n, arn=n, text=TEXT.replace("db", n))) for n in "abcdefgh"]
    blind, watcher, reaper = targets = secrets_of_one_server(3)
    visits = Visits([*slow, *targets])
    for target in (*slow, *targets):
        visits.begin(target, Deadline(60))

    def admit(target: Target, rights: int, server: RenamingServer, deadline: Deadline) -> Target:
        snapshot = a_snapshot(can_see=rights > 0, can_signal=rights > 1, server=HERE)
        return visits.admit(target, target, cast("Any", server), snapshot, deadline)

    with ThreadPoolExecutor() as pool:

        def submit(target: Target, rights: int) -> Future[Target]:
            return pool.submit(admit, target, rights, RenamingServer(), Deadline(60))

        def let_the_reaper_take_over() -> None:
            working.append(submit(reaper, 2))
            wait_for_leader(visits, watcher, reaper)

        first, working = submit(blind, 0), list[Future[Target]]()
        wait_for_leader(visits, blind, blind)
        with pytest.raises(VisitedError):
            admit(watcher, 1, RenamingServer(let_the_reaper_take_over), Deadline(0))
        for target in slow:  # for which the others have waited
            visits.end_turn(target)
        assert working[0].result().name == blind.name
        assert isinstance(first.exception(), VisitedError)
    assert [visits.find_leader(target) for target in targets] == [reaper.key] * 3


class SteadyServer:
    """A server that cannot rename our session, and has another certificate than any other one."""

    address = "192.0.2.1"
    application_name = "session-reaper"

    def __init__(self, certificate: bytes) -> None:
        self.certificate = certificate


def test_a_session_that_was_not_renamed_does_not_get_its_name_back() -> None:
    """Their certificates tell that two servers with one claim are different."""
    targets = [read_target(Secret(name=n, arn=n, text=TEXT.replace("db", n))) for n in "ab"]
    visits = Visits(targets)
    snapshot = a_snapshot(can_see=True, can_signal=True, server=HERE)
    for target in targets:
        visits.begin(target, Deadline(60))
        server = cast("Any", SteadyServer(target.name.encode()))
        assert visits.admit(target, target, server, snapshot, Deadline(60)) == target
    assert [visits.find_leader(target) for target in targets] == [each.key for each in targets]


# -- servers that no secret can connect to ---------------------------------------------------------


def test_secrets_that_fail_are_one_target_if_a_host_and_an_address_join_them() -> None:
    """The second one has the address of the first one, and the host of the third one."""
    text = json.dumps({**json.loads(TEXT), "sslmode": "disable"})
    hosts = {"orders": "a.example", "billing": "b.example", "stock": "b.example"}
    targets = [
        replace(
            read_target(Secret(name=name, arn=name, text=text.replace("db.example", host))),
            addresses=("192.0.2.1",) if name != "stock" else ("192.0.2.1", "192.0.2.2"),
        )
        for name, host in hosts.items()
    ]
    results = [
        SecretResult(target=target, report=create_report(target), has_ended=True)
        for target in targets
    ]
    (report,) = merge_results(results, Visits(targets))
    assert (report.name, report.also) == ("orders", ("billing", "stock"))
