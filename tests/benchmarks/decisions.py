"""How long 5,000 sessions against 20 rules take to decide, beside a plain list comprehension.

The comprehension finds the same victims by the same conditions, and nothing else: no protection, no
reason, no order, no limit.
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


def _rule(number: int) -> dict[str, object]:
    return {
        "name": f"rule-{number}",
        "match": {
            "state": ["idle in transaction", "active"],
            "role": [f"app_{number}", f"app_{number + RULES}"],
            "application": ["api-*", "worker"],
            "idle_for": f"{300 + number}s",
        },
    }


def sessions() -> list[Session]:
    """Sessions of many names, a third of them in a state that rules are about, half of those old."""
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


def policy() -> Policy:
    """Twenty rules, of which each session can be condemned by one."""
    limits = {"max_terminations": SESSIONS}
    protect = {"roles": ["deploy", "etl_*"], "clients": ["10.9.0.0/16"]}
    rules = [_rule(number) for number in range(RULES)]
    return read_policy({"version": 1, "rules": rules, "protect": protect, "limits": limits})


def by_the_engine(found: list[Session], rules: Policy) -> set[int]:
    """The pids of those whom the engine condemns."""
    return {d.pid for d in decide(found, _SLOTS, rules).having(Verdict.CONDEMN)}


def by_a_comprehension(found: list[Session], rules: Policy) -> set[int]:
    """The pids of those whom a rule fits."""
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


def seconds(
    measured: Callable[[list[Session], Policy], set[int]], found: list[Session], rules: Policy
) -> float:
    """Of one go."""
    started = time.perf_counter()
    measured(found, rules)
    return time.perf_counter() - started
