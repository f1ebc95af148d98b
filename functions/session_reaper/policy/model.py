"""The policy: rules, protections and limits, and the checks that span several keys."""

from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import Annotated

from session_reaper.documents import (
    boolean,
    mapping_of,
    non_empty_text,
    non_negative_int,
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
    matches_any,
    read_glob,
    read_network,
    read_query_glob,
)
from session_reaper.policy.values import (
    read_action,
    read_duration,
    read_held_resource,
    read_mode,
    read_order,
    read_pause,
    read_percent,
    read_query_visibility,
    read_state,
    read_version,
)
from session_reaper.sessions.session import Names, Slots, State
from session_reaper.sessions.snapshot import SnapshotScope

# -- rules ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """The conditions of a rule; all that are given must hold. Clocks are seconds."""

    state: Annotated[tuple[State, ...], one_or_many(read_state), "in one of these states"]
    role: Annotated[Globs, one_or_many(read_glob), "signed in as one of these roles"] = ()
    database: Annotated[Globs, one_or_many(read_glob), "connected to one of these databases"] = ()
    application: Annotated[Globs, one_or_many(read_glob), "calls itself one of these"] = ()
    client: Annotated[Networks, one_or_many(read_network), "address in one of these networks"] = ()
    query: Annotated[
        QueryGlobs,
        one_or_many(read_query_glob),
        "its (last) query, as reports show it, begins like one of these; case-insensitive",
    ] = ()
    idle_for: Annotated[float | None, read_duration, "in its state for (state_change)"] = None
    transaction_for: Annotated[
        float | None, read_duration, "in its transaction for (xact_start)"
    ] = None
    connected_for: Annotated[
        float | None,
        read_duration,
        "connected for (backend_start): in a pool this breaks healthy transactions",
    ] = None
    query_for: Annotated[
        float | None, read_duration, "running its query for (query_start); active only"
    ] = None
    waiting_for_client: Annotated[
        bool | None,
        boolean,
        "active, but waiting for its client to go on (ClientRead) outside of a COPY",
    ] = None
    blocks: Annotated[
        int | None,
        positive_int,
        "so many sessions wait on it, in a chain or not; itself waits on none",
    ] = None
    blocks_for: Annotated[
        float | None, read_duration, "so many (one, unless `blocks` says more) have waited for"
    ] = None
    holds: Annotated[
        tuple[HeldResource, ...], one_or_many(read_held_resource), "holds one of these"
    ] = ()
    pins_vacuum_by: Annotated[
        int | None, positive_int, "its xid or xmin is so many transactions old: vacuum waits for it"
    ] = None


CLOCKS = ("idle_for", "transaction_for", "connected_for", "query_for", "blocks_for")
"""The conditions of a match that are times; a rule has at least one."""


def _read_match(value: object, place: str) -> Match:
    match = mapping_of(Match)(value, place)
    if all(getattr(match, clock) is None for clock in CLOCKS):
        raise ConfigurationError(place, f"has no clock; add at least one of {', '.join(CLOCKS)}")
    if match.query_for is not None and State.ACTIVE not in match.state:
        raise ConfigurationError(
            f"{place}.query_for", "counts in state active only, which state leaves out"
        )
    if match.waiting_for_client is not None and set(match.state) != {State.ACTIVE}:
        problem = (
            "tells active sessions apart; every other state waits for its client: state: active"
        )
        raise ConfigurationError(f"{place}.waiting_for_client", problem)
    return match


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """A mark on the scale of the slots that ordinary roles can use; one of the two is given."""

    slots_used: Annotated[Decimal | None, read_percent, "percent of them used"] = None
    slots_free: Annotated[int | None, non_negative_int, "so many of them free"] = None

    def __str__(self) -> str:
        if self.slots_used is not None:
            return f"slots_used: {self.slots_used:g}%"
        return f"slots_free: {self.slots_free}"

    def _used(self, slots: Slots) -> Decimal:
        """How many are used at the mark; need not be a whole number."""
        if self.slots_used is not None:
            return self.slots_used * slots.usable / 100
        return Decimal(slots.usable - (self.slots_free or 0))

    def is_reached(self, slots: Slots) -> bool:
        """Whether as many are used, or more."""
        return slots.used >= self._used(slots)

    def excess(self, slots: Slots) -> int:
        """How many have to be freed until no more are used; 0 or less if that is so already."""
        return int((slots.used - self._used(slots)).to_integral_value(ROUND_CEILING))


