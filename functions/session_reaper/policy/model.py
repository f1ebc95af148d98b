"""The policy: rules, protections and limits, and the checks that span several keys."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import ROUND_CEILING, Decimal
from functools import cached_property
from math import inf
from typing import Annotated

from session_reaper.documents import (
    boolean,
    mapping_of,
    non_empty_text,
    non_negative_int,
    one_of,
    one_or_many,
    positive_int,
    short_repr,
)
from session_reaper.errors import ConfigurationError
from session_reaper.policy.enums import Action, HeldResource, Mode, Order, QueryVisibility
from session_reaper.policy.patterns import (
    Globs,
    Networks,
    QueryGlobs,
    is_literal,
    is_within,
    matches_any,
    read_application_glob,
    read_application_globs,
    read_name_glob,
    read_network,
    read_query_glob,
    read_wait_event,
    read_wait_event_type,
)
from session_reaper.policy.protections import ProtectedBy, Protection
from session_reaper.policy.values import (
    read_duration,
    read_mode,
    read_pause,
    read_percent,
    read_version,
)
from session_reaper.sessions.session import Names, Slots, State
from session_reaper.sessions.snapshot import SnapshotScope

_GLOBS, _NETWORKS = one_or_many(read_name_glob), one_or_many(read_network)

# -- rules ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)  # no slots: a cached_property needs __dict__
class Match:
    """The conditions of a rule; all that are given must hold. Durations are seconds."""

    state: Annotated[tuple[State, ...], one_or_many(one_of(State)), "in one of these states"]
    role: Annotated[Globs, _GLOBS, "connected as one of these roles"] = ()
    database: Annotated[Globs, _GLOBS, "connected to one of these databases"] = ()
    application: Annotated[
        Globs,
        read_application_globs,
        'application_name is one of these; [""] for the sessions without one',
    ] = ()
    client: Annotated[Networks, _NETWORKS, "client address is in one of these networks"] = ()
    query: Annotated[
        QueryGlobs,
        one_or_many(read_query_glob),
        "current or last query, as reports show it, begins with one of these; case-insensitive",
    ] = ()
    idle_for: Annotated[
        float | None, read_duration, "in its state for at least this long (state_change)"
    ] = None
    transaction_for: Annotated[
        float | None, read_duration, "in its transaction for at least this long (xact_start)"
    ] = None
    connected_for: Annotated[
        float | None,
        read_duration,
        "connected for at least this long (backend_start); ends healthy transactions of a pool",
    ] = None
    query_for: Annotated[
        float | None, read_duration, "running its query for at least this long; active only"
    ] = None
    wait_event_type: Annotated[
        Globs,
        one_or_many(read_wait_event_type),
        "waits for an event of one of these types, such as Client; Lock includes parallel workers."
        " Only a rule with this key matches a session that waits for a lock",
    ] = ()
    wait_event: Annotated[
        Globs,
        one_or_many(read_wait_event),
        "waits for one of these events, such as ClientWrite; names as in PostgreSQL",
    ] = ()
    waiting_for_client: Annotated[
        bool | None, boolean, "active but waiting for its client (ClientRead), except in a COPY"
    ] = None
    blocks: Annotated[
        int | None, positive_int, "root blocker of at least this many waiting sessions"
    ] = None
    blocks_for: Annotated[
        float | None,
        read_duration,
        "as many sessions as `blocks` (default 1) have waited for it for at least this long",
    ] = None
    holds: Annotated[
        tuple[HeldResource, ...],
        one_or_many(one_of(HeldResource)),
        "holds one of these: a transaction ID, a snapshot, locks",
    ] = ()
    pins_vacuum_by: Annotated[
        int | None, positive_int, "holds vacuum back by at least this many transactions"
    ] = None

    @cached_property  # compared with thousands of sessions
    def thresholds(self) -> Mapping[str, float]:
        """The given conditions that hold from a number on, with this number."""
        return {key: least for key in _THRESHOLDS if (least := getattr(self, key)) is not None}

    @property
    def has_wait_condition(self) -> bool:
        """Return whether the match depends on what a session waits for."""
        return bool(self.wait_event_type or self.wait_event or self.waiting_for_client is not None)

    @property
    def is_on_blockers(self) -> bool:
        """Return whether the rule is about sessions that others wait for."""
        return self.blocks is not None or self.blocks_for is not None


CLOCKS = ("idle_for", "transaction_for", "connected_for", "query_for", "blocks_for")
"""The conditions on a duration; every rule needs at least one, unless its action is keep."""
# In the order in which a decision's reasons name them.
_THRESHOLDS = (
    *("idle_for", "transaction_for", "connected_for", "query_for"),
    *("blocks", "blocks_for", "pins_vacuum_by"),
)


def _read_match(value: object, place: str) -> Match:
    match = mapping_of(Match)(value, place)
    if match.query_for is not None and State.ACTIVE not in match.state:
        problem = "applies to active sessions only; add active to state"
        raise ConfigurationError(f"{place}.query_for", problem)
    if match.waiting_for_client is not None and set(match.state) != {State.ACTIVE}:
        problem = "applies to active sessions only; write state: active"
        raise ConfigurationError(f"{place}.waiting_for_client", problem)
    return match


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """A number of used slots, given as used or as free; exactly one of the two is set."""

    slots_used: Annotated[Decimal | None, read_percent, "percentage of the slots used"] = None
    slots_free: Annotated[int | None, non_negative_int, "number of slots free"] = None

    def __str__(self) -> str:
        if self.slots_used is not None:
            return f"slots_used: {self.slots_used:g}%"
        return f"slots_free: {self.slots_free}"

    def _count_used(self, slots: Slots) -> Decimal:
        """Return the number of used slots at the threshold, which may be a fraction."""
        if self.slots_used is not None:
            return self.slots_used * slots.usable / 100
        return Decimal(slots.usable - (self.slots_free or 0))

    def is_reached(self, slots: Slots) -> bool:
        """Return whether at least as many slots are used as the threshold says."""
        return slots.used >= self._count_used(slots)

    def excess(self, slots: Slots) -> int:
        """Return how many slots must be freed to reach the threshold; 0 or less if none."""
        return int((slots.used - self._count_used(slots)).to_integral_value(ROUND_CEILING))


def _read_threshold(value: object, place: str) -> Threshold:
    threshold = mapping_of(Threshold)(value, place)
    if (threshold.slots_used is None) == (threshold.slots_free is None):
        raise ConfigurationError(place, "must have exactly one of slots_used, slots_free")
    return threshold


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One entry of the policy; the first that matches a session decides. Pauses are seconds."""

    name: Annotated[str, non_empty_text, "the name in reports; unique in the policy"]
    match: Annotated[
        Match, _read_match, "all conditions must hold; values in one list are alternatives"
    ]
    when: Annotated[
        Threshold | None,
        _read_threshold,
        "apply the rule only while so many of the slots for ordinary roles are used",
    ] = None
    until: Annotated[
        Threshold | None,
        _read_threshold,
        "condemn no more sessions than must end to get back to this threshold",
    ] = None
    confirm_after: Annotated[
        float | None,
        read_pause,
        "take a second snapshot after this pause; condemn only if the same transaction still matches",
    ] = None
    action: Annotated[
        Action,
        one_of(Action),
        "terminate ends the session, cancel only its query; keep leaves it alone, and no later rule"
        " sees it",
    ] = Action.TERMINATE
    escalate_after: Annotated[
        float | None,
        read_pause,
        "terminate the session if its query still runs this long after it was cancelled",
    ] = None
    mode: Annotated[
        Mode | None,
        read_mode,
        "observe: only report what the rule matches, a later rule decides; off: ignore the rule",
    ] = None

    @property
    def literal_roles(self) -> frozenset[str]:
        """Return the roles that the rule names without a glob."""
        return frozenset(filter(is_literal, self.match.role))

    @property
    def matches_lock_waits(self) -> bool:
        """Return whether the rule may match a session that waits for a lock."""
        return bool(self.match.wait_event_type) or self.action is Action.KEEP

    @property
    def is_observe_only(self) -> bool:
        """Return whether the rule only reports and leaves the decision to the other rules."""
        return self.mode is Mode.OBSERVE

    @property
    def may_condemn(self) -> bool:
        """Return whether the rule can condemn a session."""
        return self.action is not Action.KEEP and self.mode in (None, Mode.ENFORCE)


