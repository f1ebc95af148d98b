"""What to terminate and what to protect, and how a policy document becomes that."""

import re
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from enum import IntEnum, StrEnum
from typing import Annotated, TypeVar

from session_reaper.documents import count, count_from_zero, flag, record, several, shown, text
from session_reaper.durations import format_duration, parse_duration
from session_reaper.errors import ConfigurationError
from session_reaper.patterns import (
    Globs,
    Networks,
    QueryGlobs,
    matches_any,
    read_glob,
    read_network,
    read_query_glob,
)
from session_reaper.sessions import Names, Scope, Slots, State


class Mode(IntEnum):
    """How far a run goes. The lowest of those given holds."""

    OFF = 0
    OBSERVE = 1
    ENFORCE = 2

    def __str__(self) -> str:
        return self.name.lower()


class Action(StrEnum):
    """What is done to a session that a rule condemns."""

    TERMINATE = "terminate"
    CANCEL = "cancel"  # its query only; the session goes on


class Holding(StrEnum):
    """What a session may hold that does harm to others."""

    XID = "xid"  # it has written: its rows are locked, and vacuum waits for it
    XMIN = "xmin"  # it has a snapshot: vacuum removes nothing that is younger
    LOCKS = "locks"  # on relations, tuples, advisory …: those of a plain reader count


class Order(StrEnum):
    """Who goes first where a limit lets only some go."""

    LONGEST = "longest"  # in its state
    MOST_HARMFUL = "most_harmful"  # most waiters, then oldest xid or xmin, then most locks
    NEWEST = "newest"  # in its state: the least work is lost


class Queries(StrEnum):
    """How reports to machines (return value, log) show a session's query; people get it redacted."""

    REDACTED = "redacted"
    FULL = "full"  # with its literals, as the server keeps it


# -- what the values of a document mean ----------------------------------------------------------

Choice = TypeVar("Choice", bound=StrEnum)


def _one_of(kind: type[Choice], value: object, place: str, what: str) -> Choice:
    written = text(value, place)
    try:
        return kind(written)
    except ValueError:
        raise ConfigurationError(
            place, f"{shown(written)} is no {what}: {', '.join(kind)}"
        ) from None


def read_state(value: object, place: str) -> State:
    """A state that a rule may name. Raises ConfigurationError."""
    return _one_of(State, value, place, "state a rule may name")


def read_action(value: object, place: str) -> Action:
    """An action by name. Raises ConfigurationError."""
    return _one_of(Action, value, place, "action")


def read_holding(value: object, place: str) -> Holding:
    """Something to hold, by name. Raises ConfigurationError."""
    return _one_of(Holding, value, place, "thing that a session holds")


def read_order(value: object, place: str) -> Order:
    """An order by name. Raises ConfigurationError."""
    return _one_of(Order, value, place, "order")


def read_queries(value: object, place: str) -> Queries:
    """A way to show queries, by name. Raises ConfigurationError."""
    return _one_of(Queries, value, place, "way to show queries")


_LONGEST = 3650 * 86400.0  # seconds; no session is older than ten years
_LONGEST_PAUSE = 300.0  # seconds; a function runs for 15 minutes at most, with all it has to do


def read_duration(value: object, place: str) -> float:
    """Seconds of a duration such as 5m. Raises ConfigurationError."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise ConfigurationError(
            place, f"{shown(value)} has no unit; write {shown(value)}s or 5m, 1h30m, 2d"
        )
    seconds = parse_duration(text(value, place))
    if seconds is None or seconds > _LONGEST:
        raise ConfigurationError(
            place, f"{shown(value)} is no duration; write 30s, 5m, 1h30m or 2d"
        )
    return seconds


def read_pause(value: object, place: str) -> float:
    """Seconds for which a run waits. Raises ConfigurationError."""
    seconds = read_duration(value, place)
    if seconds > _LONGEST_PAUSE:
        most = format_duration(_LONGEST_PAUSE)
        raise ConfigurationError(
            place, f"{shown(value)} is longer than a run waits; {most} at most"
        )
    return seconds


def read_percent(value: object, place: str) -> Decimal:
    """A percentage such as 50%, exactly. Raises ConfigurationError."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)%", value) if isinstance(value, str) else None
    if not found or not 0 < Decimal(found[1]) <= 100:  # noqa: PLR2004 -- percent
        raise ConfigurationError(
            place, f"{shown(value)} is no share; write a percentage such as 50%"
        )
    return Decimal(found[1])