def _read_threshold(value: object, place: str) -> Threshold:
    mark = mapping_of(Threshold)(value, place)
    if (mark.slots_used is None) == (mark.slots_free is None):
        raise ConfigurationError(place, "needs one of slots_used, slots_free; one only")
    return mark


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One entry of the policy; the first that matches a session decides. Pauses are seconds."""

    name: Annotated[str, non_empty_text, "how reports call it; another for each rule"]
    match: Annotated[
        Match, _read_match, "all conditions must hold, values in a list are alternatives"
    ]
    when: Annotated[
        Threshold | None, _read_threshold, "in force only while slots are this short"
    ] = None
    until: Annotated[
        Threshold | None,
        _read_threshold,
        "condemns no more sessions than it takes to get back to this",
    ] = None
    confirm_after: Annotated[
        float | None, read_pause, "condemned only if the same transaction still matches then"
    ] = None
    action: Annotated[Action, read_action, "cancel ends the query, terminate the session"] = (
        Action.TERMINATE
    )
    escalate_after: Annotated[
        float | None, read_pause, "terminate what still runs so long after it was cancelled"
    ] = None


_RUNNING = {State.ACTIVE, State.FASTPATH}


def _read_rule(value: object, place: str) -> Rule:
    rule = mapping_of(Rule)(value, place)
    if rule.action is Action.CANCEL:
        if not set(rule.match.state) <= _RUNNING:
            problem = (
                "cancel does nothing to a session that runs no query: state: active, or terminate"
            )
            raise ConfigurationError(f"{place}.action", problem)
        if rule.match.waiting_for_client:
            problem = "cancel does nothing to a session that waits for its client; terminate it"
            raise ConfigurationError(f"{place}.action", problem)
        if rule.until is not None:
            raise ConfigurationError(f"{place}.until", "cancel frees no slots; terminate does")
    elif rule.escalate_after is not None:
        problem = "comes after a cancel; add action: cancel, or remove it"
        raise ConfigurationError(f"{place}.escalate_after", problem)
    if rule.when and rule.until and not _is_below(rule.until, rule.when):
        problem = f"{rule.until} is no better than when ({rule.when}): it would free nothing"
        raise ConfigurationError(f"{place}.until", problem)
    return rule


def _is_below(until: Threshold, when: Threshold) -> bool:
    if until.slots_used is not None and when.slots_used is not None:
        return until.slots_used < when.slots_used
    if until.slots_free is not None and when.slots_free is not None:
        return until.slots_free > when.slots_free
    return True  # which is below depends on the server


def _read_rules(value: object, place: str) -> tuple[Rule, ...]:
    if not isinstance(value, list):
        raise ConfigurationError(place, "is no list of rules")
    rules = one_or_many(_read_rule)(value, place)
    for index, rule in enumerate(rules):
        if rule.name in [earlier.name for earlier in rules[:index]]:
            raise ConfigurationError(
                f"{place}[{index}].name", f"{short_repr(rule.name)} is there already"
            )
    return rules


# -- the policy -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Protect:
    """Who is never touched, whatever a rule says. One list that fits is enough."""

    roles: Annotated[Globs, one_or_many(read_glob), "signed in as one of these roles"] = ()
    applications: Annotated[
        Globs, one_or_many(read_glob), "calls itself one of these: weak, any client may"
    ] = ()
    databases: Annotated[Globs, one_or_many(read_glob), "connected to one of these databases"] = ()
    clients: Annotated[Networks, one_or_many(read_network), "address in one of these networks"] = ()

    def covers(self, names: Names) -> str | None:
        """Which of these names is protected, or None."""
        if matches_any(self.roles, names.role):
            return f"role {names.role}"
        if matches_any(self.applications, names.application):
            return f"application {names.application}"
        if matches_any(self.databases, names.database):
            return f"database {names.database}"
        return None

    def merge(self, other: "Protect") -> "Protect":
        """Who is protected by either."""
        return Protect(
            roles=self.roles + other.roles,
            applications=self.applications + other.applications,
            databases=self.databases + other.databases,
            clients=self.clients + other.clients,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much may be done. Every condemned session counts, whether terminated or cancelled."""

    max_terminations: Annotated[int, positive_int, "of one target in one run"] = 100
    max_per_application: Annotated[
        int | None, positive_int, "of one application name, of one target in one run"
    ] = None
    max_per_run: Annotated[int | None, positive_int, "of all targets together in one run"] = None
    max_share: Annotated[
        Decimal | None,
        read_percent,
        "the breaker: condemned more of a target's client sessions? then none of them, and an alert",
    ] = None
    min_sessions: Annotated[
        int, positive_int, "the breaker's floor: with fewer client sessions it never trips"
    ] = 1
    order: Annotated[Order, read_order, "who goes first where not all may go"] = Order.LONGEST


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A policy document, understood."""

    version: Annotated[int, read_version, "of this language: 1"]
    rules: Annotated[tuple[Rule, ...], _read_rules, "the first that matches a session decides"]
    mode: Annotated[Mode | None, read_mode, "the most that this policy may do"] = None
    protect: Annotated[
        Protect, mapping_of(Protect), "never touched, on top of the built-in protections"
    ] = Protect()
    limits: Annotated[Limits, mapping_of(Limits), "how much may be done"] = Limits()
    queries: Annotated[
        QueryVisibility,
        read_query_visibility,
        "in the log and the return value: full shows literals; never in mail",
    ] = QueryVisibility.REDACTED

    def scope(self) -> SnapshotScope:
        """What a look has to bring for these rules."""
        floors: dict[State, float] = {}
        for rule in self.rules:
            for state in rule.match.state:
                seconds = rule.match.idle_for or 0
                floors[state] = min(floors.get(state, seconds), seconds)
        matches = [rule.match for rule in self.rules]
        by_harm = self.limits.order is Order.MOST_HARMFUL
        return SnapshotScope(
            idle_floors=floors,
            waits=by_harm or any(m.blocks or m.blocks_for is not None for m in matches),
            locks=by_harm or any(HeldResource.LOCKS in m.holds for m in matches),
        )


def read_policy(document: object, place: str = "") -> Policy:
    """A parsed document as a Policy. Raises ConfigurationError with the place of a mistake."""
    return mapping_of(Policy)(document, place)