_RUNNING = {State.ACTIVE, State.FASTPATH}


def _read_rule(value: object, place: str) -> Rule:
    rule = mapping_of(Rule)(value, place)
    if rule.action is Action.KEEP:
        _check_keep(rule, place)
    elif all(getattr(rule.match, clock) is None for clock in CLOCKS):
        problem = f"needs at least one of {', '.join(CLOCKS)}"
        raise ConfigurationError(f"{place}.match", problem)
    elif rule.action is Action.CANCEL:
        _check_cancel(rule, place)
    elif rule.escalate_after is not None:
        problem = "requires action: cancel; add that, or remove escalate_after"
        raise ConfigurationError(f"{place}.escalate_after", problem)
    if rule.when and rule.until and not _is_below(rule.until, rule.when):
        problem = f"must leave fewer slots used than when ({rule.when}), not {rule.until}"
        raise ConfigurationError(f"{place}.until", problem)
    return rule


def _check_keep(rule: Rule, place: str) -> None:
    """Raise ConfigurationError if the rule has a key that cannot apply to sessions left alone."""
    for key in ("until", "confirm_after", "escalate_after", "mode"):
        if getattr(rule, key) is not None:
            problem = "a rule with action: keep takes match and when only; remove it"
            raise ConfigurationError(f"{place}.{key}", problem)


