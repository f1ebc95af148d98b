"""What a snapshot has and what a decision condemns, written without the engine, for its properties."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from session_reaper.decision.model import Decisions, Verdict
from session_reaper.sessions.session import Session, State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from session_reaper.policy.model import Policy

STATES_OF_A_DUMP = {State.IDLE_IN_TRANSACTION, State.ACTIVE, State.FASTPATH}


def matched(decided: Decisions) -> set[int]:
    """Return the pids that a rule condemns, including the spared ones."""
    return {d.pid for d in decided.decisions if d.verdict in (Verdict.CONDEMN, Verdict.SPARE)}


def seen(sessions: Sequence[Session], policy: Policy) -> list[Session]:
    """Return what a snapshot for this policy has of the sessions, as snapshot.sql chooses it."""
    scope = policy.scope()
    never = float("inf")
    dumps_matter = not STATES_OF_A_DUMP.isdisjoint(scope.idle_floors)
    return [
        replace(
            session,
            waiters=session.waiters if scope.waits else (),
            locks=session.locks if scope.locks else None,
        )
        for session in sessions
        if session.idle_seconds >= scope.idle_floors.get(session.state, never)
        or (dumps_matter and may_belong_to_a_dump(session))
    ]


def may_belong_to_a_dump(session: Session) -> bool:
    return (
        session.xmin_age is not None
        and session.xid_age is None
        and (
            session.query.startswith("COPY ")
            or session.state in (State.IDLE_IN_TRANSACTION, State.FASTPATH)
        )
    )
