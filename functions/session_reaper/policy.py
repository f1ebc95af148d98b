"""What to terminate and what to protect, and how a policy document becomes that."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from fnmatch import fnmatchcase, translate
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Annotated

from session_reaper.documents import count, record, several, shown, text
from session_reaper.durations import parse_duration
from session_reaper.errors import ConfigurationError
from session_reaper.sessions import Session, State


class Mode(IntEnum):
    """How far a run goes. The lowest of those given holds."""

    OFF = 0
    OBSERVE = 1
    ENFORCE = 2

    def __str__(self) -> str:
        return self.name.lower()


# -- what the values of a document mean ----------------------------------------------------------


def _state(value: object, place: str) -> State:
    written = text(value, place)
    try:
        return State(written)
    except ValueError:
        known = ", ".join(State)
        raise ConfigurationError(
            place, f"{shown(written)} is no state a rule may name: {known}"
        ) from None


def _glob(value: object, place: str) -> str:
    written = text(value, place)
    # As fnmatch reads them: what it takes for no class it takes for text, which fits nobody here.
    if "[" in re.sub(r"\[!?+.[^\]]*\]", "", written, flags=re.DOTALL):
        problem = f"{shown(written)} has a [ without its ]; a plain [ is written [[]"
        raise ConfigurationError(place, problem)
    if "(?!)" in translate(written):
        raise ConfigurationError(place, f"{shown(written)} has a class that no character fits")
    return written


def _network(value: object, place: str) -> IPv4Network | IPv6Network:
    written = text(value, place)
    try:
        return ip_network(written)
    except ValueError as error:
        raise ConfigurationError(
            place, f"{error}; write an address or a network such as 10.0.8.0/24"
        ) from None


_MOST_REPEATS = 3


def _takes_too_long(pattern: str) -> str | None:
    """Why a pattern could hold up a run, or None: no deadline reaches into `re`.

    A repeated group that holds a choice or a repeat, as in (a+)+, can take time exponential in the
    query's length; n repeats in a row, its power of n, or n + 1 if the pattern may begin anywhere.
    Repeats of white space cost nothing: the text that is searched has one blank in a row.
    """
    if re.search(r"\(\?[aiLmsu-]*x", pattern):
        return "has the flag x, which hides what is repeated"
    # Escapes, classes and groups without a choice become a letter.
    rest = re.sub(r"(?:\\s| )(?:[*+]|\{\d*,\d*\})", "a", pattern)
    rest = re.sub(r"\\.|\[\^?\]?[^\]]*\]|\0", "a", rest)
    rest = re.sub(r"\(\?(?:[aiLmsu-]+\)|P<\w+>|[aiLmsu-]*:|<?[=!])", "(", rest)
    repeats = len(re.findall(r"[*+]|\{\d*,", re.sub(r"[a.][*+]$", "", rest)))
    anchored = re.match(r"(?:\()?\^[^|]*$", rest)
    if repeats + (not anchored) > _MOST_REPEATS:
        return f"has more than {_MOST_REPEATS} repeats (2 unless it begins with ^)"
    folded = ""
    while folded != rest:  # groups, from the inside out; one with a choice or a repeat is marked
        folded, rest = rest, re.sub(r"\(([^()]*)\)", _fold, rest)
        if re.search(r"\0[*+{]", rest):
            return "repeats a group that holds a choice or a repeat"
    return None


def _fold(group: re.Match[str]) -> str:
    return "\0" if re.search(r"[*+?|{\0]", group[1]) else "a"


def _regex(value: object, place: str) -> re.Pattern[str]:
    written = text(value, place)
    reason = _takes_too_long(written)
    if reason:
        raise ConfigurationError(place, f"{reason}: matching it could take for ever")
    try:
        pattern = re.compile(written)
    except re.error as error:
        raise ConfigurationError(place, f"not a regular expression: {error}") from None
    if pattern.search(""):
        raise ConfigurationError(
            place, f"{shown(written)} matches every query; remove it or be specific"
        )
    return pattern


_LONGEST = 3650 * 86400.0  # seconds; no session is older than ten years


def _duration(value: object, place: str) -> float:
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


def _share(value: object, place: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)%", value) if isinstance(value, str) else None
    if not found or not 0 < float(found[1]) <= 100:  # noqa: PLR2004 -- percent
        raise ConfigurationError(
            place, f"{shown(value)} is no share; write a percentage such as 50%"
        )
    return float(found[1])


def _version(value: object, place: str) -> int:
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


# -- the policy -----------------------------------------------------------------------------------

Globs = tuple[str, ...]
Networks = tuple[IPv4Network | IPv6Network, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """The conditions of a rule; all that are given must hold. Clocks are seconds."""

    state: Annotated[tuple[State, ...], several(_state)]
    role: Annotated[Globs, several(_glob)] = ()
    database: Annotated[Globs, several(_glob)] = ()
    application: Annotated[Globs, several(_glob)] = ()
    client: Annotated[Networks, several(_network)] = ()
    query: Annotated[tuple[re.Pattern[str], ...], several(_regex)] = ()
    idle_for: Annotated[float | None, _duration] = None
    transaction_for: Annotated[float | None, _duration] = None
    connected_for: Annotated[float | None, _duration] = None
    query_for: Annotated[float | None, _duration] = None


def _match(value: object, place: str) -> Match:
    match = record(Match)(value, place)
    clocks = (match.idle_for, match.transaction_for, match.connected_for, match.query_for)
    if all(clock is None for clock in clocks):
        names = "idle_for, transaction_for, connected_for, query_for"
        raise ConfigurationError(place, f"has no clock; add at least one of {names}")
    if match.query_for is not None and State.ACTIVE not in match.state:
        raise ConfigurationError(
            f"{place}.query_for", "counts in state active only, which state leaves out"
        )
    return match


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One entry of the policy; the first that matches a session decides."""

    name: Annotated[str, text]
    match: Annotated[Match, _match]