def _check_cancel(rule: Rule, place: str) -> None:
    """Raise ConfigurationError if a cancel would not affect the sessions that the rule matches."""
    if not set(rule.match.state) <= _RUNNING:
        problem = (
            "cancel does nothing to a session without a query;"
            " write state: active or action: terminate"
        )
        raise ConfigurationError(f"{place}.action", problem)
    if rule.match.waiting_for_client:
        problem = "cancel does nothing to a session waiting for its client; write action: terminate"
        raise ConfigurationError(f"{place}.action", problem)
    if rule.until is not None:
        problem = "a cancel frees no slots; write action: terminate or remove until"
        raise ConfigurationError(f"{place}.until", problem)


def _is_below(until: Threshold, when: Threshold) -> bool:
    """Return whether `until` asks for fewer used slots than `when`, as far as the policy shows."""
    if until.slots_used is not None and when.slots_used is not None:
        return until.slots_used < when.slots_used
    if until.slots_free is not None and when.slots_free is not None:
        return until.slots_free > when.slots_free
    return True


def _read_rules(value: object, place: str) -> tuple[Rule, ...]:
    if not isinstance(value, list):
        raise ConfigurationError(place, "must be a list of rules")
    rules = one_or_many(_read_rule)(value, place)
    for index, rule in enumerate(rules):
        if rule.name in [earlier.name for earlier in rules[:index]]:
            problem = f"duplicate rule name {short_repr(rule.name)}"
            raise ConfigurationError(f"{place}[{index}].name", problem)
    return rules