def read_version(value: object, place: str) -> int:
    """The version of the document's language. Raises ConfigurationError."""
    if value != 1 or isinstance(value, bool):
        raise ConfigurationError(
            place, f"{shown(value)} is not known; this release reads version 1"
        )
    return 1


def read_mode(value: object, place: str) -> Mode:
    """A mode by name. YAML reads a bare `off` as false, and everybody writes it bare."""
    for mode in Mode:
        if value == str(mode) or (value is False and mode is Mode.OFF):
            return mode
    raise ConfigurationError(
        place, f"{shown(value)} is no mode; write one of {', '.join(map(str, Mode))}"
    )


# -- rules ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """The conditions of a rule; all that are given must hold. Clocks are seconds."""

    state: Annotated[tuple[State, ...], several(read_state), "in one of these states"]
    role: Annotated[Globs, several(read_glob), "signed in as one of these roles"] = ()
    database: Annotated[Globs, several(read_glob), "connected to one of these databases"] = ()
    application: Annotated[Globs, several(read_glob), "calls itself one of these"] = ()
    client: Annotated[Networks, several(read_network), "address in one of these networks"] = ()
    query: Annotated[
        QueryGlobs,
        several(read_query_glob),
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
        flag,
        "active, but waiting for its client to go on (ClientRead) outside of a COPY",
    ] = None
    blocks: Annotated[
        int | None, count, "so many sessions wait on it, in a chain or not; itself waits on none"
    ] = None
    blocks_for: Annotated[
        float | None, read_duration, "so many (one, unless `blocks` says more) have waited for"
    ] = None
    holds: Annotated[tuple[Holding, ...], several(read_holding), "holds one of these"] = ()
    pins_vacuum_by: Annotated[
        int | None, count, "its xid or xmin is so many transactions old: vacuum waits for it"
    ] = None


CLOCKS = ("idle_for", "transaction_for", "connected_for", "query_for", "blocks_for")
"""The conditions of a match that are times; a rule has at least one."""


def _match(value: object, place: str) -> Match:
    match = record(Match)(value, place)
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
class Mark:
    """A mark on the scale of the slots that ordinary roles can use; one of the two is given."""

    slots_used: Annotated[Decimal | None, read_percent, "percent of them used"] = None
    slots_free: Annotated[int | None, count_from_zero, "so many of them free"] = None

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


