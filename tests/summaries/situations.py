"""Reports of typical situations: real decisions on sessions that are made here."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from session_reaper.deadline import Deadline
from session_reaper.decision.decide import decide
from session_reaper.decision.limits import describe_pressure
from session_reaper.decision.model import Verdict
from session_reaper.decision.out_of_reach import find_unreachable_blockers
from session_reaper.errors import BlindError, ConfigurationError, FullError, TargetError
from session_reaper.grants import Membership
from session_reaper.policy.enums import Mode
from session_reaper.report.emergency import instruct_on_full_server
from session_reaper.report.model import (
    FailedSecret,
    Failure,
    IssueKey,
    IssueKind,
    Outcome,
    Recovery,
    Report,
    RoleSetting,
    SessionResult,
    TargetReport,
    record_breaker,
    record_error,
)
from session_reaper.report.timeouts import advise_on_timeouts
from session_reaper.runs.policy_source import load_policy
from session_reaper.sessions.lock_chains import Waiter
from session_reaper.sessions.session import Session, Slots, State
from session_reaper.sessions.snapshot import Holder
from session_reaper.summary.console_links import FunctionLocation

from tests.builders import a_policy, a_rule, a_session, an_identity

if TYPE_CHECKING:
    from collections.abc import Sequence

    from session_reaper.policy.model import Policy

PLACE = FunctionLocation(
    region="eu-central-1",
    function="session-reaper-SessionReaper-Xy12",
    log_group="session-reaper-LogGroup-Ab34",
    dashboard="session-reaper-eu-central-1",
)
NOW = 1_795_600_000.0  # on 2026-11-25
RUN_ID = "5f1c0c1e-7a0e-4d7e-9c47-0a3b1d2c4e5f"
HOST = "orders.c3xample.eu-central-1.rds.amazonaws.com"


def _leaks(number: int, first: int = 4000, **overrides: object) -> list[Session]:
    """Return sessions idle in transaction, the first for 15 minutes, each next one a bit shorter."""
    return [
        a_session(
            pid=first + index,
            **{
                "client": f"10.0.7.{index % 200 + 1}",
                "role": "shop",
                "idle_seconds": 901.2 - index,
                "query": "SELECT * FROM orders WHERE id = 4711 FOR UPDATE",
            }
            | overrides,
        )
        for index in range(number)
    ]


def _report_decisions(
    sessions: Sequence[Session],
    slots: Slots,
    outcome: Outcome = Outcome.TERMINATED,
    policy: Policy | None = None,
    **overrides: object,
) -> TargetReport:
    """Return the report of a target where each condemned session met this outcome."""
    policy = policy or load_policy("", Deadline(10))
    decided = decide(sessions, slots, policy)
    results = tuple(
        SessionResult(
            decision=decision,
            outcome=outcome if decision.verdict is Verdict.CONDEMN else Outcome.SPARED,
        )
        for decision in decided.decisions
        if decision.verdict is not Verdict.LEAVE
    )
    gone = sum(result.outcome is Outcome.TERMINATED for result in results)
    values: dict[str, object] = {
        "name": "orders",
        "slots": slots,
        "used_after": slots.used - gone,
        "pressure": describe_pressure(decided),
        "results": results,
        "policy": policy,
        "role": "session_reaper",
    }
    if decided.breaker:
        return record_breaker(TargetReport(**values), decided.breaker)  # type: ignore[arg-type] # a table
    return TargetReport(**values | overrides)  # type: ignore[arg-type] # a table


def _quiet(number: int) -> list[TargetReport]:
    slots = Slots(max=100, reserved=3, used=20)
    return [TargetReport(name=f"quiet-{n}", slots=slots, used_after=20) for n in range(number)]


def _report(*targets: TargetReport, mode: Mode = Mode.ENFORCE) -> Report:
    return Report(run_id=RUN_ID, mode=mode, targets=targets)


def quiet_recovery() -> Report:
    recovered = TargetReport(
        name="orders",
        slots=Slots(max=100, reserved=3, used=31),
        used_after=31,
        recovered=(Recovery(issue=IssueKey(IssueKind.FAILED, ("timeout",)), seconds=1503.0),),
    )
    return _report(recovered, *_quiet(3))


def one_leak() -> Report:
    return _report(_report_decisions(_leaks(1), Slots(max=100, reserved=3, used=44)), *_quiet(3))


def a_storm_of_300() -> Report:
    imports = _leaks(200, application="nightly-import", idle_seconds=400.0)
    api = _leaks(80, first=5000, application="api", client="10.0.9.17")
    batch = _leaks(20, first=6000, application="", role="batch", client="2001:db8:7::17")
    policy = a_policy(limits={"max_terminations": 300})
    slots = Slots(max=400, reserved=13, used=387)
    code, name = "set-idle-in-transaction-timeout", "idle_in_transaction_session_timeout"
    timeouts = [
        RoleSetting(
            code=code, role=role, sql=f"ALTER ROLE \"{role}\" SET {name} = '10min';", old=None
        )
        for role in ("shop", "batch")
    ]
    advice = tuple(advise_on_timeouts(timeouts))
    storm = _report_decisions([*imports, *api, *batch], slots, policy=policy, advice=advice)
    return _report(storm, *_quiet(11))


def _holder(**overrides: object) -> Holder:
    values: dict[str, object] = {
        "application": "api",
        "role": "shop",
        "client": "10.0.7.0/24",
        "state": "idle",
        "count": 71,
        "oldest_seconds": 7203.0,
    }
    return Holder(**values | overrides)  # type: ignore[arg-type] # a table


def observe_mode() -> Report:
    target = _report_decisions(
        _leaks(32),
        Slots(max=100, reserved=3, used=97),
        Outcome.WOULD_TERMINATE,
        used_after=97,
        holders=(
            _holder(state="idle in transaction", count=32, oldest_seconds=901.2),
            _holder(count=28, oldest_seconds=61.0),
            _holder(application="worker", client="10.0.9.0/24", count=20, oldest_seconds=40.0),
        ),
    )
    return _report(target, mode=Mode.OBSERVE)


def full() -> Report:
    error = FullError(
        "53300",
        "remaining connection slots are reserved for roles with the SUPERUSER attribute",
        instruct_on_full_server(HOST, "session_reaper", load_policy("", Deadline(10))),
        limit=None,
        step=f"logging in to {HOST}:5432",
    )
    return _report(record_error(TargetReport(name="orders"), error), *_quiet(1))


def full_of_idle() -> Report:
    """Every slot is used, and the policy condemns no session."""
    holders = (
        _holder(),
        _holder(application="worker", client="10.0.9.0/24", count=20, oldest_seconds=61.0),
        _holder(application="", role="batch", client=None, state="active", count=4),
    )
    slots = Slots(max=100, reserved=3, used=97)
    return _report(
        TargetReport(
            name="orders",
            slots=slots,
            used_after=97,
            holders=holders,
            policy=load_policy("", Deadline(10)),
            role="session_reaper",
        ),
        *_quiet(1),
    )


def blind() -> Report:
    return _report(
        record_error(
            TargetReport(name="orders"),
            BlindError("session_reaper", Membership(server_version=180000, inherits=True)),
        ),
        *_quiet(1),
    )


def breaker() -> Report:
    policy = a_policy(limits={"max_share": "50%"})
    active = [
        a_session(pid=pid, state=State.ACTIVE, idle_seconds=0.1, query_seconds=0.1)
        for pid in range(1, 10)
    ]
    slots = Slots(max=100, reserved=3, used=60)
    return _report(_report_decisions([*_leaks(51), *active], slots, policy=policy))


def half_the_fleet_unreachable() -> Report:
    names = ("billing", "catalog", "customers", "invoices", "orders", "payments")
    unreached = [
        record_error(
            TargetReport(name=name),
            TargetError(
                "timeout",
                "no response in time",
                "Check that the function's security group reaches the server's port.",
                step=f"connecting to {HOST.replace('orders', name)}:5432",
            ),
        )
        for name in names
    ]
    return _report(
        *unreached,
        _report_decisions(_leaks(2), Slots(max=100, reserved=3, used=44), name="stock"),
        *_quiet(5),
    )


def a_wedged_session() -> Report:
    identity = an_identity(pid=811, state=State.ACTIVE)
    session = a_session(
        identity=identity,
        application="report-export",
        role="reporting",
        client="10.0.12.5",
        query="SELECT * FROM invoices WHERE year = 2026",
        idle_seconds=5407.0,
        transaction_seconds=5407.1,
        query_seconds=5407.0,
        waiting_for_client=True,
    )
    return _report(
        _report_decisions(
            [replace(session)], Slots(max=100, reserved=3, used=44), Outcome.LINGERING
        )
    )


def a_blocker_with_its_waiters() -> Report:
    waiters = tuple(
        Waiter(pid=900 + n, role="shop", application="api", seconds=61.0 - n) for n in range(7)
    )
    rule = a_rule("blockers", state=["idle in transaction"], blocks=1, blocks_for="30s")
    (blocker,) = _leaks(
        1,
        application="psql",
        role="alice",
        client=None,
        idle_seconds=95.0,
        query="UPDATE stock SET amount = amount - 1 WHERE id = 42",
        waiters=waiters,
    )
    policy = a_policy(rule)
    return _report(_report_decisions([blocker], Slots(max=100, reserved=3, used=44), policy=policy))


def protected_under_pressure() -> Report:
    """Leaks of a role that the provider's replication uses, while slots are short."""
    leaks = _leaks(14, role="avnadmin", replication=True)
    slots = Slots(max=100, reserved=3, used=84)
    decided = decide(leaks, slots, load_policy("", Deadline(10)))
    target = TargetReport(
        name="orders",
        slots=slots,
        used_after=84,
        holders=(
            _holder(count=58, oldest_seconds=61.0),
            _holder(role="avnadmin", state="idle in transaction", count=14, oldest_seconds=901.2),
        ),
        policy=load_policy("", Deadline(10)),
        role="session_reaper",
        protected=decided.protected,
    )
    return _report(target, *_quiet(3))