# -- the policy -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Protect:
    """The sessions that no rule matches; one matching list is enough."""

    roles: Annotated[Globs, _GLOBS, "connected as one of these roles"] = ()
    applications: Annotated[
        Globs,
        one_or_many(read_application_glob),
        "application_name is one of these; weak, because any client can set it",
    ] = ()
    databases: Annotated[Globs, _GLOBS, "connected to one of these databases"] = ()
    clients: Annotated[Networks, _NETWORKS, "client address is in one of these networks"] = ()

    def find(self, names: Names) -> Protection | None:
        """Return the protection by these names, or None."""
        role, application, database = names.role, names.application, names.database
        if role is not None and matches_any(self.roles, role):
            return Protection(kind=ProtectedBy.ROLES, detail=f"role {role}")
        if matches_any(self.applications, application):
            return Protection(kind=ProtectedBy.APPLICATIONS, detail=f"application {application}")
        if matches_any(self.databases, database):
            return Protection(kind=ProtectedBy.DATABASES, detail=f"database {database}")
        return None

    def find_by_dropped_role(self, role: str | None) -> Protection | None:
        """Return the protection of a session whose role was dropped."""
        if role is None and self.roles:
            detail = "role dropped, so protect.roles cannot be compared with it"
            return Protection(kind=ProtectedBy.ROLE_DROPPED, detail=detail)
        return None

    def find_by_client(self, client: str | None) -> Protection | None:
        """Return the protection by the client."""
        if is_within(self.clients, client):
            return Protection(kind=ProtectedBy.CLIENTS, detail=f"client {client}")
        return None

    def merge(self, other: "Protect") -> "Protect":
        """Protect the sessions that either of the two protects."""
        return Protect(
            roles=self.roles + other.roles,
            applications=self.applications + other.applications,
            databases=self.databases + other.databases,
            clients=self.clients + other.clients,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The most sessions that a run may signal, whether to terminate or to cancel."""

    max_terminations: Annotated[int, positive_int, "most sessions per target and run"] = 100
    max_per_application: Annotated[
        int | None, positive_int, "most sessions per application_name, target and run"
    ] = None
    max_per_run: Annotated[int | None, positive_int, "most sessions per run, over all targets"] = (
        None
    )
    max_share: Annotated[
        Decimal | None,
        read_percent,
        "the breaker: if the policy condemns more than this share of a target's client sessions,"
        " none is signalled and the summary reports it",
    ] = None
    max_condemned: Annotated[
        int | None,
        positive_int,
        "the breaker: if the policy condemns more sessions of a target than this, none is signalled"
        " and the summary reports it",
    ] = None
    min_sessions: Annotated[
        int, positive_int, "with fewer client sessions than this max_share does not apply"
    ] = 1
    order: Annotated[
        Order, one_of(Order), "which sessions are signalled first if a limit stops some"
    ] = Order.LONGEST

    @property
    def has_breaker(self) -> bool:
        """Return whether too many condemned sessions stop the run on a target."""
        return self.max_share is not None or self.max_condemned is not None

    def without_breaker(self) -> "Limits":
        """Return the limits without `max_share` and `max_condemned`."""
        return replace(self, max_share=None, max_condemned=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A policy document after all checks."""

    version: Annotated[int, read_version, "version of the policy language: 1"]
    rules: Annotated[tuple[Rule, ...], _read_rules, "the first rule that matches a session decides"]
    mode: Annotated[
        Mode | None, read_mode, "upper limit: enforce acts, observe only reports, off does nothing"
    ] = None
    protect: Annotated[
        Protect,
        mapping_of(Protect),
        "sessions that are never touched, in addition to the built-in protections",
    ] = Protect()
    limits: Annotated[Limits, mapping_of(Limits), "how many sessions may be signalled"] = Limits()
    queries: Annotated[
        QueryVisibility,
        one_of(QueryVisibility),
        "in the log and the return value, full shows queries with their literals; emails never do",
    ] = QueryVisibility.REDACTED
    comment_tags: Annotated[
        tuple[str, ...],
        one_or_many(non_empty_text),
        "reports show these tags of a query's sqlcommenter comment, such as route",
    ] = ()
    # The roles whose built-in protections the rules can lift; None: those that the rules name.
    liftable_roles: frozenset[str] | None = field(default=None, compare=False)

    @property
    def lifted_roles(self) -> frozenset[str]:
        """Return the roles that the rules name literally and whose protections they lift."""
        roles = {role for rule in self.rules if rule.may_condemn for role in rule.literal_roles}
        return frozenset(roles if self.liftable_roles is None else roles & self.liftable_roles)

    def lifts(self, rule: Rule, role: str | None) -> bool:
        """Return whether a rule lifts the built-in protections of a role."""
        is_liftable = self.liftable_roles is None or role in self.liftable_roles
        return is_liftable and role in rule.literal_roles

    @property
    def shortest_clock(self) -> float:
        """Return the age in seconds below which no rule matches a session."""
        rules = (r for r in self.rules if r.mode is not Mode.OFF and r.action is not Action.KEEP)
        clocks = (getattr(rule.match, clock) for rule in rules for clock in CLOCKS)
        return min((seconds for seconds in clocks if seconds is not None), default=inf)

    def scope(self) -> SnapshotScope:
        """Return what a snapshot must contain for these rules.

        A `keep` rule adds no sessions, because a session that no other rule can match is left alone
        anyway. For the sessions that it may have to keep, the scope has what its conditions need.
        """
        floors: dict[State, float] = {}
        acting = [rule for rule in self.rules if rule.mode is not Mode.OFF]
        for rule in acting:
            for state in () if rule.action is Action.KEEP else rule.match.state:
                seconds = rule.match.idle_for or 0
                floors[state] = min(floors.get(state, seconds), seconds)
        matches = [rule.match for rule in acting if not floors.keys().isdisjoint(rule.match.state)]
        by_harm = self.limits.order is Order.MOST_HARMFUL
        return SnapshotScope(
            idle_floors=floors,
            waits=by_harm or any(m.is_on_blockers for m in matches),
            locks=by_harm or any(HeldResource.LOCKS in m.holds for m in matches),
            query_ends=bool(self.comment_tags),
        )


def read_policy(document: object, place: str = "") -> Policy:
    """Read a parsed document. Raises ConfigurationError with the place of an invalid value."""
    return mapping_of(Policy)(document, place)