def _mark(value: object, place: str) -> Mark:
    mark = record(Mark)(value, place)
    if (mark.slots_used is None) == (mark.slots_free is None):
        raise ConfigurationError(place, "needs one of slots_used, slots_free; one only")
    return mark


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One entry of the policy; the first that matches a session decides. Pauses are seconds."""

    name: Annotated[str, text, "how reports call it; another for each rule"]
    match: Annotated[Match, _match, "all conditions must hold, values in a list are alternatives"]
    when: Annotated[Mark | None, _mark, "in force only while slots are this short"] = None
    until: Annotated[
        Mark | None, _mark, "condemns no more sessions than it takes to get back to this"
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


def _rule(value: object, place: str) -> Rule:
    rule = record(Rule)(value, place)
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


def _is_below(until: Mark, when: Mark) -> bool:
    if until.slots_used is not None and when.slots_used is not None:
        return until.slots_used < when.slots_used
    if until.slots_free is not None and when.slots_free is not None:
        return until.slots_free > when.slots_free
    return True  # which is below depends on the server


def _rules(value: object, place: str) -> tuple[Rule, ...]:
    if not isinstance(value, list):
        raise ConfigurationError(place, "is no list of rules")
    rules = several(_rule)(value, place)
    for index, rule in enumerate(rules):
        if rule.name in [earlier.name for earlier in rules[:index]]:
            raise ConfigurationError(
                f"{place}[{index}].name", f"{shown(rule.name)} is there already"
            )
    return rules


# -- the policy -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Protect:
    """Who is never touched, whatever a rule says. One list that fits is enough."""

    roles: Annotated[Globs, several(read_glob), "signed in as one of these roles"] = ()
    applications: Annotated[
        Globs, several(read_glob), "calls itself one of these: weak, any client may"
    ] = ()
    databases: Annotated[Globs, several(read_glob), "connected to one of these databases"] = ()
    clients: Annotated[Networks, several(read_network), "address in one of these networks"] = ()

    def covers(self, names: Names) -> str | None:
        """Which of these names is protected, or None."""
        if matches_any(self.roles, names.role):
            return f"role {names.role}"
        if matches_any(self.applications, names.application):
            return f"application {names.application}"
        if matches_any(self.databases, names.database):
            return f"database {names.database}"
        return None

    def joined(self, other: "Protect") -> "Protect":
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

    max_terminations: Annotated[int, count, "of one target in one run"] = 100
    max_per_application: Annotated[
        int | None, count, "of one application name, of one target in one run"
    ] = None
    max_per_run: Annotated[int | None, count, "of all targets together in one run"] = None
    max_share: Annotated[
        Decimal | None,
        read_percent,
        "the breaker: condemned more of a target's client sessions? then none of them, and an alert",
    ] = None
    min_sessions: Annotated[
        int, count, "the breaker's floor: with fewer client sessions it never trips"
    ] = 1
    order: Annotated[Order, read_order, "who goes first where not all may go"] = Order.LONGEST


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A policy document, understood."""

    version: Annotated[int, read_version, "of this language: 1"]
    rules: Annotated[tuple[Rule, ...], _rules, "the first that matches a session decides"]
    mode: Annotated[Mode | None, read_mode, "the most that this policy may do"] = None
    protect: Annotated[
        Protect, record(Protect), "never touched, on top of the built-in protections"
    ] = Protect()
    limits: Annotated[Limits, record(Limits), "how much may be done"] = Limits()
    queries: Annotated[
        Queries, read_queries, "in the log and the return value: full shows literals; never in mail"
    ] = Queries.REDACTED

    def scope(self) -> Scope:
        """What a look has to bring for these rules."""
        floors: dict[State, float] = {}
        for rule in self.rules:
            for state in rule.match.state:
                seconds = rule.match.idle_for or 0
                floors[state] = min(floors.get(state, seconds), seconds)
        matches = [rule.match for rule in self.rules]
        by_harm = self.limits.order is Order.MOST_HARMFUL
        return Scope(
            idle_floors=floors,
            waits=by_harm or any(m.blocks or m.blocks_for is not None for m in matches),
            locks=by_harm or any(Holding.LOCKS in m.holds for m in matches),
        )


def read_policy(document: object, place: str = "") -> Policy:
    """A parsed document as a Policy. Raises ConfigurationError with the place of a mistake."""
    return record(Policy)(document, place)


# Strong: a role is given by the server. Weak: an application names itself, and only the careful do.
BUILTIN = Protect(
    # RDS and Aurora: rdsproxyadmin and rdswriteforwarduser are ordinary roles to PostgreSQL.
    roles=("rds*", "aiven*", "_aiven*", "metrics_user_*"),
    databases=("rdsadmin", "_aiven"),
    applications=(
        "pg_dump*",  # and pg_dumpall; its leader is idle in transaction for the whole of a parallel dump
        "pg_restore*",
        "pg_basebackup*",
        "pg_receivewal*",
        "pg_recvlogical*",
        "pg_upgrade*",
        "pg_repack*",
        "pg_squeeze*",
        "pgcopydb*",
        "pgBackRest*",
        "pgbackrest*",
        "barman*",
        "wal-g*",
        "greenmask*",
        "Debezium*",
        "debezium*",
        "AWS DMS*",
        "awsdms*",
        "liquibase*",
        "flyway*",
    ),
)