@dataclass(frozen=True, slots=True, kw_only=True)
class Protect:
    """Who is never touched, whatever a rule says. One list that fits is enough."""

    roles: Annotated[Globs, several(_glob)] = ()
    applications: Annotated[Globs, several(_glob)] = ()
    databases: Annotated[Globs, several(_glob)] = ()
    clients: Annotated[Networks, several(_network)] = ()

    def covers(self, session: Session) -> str | None:
        """What of the session is protected, or None."""
        if matches_any(self.roles, session.role):
            return f"role {session.role}"
        if matches_any(self.applications, session.application):
            return f"application {session.application}"
        if matches_any(self.databases, session.database):
            return f"database {session.database}"
        if is_within(self.clients, session.client):
            return f"client {session.client}"
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
    """How much one run may do to one target."""

    max_terminations: Annotated[int, count] = 100
    max_share: Annotated[float | None, _share] = None  # percent of its sessions


def _rules(value: object, place: str) -> tuple[Rule, ...]:
    if not isinstance(value, list):
        raise ConfigurationError(place, "is no list of rules")
    rules = several(record(Rule))(value, place)
    for index, rule in enumerate(rules):
        if rule.name in [earlier.name for earlier in rules[:index]]:
            raise ConfigurationError(
                f"{place}[{index}].name", f"{shown(rule.name)} is there already"
            )
    return rules


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A policy document, understood."""

    version: Annotated[int, _version]
    rules: Annotated[tuple[Rule, ...], _rules]
    mode: Annotated[Mode | None, read_mode] = None
    protect: Annotated[Protect, record(Protect)] = Protect()
    limits: Annotated[Limits, record(Limits)] = Limits()

    def idle_floors(self) -> Mapping[State, float]:
        """For each state that a rule names, the least seconds in it that any rule could match."""
        floors: dict[State, float] = {}
        for rule in self.rules:
            for state in rule.match.state:
                seconds = rule.match.idle_for or 0
                floors[state] = min(floors.get(state, seconds), seconds)
        return floors


def read_policy(document: object, place: str = "") -> Policy:
    """A parsed document as a Policy. Raises ConfigurationError with the place of a mistake."""
    return record(Policy)(document, place)


# -- matching -------------------------------------------------------------------------------------


_SEARCHED = 500  # characters of a query: time grows with the third power


@lru_cache(maxsize=10_000)  # leaks share their queries
def finds_any(patterns: tuple[re.Pattern[str], ...], query: str) -> bool:
    """Whether an expression is found in the query's beginning, its white space single blanks."""
    searched = " ".join(query[: 4 * _SEARCHED].split())[:_SEARCHED]
    return any(pattern.search(searched) for pattern in patterns)


@lru_cache(maxsize=10_000)  # sessions share their names: most are looked up, not matched
def matches_any(globs: Globs, value: str) -> bool:
    """Whether a glob fits the whole value, upper and lower case told apart."""
    return any(fnmatchcase(value, glob) for glob in globs)


def is_within(networks: Networks, client: str | None) -> bool:
    """Whether the client's address lies in a network; a Unix socket has no address."""
    if not networks or client is None:
        return False
    address = ip_address(client)
    return any(address in network for network in networks)


def _builtin(**patterns: list[object]) -> Protect:
    return record(Protect)(dict(patterns), "built-in protections")


# Strong: a role is given by the server. Weak: an application names itself, and only the careful do.
BUILTIN = _builtin(
    # RDS and Aurora: rdsproxyadmin and rdswriteforwarduser are ordinary roles to PostgreSQL.
    roles=["rds*", "aiven*", "_aiven*", "metrics_user_*"],
    databases=["rdsadmin", "_aiven"],
    applications=[
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
    ],
)
