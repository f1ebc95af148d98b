"""The groups that hold the slots of a nearly full server after a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from session_reaper.report.model import Outcome
from session_reaper.sessions.snapshot import Holder
from session_reaper.summary.digest import digest_report
from session_reaper.summary.holders import describe_holder, find_remaining_holders
from session_reaper.summary.prose import to_plain

from tests.builders import a_decision, a_policy, a_report, a_result, a_session, a_target_report
from tests.summaries.situations import PLACE

if TYPE_CHECKING:
    from session_reaper.report.model import SessionResult

LEAK = "idle in transaction"


def a_holder(**overrides: object) -> Holder:
    values = {
        "application": "api",
        "role": "app",
        "client": "10.0.0.0/24",
        "state": LEAK,
        "count": 3,
        "oldest_seconds": 901.2,
    }
    return Holder(**values | overrides)  # type: ignore[arg-type] # a table of defaults


def describe(holder: Holder, *results: SessionResult, **overrides: object) -> list[str]:
    report = a_target_report(*results, holders=(holder,), **overrides)
    return [to_plain(describe_holder(each)) for each in find_remaining_holders(report)]


def test_the_oldest_of_a_group_is_one_that_remains() -> None:
    ended = a_result(pid=1)
    spared = [a_result(Outcome.SPARED, pid=n, idle_seconds=300.0 + n) for n in (2, 3)]
    (line,) = describe(a_holder(), ended, *spared)
    assert line == "2 idle in transaction: api@10.0.0.0/24 (role app), oldest 5m 3s"


def test_a_protected_session_may_be_the_oldest_that_remains() -> None:
    protected = a_decision(a_session(pid=2, idle_seconds=700.0))
    (line,) = describe(a_holder(count=2), a_result(pid=1), protected=(protected,))
    assert line.endswith("(role app), oldest 11m 40s")


@pytest.mark.parametrize("others", [(), (a_result(Outcome.ESCAPED, pid=2),)])
def test_an_age_that_is_not_known_is_left_out(others: tuple[SessionResult, ...]) -> None:
    (line,) = describe(a_holder(count=2), a_result(pid=1), *others)
    assert line == "1 idle in transaction: api@10.0.0.0/24 (role app)"


def test_logins_in_progress_have_no_role_that_was_dropped() -> None:
    holder = a_holder(state="starting", role=None, application="", count=60, oldest_seconds=30.0)
    assert describe(holder) == [
        "60 starting: (no name)@10.0.0.0/24 (not logged in yet), oldest 30s"
    ]


def test_no_rule_is_recommended_against_logins_in_progress() -> None:
    holder = a_holder(state="starting", role=None, application="", count=60, oldest_seconds=30.0)
    target = a_target_report(holders=(holder,), policy=a_policy(), role="reaper")
    (step,) = digest_report(a_report(target), PLACE).steps_as_text
    assert "Find out why these logins hang" in step
    assert "authentication_timeout" in step
    assert "add a rule" not in step
    assert "pg_terminate_backend" not in step
