"""The content of `top`: slots, groups of sessions, lock chains, and the decisions of a policy."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from session_reaper.decision.decide import decide
from session_reaper.decision.model import Decision, Verdict
from session_reaper.policy.enums import Action
from session_reaper.policy.model import Policy, Rule
from session_reaper.policy.protections import ProtectedBy
from session_reaper.sessions.session import Session, State
from session_reaper.sessions.snapshot import Snapshot
from session_reaper.summary.groups import mask_client


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionGroup:
    """Sessions of one application, role, client network and state.

    `oldest_seconds`: the longest time in the state. `locks`: on objects, of all together. `pins`:
    the transactions by which the worst holds vacuum back. `blocks`: the sessions that wait for one
    of them.
    """

    application: str
    role: str
    client: str
    state: State
    count: int
    oldest_seconds: float
    locks: int
    pins: int
    blocks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RulePlan:
    """The sessions that one rule would end now."""

    rule: str
    action: Action
    count: int
    held_back: int  # by a limit, `until` or the breaker
    example: str  # the reason for the oldest


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """One look at a server.

    `blockers`: sessions that others wait for, and that wait for no lock themselves. `protected`:
    the sessions that a rule would terminate without a protection, by protection. `own_role`: those
    of them that our own role protects.
    """

    target: str
    snapshot: Snapshot
    groups: Sequence[SessionGroup]
    blockers: Sequence[Session]
    plans: Sequence[RulePlan]
    protected: Sequence[tuple[str, int]]
    own_role: int
    breaker: str


def make_overview(name: str, snapshot: Snapshot, policy: Policy) -> Overview:
    """Describe a snapshot of all sessions."""
    decided = decide(snapshot.sessions, snapshot.slots, policy)
    protected = [d for d in decided.decisions if d.protection and d.protected_from]
    blockers = [session for session in snapshot.sessions if session.waiters]
    by_protection = Counter(d.protection.by for d in protected if d.protection)
    return Overview(
        target=name,
        snapshot=snapshot,
        groups=tuple(_group(snapshot.sessions)),
        blockers=sorted(blockers, key=lambda session: -len(session.waiters)),
        plans=tuple(_plan(decided.decisions)),
        protected=tuple(by_protection.most_common()),
        own_role=by_protection[ProtectedBy.OWN_ROLE.value],
        breaker=decided.breaker or "",
    )


def to_json(overview: Overview) -> dict[str, Any]:
    """Return an overview as JSON; groups have the keys of `holders` in a run's report."""
    snapshot, slots = overview.snapshot, overview.snapshot.slots
    return {
        "target": overview.target,
        "role": snapshot.role,
        "reader": snapshot.reader,
        "slots": {
            "max": slots.max,
            "reserved": slots.reserved,
            "usable": slots.usable,
            "used": slots.used,
        },
        "hidden": snapshot.hidden,
        "groups": [asdict(group) for group in overview.groups],
        "lock_chains": [
            {
                "pid": root.identity.pid,
                "application": root.application,
                "role": root.role,
                "state": root.state.value,
                "idle_seconds": root.idle_seconds,
                "query": root.redacted_query,
                "waiters": [asdict(waiter) for waiter in root.waiters],
            }
            for root in overview.blockers
        ],
        "policy": [asdict(plan) for plan in overview.plans],
        "protected": [{"by": by, "count": count} for by, count in overview.protected],
        **({"breaker": overview.breaker} if overview.breaker else {}),
    }


def _group(sessions: Iterable[Session]) -> Iterator[SessionGroup]:
    """Group sessions, the largest group first."""
    members: dict[tuple[str, str, str, State], list[Session]] = defaultdict(list)
    for each in sessions:
        key = (each.application, each.role_label, mask_client(each.client), each.state)
        members[key].append(each)
    for (application, role, client, state), group in sorted(members.items(), key=_rank_group):
        yield SessionGroup(
            application=application,
            role=role,
            client=client,
            state=state,
            count=len(group),
            oldest_seconds=max(each.idle_seconds for each in group),
            locks=sum(each.locks or 0 for each in group),
            pins=max(each.pinned for each in group),
            blocks=sum(len(each.waiters) for each in group),
        )


def _rank_group(item: tuple[object, Sequence[Session]]) -> tuple[float, ...]:
    sessions = item[1]
    return (-len(sessions), -max(each.idle_seconds for each in sessions))


_COUNTED: Final = (Verdict.CONDEMN, Verdict.SPARE)


def _plan(decisions: Iterable[Decision]) -> Iterator[RulePlan]:
    """Say what each rule would do, in the order of their sessions."""
    by_rule: dict[Rule, list[Decision]] = defaultdict(list)
    for decision in decisions:
        if decision.verdict in _COUNTED and decision.rule is not None:
            by_rule[decision.rule].append(decision)
    for rule, group in by_rule.items():
        condemned = [each for each in group if each.verdict is Verdict.CONDEMN]
        oldest = max(condemned or group, key=lambda each: each.session.idle_seconds)
        yield RulePlan(
            rule=rule.name,
            action=rule.action,
            count=len(condemned),
            held_back=len(group) - len(condemned),
            example=oldest.reason,
        )
