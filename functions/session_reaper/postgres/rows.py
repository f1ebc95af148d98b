"""What a server answers, validated and turned into values.

A server may be broken, or hostile, or not PostgreSQL at all. Whatever passes here has the type, the
range and the length that the rest of the program relies on, and can be encoded; everything else is
one target's error. No message repeats a value: it could hold anything.
"""

import json
import re
from base64 import b64decode
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from ipaddress import ip_address
from itertools import islice
from sys import getsizeof
from typing import Any, Final, NoReturn

from session_reaper.errors import Membership, TargetError, quote_identifier
from session_reaper.postgres.driver import Row
from session_reaper.sessions.lock_chains import Wait, Waiter, map_waiters_by_root
from session_reaper.sessions.redaction import redact
from session_reaper.sessions.server_facts import (
    IdleSessions,
    PreparedTransaction,
    ReplicationSlot,
    ServerFacts,
    Timeout,
    Tls,
)
from session_reaper.sessions.session import Identity, Session, Slots, State
from session_reaper.sessions.snapshot import ServerIdentity, Snapshot, Verification
from session_reaper.targets.providers import Provider

QUERY_BYTES: Final = 2000
"""Bytes of a query that leave the server."""

_INT32: Final = 2**31 - 1
_INT53: Final = 2**53  # JSON numbers are exact up to here
_MOST_SECONDS: Final = 1e10
_NAME_LENGTH: Final = 255  # characters; PostgreSQL's own limit is 63 bytes
_TEXT_LENGTH: Final = 1000
_MOMENT_LENGTH: Final = 40

_MOMENT: Final = r"\d{4,6}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?(?:Z|[+-]\d\d(?::\d\d){0,2})"


class _InvalidError(Exception):
    """A value is not what the statement answers; the argument is its place."""


def read_snapshot(row: Row, *, ours: Collection[str | None], backend_pid: int) -> Snapshot:
    """Read the answer to look.sql.

    `ours`: the names of our roles. `backend_pid`: what the server's greeting called the connection.
    Raises TargetError.
    """
    try:
        return _read_snapshot(_document(row), ours, backend_pid)
    except _InvalidError as error:
        raise _invalid("snapshot", error) from None


def memory_of(look: Snapshot) -> int:
    """Return the bytes that the sessions of a snapshot take, about."""
    return sum(
        _SESSION_BYTES + getsizeof(session.query) + _WAITER_BYTES * len(session.waiters)
        for session in look.sessions
    )


_SESSION_BYTES: Final = 1200
_WAITER_BYTES: Final = 80


def read_verification(row: Row) -> Verification:
    """Read the answer to verify.sql. Raises TargetError."""
    try:
        answer = _document(row)
        remaining = _list(answer, "remaining")
        return Verification(
            server=_read_server(answer),
            remaining=frozenset(_whole(pid, "remaining", 1, _INT32) for pid in remaining),
            used=_optional_whole(answer, "used", 0, _INT32),
        )
    except _InvalidError as error:
        raise _invalid("verification", error) from None


def read_facts(row: Row, tls: Tls | None) -> ServerFacts:
    """Read the answer to preflight.sql. Raises TargetError."""
    try:
        return _read_facts(_document(row), tls)
    except _InvalidError as error:
        raise _invalid("server facts", error) from None


def read_grants(row: Row, role: str) -> tuple[str, ...]:
    """Read the answer to missing_grants.sql: what is to be granted to our role. Raises TargetError."""
    try:
        answer = _document(row)
        return tuple(_read_grants(answer, role))
    except _InvalidError as error:
        raise _invalid("list of grants", error) from None


def read_signal(row: Row) -> str | None:
    """Read the answer to signal.sql: t, f, waits or None. Raises TargetError."""
    answers: dict[object, str | None] = {b"t": "t", b"f": "f", b"waits": "waits", None: None}
    if len(row) != 1 or row[0] not in answers:
        raise _invalid("signal", _InvalidError("signalled"))
    return answers[row[0]]


