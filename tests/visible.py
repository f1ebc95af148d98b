"""The sessions that a snapshot for a policy contains, and those that the policy condemns."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from session_reaper.decision.model import Decisions, Verdict
from session_reaper.sessions.session import Session, State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from session_reaper.policy.model import Policy


def list_matched(decided: Decisions) -> set[int]:
    """Return the pids that a rule condemns, including the spared ones."""
    return {d.pid for d in decided.decisions if d.verdict in (Verdict.CONDEMN, Verdict.SPARE)}


def select_visible(sessions: Sequence[Session], policy: Policy) -> list[Session]:
    """Return the sessions that a snapshot for this policy contains, as snapshot.sql selects them."""
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


STATES_OF_A_DUMP = {State.IDLE_IN_TRANSACTION, State.ACTIVE, State.FASTPATH}


def may_belong_to_a_dump(session: Session) -> bool:
    return (
        session.xmin_age is not None
        and session.xid_age is None
        and (
            session.query.startswith("COPY ")
            or session.state in (State.IDLE_IN_TRANSACTION, State.FASTPATH)
        )
    )
