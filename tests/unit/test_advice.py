"""Advice is given exactly where there is evidence for it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from session_reaper.errors import TargetError
from session_reaper.report import advice
from session_reaper.report.advice import (
    HELD_BY_ACTIVE,
    HELD_BY_INACTIVE,
    OLD_PREPARED,
    advise_on_facts,
    advise_on_version,
    sort_advice,
)
from session_reaper.report.model import (
    Advice,
    Outcome,
    RoleSetting,
    SessionResult,
    UnchangedRole,
)
from session_reaper.report.text import MOST_NAMED
from session_reaper.report.timeouts import (
    APPLICABLE,
    advise_on_databases,
    advise_on_timeouts,
    explain_refused_setting,
    explain_unchanged,
    find_missing_timeouts,
)
from session_reaper.sessions.server_facts import (
    IdleSessions,
    PreparedTransaction,
    ReplicationSlot,
    ServerFacts,
    Timeout,
)
from session_reaper.sessions.session import State
from session_reaper.targets.providers import Provider
from session_reaper.targets.target import Secret, SslMode, Target

from tests.builders import (
    a_policy,
    a_result,
    a_rule,
    a_secret,
    a_server,
    read_target,
    some_results,
    some_slots,
)

IN_TRANSACTION = "idle_in_transaction_session_timeout"
REMEDIES = {
    "set-idle-in-transaction-timeout": IN_TRANSACTION,
    "set-idle-session-timeout": "idle_session_timeout",
    "set-transaction-timeout": "transaction_timeout",
}


def a_timeout(
    value: str | None = "0",
    name: str = IN_TRANSACTION,
    role: str | None = None,
    database: str | None = None,
) -> Timeout:
    return Timeout(role=role, database=database, name=name, value=value)


def a_target(sslmode: SslMode = SslMode.VERIFY_FULL, sslrootcert: str | None = None) -> Target:
    target = read_target(Secret(name="orders", arn="arn", text=a_secret()))
    return replace(target, sslmode=sslmode, sslrootcert=sslrootcert)


def advise(
    found: ServerFacts, *results: SessionResult, target: Target | None = None
) -> dict[str, Advice]:
    given = advise_on_facts(target or a_target(), found, some_slots(), results)
    return {each.code: each for each in given}


def test_a_server_without_shortcomings_gets_no_advice() -> None:
    assert advise(a_server()) == {}


# -- timeouts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "code"),
    [
        (State.IDLE_IN_TRANSACTION, "set-idle-in-transaction-timeout"),
        (State.IDLE_IN_TRANSACTION_ABORTED, "set-idle-in-transaction-timeout"),
        (State.IDLE, "set-idle-session-timeout"),
        (State.ACTIVE, "set-transaction-timeout"),
        (State.FASTPATH, None),
    ],
)
def test_each_timeout_is_advised_for_the_state_that_it_ends(state: State, code: str | None) -> None:
    found = a_server(*(a_timeout(name=name) for name in REMEDIES.values()))
    missing = find_missing_timeouts([a_result(state=state)], found)
    assert [setting.code for setting in missing] == ([code] if code else [])


@pytest.mark.parametrize("state", [State.IDLE_IN_TRANSACTION, State.IDLE, State.ACTIVE])
def test_a_timeout_that_the_server_does_not_have_is_not_advised(state: State) -> None:
    """PostgreSQL 13 has no idle_session_timeout, nor has 16 a transaction_timeout."""
    assert find_missing_timeouts([a_result(state=state)], a_server()) == ()


@pytest.mark.parametrize(
    ("timeouts", "sql", "old"),
    [
        ((a_timeout(),), 'ALTER ROLE "app"', None),
        ((a_timeout("5min"),), None, None),
        ((a_timeout(None),), None, None),
        ((a_timeout(None), a_timeout(database="orders")), 'ALTER ROLE "app"', None),
        ((a_timeout(None), a_timeout(database="other")), None, None),
        ((a_timeout(), a_timeout("10min", database="orders")), None, None),
        ((a_timeout(), a_timeout("10min", database="other")), 'ALTER ROLE "app"', None),
        ((a_timeout(), a_timeout("10min", role="app")), None, None),
        ((a_timeout(), a_timeout("10min", role="other")), 'ALTER ROLE "app"', None),
        ((a_timeout("10min"), a_timeout("0min", role="app")), 'ALTER ROLE "app"', "0min"),
        (
            (a_timeout(role="app"), a_timeout("10min", role="app", database="orders")),
            None,
            None,
        ),
        (
            (a_timeout("10min", role="app"), a_timeout("00", role="app", database="orders")),
            'ALTER ROLE "app" IN DATABASE "orders"',
            "00",
        ),
        ((a_timeout(), a_timeout("1h", name="idle_session_timeout")), 'ALTER ROLE "app"', None),
    ],
)
def test_the_most_specific_setting_is_in_effect(
    timeouts: tuple[Timeout, ...], sql: str | None, old: str | None
) -> None:
    missing = find_missing_timeouts([a_result()], a_server(*timeouts))
    expected = [(f"{sql} SET {IN_TRANSACTION} = '10min';", old)] if sql else []
    assert [(setting.sql, setting.old) for setting in missing] == expected


@pytest.mark.parametrize(
    ("value", "off"),
    [
        *[(value, True) for value in ("0", "00", "0ms", "0 min", "0.0s", "0h", "0d", "0us")],
        *[(value, False) for value in ("1", "10", "10min", "100ms", "0.5h", "1d", None)],
    ],
)
def test_zero_is_off_in_every_unit(value: str | None, *, off: bool) -> None:
    assert a_timeout(value).is_off is off


def test_an_escaped_session_is_not_evidence() -> None:
    assert find_missing_timeouts([a_result(Outcome.ESCAPED)], a_server(a_timeout())) == ()


@pytest.mark.parametrize("outcome", [o for o in Outcome if o is not Outcome.ESCAPED])
def test_a_condemned_session_is_evidence_whatever_its_outcome(outcome: Outcome) -> None:
    assert find_missing_timeouts([a_result(outcome)], a_server(a_timeout()))


def test_each_role_is_named_once_and_the_largest_leak_first() -> None:
    results = (a_result(role="a"), *some_results(3, Outcome.TERMINATED, role="b"))
    (given,) = advise_on_timeouts(find_missing_timeouts(results, a_server(a_timeout())))
    assert given.code == "set-idle-in-transaction-timeout"
    assert "idle_in_transaction_session_timeout is off: b, a." in given.message
    assert "new sessions only" in given.message
    assert given.sql == (
        f"ALTER ROLE \"b\" SET {IN_TRANSACTION} = '10min';"
        f"\nALTER ROLE \"a\" SET {IN_TRANSACTION} = '10min';"
    )


def test_the_advice_on_idle_session_timeout_warns_of_pools() -> None:
    found = a_server(a_timeout(name="idle_session_timeout"))
    (given,) = advise_on_timeouts(find_missing_timeouts([a_result(state=State.IDLE)], found))
    assert "pool must reconnect when one of its sessions is ended" in given.message


def test_only_databases_whose_timeout_is_known_to_be_off_are_named() -> None:
    found = a_server(
        a_timeout(None),
        a_timeout("5min", database="a"),
        a_timeout(database='b"c'),
        a_timeout("1h", role="app", database="orders"),
        databases=("a", 'b"c', "orders"),
    )
    (given,) = advise_on_databases(found, a_policy())
    assert given.sql == f'ALTER DATABASE "b""c" SET {IN_TRANSACTION} = \'10min\';'


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("86400000ms", 86_400),
        ("86400000", 86_400),
        ("1d", 86_400),
        (" 1.5 min ", 90),
        (".5h", 1800),
        ("2500us", 0.002),
        ("500us", 0),  # PostgreSQL rounds it to whole milliseconds
        ("0.4", 0),
        ("+5min", 300),
        ("1e3s", 1000),
        ("1E-1h", 360),
        ("0x10", None),
        ("010", None),  # octal
        ("1 day", None),
        ("10MIN", None),
        ("", None),
        (None, None),
    ],
)
def test_a_timeout_is_read_in_each_of_postgresqls_units(
    value: str | None, seconds: float | None
) -> None:
    assert a_timeout(value).seconds == (None if seconds is None else pytest.approx(seconds))


def a_leak(idle_for: str | None = None, **clocks: str) -> SessionResult:
    """A condemned session of role app, by a rule with these times."""
    times = clocks if idle_for is None else {"idle_for": idle_for, **clocks}
    (condemning,) = a_policy(a_rule("r", state=["idle in transaction"], **times)).rules
    result = a_result()
    return result._replace(decision=result.decision._replace(rule=condemning))


@pytest.mark.parametrize(
    ("value", "idle_for", "expected"),
    [
        ("86400000ms", "15m", "15min"),  # Aurora's default
        ("86400000ms", "5m", "10min"),
        ("601s", "5m", "10min"),
        ("10min", "5m", None),
        ("7min", "5m", None),
        ("1h", "1h", None),
        ("3601s", "1h", "1h"),
        ("0", "1h", "1h"),  # the policy lets this role idle for an hour
        ("0", "12m30s", "750s"),
        ("1d", "40d", None),
        ("0", "40d", "576h"),  # PostgreSQL's largest value is a little more
        ("0x10", "5m", None),
    ],
)
def test_a_timeout_longer_than_the_rules_time_is_as_good_as_none(
    value: str, idle_for: str, expected: str | None
) -> None:
    missing = find_missing_timeouts([a_leak(idle_for)], a_server(a_timeout(value)))
    sql = f"ALTER ROLE \"app\" SET {IN_TRANSACTION} = '{expected}';"
    assert [setting.sql for setting in missing] == ([sql] if expected else [])


def test_the_longest_time_of_a_role_s_rules_is_its_time() -> None:
    results = [a_leak("5m"), a_leak("1h"), a_leak("20m")]
    (setting,) = find_missing_timeouts(results, a_server(a_timeout("1d")))
    assert setting.sql.endswith("= '1h';")


def test_a_rule_without_the_timeouts_own_clock_is_compared_by_its_longest_one() -> None:
    by_age = a_leak(connected_for="2h", transaction_for="30m")
    (setting,) = find_missing_timeouts([by_age], a_server(a_timeout("1d")))
    assert setting.sql.endswith("= '2h';")
    assert find_missing_timeouts([by_age], a_server(a_timeout("2h"))) == ()


def test_advice_names_the_timeouts_that_are_too_long_with_their_values() -> None:
    found = a_server(a_timeout("86400000ms"), a_timeout("0", role="b"))
    missing = find_missing_timeouts([a_result(role="a"), a_result(role="b")], found)
    (given,) = advise_on_timeouts(missing)
    assert "is off: b; longer than the rule's time: a (86400000ms)." in given.message


@pytest.mark.parametrize(
    ("timeout", "reason"),
    [
        (a_timeout("5min"), "is already 5min, at most 10m; sessions that began before"),
        (a_timeout(None), 'ALTER ROLE "reaper" RESET idle_in_transaction_session_timeout'),
        (None, f"does not have {IN_TRANSACTION}"),
    ],
)
def test_a_role_that_needs_no_setting_is_named_with_the_reason(
    timeout: Timeout | None, reason: str
) -> None:
    found = a_server(*([timeout] if timeout else []))
    (unchanged,) = explain_unchanged([a_result()], found, ["set-idle-in-transaction-timeout"])
    assert (unchanged.role, unchanged.code) == ("app", "set-idle-in-transaction-timeout")
    assert reason in unchanged.reason


def test_a_role_that_leaks_in_another_state_gets_the_code_for_it() -> None:
    found = a_server(a_timeout())
    (unchanged,) = explain_unchanged([a_result()], found, ["set-idle-session-timeout"])
    reason = (
        "its condemned sessions are idle in a transaction: request set-idle-in-transaction-timeout"
    )
    assert unchanged == UnchangedRole(role="app", code=None, reason=reason)


def test_only_a_role_without_a_setting_is_explained() -> None:
    found = a_server(a_timeout("5min"), a_timeout("0", role="b"))
    results = [a_result(role="a"), a_result(role="b")]
    explained = explain_unchanged(results, found, ["set-idle-in-transaction-timeout"])
    assert [each.role for each in explained] == ["a"]


def test_leaks_that_no_timeout_of_a_role_would_end_are_explained() -> None:
    (unchanged,) = explain_unchanged([a_result(role=None)], a_server(a_timeout()), [*APPLICABLE])
    assert (unchanged.role, unchanged.code) == (None, None)
    assert "dropped" in unchanged.reason


def test_a_check_compares_the_databases_with_the_policys_longest_time() -> None:
    found = a_server(
        a_timeout("86400000ms"),
        a_timeout("30min", database="a"),
        a_timeout("0", database="b"),
        databases=("a", "b", "c"),
    )
    patient = a_rule("patient", state=["idle in transaction"], idle_for="30m")
    (given,) = advise_on_databases(found, a_policy(patient, a_rule()))
    assert "off for these databases: b; longer than 30m for these databases: c (86400000ms)" in (
        given.message
    )
    assert given.sql == (
        f"ALTER DATABASE \"b\" SET {IN_TRANSACTION} = '30min';"
        f"\nALTER DATABASE \"c\" SET {IN_TRANSACTION} = '30min';"
    )


def a_setting() -> RoleSetting:
    (setting,) = find_missing_timeouts([a_result()], a_server(a_timeout()))
    return setting


@pytest.mark.parametrize(
    ("major", "provider", "who", "needs"),
    [
        (15, Provider.VANILLA, "a superuser", "need CREATEROLE to run it"),
        (16, Provider.RDS, "the master user", "need CREATEROLE and ADMIN OPTION on app to run it"),
        (18, Provider.AIVEN, "avnadmin", "need CREATEROLE and ADMIN OPTION on app to run it"),
    ],
)
def test_a_refused_setting_says_which_role_may_make_it(
    major: int, provider: Provider, who: str, needs: str
) -> None:
    found = a_server(major=major, provider=provider)
    failure = explain_refused_setting(
        TargetError("42501", "no", "hint"), a_setting(), found, reader=False
    )
    assert (failure.code, failure.message) == ("42501", "no")
    assert f"Run it as {who}: {a_setting().sql}" in failure.hint
    assert needs in failure.hint


def test_another_error_keeps_its_own_hint_except_on_a_replica() -> None:
    error = TargetError("57014", "slow", "wait")
    assert explain_refused_setting(error, a_setting(), a_server(), reader=False).hint == "wait"
    assert "writer" in explain_refused_setting(error, a_setting(), a_server(), reader=True).hint


@pytest.mark.parametrize(
    ("major", "expected"),
    [(12, "Upgrade the server."), (13, ""), (18, ""), (19, "It is treated as 18.")],
)
def test_a_major_version_without_tests_is_named(major: int, expected: str) -> None:
    given = list(advise_on_version(a_server(major=major, version=f"{major}.1")))
    assert [each.code for each in given] == (["untested-version"] if expected else [])
    assert all(expected in each.message for each in given)
    assert all("tested with PostgreSQL 13 to 18" in each.message for each in given)


# -- a pooler ----------------------------------------------------------------------------------------


def held(number: int, application: str = "api", role: str = "app") -> ServerFacts:
    return a_server(idle=(IdleSessions(application=application, role=role, number=number),))


@pytest.mark.parametrize(
    ("number", "usable", "enough"),
    [(9, 20, False), (10, 20, True), (10, 40, True), (10, 41, False), (25, 97, True)],
)
def test_a_pooler_is_advised_for_ten_idle_sessions_that_use_a_quarter_of_the_slots(
    number: int, usable: int, *, enough: bool
) -> None:
    slots = some_slots(maximum=usable, reserved=0)
    given = list(advise_on_facts(a_target(), held(number), slots, ()))
    assert [each.code for each in given] == (["use-pooler"] if enough else [])
    assert all(f"api as app held {number} idle" in each.message for each in given)
    assert all(f"of {usable} slots" in each.message for each in given)


def test_idle_sessions_that_the_run_has_terminated_count_as_held() -> None:
    ended = some_results(10, Outcome.TERMINATED, state=State.IDLE)
    assert "held 30 idle" in advise(held(20), *ended)["use-pooler"].message
    others = [
        *some_results(10, Outcome.SPARED, state=State.IDLE),
        *some_results(10, Outcome.TERMINATED),
    ]
    assert "use-pooler" not in advise(held(20), *others)


def test_no_pooler_is_advised_for_the_provider_s_own_pool() -> None:
    assert "use-pooler" not in advise(held(90, role="rdsproxyadmin"))


# -- what holds vacuum back ----------------------------------------------------------------------------


def test_prepared_transactions_older_than_an_hour_are_reported() -> None:
    young = PreparedTransaction(database="young", seconds=OLD_PREPARED - 0.1)
    assert advise(a_server(prepared=(young,))) == {}
    old = (
        PreparedTransaction(database="b", seconds=7200.0),
        PreparedTransaction(database="a", seconds=OLD_PREPARED),
    )
    given = advise(a_server(prepared=(*old, young)))["end-prepared-transactions"]
    assert "older than an hour: 2, the oldest 2h, in a, b." in given.message
    assert "COMMIT PREPARED or ROLLBACK PREPARED" in given.message


@pytest.mark.parametrize(
    ("active", "transactions", "is_reported"),
    [
        (False, HELD_BY_INACTIVE - 1, False),
        (False, HELD_BY_INACTIVE, True),
        (True, HELD_BY_ACTIVE - 1, False),
        (True, HELD_BY_ACTIVE, True),
    ],
)
def test_a_replication_slot_is_reported_if_it_holds_back_many_transactions(
    transactions: int, *, active: bool, is_reported: bool
) -> None:
    slot = ReplicationSlot(name="cdc", active=active, held=transactions)
    given = advise(a_server(replication_slots=(slot,)))
    assert ("drop-replication-slot" in given) is is_reported
    if is_reported:
        word = "active" if active else "inactive"
        assert f"cdc ({word}) by {transactions:,} " in given["drop-replication-slot"].message


def test_the_sql_drops_only_inactive_replication_slots() -> None:
    slots = (
        ReplicationSlot(name="cdc", active=True, held=HELD_BY_ACTIVE),
        ReplicationSlot(name="a_1", active=False, held=HELD_BY_INACTIVE),
        ReplicationSlot(name="b_2", active=False, held=HELD_BY_INACTIVE),
    )
    given = advise(a_server(replication_slots=slots))["drop-replication-slot"]
    assert (
        given.sql
        == "SELECT pg_drop_replication_slot('a_1');\nSELECT pg_drop_replication_slot('b_2');"
    )
    given = advise(a_server(replication_slots=slots[:1]))["drop-replication-slot"]
    assert given.sql is None


# -- the connection ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sslmode", "sslrootcert", "problem"),
    [
        (SslMode.VERIFY_FULL, None, None),
        (SslMode.DISABLE, None, None),  # reported in every run
        (SslMode.REQUIRE, None, "without sslrootcert"),
        (SslMode.REQUIRE, "PEM", "require, which accepts the certificate of another host"),
        (SslMode.VERIFY_CA, None, "verify-ca, which accepts the certificate of another host"),
        (SslMode.VERIFY_CA, "PEM", "verify-ca, which accepts the certificate of another host"),
    ],
)
def test_an_sslmode_below_verify_full_is_reported(
    sslmode: SslMode, sslrootcert: str | None, problem: str | None
) -> None:
    given = advise(a_server(), target=a_target(sslmode, sslrootcert))
    assert set(given) == ({"verify-certificate"} if problem else set())
    assert all(str(problem) in each.message for each in given.values())


def test_a_role_without_a_reserved_slot_gets_advice_how_to_reserve_one() -> None:
    for found, code in [
        (a_server(reserved_slots=0), "set-reserved-connections"),
        (a_server(granted_reserved=False), "grant-reserved-connections"),
        (a_server(reserved_slots=0, major=15), "add-fallback-secret"),
    ]:
        assert set(advise(found)) == {code}
        assert advise(found, target=replace(a_target(), fallback_secret="x")) == {}  # noqa: S106 -- a name
        without_secret = advise(found, target=replace(a_target(), secret_arn=""))
        assert "this target's secret" not in without_secret[code].message


# -- in order ------------------------------------------------------------------------------------------


def test_advice_is_unique_and_sorted_by_usefulness() -> None:
    codes = ["verify-certificate", "use-pooler", "set-idle-in-transaction-timeout", "use-pooler"]
    given = sort_advice(Advice(code=code, message="", sql=None) for code in codes)
    assert [each.code for each in given] == [
        "set-idle-in-transaction-timeout",
        "use-pooler",
        "verify-certificate",
    ]


def test_every_code_has_a_place_in_the_order_and_is_documented() -> None:
    source = Path(advice.__file__).read_text()
    codes = {*REMEDIES, *re.findall(r'code="([a-z-]+)"', source)}
    assert len(codes) > 15
    document = (Path(__file__).parents[2] / "docs" / "advice.md").read_text()
    for code in codes:
        assert sort_advice([Advice(code=code, message="", sql=None)])
        assert f"| `{code}` |" in document, code


# -- many objects on a server ------------------------------------------------------------------------

MANY = 120


def lines_of(statement: str | None) -> list[str]:
    return (statement or "").splitlines()


def test_the_advice_on_thousands_of_roles_or_databases_names_the_first_and_counts_the_rest() -> (
    None
):
    names = tuple(f"name-{n:03}" for n in range(MANY))
    off = a_server(a_timeout("0"), databases=names)
    leaks = [a_result(pid=n + 1, role=name) for n, name in enumerate(names)]
    (on_roles,) = advise_on_timeouts(find_missing_timeouts(leaks, off))
    (on_databases,) = advise_on_databases(off, a_policy())
    for each in (on_roles, on_databases):
        assert "name-000, name-001" in each.message
        assert f"name-{MOST_NAMED - 1:03} and {MANY - MOST_NAMED} more" in each.message
        assert len(lines_of(each.sql)) == MOST_NAMED


def test_the_advice_on_thousands_of_pools_slots_and_transactions_is_short() -> None:
    slots = tuple(
        ReplicationSlot(name=f"slot_{n}", active=False, held=HELD_BY_INACTIVE) for n in range(MANY)
    )
    prepared = tuple(
        PreparedTransaction(database=f"db-{n:03}", seconds=OLD_PREPARED) for n in range(MANY)
    )
    idle = tuple(IdleSessions(application=f"app-{n}", role="app", number=25) for n in range(MANY))
    found = advise(a_server(replication_slots=slots, prepared=prepared, idle=idle))
    assert len(found) == 3
    for each in found.values():
        assert f" and {MANY - MOST_NAMED} more" in each.message
        assert len(lines_of(each.sql)) <= MOST_NAMED