def _invalid(what: str, error: _InvalidError) -> TargetError:
    return TargetError(
        "answer",
        f"the server's answer to the {what} has an invalid value at {error}",
        "Check that host and port in the secret lead to PostgreSQL itself, and not to something"
        " that only resembles it.",
    )


# -- documents ------------------------------------------------------------------------------------


def _document(row: Row) -> Mapping[str, Any]:
    """Read the one column of a row, which it takes out of the row: a large one is there once."""
    if len(row) != 1 or row[0] is None:
        raise _InvalidError("its columns")
    text = _text(row)
    try:
        answer = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise _InvalidError("its JSON") from None
    if not isinstance(answer, dict):
        raise _InvalidError("its JSON")
    return answer


def _text(row: Row) -> str:
    data = row.pop() or b""
    if len(data) > _FEW_BYTES and _has_too_many_values(data):
        raise _InvalidError("its size")
    # A query that is no UTF-8 must not hide the other sessions.
    return str(data, "utf-8", "replace")


# An empty object has 3 bytes in JSON and 64 in memory. 10,000 sessions have 260,000 values.
_FEW_BYTES: Final = 1024 * 1024
_MOST_VALUES: Final = 1_000_000
# Up to the next value, past texts. It matches at every place, or what is no JSON would be searched from
# each of its characters on.
_NEXT_VALUE: Final = re.compile(
    rb'(?:[^",\[{]++|"(?:[^"\\]++|\\.)*+"?)*+(?:[,\[{]|.|\Z)', re.DOTALL
)


def _has_too_many_values(data: bytes | memoryview) -> bool:
    """Count the values of a document without making them."""
    return sum(1 for _ in islice(_NEXT_VALUE.finditer(data), _MOST_VALUES + 1)) > _MOST_VALUES


def _refuse(_constant: str) -> NoReturn:
    raise ValueError  # NaN and Infinity are not JSON


def _get(answer: Mapping[str, Any], key: str) -> Any:  # noqa: ANN401 -- what a server said, still unread
    if key not in answer:
        raise _InvalidError(key)
    return answer[key]


