"""A short storm, and the comparison of its three sources."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from infra.local.postgres import bundled_builds, npm_builds
from tests.storm.healthy import Break, HealthyResult
from tests.storm.reaper import ReaperRun, SessionOutcome
from tests.storm.script import Script
from tests.storm.storm import THRESHOLD, Death, StormResult, run_storm

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_TRANSACTIONS = 10_000
_FEW_TRANSACTIONS = 5_000


@pytest.mark.parametrize("newest", [False, True], ids=["oldest", "newest"])
def test_no_healthy_transaction_is_broken_while_leaks_are_terminated(
    pytestconfig: pytest.Config, *, newest: bool
) -> None:
    folder: Path | None = pytestconfig.getoption("--servers")
    builds = bundled_builds() if folder is None else npm_builds(folder)

    result = run_storm(builds[max(builds) if newest else min(builds)], _TRANSACTIONS)

    assert result.complaints == []
    assert result.healthy.transactions >= _TRANSACTIONS
    assert len(result.deaths) > 100
    assert result.condemned_per_killing_run[-1] >= 20
    assert result.count("cancelled") > 0


def test_the_articles_statement_breaks_healthy_transactions() -> None:
    builds = bundled_builds()

    result = run_storm(builds[max(builds)], _FEW_TRANSACTIONS, script=Script.ARTICLE)

    assert len(result.broken) > 10
    assert result.wrong_counts == []


def _result(
    *,
    breaks: Sequence[Break] = (),
    deaths: Sequence[Death] = (),
    runs: Sequence[ReaperRun] = (),
    stored: int = 7,
) -> StormResult:
    healthy = HealthyResult(transactions=7, breaks=list(breaks), counts={0: 7})
    return StormResult(major=18, healthy=healthy, deaths=deaths, runs=runs, counts={0: stored})


def _run(*outcomes: str, pid: int = 1, began: float = 10.0) -> ReaperRun:
    sessions = tuple(SessionOutcome(pid=pid, outcome=each, rule="leak") for each in outcomes)
    return ReaperRun(began=began, ended=began + 1, problem="", sessions=sessions)


_DEATH = Death(at=10.5, pid=1, was_working=False)


def test_a_death_that_a_run_reports_is_accounted_for() -> None:
    result = _result(deaths=[_DEATH], runs=[_run("terminated")])
    assert result.complaints == []
    assert result.reported == [_DEATH]


def test_a_session_that_two_reapers_signalled_is_one_death() -> None:
    runs = [_run("terminated"), _run("terminated", began=10.2)]
    assert _result(deaths=[_DEATH], runs=runs).complaints == []


def test_a_lingering_session_may_die_after_the_run() -> None:
    late = Death(at=15.0, pid=1, was_working=False)
    assert _result(deaths=[late], runs=[_run("lingering")]).complaints == []


@pytest.mark.parametrize(
    "runs",
    [[], [_run("escaped")], [_run("terminated", pid=2)], [_run("terminated", began=11.0)]],
    ids=["no run", "escaped", "another pid", "a later run"],
)
def test_a_death_that_no_run_reports_is_unreported(runs: Sequence[ReaperRun]) -> None:
    assert _result(deaths=[_DEATH], runs=runs).unreported == [_DEATH]


def test_a_report_without_a_death_is_unproven() -> None:
    run = _run("terminated", began=20.0)
    assert _result(deaths=[_DEATH], runs=[run]).unproven == [(run, 1)]


def test_a_lost_commit_is_a_violation() -> None:
    assert _result(deaths=[_DEATH], runs=[_run("terminated")], stored=6).complaints == [
        "wrong count: client 0 committed 7, the server has 6"
    ]


def test_a_transaction_delayed_by_the_machine_is_not_blamed_on_the_reaper() -> None:
    early, late = (
        Break(client=0, pid=1, code="57P01", had_gone_on=False, seconds=seconds)
        for seconds in (THRESHOLD - 0.01, THRESHOLD)
    )
    result = _result(breaks=[early, late])
    assert (result.broken, result.stalled) == ([early], [late])


def test_a_run_on_a_failed_target_is_a_violation() -> None:
    run = ReaperRun(began=10.0, ended=11.0, problem="failed: …", sessions=())
    assert _result(runs=[run]).complaints == [
        "a run's target was not ok: failed: …",
        "no leak was terminated",
    ]