def an_unreachable_blocker() -> Report:
    waiters = tuple(
        Waiter(pid=900 + n, role="shop", application="api", seconds=754.0 - n) for n in range(7)
    )
    rule = a_rule("blockers", state=["idle in transaction"], blocks=1, blocks_for="30s")
    slots = Slots(max=100, reserved=3, used=44)
    decided = decide([], slots, a_policy(rule))
    blockers = tuple(find_unreachable_blockers(decided, waiters))
    return _report(TargetReport(name="orders", slots=slots, used_after=44, blockers=blockers))


def several_groups() -> Report:
    """Several applications leak, and one policy ends some and spares others."""
    sessions = [
        *_leaks(9, application="api"),
        *_leaks(5, first=5000, application="worker", role="batch", client="10.0.9.17"),
        *_leaks(3, first=6000, application="report-export", role="reporting", client=None),
    ]
    policy = a_policy(limits={"max_terminations": 12})
    target = _report_decisions(sessions, Slots(max=100, reserved=3, used=62), policy=policy)
    return _report(target, *_quiet(2))


def a_broken_policy() -> Report:
    error = ConfigurationError(
        "POLICY ssm:/reaper/policy", "rules[1].match.idle_for: 300 has no unit; write 300s or 5m"
    )
    return Report(run_id=RUN_ID, mode=Mode.OFF, targets=(), configuration_error=str(error))


def one_server_under_three_secrets() -> Report:
    target = _report_decisions(_leaks(3), Slots(max=100, reserved=3, used=44), used_after=41)
    failure = Failure(
        code="28P01",
        cause='password authentication failed for user "session_reaper"',
        hint="Secret prod/orders: Check username and password in the secret (it was just reread); a rotation may"
        " change both.",
        step=f"secret prod/orders, logging in to {HOST}:5432",
    )
    failed = FailedSecret(name="prod/orders", failure=failure)
    also = ("prod/billing", "prod/stock")
    target = replace(target, secret=failed.name, also=also)
    return _report(replace(target, failed_secrets=(failed,), error=failure), *_quiet(2))


SITUATIONS = {
    make.__name__.replace("_", "-"): make
    for make in (
        quiet_recovery,
        one_leak,
        a_storm_of_300,
        observe_mode,
        full,
        full_of_idle,
        blind,
        breaker,
        half_the_fleet_unreachable,
        a_wedged_session,
        a_blocker_with_its_waiters,
        protected_under_pressure,
        an_unreachable_blocker,
        several_groups,
        a_broken_policy,
        one_server_under_three_secrets,
    )
}
