"""Builders of valid values; a test gives only the parts that matter to it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from session_reaper.decision.model import Decision, Verdict
from session_reaper.policy.enums import Mode
from session_reaper.policy.model import Policy, read_policy
from session_reaper.report.model import Outcome, Report, SessionResult, TargetReport
from session_reaper.sessions.server_facts import ServerFacts, Timeout
from session_reaper.sessions.session import Identity, Session, Slots, State
from session_reaper.sessions.snapshot import Snapshot
from session_reaper.targets.providers import Provider
from session_reaper.targets.secret_document import parse_secret, resolve_targets
from session_reaper.targets.target import RdsListing, Secret, Target

if TYPE_CHECKING:
    from collections.abc import Mapping

PASSWORD = "p@ss/w0rd:%'\"?#CANARY"  # noqa: S105 -- of nothing


class SlowClock:
    """Stands in for time.monotonic: each reading is a second later than the one before."""

    def __init__(self) -> None:
        self._now = 0.0

    def __call__(self) -> float:
        self._now += 1
        return self._now


def an_identity(**overrides: object) -> Identity:
    """The identity of a session."""
    values = {
        "pid": 4711,
        "backend_start": "2026-01-15T08:00:00.000001+00:00",
        "xact_start": "2026-01-15T09:00:00.000002+00:00",
        "state_change": "2026-01-15T09:00:01.000003+00:00",
        "query_start": "2026-01-15T09:00:01.000001+00:00",
        "state": State.IDLE_IN_TRANSACTION,
    }
    return Identity(**values | overrides)  # type: ignore[arg-type] # a table of defaults


def a_session(**overrides: object) -> Session:
    """An application's session: idle in transaction for 15 min 1 s, by the default policy a leak.

    `pid` and `state` stand for its identity's.
    """
    pid = overrides.pop("pid", 4711)
    state = overrides.pop("state", State.IDLE_IN_TRANSACTION)
    values = {
        "identity": an_identity(pid=pid, state=State(str(state))),
        "role": "app",
        "database": "orders",
        "application": "api",
        "client": "10.0.0.7",
        "query": "select * from orders where id = 42",
        "query_id": None,
        "idle_seconds": 901.2,
        "transaction_seconds": 905.0,
        "connected_seconds": 4000.1,
        "query_seconds": None,
        "waiting_for_client": False,
        "xid_age": None,
        "xmin_age": None,
        "locks": None,
        "waiters": (),
        "superuser": False,
        "replication": False,
        "own_role": False,
        "signalable": True,
    }
    return Session(**values | overrides)  # type: ignore[arg-type] # a table of defaults


def some_slots(*, used: int = 97, maximum: int = 100, reserved: int = 3) -> Slots:
    """A full server's slots."""
    return Slots(max=maximum, reserved=reserved, used=used)


def a_snapshot(*sessions: Session, **overrides: object) -> Snapshot:
    """A snapshot taken by a role that may see and signal every session."""
    values = {
        "role": "session_reaper",
        "slots": some_slots(),
        "can_see": True,
        "can_signal": True,
        "untracked": 0,
        "reader": False,
        "behind_pooler": False,
        "sessions": sessions or (a_session(),),
    }
    return Snapshot(**values | overrides)  # type: ignore[arg-type] # a table of defaults


def a_rule(name: str = "idle-in-transaction", **match: object) -> dict[str, Any]:
    """A rule as a document; `match` replaces all conditions."""
    conditions = match or {"state": ["idle in transaction"], "idle_for": "5m"}
    return {"name": name, "match": conditions}


def a_document(*rules: Mapping[str, Any], **keys: object) -> dict[str, Any]:
    """A policy as a document."""
    return {"version": 1, "rules": list(rules) or [a_rule()], **keys}


def a_policy(*rules: Mapping[str, Any], **keys: object) -> Policy:
    """A policy."""
    return read_policy(a_document(*rules, **keys))


def a_decision(session: Session | None = None, **overrides: object) -> Decision:
    """A condemned session; `rule` is its rule's name."""
    name = str(overrides.pop("rule", "idle-in-transaction"))
    values = {
        "session": session or a_session(),
        "verdict": Verdict.CONDEMN,
        "rule": replace(a_policy().rules[0], name=name),
        "reasons": ("idle in transaction for 15m 1s (idle_for: 5m)",),
    }
    return Decision(**values | overrides)  # type: ignore[arg-type] # a table of defaults


def a_result(outcome: Outcome = Outcome.TERMINATED, **session: object) -> SessionResult:
    """The result of a condemned session."""
    return SessionResult(decision=a_decision(a_session(**session)), outcome=outcome)


def some_results(number: int, outcome: Outcome, **session: object) -> tuple[SessionResult, ...]:
    """The results of several sessions with the same outcome."""
    return tuple(a_result(outcome, pid=pid, **session) for pid in range(1, number + 1))


def a_target_report(*results: SessionResult, **overrides: object) -> TargetReport:
    """The report of a target that was reached."""
    values = {"name": "orders", "slots": some_slots(), "used_after": 97, "results": results}
    return TargetReport(**values | overrides)  # type: ignore[arg-type] # a table of defaults


def a_report(*targets: TargetReport, mode: Mode = Mode.ENFORCE) -> Report:
    """The report of a run."""
    return Report(run_id="4f6c", mode=mode, targets=targets)


def a_server(*timeouts: Timeout, **overrides: object) -> ServerFacts:
    """A server that needs no advice."""
    values = {
        "version": "18.1",
        "major": 18,
        "provider": Provider.VANILLA,
        "tls": None,
        "role": "reaper",
        "superuser": False,
        "inherits": True,
        "connection_limit": None,
        "granted_reserved": True,
        "reserved_slots": 2,
        "soon": "2026-02-14T09:00:00Z",
        "databases": ("orders",),
        "timeouts": timeouts,
        "idle": (),
        "prepared": (),
        "replication_slots": (),
    }
    return ServerFacts(**values | overrides)  # type: ignore[arg-type] # a table of defaults


def a_secret(**overrides: object) -> str:
    """A secret in the RDS shape, all of it; a key that is None is left out."""
    document = {
        "engine": "postgres",
        "host": "orders.abc.eu-west-1.rds.amazonaws.com",
        "port": 5433,
        "username": "reaper",
        "password": PASSWORD,
        "dbname": "orders_db",
        "dbInstanceIdentifier": "orders",
    } | overrides
    return json.dumps({key: value for key, value in document.items() if value is not None})


def read_target(secret: Secret, *, whole_clusters: bool = False) -> Target:
    """The one target of a secret that does not need RDS."""
    parsed = parse_secret(secret, whole_clusters=whole_clusters)
    assert not parsed.needs_rds
    (target,) = resolve_targets(parsed, RdsListing())
    return target
