from __future__ import annotations

import pytest
from session_reaper.report.emergency import write_emergency_sql, write_holder_sql
from session_reaper.sessions.snapshot import Holder

from tests.builders import a_policy, a_rule


def a_holder(**overrides: object) -> Holder:
    values = {
        "application": "api",
        "role": "app",
        "client": "10.0.0.0/24",
        "state": "idle",
        "count": 52,
        "oldest_seconds": 7200.0,
    }
    return Holder(**values | overrides)  # type: ignore[arg-type] # a table of defaults


def test_the_statement_has_one_semicolon_whatever_the_policy_contains() -> None:
    protect = {"roles": ["a;b", "it's", "back\\slash"], "applications": ['";', "$$"]}
    sql = write_emergency_sql(a_policy(protect=protect), "re;aper's")
    assert sql.spares_policy
    assert sql.statement.startswith("SELECT ")
    assert sql.statement.find(";") == len(sql.statement) - 1
    assert "\\" not in sql.statement


def test_a_policy_with_too_many_patterns_is_not_part_of_the_statement() -> None:
    roles = [f"service_number_{n}" for n in range(100)]
    sql = write_emergency_sql(a_policy(protect={"roles": roles}), "session_reaper")
    assert not sql.spares_policy
    assert len(sql.statement) < 1400
    assert "not what the policy protects" in str(sql)
    assert "rolsuper" in sql.statement


@pytest.mark.parametrize(
    ("change", "protect"),
    [
        ({"state": "active"}, {}),
        ({"superuser": True}, {}),
        ({"replication": True}, {}),
        ({"own_role": True}, {}),
        ({"role": "rdsproxyadmin"}, {}),
        ({"role": None}, {}),
        ({"application": "it's"}, {}),
        ({"application": "pg_dump"}, {}),
        ({}, {"applications": ["api"]}),
        ({}, {"roles": ["a*"]}),
    ],
)
def test_no_statement_ends_a_group_that_is_protected_or_at_work(
    change: dict[str, object], protect: dict[str, object]
) -> None:
    policy = a_policy(protect=protect)
    assert write_holder_sql(a_holder(), a_policy(), "session_reaper")
    assert write_holder_sql(a_holder(**change), policy, "session_reaper") is None


@pytest.mark.parametrize("state", ["idle in transaction", "idle in transaction (aborted)"])
def test_a_group_that_is_idle_in_transaction_has_a_statement_too(state: str) -> None:
    sql = write_holder_sql(a_holder(state=state), a_policy(), "session_reaper")
    assert sql is not None
    assert f"state = '{state}'" in sql.statement


def test_a_group_whose_protection_a_rule_lifts_has_a_statement() -> None:
    policy = a_policy(a_rule("named", state=["idle"], idle_for="1h", role=["app"]))
    sql = write_holder_sql(a_holder(replication=True), policy, "session_reaper")
    assert sql is not None
    assert write_holder_sql(a_holder(superuser=True), policy, "session_reaper") is None
