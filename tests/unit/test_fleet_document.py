"""The compact report of a run for a fleet's hub."""

from __future__ import annotations

import json
from typing import Any

import pytest
from session_reaper.report.fleet_document import MAX_BYTES, RunOrigin, write_fleet_document
from session_reaper.report.known_issues import with_stable_keys
from session_reaper.report.model import Failure, Outcome, TargetReport, TargetStatus
from session_reaper.targets.target import TargetKey

from tests.builders import a_report, a_target_report, some_results

FUNCTION = "arn:aws:lambda:eu-west-1:123456789012:function:session-reaper"
ORIGIN = RunOrigin(
    account="123456789012",
    region="eu-west-1",
    stack="session-reaper",
    sent_at=1_800_000_000.0,
    next_by=1_800_000_300.0,
    is_usual=True,
)


def write(*targets: TargetReport) -> dict[str, Any]:
    report = with_stable_keys(a_report(*targets), FUNCTION)
    text = write_fleet_document(report, ORIGIN, "QUIET: x")
    assert len(text.encode()) <= MAX_BYTES
    document: dict[str, Any] = json.loads(text)
    return document


def test_sessions_are_reported_as_groups_without_pids_and_queries() -> None:
    results = some_results(3, Outcome.TERMINATED, query="select 'CANARY' from secret_table")
    document = write(a_target_report(*results))
    assert document["totals"]["terminated"] == 3
    (target,) = document["targets"]
    assert target["groups"] == [
        {
            "outcome": "terminated",
            "rule": "idle-in-transaction",
            "application": "api",
            "role": "app",
            "state": "idle in transaction",
            "count": 3,
            "oldest_seconds": 901,
        }
    ]
    text = json.dumps(document)
    assert "secret_table" not in text
    assert "CANARY" not in text
    assert "pid" not in text


def test_a_failed_target_is_reported_with_its_code_and_without_its_hint() -> None:
    error = Failure(code="28P01", cause="password refused", hint="ALTER ROLE x SUPERUSER;")
    (target,) = write(TargetReport(name="x", status=TargetStatus.FAILED, error=error))["targets"]
    assert target["error"] == {"code": "28P01", "message": "password refused", "step": ""}
    assert target["issues"] == [["failed", "28P01"]]


@pytest.mark.parametrize("name", ["orders", "\U0001f600" * 60])
def test_a_large_report_fits_and_counts_what_it_leaves_out(name: str) -> None:
    results = [
        result
        for number in range(60)
        for result in some_results(1, Outcome.TERMINATED, application=f"{name}{number}")
    ]
    ill = a_target_report(*results, name=f"{name}-ill", status=TargetStatus.BREAKER)
    quiet = [a_target_report(name=f"{name}{number}", used_after=1) for number in range(5000)]
    document = write(*quiet, ill)
    assert document["totals"]["targets"] == 5001
    assert document["targets"][0]["name"].endswith("-ill")
    assert document["targets"][0]["left_out"]["groups"] == 60
    assert document["rest"] == [{"outcome": "terminated", "count": 60, "oldest_seconds": 901}]
    assert document["targets_left_out"] + len(document["targets"]) == 5001


def test_a_target_keeps_its_key_while_its_secret_cannot_be_read() -> None:
    arn = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:orders"
    keys = [TargetKey("orders"), TargetKey(f"{arn}-a1B2c3")]
    for key in keys:
        (target,) = write(a_target_report(key=key))["targets"]
        assert target["key"] == [arn, ""]
