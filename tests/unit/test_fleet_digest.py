"""The digest of a fleet: the most urgent first, the same cause once, and numbers that are true."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from session_reaper.summary.email import render_email
from session_reaper.summary.message import summarize

from tests.summaries.fleet import FLEET_SITUATIONS, Fleet, an_unreached_target
from tests.summaries.situations import NOW

if TYPE_CHECKING:
    from session_reaper.summary.digest import Digest


def digest(name: str) -> Digest:
    return FLEET_SITUATIONS[f"fleet-{name}"]()


def text(name: str) -> str:
    return " ".join(render_email(digest(name), 250_000).split())


@pytest.mark.parametrize("name", FLEET_SITUATIONS)
def test_the_subject_begins_with_the_verdict(name: str) -> None:
    found = FLEET_SITUATIONS[name]()
    assert found.summary.startswith(str(found.verdict))


def test_what_keeps_applications_out_comes_first_and_refused_messages_last() -> None:
    said = str(digest("everything-at-once").verdict)
    parts = ["every slot", "configuration", "no report", "could not be reached", "cannot be read"]
    positions = [said.lower().index(part) for part in parts]
    assert positions == sorted(positions)


def test_a_stack_that_is_back_is_not_counted_as_a_problem() -> None:
    said = text("a-silent-stack-and-one-that-is-back")
    assert "(1 silent)" in said
    assert "077430291556" not in said.split("Fleet:")[0]
    assert "recovered (silent for 36m 20s)" in said


def test_the_same_step_for_targets_of_many_accounts_is_one_step() -> None:
    for name in ("the-same-cause-in-many-accounts", "leaks-in-accounts-that-only-observe"):
        steps = digest(name).steps_as_text
        assert len({step.partition(": ")[2] for step in steps}) == len(steps) <= 2


def test_different_errors_of_two_configurations_are_both_shown() -> None:
    fleet = Fleet()
    for account, error in ((1, "POLICY a"), (2, "POLICY b"), (3, "POLICY a")):
        fleet.report(account, error=error)
    found = {tuple(t.name[:2] for t in f.targets): f.message for f in fleet.digest().failures}
    assert found == {("01", "03"): "POLICY a", ("02",): "POLICY b"}


def test_targets_that_fail_for_different_causes_have_entries_of_their_own() -> None:
    fleet = Fleet()
    fleet.report(1, an_unreached_target("orders"), an_unreached_target("stock", "refused"))
    fleet.report(2, an_unreached_target("payments"))
    found = {tuple(t.name[:2] for t in f.targets): f.message for f in fleet.digest().failures}
    place = "c3xample.eu-central-1.rds.amazonaws.com:5432"
    assert found == {
        ("01", "02"): f"no response in time, for example: connecting to orders.{place}",
        ("01",): f"connecting to stock.{place}: refused",
    }


def test_a_digest_of_thousands_of_failures_fits_and_counts_what_it_leaves_out() -> None:
    fleet = Fleet()
    names = [f"database-of-a-team-{number:04}" for number in range(400)]
    for account in range(1, 21):
        fleet.report(account, *map(an_unreached_target, names))
    summary = summarize(fleet.digest(), NOW)
    assert len(json.dumps(summary.email, ensure_ascii=False).encode()) < 250_000
    said = " ".join(summary.email.split())
    assert "ACTION NEEDED: 8000 targets could not be reached" in said
    assert "017430291556/eu-central-1/database-of-a-team-0399" in said
    assert "and 7500 more" in said
    assert " and 7995 more: failed" in json.loads(summary.webhook)["blocks"][1]["text"]["text"]