def _whole(value: object, place: str, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise _InvalidError(place)
    return value


def _count(answer: Mapping[str, Any], key: str, least: int = 0) -> int:
    return _whole(_get(answer, key), key, least, _INT32)


def _optional_whole(
    answer: Mapping[str, Any], key: str, least: int = 0, most: int = _INT32
) -> int | None:
    value = _get(answer, key)
    return None if value is None else _whole(value, key, least, most)


def _boolean(value: object, place: str) -> bool:
    if type(value) is not bool:
        raise _InvalidError(place)
    return value


def _flag(answer: Mapping[str, Any], key: str) -> bool:
    return _boolean(_get(answer, key), key)


def _seconds(value: object, place: str) -> float:
    if type(value) not in (int, float) or not 0 <= value <= _MOST_SECONDS:  # type: ignore[operator] # checked just before
        raise _InvalidError(place)
    return float(value)  # type: ignore[arg-type] # as above


def _plain_text(value: object, place: str, most: int) -> str:
    if type(value) is not str or len(value) > most or not _is_encodable(value):
        raise _InvalidError(place)
    return value


def _is_encodable(text: str) -> bool:
    """Return whether the text can be sent on: it has no NUL and no lone surrogate."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def _name(value: object, place: str) -> str:
    return _plain_text(value, place, _NAME_LENGTH)


def _optional_name(value: object, place: str) -> str:
    return "" if value is None else _name(value, place)


def _list(answer: Mapping[str, Any], key: str) -> Sequence[Any]:
    """Return the list under a key; SQL's NULL means that nothing was there to be aggregated."""
    value = _get(answer, key)
    if value is None:
        return ()
    if type(value) is not list:
        raise _InvalidError(key)
    return value


def _rows(answer: Mapping[str, Any], key: str, width: int) -> Sequence[Sequence[Any]]:
    rows = _list(answer, key)
    if any(type(row) is not list or len(row) != width for row in rows):
        raise _InvalidError(key)
    return rows


# -- the snapshot ---------------------------------------------------------------------------------


def _read_server(answer: Mapping[str, Any]) -> ServerIdentity:
    return ServerIdentity(
        started=_whole(_get(answer, "started"), "started", 0, _INT53),
        checkpointer=_optional_whole(answer, "checkpointer", 1),
        checkpointer_started=_optional_whole(answer, "checkpointer_started", 0, _INT53),
    )


def _read_snapshot(
    answer: Mapping[str, Any], ours: Collection[str | None], backend_pid: int
) -> Snapshot:
    waits = tuple(_read_waits(answer))
    _check_work(waits)
    waiters = map_waiters_by_root(waits)
    if sum(map(len, waiters.values())) > _MOST_WAITERS:
        raise _InvalidError("waits")
    slots = Slots(
        max=_count(answer, "max"), reserved=_count(answer, "reserved"), used=_count(answer, "used")
    )
    _check_numbers(answer, slots)
    return Snapshot(
        role=_name(_get(answer, "role"), "role"),
        slots=slots,
        can_see=_flag(answer, "can_see"),
        can_signal=_flag(answer, "can_signal"),
        untracked=_count(answer, "untracked"),
        reader=_flag(answer, "reader"),
        behind_pooler=_count(answer, "pid", 1) != backend_pid,
        server=_read_server(answer),
        taken_at=_whole(_get(answer, "taken_at"), "taken_at", 0, _INT53),
        membership=Membership(
            server_version=_count(answer, "server_version"), inherits=_flag(answer, "inherits")
        ),
        states=_read_states(answer),
        oldest_idle_in_transaction=_seconds(
            _get(answer, "oldest_idle_in_transaction"), "oldest_idle_in_transaction"
        ),
        sessions=tuple(_read_sessions(answer, waiters, ours)),
    )


_MOST_SESSIONS: Final = 20_000
_SLACK: Final = 100


def _check_numbers(answer: Mapping[str, Any], slots: Slots) -> None:
    """Refuse more sessions than the server itself counts, or allows.

    `states` and `sessions` are made of the rows that `used` counts, in one statement. Only client
    backends are counted, and each has one of the slots of max_connections; walsenders, autovacuum
    and workers have slots of their own. But the server reads its list of processes entry by entry:
    a backend that ends and one that begins meanwhile may both be counted, hence the slack.
    """
    if slots.used > slots.max + _SLACK:
        raise _InvalidError("used")
    if len(_list(answer, "states")) > slots.used:
        raise _InvalidError("states")
    if len(_list(answer, "sessions")) > min(slots.used, _MOST_SESSIONS):
        raise _InvalidError("sessions")


def _read_states(answer: Mapping[str, Any]) -> Mapping[State, int]:
    states = _list(answer, "states")
    if any(type(state) in (list, dict) for state in states):  # which no set can hold
        raise _InvalidError("states")
    # Another release may have states that this one does not know.
    if not all(type(state) is str and _is_state(state) for state in set(states) - {None}):
        raise _InvalidError("states")
    return {state: states.count(state) for state in State}


_is_state: Final = re.compile(r"[a-z ()]{1,40}").fullmatch


def _read_waits(answer: Mapping[str, Any]) -> Iterator[Wait]:
    for row in _rows(answer, "waits", 6):
        pid, is_session, role, application, seconds, blocked_by = row
        if type(is_session) is not bool or type(blocked_by) is not list:
            raise _InvalidError("waits")
        yield Wait(
            waiter=Waiter(
                pid=_whole(pid, "waits", 1, _INT32),
                role=_optional_name(role, "waits"),
                application=_optional_name(application, "waits"),
                seconds=_seconds(seconds, "waits"),
            ),
            is_session=is_session,
            blocked_by=tuple(_whole(each, "waits", 0, _INT32) for each in blocked_by),
        )


_MOST_WORK: Final = 5_000_000
# A thousand waiters behind a thousand readers of one table make a million.
_MOST_WAITERS: Final = 1_500_000
_MOST_WORKERS: Final = 1000  # of parallel queries, which wait beside their sessions


def _check_work(waits: Sequence[Wait]) -> None:
    """Refuse a graph that would take seconds: no deadline reaches into it.

    A thousand sessions in one queue make half a million links to one root.
    """
    links = sum(len(wait.blocked_by) for wait in waits)
    ahead = {pid for wait in waits for pid in wait.blocked_by}
    roots = ahead - {wait.waiter.pid for wait in waits}
    pids = {wait.waiter.pid for wait in waits}
    if links * len(roots) > _MOST_WORK or len(waits) - len(pids) > _MOST_WORKERS:
        raise _InvalidError("waits")


# The columns of a session, in the order of look.sql. They are validated column by column: 5,000 rows
# of 25 values one by one would take longer than all the rest of a run.
_COLUMNS: Final = (
    *("pid", "backend_start", "xact_start", "state_change", "query_start", "state"),
    *("role", "database", "application", "client", "query", "cut_query", "query_id"),
    *("idle_seconds", "transaction_seconds", "connected_seconds", "query_seconds"),
    *("waiting_for_client", "xid_age", "xmin_age", "locks"),
    *("superuser", "replication", "own_role", "signalable"),
    *("wait_event_type", "wait_event"),
)
_REQUIRED: Final = {"pid", "backend_start", "state", "idle_seconds", "connected_seconds"}
_MOMENTS: Final = ("backend_start", "xact_start", "state_change", "query_start")
_MOST_CHARACTERS: Final = {
    **dict.fromkeys(_MOMENTS, _MOMENT_LENGTH),
    **dict.fromkeys(("state", "role", "database", "application", "client"), _NAME_LENGTH),
    **dict.fromkeys(("wait_event_type", "wait_event"), _NAME_LENGTH),
    "query": QUERY_BYTES,
    "cut_query": 2 * QUERY_BYTES,  # base64 takes 4 for 3, and a line break now and then
    "query_id": 20,
}
_RANGES: Final = {
    "pid": (1, _INT32),
    **dict.fromkeys(("xid_age", "xmin_age"), (-_INT32 - 1, _INT32)),
    "locks": (0, _INT32),
}
_CLOCKS: Final = ("idle_seconds", "transaction_seconds", "connected_seconds", "query_seconds")
_FLAGS: Final = ("waiting_for_client", "superuser", "replication", "own_role", "signalable")


def _read_sessions(
    answer: Mapping[str, Any],
    waiters: Mapping[int, tuple[Waiter, ...]],
    ours: Collection[str | None],
) -> Iterator[Session]:
    rows = _rows(answer, "sessions", len(_COLUMNS))
    for name, column in zip(_COLUMNS, zip(*rows, strict=True), strict=False):
        _check_column(name, column)
    if len({row[0] for row in rows}) < len(rows):
        raise _InvalidError("sessions: pid")  # a session that is there twice has two outcomes
    # The processes that wait for a lock, each as the pid of its parallel group's leader.
    victims = {_whole(pid, "lock_waiters", 1, _INT32) for pid in _list(answer, "lock_waiters")}
    for row in rows:
        session = _read_session(row, waiters.get(row[0], ()), ours)
        yield replace(session, waits_for_lock=True) if row[0] in victims else session


def _check_column(name: str, column: Sequence[Any]) -> None:
    place = f"sessions: {name}"
    kinds = set(map(type, column))
    if type(None) in kinds and name in _REQUIRED:
        raise _InvalidError(place)
    values = [value for value in column if value is not None]
    if not values:
        return
    kinds.discard(type(None))
    if name in _MOST_CHARACTERS:
        if kinds != {str}:
            raise _InvalidError(place)
        _check_texts(name, set(values), place)
    elif name in _FLAGS:
        if kinds != {bool}:
            raise _InvalidError(place)
    else:
        least, most = _RANGES.get(name, (0, _MOST_SECONDS))
        allowed = {int, float} if name in _CLOCKS else {int}
        # A NaN would pass both comparisons; JSON's reader has refused it.
        if not kinds <= allowed or min(values) < least or max(values) > most:
            raise _InvalidError(place)


def _check_texts(name: str, texts: Collection[str], place: str) -> None:
    if max(map(len, texts)) > _MOST_CHARACTERS[name] or not _is_encodable("".join(texts)):
        raise _InvalidError(place)
    if name in _MOMENTS and not all(map(_is_moment, texts)):
        raise _InvalidError(place)
    if name == "state" and not texts <= set(State):  # type: ignore[operator] # both are sets
        raise _InvalidError(place)
    if name == "query_id" and not all(re.fullmatch(r"-?[0-9]+", text) for text in texts):
        raise _InvalidError(place)
    if name == "client" and not all(map(_is_address, texts)):
        raise _InvalidError(place)


_is_moment: Final = re.compile(_MOMENT, re.ASCII).fullmatch


@lru_cache(maxsize=10_000)  # clients return in every run
def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return "%" not in text


def _decode_query(text: str | None, cut: str | None) -> str:
    """Return the query as far as it left the server; a cut one ends in `…`."""
    if cut is None:
        return text or ""
    try:
        return b64decode(cut).decode("utf-8", errors="replace").replace("\0", "\ufffd") + "…"
    except ValueError:
        raise _InvalidError("sessions: cut_query") from None


def _is_vacuum(query: str) -> bool:
    """Whether it is a VACUUM: the server passes over its snapshot when it looks for the oldest.

    A VACUUM FULL is none: it copies the table like others do.
    """
    if not re.search("vacuum", query, re.IGNORECASE):
        return False
    words = re.match(r"vacuum\b([^;]*)", redact(query), re.IGNORECASE)
    return words is not None and not re.search(r"\bfull\b", words[1], re.IGNORECASE)


def _read_session(
    row: Sequence[Any], waiters: tuple[Waiter, ...], ours: Collection[str | None]
) -> Session:
    pid, backend_start, xact_start, state_change, query_start, state, *rest = row
    role, database, application, client, text, cut, query_id, *rest = rest
    idle, transaction, connected, running, *rest = rest
    waiting, xid_age, xmin_age, locks, superuser, replication, own_role, signalable, *rest = rest
    wait_event_type, wait_event = rest
    query = _decode_query(text, cut)
    return Session(
        identity=Identity(
            pid=pid,
            backend_start=backend_start,
            xact_start=xact_start,
            state_change=state_change,
            query_start=query_start,
            state=State(state),
        ),
        role=role,
        database=database or "",
        application=application or "",
        client=client,
        query=query,
        query_id=query_id,
        idle_seconds=idle,
        transaction_seconds=transaction,
        connected_seconds=connected,
        query_seconds=running,
        waiting_for_client=bool(waiting),
        wait_event_type=wait_event_type,
        wait_event=wait_event,
        xid_age=xid_age,
        xmin_age=None if xmin_age is not None and _is_vacuum(query) else xmin_age,
        locks=locks,
        # A session in a queue has not waited for this one before it did what it does now: in a
        # convoy the lock goes from one healthy transaction to the next.
        waiters=tuple(w if w.seconds <= idle else replace(w, seconds=idle) for w in waiters),
        # A role that was dropped under its session has no attributes.
        superuser=bool(superuser),
        replication=bool(replication),
        own_role=bool(own_role) or (role is not None and role in ours),
        signalable=bool(signalable),
    )


# -- the server's facts ---------------------------------------------------------------------------


def _read_facts(answer: Mapping[str, Any], tls: Tls | None) -> ServerFacts:
    try:
        provider = Provider(_name(_get(answer, "provider"), "provider"))
    except ValueError:
        raise _InvalidError("provider") from None
    return ServerFacts(
        tls=tls,
        version=_read_version(_get(answer, "version")),
        major=_whole(_get(answer, "major"), "major", 0, 1000),
        provider=provider,
        role=_name(_get(answer, "role"), "role"),
        superuser=_flag(answer, "superuser"),
        inherits=_flag(answer, "inherits"),
        connection_limit=_optional_whole(answer, "connection_limit"),
        granted_reserved=_flag(answer, "granted_reserved"),
        reserved_slots=_count(answer, "reserved_slots"),
        soon=_plain_text(_get(answer, "soon"), "soon", _MOMENT_LENGTH),
        databases=tuple(_name(each, "databases") for each in _list(answer, "databases")),
        timeouts=tuple(_read_timeout(row) for row in _rows(answer, "timeouts", 4)),
        idle=tuple(
            IdleSessions(
                application=_optional_name(application, "idle"),
                role=_name(role, "idle"),
                number=_whole(number, "idle", 0, _INT32),
            )
            for application, role, number in _rows(answer, "idle", 3)
        ),
        prepared=tuple(
            PreparedTransaction(
                database=_name(database, "prepared"), seconds=_seconds(seconds, "prepared")
            )
            for database, seconds in _rows(answer, "prepared", 2)
        ),
        replication_slots=tuple(
            ReplicationSlot(
                name=_slot_name(name),
                active=_boolean(active, "replication_slots"),
                held=_whole(held, "replication_slots", -_INT32, _INT32),
            )
            for name, active, held in _rows(answer, "replication_slots", 3)
        ),
    )


USED_FUNCTIONS: Final = (
    *("pg_stat_get_activity", "pg_lock_status", "pg_blocking_pids", "pg_stat_get_progress_info"),
    *("pg_terminate_backend", "pg_cancel_backend", "pg_postmaster_start_time", "pg_backend_pid"),
    *("pg_is_in_recovery", "pg_prepared_xact", "pg_get_replication_slots", "current_setting"),
    *("set_config", "clock_timestamp", "age", "encode", "octet_length"),
)
USED_RELATIONS: Final = (
    *("pg_database", "pg_roles", "pg_settings", "pg_proc", "pg_stat_activity"),
    *("pg_db_role_setting", "pg_prepared_xacts", "pg_replication_slots"),
)
_ARGUMENTS: Final = re.compile(r'[a-z0-9_ ,"\[\]]*', re.ASCII)


def _read_grants(answer: Mapping[str, Any], role: str) -> Iterator[str]:
    """Write the grants: a server names what is missing, and nothing else of it is to be run."""
    for name, arguments in _rows(answer, "missing_functions", 2):
        if (
            type(name) is not str
            or name not in USED_FUNCTIONS
            or not _ARGUMENTS.fullmatch(_plain_text(arguments, "missing_functions", _TEXT_LENGTH))
        ):
            raise _InvalidError("missing_functions")
        yield f"GRANT EXECUTE ON FUNCTION pg_catalog.{name}({arguments}) TO {quote_identifier(role)};"
    for name in _list(answer, "missing_relations"):
        if type(name) is not str or name not in USED_RELATIONS:
            raise _InvalidError("missing_relations")
        yield f"GRANT SELECT ON pg_catalog.{name} TO {quote_identifier(role)};"


def _read_version(value: object) -> str:
    """Return the version if it looks like one: 18.4, 17beta1, 15.3 (Debian 15.3-1.pgdg120+1)."""
    text = _plain_text(value, "version", 100)
    if not re.fullmatch(r"[0-9]{1,3}[0-9A-Za-z.()+~ _-]*", text):
        raise _InvalidError("version")
    return text


def _read_timeout(row: Sequence[Any]) -> Timeout:
    role, database, name, value = row
    return Timeout(
        role=None if role is None else _name(role, "timeouts"),
        database=None if database is None else _name(database, "timeouts"),
        name=_name(name, "timeouts"),
        value=None if value is None else _timeout_value(value),
    )


def _timeout_value(value: object) -> str:
    """Return a timeout as somebody wrote it: 600000, 10min, 0.5 h."""
    text = _name(value, "timeouts")
    if not re.fullmatch(r"-?[0-9][0-9.e+]* ?[a-z]{0,3}", text, re.ASCII):
        raise _InvalidError("timeouts")
    return text


def _slot_name(value: object) -> str:
    """Return a slot's name; it is made of a-z, 0-9 and _, and goes into a statement."""
    text = _name(value, "replication_slots")
    if not re.fullmatch(r"[a-z0-9_]+", text):
        raise _InvalidError("replication_slots")
    return text
