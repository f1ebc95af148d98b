"""Measures how long decisions on 5,000 sessions by 20 rules take, beside a plain list comprehension.

The comprehension selects the same sessions by the same conditions. It applies no protection and no
limit, sorts nothing, and gives no reason.
"""

import time
from collections.abc import Callable
from fnmatch import fnmatchcase

from session_reaper.decision.decide import decide
from session_reaper.decision.model import Verdict
from session_reaper.policy.model import Policy, read_policy
from session_reaper.sessions.session import Session, Slots, State

from tests.builders import a_session

SESSIONS, RULES = 5_000, 20
_ROLES, _APPLICATIONS, _CLIENTS = 40, 50, 700
_STATES = (State.IDLE, State.ACTIVE, State.IDLE_IN_TRANSACTION)
_SLOTS = Slots(max=6_000, reserved=3, used=SESSIONS)


def _make_rule(number: int) -> dict[str, object]:
    return {
        "name": f"rule-{number}",
        "match": {
            "state": ["idle in transaction", "active"],
            "role": [f"app_{number}", f"app_{number + RULES}"],
            "application": ["api-*", "worker"],
            "idle_for": f"{300 + number}s",
        },
    }


def make_sessions() -> list[Session]:
    """Return sessions with many names; a third are idle in transaction, half of those for long."""
    return [
        a_session(
            pid=number,
            state=_STATES[number % 3],
            role=f"app_{number % _ROLES}",
            application=f"api-{number % _APPLICATIONS}",
            client=f"10.0.{number % 7}.{number % (_CLIENTS // 7)}",
            idle_seconds=float(number * 7 % 620),
        )
        for number in range(SESSIONS)
    ]


def make_policy() -> Policy:
    """Return a policy of twenty rules, of which one at most can condemn a session."""
    limits = {"max_terminations": SESSIONS}
    protect = {"roles": ["deploy", "etl_*"], "clients": ["10.9.0.0/16"]}
    rules = [_make_rule(number) for number in range(RULES)]
    return read_policy({"version": 1, "rules": rules, "protect": protect, "limits": limits})


def decide_by_engine(found: list[Session], rules: Policy) -> set[int]:
    """Return the pids of the sessions that the engine condemns."""
    return {d.pid for d in decide(found, _SLOTS, rules).having(Verdict.CONDEMN)}


def decide_by_comprehension(found: list[Session], rules: Policy) -> set[int]:
    """Return the pids of the sessions that a rule matches."""
    return {
        session.identity.pid
        for session in found
        if any(
            session.state in rule.match.state
            and session.idle_seconds >= (rule.match.idle_for or 0)
            and any(fnmatchcase(session.role or "", glob) for glob in rule.match.role)
            and any(fnmatchcase(session.application, glob) for glob in rule.match.application)
            for rule in rules.rules
        )
    }


def measure_seconds(
    decide_on: Callable[[list[Session], Policy], set[int]], found: list[Session], rules: Policy
) -> float:
    """Measure one call."""
    started = time.perf_counter()
    decide_on(found, rules)
    return time.perf_counter() - started
