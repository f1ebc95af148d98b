"""Validates a server's answers and turns them into values.

A server may be broken, hostile, or not PostgreSQL. A value that passes has the type, range and length
that the rest of the program relies on, and can be encoded. Everything else is an error of that target.
No error message repeats a value, which could be anything.
"""

import json
import re
from base64 import b64decode
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import lru_cache, wraps
from ipaddress import ip_address, ip_network
from itertools import islice
from sys import getsizeof
from typing import Any, Final, NoReturn, ParamSpec, TypeVar

from session_reaper.errors import TargetError
from session_reaper.grants import Membership, quote_identifier
from session_reaper.postgres.driver import Row
from session_reaper.postgres.signals import Signal
from session_reaper.sessions.lock_chains import PREPARED, Wait, Waiter, map_waiters_by_root
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
from session_reaper.sessions.snapshot import Holder, ServerIdentity, Snapshot, Verification
from session_reaper.targets.providers import Provider

QUERY_BYTES: Final = 2000
"""The most bytes of the beginning of a query that leave the server."""

QUERY_END_BYTES: Final = 500
"""The most bytes of the end of a cut query that leave the server."""

_INT32: Final = 2**31 - 1
_INT53: Final = 2**53  # JSON numbers are exact up to here
_MOST_SECONDS: Final = 1e10
_NAME_LENGTH: Final = 255  # characters; PostgreSQL's own limit is 63 bytes
_TEXT_LENGTH: Final = 1000
_MOMENT_LENGTH: Final = 40

_MOMENT: Final = r"\d{4,6}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?(?:Z|[+-]\d\d(?::\d\d){0,2})"


_P = ParamSpec("_P")
_T = TypeVar("_T")


class _InvalidError(Exception):
    """A value is invalid; the argument is its place in the answer."""


def _explain_invalid(statement: str) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """Raise TargetError in place of an invalid value in the answer to a statement.

    Not by a context manager, whose errors refer to themselves: then an answer of some megabytes stays in
    memory until the next garbage collection.
    """

    def decorate(read: Callable[_P, _T]) -> Callable[_P, _T]:
        @wraps(read)
        def read_or_explain(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            try:
                return read(*args, **kwargs)
            except _InvalidError as error:
                raise TargetError(
                    "answer",
                    f"the server's answer to the {statement} has an invalid value at {error}",
                    "Check that host and port in the secret lead to PostgreSQL itself, not to a server"
                    " that only resembles it.",
                ) from None

        return read_or_explain

    return decorate


def estimate_memory(session: Session) -> int:
    """Estimate the bytes that a session takes."""
    texts = getsizeof(session.query) + getsizeof(session.query_end)
    return _SESSION_BYTES + texts + _WAITER_BYTES * len(session.waiters)


_SESSION_BYTES: Final = 1500
_WAITER_BYTES: Final = 8  # a reference: the blockers of one queue share its waiters


@_explain_invalid("verification")
def read_verification(row: Row) -> Verification:
    """Read the answer to verify.sql. Raises TargetError."""
    answer = _take_document(row)
    remaining = _read_list(answer, "remaining")
    return Verification(
        server=_read_server(answer),
        remaining=frozenset(_check_int(pid, "remaining", 1, _INT32) for pid in remaining),
        can_see=_read_flag(answer, "can_see"),
        used=_read_int(answer, "used"),
    )


@_explain_invalid("signal")
def read_signal(row: Row) -> Signal:
    """Read the answer to signal.sql. Raises TargetError."""
    if len(row) != 1 or row[0] not in _SIGNALS:
        raise _InvalidError("signalled")
    return _SIGNALS[row[0]]


_SIGNALS: Final[Mapping[object, Signal]] = {
    b"t": Signal.SENT,
    b"f": Signal.ESCAPED,  # the session ended before the signal
    b"waits": Signal.WAITING,
    None: Signal.HIDDEN,
}


# -- documents ------------------------------------------------------------------------------------


def _take_document(row: Row) -> Mapping[str, Any]:
    """Decode the JSON in the one column of a row, and remove it from the row to free its memory."""
    if len(row) != 1 or row[0] is None:
        raise _InvalidError("its columns")
    text = _take_text(row)
    try:
        answer = _DECODER.decode(text)
    except (ValueError, RecursionError):
        raise _InvalidError("its JSON") from None
    if not isinstance(answer, dict):
        raise _InvalidError("its JSON")
    return answer


def _take_text(row: Row) -> str:
    data = row.pop() or b""
    if len(data) > _SMALL_BYTES and _has_too_many_values(data):
        raise _InvalidError("its size")
    # Invalid UTF-8 in one query must not hide the other sessions.
    return str(data, "utf-8", "replace")


# An empty object takes 3 bytes in JSON and 64 in memory. 10,000 sessions have 260,000 values.
_SMALL_BYTES: Final = 1024 * 1024
_MOST_VALUES: Final = 1_000_000
# Skips strings up to the next value. It matches at every position, so that the search stays linear in
# invalid JSON too.
_NEXT_VALUE: Final = re.compile(
    rb'(?:[^",\[{]++|"(?:[^"\\]++|\\.)*+"?)*+(?:[,\[{]|.|\Z)', re.DOTALL
)


def _has_too_many_values(data: bytes | memoryview) -> bool:
    """Count the values of a document without creating them."""
    if sum(map(bytes(data).count, (b",", b"[", b"{"))) < _MOST_VALUES:  # with those in strings
        return False
    return sum(1 for _ in islice(_NEXT_VALUE.finditer(data), _MOST_VALUES + 1)) > _MOST_VALUES


def _refuse_constant(_constant: str) -> NoReturn:
    """Refuse NaN and Infinity, which Python's reader accepts and JSON does not have."""
    raise ValueError


_DECODER: Final = json.JSONDecoder(parse_constant=_refuse_constant)


def _get(answer: Mapping[str, Any], key: str) -> Any:  # noqa: ANN401 -- not validated yet
    if key not in answer:
        raise _InvalidError(key)
    return answer[key]


def _check_int(value: object, place: str, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise _InvalidError(place)
    return value


def _read_int(answer: Mapping[str, Any], key: str, least: int = 0, most: int = _INT32) -> int:
    return _check_int(_get(answer, key), key, least, most)


def _read_optional_int(
    answer: Mapping[str, Any], key: str, least: int = 0, most: int = _INT32
) -> int | None:
    value = _get(answer, key)
    return None if value is None else _check_int(value, key, least, most)


def _check_bool(value: object, place: str) -> bool:
    if type(value) is not bool:
        raise _InvalidError(place)
    return value


def _check_optional_bool(value: object, place: str) -> bool:
    return value is not None and _check_bool(value, place)


def _read_flag(answer: Mapping[str, Any], key: str) -> bool:
    return _check_bool(_get(answer, key), key)


def _check_seconds(value: object, place: str) -> float:
    if type(value) not in (int, float) or not 0 <= value <= _MOST_SECONDS:  # type: ignore[operator] # checked just before
        raise _InvalidError(place)
    return float(value)  # type: ignore[arg-type] # as above


def _check_text(value: object, place: str, most: int) -> str:
    if type(value) is not str or len(value) > most or not _is_encodable(value):
        raise _InvalidError(place)
    return value


def _is_encodable(text: str) -> bool:
    """Return whether the text has no NUL and no lone surrogate, so that it can be sent on."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def _check_form(value: object, place: str, form: str, most: int = _NAME_LENGTH) -> str:
    text = _check_text(value, place, most)
    if not re.fullmatch(form, text):
        raise _InvalidError(place)
    return text


def _check_name(value: object, place: str) -> str:
    return _check_text(value, place, _NAME_LENGTH)


def _check_optional_name(value: object, place: str) -> str:
    return "" if value is None else _check_name(value, place)


def _read_list(answer: Mapping[str, Any], key: str) -> Sequence[Any]:
    """Return the list under a key; SQL aggregates nothing to NULL."""
    value = _get(answer, key)
    if value is None:
        return ()
    if type(value) is not list:
        raise _InvalidError(key)
    return value


def _read_rows(answer: Mapping[str, Any], key: str, width: int) -> Sequence[Sequence[Any]]:
    rows = _read_list(answer, key)
    if any(type(row) is not list or len(row) != width for row in rows):
        raise _InvalidError(key)
    return rows


# -- the snapshot ---------------------------------------------------------------------------------


def _read_server(answer: Mapping[str, Any]) -> ServerIdentity:
    return ServerIdentity(
        started=_read_int(answer, "started", 0, _INT53),
        checkpointer=_read_optional_int(answer, "checkpointer", 1),
        checkpointer_started=_read_optional_int(answer, "checkpointer_started", 0, _INT53),
    )


@_explain_invalid("snapshot")
def read_snapshot(
    row: Row, *, own_roles: Collection[str | None], backend_pid: int, has_waits: bool = True
) -> Snapshot:
    """Read the answer to snapshot.sql. Raises TargetError.

    `own_roles`: the names of our roles. `backend_pid`: the pid in the server's greeting. `has_waits`:
    the statement asked for lock waits.
    """
    answer = _take_document(row)
    if not has_waits and answer.get("waits") is not None:
        raise _InvalidError("waits")
    waits = tuple(_read_waits(answer))
    _check_cost(waits)
    waiters = map_waiters_by_root(waits)
    if sum(map(len, waiters.values())) > _MOST_WAITERS:
        raise _InvalidError("waits")
    hidden = _read_int(answer, "hidden")
    most, reserved = _read_int(answer, "max"), _read_int(answer, "reserved")
    used = _read_int(answer, "used") + hidden
    _check_counts(answer, used, most)
    used -= _read_int(answer, "transient", 0, used)
    slots = Slots(max=most, reserved=reserved, used=used)
    return Snapshot(
        role=_check_name(_get(answer, "role"), "role"),
        slots=slots,
        can_see=_read_flag(answer, "can_see"),
        hidden=hidden,
        can_signal=_read_flag(answer, "can_signal"),
        untracked=_read_int(answer, "untracked"),
        reader=_read_flag(answer, "reader"),
        behind_pooler=_read_int(answer, "pid", 1) != backend_pid,
        server=_read_server(answer),
        taken_at=_read_int(answer, "taken_at", 0, _INT53),
        membership=Membership(
            server_version=_read_int(answer, "server_version"),
            inherits=_read_flag(answer, "inherits"),
        ),
        states=_read_states(answer),
        oldest_idle_in_transaction=_check_seconds(
            _get(answer, "oldest_idle_in_transaction"), "oldest_idle_in_transaction"
        ),
        lock_waiters=len(_read_list(answer, "lock_waiters")),
        prepared_waiters=waiters.get(PREPARED, ())[:_MOST_PREPARED_WAITERS],
        sessions=tuple(_read_sessions(answer, waiters, own_roles)),
    )


_MOST_SESSIONS: Final = 20_000
_MOST_REPLACED: Final = 100


def _check_counts(answer: Mapping[str, Any], used: int, most: int) -> None:
    """Refuse more sessions than the server itself counts or allows.

    `states`, `sessions` and `used` come from the same rows of one statement. Only client backends
    are counted, and each has one of the slots of max_connections. But the server reads its list of
    processes one by one, and may count both a backend that ends and the one that replaces it.
    """
    if used > most + _MOST_REPLACED:
        raise _InvalidError("used")
    if len(_read_list(answer, "states")) > used:
        raise _InvalidError("states")
    if len(_read_list(answer, "sessions")) > min(used, _MOST_SESSIONS):
        raise _InvalidError("sessions")


def _read_states(answer: Mapping[str, Any]) -> Mapping[State, int]:
    states = _read_list(answer, "states")
    are_texts = {*map(type, states)} <= {str, type(None)}
    # A later release may have states that we do not know.
    if not are_texts or not all(map(_is_state, set(states) - {None})):
        raise _InvalidError("states")
    return {state: states.count(state) for state in State}


_is_state: Final = re.compile(r"[a-z ()]{1,40}").fullmatch


_MOST_HOLDERS: Final = 10
# They belong to no session, so no claim on memory covers them.
_MOST_PREPARED_WAITERS: Final = 200


@_explain_invalid("list of holders")
def read_holders(row: Row, slots: Slots) -> tuple[Holder, ...]:
    """Read the answer to holders.sql. Raises TargetError.

    `slots`: those of the snapshot before. Since then other sessions may have come.
    """
    answer = _take_document(row)
    rows = _read_rows(answer, "holders", 9)
    holders = tuple(
        Holder(
            application=_check_optional_name(application, "holders"),
            role=None if role is None else _check_name(role, "holders"),
            client=None if client is None else _check_network(client),
            state=_check_text(state, "holders", _MOMENT_LENGTH),
            count=_check_int(count, "holders", 1, _INT32),
            oldest_seconds=_check_seconds(oldest, "holders"),
            superuser=_check_optional_bool(flags[0], "holders"),
            replication=_check_optional_bool(flags[1], "holders"),
            own_role=_check_optional_bool(flags[2], "holders"),
        )
        for application, role, client, state, count, oldest, *flags in rows[:_MOST_HOLDERS]
    )
    total = sum(holder.count for holder in holders)
    if len(rows) > _MOST_HOLDERS or total > slots.max + _MOST_REPLACED:
        raise _InvalidError("holders")
    if not all(_is_state(holder.state) for holder in holders):
        raise _InvalidError("holders")
    return holders


def _check_network(value: object) -> str:
    """Return a network as `mask_client` writes it."""
    text = _check_name(value, "holders")
    try:
        network = ip_network(text)
    except ValueError:
        raise _InvalidError("holders") from None
    if "%" in text or network.prefixlen != (24 if network.version == 4 else 64):  # noqa: PLR2004 -- IP's two versions
        raise _InvalidError("holders")
    return str(network)


def _read_waits(answer: Mapping[str, Any]) -> Iterator[Wait]:
    for row in _read_rows(answer, "waits", 6):
        pid, is_session, role, application, seconds, blocked_by = row
        if type(is_session) is not bool or type(blocked_by) is not list:
            raise _InvalidError("waits")
        yield Wait(
            waiter=Waiter(
                pid=_check_int(pid, "waits", 1, _INT32),
                role=_check_optional_name(role, "waits"),
                application=_check_optional_name(application, "waits"),
                seconds=_check_seconds(seconds, "waits"),
            ),
            is_session=is_session,
            blocked_by=tuple(_check_int(each, "waits", 0, _INT32) for each in blocked_by),
        )


_MOST_STEPS: Final = 1_000_000
# A thousand waiters behind a thousand readers of one table make a million.
_MOST_WAITERS: Final = 1_500_000
_MOST_WORKERS: Final = 1000  # of parallel queries, which wait beside their sessions


def _check_cost(waits: Sequence[Wait]) -> None:
    """Refuse a graph of waits that would take long, because no deadline interrupts the search.

    The search starts once for all roots that block the same sessions. A thousand sessions in one
    queue make half a million links to one root.
    """
    waiting_for: dict[int, list[int]] = defaultdict(list)  # by the pid of the direct blocker
    for wait in waits:
        for pid in wait.blocked_by:
            waiting_for[pid].append(wait.waiter.pid)
    pids = {wait.waiter.pid for wait in waits}
    searches = {tuple(waiters) for pid, waiters in waiting_for.items() if pid not in pids}
    links = sum(map(len, waiting_for.values()))
    if links * len(searches) > _MOST_STEPS or len(waits) - len(pids) > _MOST_WORKERS:
        raise _InvalidError("waits")


def _read_sessions(
    answer: Mapping[str, Any],
    waiters: Mapping[int, tuple[Waiter, ...]],
    own_roles: Collection[str | None],
) -> Iterator[Session]:
    rows = _read_rows(answer, "sessions", len(SESSION_COLUMNS))
    if rows:
        _check_columns(dict(zip(SESSION_COLUMNS, zip(*rows, strict=True), strict=True)))
    pid = SESSION_COLUMNS.index("pid")
    if len({row[pid] for row in rows}) < len(rows):
        raise _InvalidError("sessions: pid")
    # The processes that wait for a lock; a parallel worker is listed under the pid of its leader.
    lock_waiters = {
        _check_int(each, "lock_waiters", 1, _INT32) for each in _read_list(answer, "lock_waiters")
    }
    for row in rows:
        yield _read_session(
            dict(zip(SESSION_COLUMNS, row, strict=True)),
            waiters.get(row[pid], ()),
            own_roles,
            waits_for_lock=row[pid] in lock_waiters,
        )


def _check_columns(columns: Mapping[str, Sequence[Any]]) -> None:
    """Check all values of a kind at once: one by one, 5,000 rows take longer than the rest of the run."""

    def are_valid(names: Sequence[str]) -> bool:
        values = [value for name in names for value in columns[name] if value is not None]
        return not values or _COLUMN_CHECKS[names[0]](values)

    def is_missing(name: str) -> bool:
        return name in _REQUIRED and None in columns[name]

    if not all(map(are_valid, _COLUMNS_OF_ONE_KIND)) or any(map(is_missing, _REQUIRED)):
        invalid = (name for name in columns if is_missing(name) or not are_valid([name]))
        raise _InvalidError(f"sessions: {next(invalid)}")


_Check = Callable[[Sequence[Any]], bool]
"""Returns whether the values of a column are valid; there is at least one, and none is None."""


def _make_text_check(most: int, is_valid: Callable[[str], object] | None = None) -> _Check:
    def check(values: Sequence[Any]) -> bool:
        if {*map(type, values)} != {str}:
            return False
        texts = set(values)
        return (
            max(map(len, texts)) <= most
            and _is_encodable("".join(texts))
            and (is_valid is None or all(map(is_valid, texts)))
        )

    return check


def _make_number_check(least: float, most: float, *kinds: type) -> _Check:
    def check(values: Sequence[Any]) -> bool:
        # A NaN would pass both comparisons, but the JSON reader refuses it.
        return {*map(type, values)} <= {*kinds} and least <= min(values) and max(values) <= most

    return check


def _are_flags(values: Sequence[Any]) -> bool:
    return {*map(type, values)} == {bool}


@lru_cache(maxsize=10_000)  # clients return in every run
def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return "%" not in text


_are_moments: Final = _make_text_check(_MOMENT_LENGTH, re.compile(_MOMENT, re.ASCII).fullmatch)
_are_names: Final = _make_text_check(_NAME_LENGTH)
_are_seconds: Final = _make_number_check(0, _MOST_SECONDS, int, float)
_are_ages: Final = _make_number_check(-_INT32 - 1, _INT32, int)

_COLUMN_CHECKS: Final[Mapping[str, _Check]] = {
    "pid": _make_number_check(1, _INT32, int),
    **dict.fromkeys(("backend_start", "xact_start", "state_change", "query_start"), _are_moments),
    "state": _make_text_check(_NAME_LENGTH, frozenset(map(str, State)).__contains__),
    **dict.fromkeys(("role", "database", "application"), _are_names),
    "client": _make_text_check(_NAME_LENGTH, _is_address),
    "query": _make_text_check(QUERY_BYTES),
    # Base64 takes 4 bytes for 3, and adds line breaks.
    "cut_query": _make_text_check(2 * QUERY_BYTES),
    "query_id": _make_text_check(20, re.compile(r"-?[0-9]+").fullmatch),
    **dict.fromkeys(
        ("idle_seconds", "transaction_seconds", "connected_seconds", "query_seconds"), _are_seconds
    ),
    "waiting_for_client": _are_flags,
    **dict.fromkeys(("xid_age", "xmin_age"), _are_ages),
    "locks": _make_number_check(0, _INT32, int),
    **dict.fromkeys(("superuser", "replication", "own_role", "signalable"), _are_flags),
    **dict.fromkeys(("wait_event_type", "wait_event"), _are_names),
    "query_end": _make_text_check(2 * QUERY_END_BYTES),
}
_COLUMNS_OF_ONE_KIND: Final = [
    [name for name, each in _COLUMN_CHECKS.items() if each is check]
    for check in dict.fromkeys(_COLUMN_CHECKS.values())
]
_REQUIRED: Final = {"pid", "backend_start", "state", "idle_seconds", "connected_seconds"}
SESSION_COLUMNS: Final = tuple(_COLUMN_CHECKS)
"""The columns of a session: their names in snapshot.sql, and their order in its answer."""


def _decode_query(text: str | None, cut: str | None) -> str:
    """Return the part of the query that left the server; a cut query ends in `…`."""
    if cut is None:
        return text or ""
    return _decode_base64(cut, "cut_query") + "…"


def _decode_base64(text: str, column: str) -> str:
    try:
        return b64decode(text).decode("utf-8", errors="replace").replace("\0", "\ufffd")
    except ValueError:
        raise _InvalidError(f"sessions: {column}") from None


def _is_plain_vacuum(query: str) -> bool:
    """Return whether the query is a VACUUM whose snapshot does not hold back other vacuums.

    A VACUUM FULL copies the table, and its snapshot counts.
    """
    if "vacuum" not in query.lower():
        return False
    words = re.match(r"vacuum\b([^;]*)", redact(query), re.IGNORECASE)
    return words is not None and not re.search(r"\bfull\b", words[1], re.IGNORECASE)


def _read_session(
    row: Mapping[str, Any],
    waiters: tuple[Waiter, ...],
    own_roles: Collection[str | None],
    *,
    waits_for_lock: bool,
) -> Session:
    query = _decode_query(row["query"], row["cut_query"])
    holds_xmin = row["xmin_age"] is not None and not _is_plain_vacuum(query)
    return Session(
        identity=Identity(
            pid=row["pid"],
            backend_start=row["backend_start"],
            xact_start=row["xact_start"],
            state_change=row["state_change"],
            query_start=row["query_start"],
            state=State(row["state"]),
        ),
        role=row["role"],
        database=row["database"] or "",
        application=row["application"] or "",
        client=row["client"],
        query=query,
        query_end=_decode_base64(row["query_end"], "query_end") if row["query_end"] else "",
        query_id=row["query_id"],
        idle_seconds=row["idle_seconds"],
        transaction_seconds=row["transaction_seconds"],
        connected_seconds=row["connected_seconds"],
        query_seconds=row["query_seconds"],
        waiting_for_client=bool(row["waiting_for_client"]),
        wait_event_type=row["wait_event_type"],
        wait_event=row["wait_event"],
        waits_for_lock=waits_for_lock,
        xid_age=row["xid_age"],
        xmin_age=row["xmin_age"] if holds_xmin else None,
        locks=row["locks"],
        waiters=waiters,
        # NULL if the role was dropped under its session.
        superuser=bool(row["superuser"]),
        replication=bool(row["replication"]),
        own_role=bool(row["own_role"]) or (row["role"] is not None and row["role"] in own_roles),
        signalable=bool(row["signalable"]),
    )


# -- the server's facts ---------------------------------------------------------------------------


# Such as 18.4, 17beta1 or 15.3 (Debian 15.3-1.pgdg120+1).
_VERSION: Final = r"[0-9]{1,3}[0-9A-Za-z.()+~ _-]*"
_SLOT_NAME: Final = r"[a-z0-9_]+"  # it goes into a statement


@_explain_invalid("server facts")
def read_facts(row: Row, tls: Tls | None) -> ServerFacts:
    """Read the answer to server_facts.sql. Raises TargetError."""
    answer = _take_document(row)
    try:
        provider = Provider(_check_name(_get(answer, "provider"), "provider"))
    except ValueError:
        raise _InvalidError("provider") from None
    return ServerFacts(
        tls=tls,
        version=_check_form(_get(answer, "version"), "version", _VERSION, 100),
        major=_read_int(answer, "major", 0, 1000),
        provider=provider,
        role=_check_name(_get(answer, "role"), "role"),
        superuser=_read_flag(answer, "superuser"),
        inherits=_read_flag(answer, "inherits"),
        connection_limit=_read_optional_int(answer, "connection_limit"),
        granted_reserved=_read_flag(answer, "granted_reserved"),
        reserved_slots=_read_int(answer, "reserved_slots"),
        soon=_check_text(_get(answer, "soon"), "soon", _MOMENT_LENGTH),
        databases=tuple(_check_name(each, "databases") for each in _read_list(answer, "databases")),
        timeouts=tuple(
            Timeout(
                role=None if role is None else _check_name(role, "timeouts"),
                database=None if database is None else _check_name(database, "timeouts"),
                name=_check_name(name, "timeouts"),
                value=None if value is None else _check_timeout_value(value),
            )
            for role, database, name, value in _read_rows(answer, "timeouts", 4)
        ),
        idle=tuple(
            IdleSessions(
                application=_check_optional_name(application, "idle"),
                role=_check_name(role, "idle"),
                number=_check_int(number, "idle", 0, _INT32),
            )
            for application, role, number in _read_rows(answer, "idle", 3)
        ),
        prepared=tuple(
            PreparedTransaction(
                database=_check_name(database, "prepared"),
                seconds=_check_seconds(seconds, "prepared"),
            )
            for database, seconds in _read_rows(answer, "prepared", 2)
        ),
        replication_slots=tuple(
            ReplicationSlot(
                name=_check_form(name, "replication_slots", _SLOT_NAME),
                active=_check_bool(active, "replication_slots"),
                held=_check_int(held, "replication_slots", -_INT32, _INT32),
            )
            for name, active, held in _read_rows(answer, "replication_slots", 3)
        ),
    )


USED_FUNCTIONS: Final = (
    *("pg_stat_get_activity", "pg_lock_status", "pg_blocking_pids", "pg_stat_get_progress_info"),
    *("pg_terminate_backend", "pg_cancel_backend", "pg_postmaster_start_time", "pg_backend_pid"),
    *("pg_is_in_recovery", "pg_prepared_xact", "pg_get_replication_slots", "current_setting"),
    *("set_config", "clock_timestamp", "age", "encode", "octet_length"),
    *("network", "set_masklen", "family"),
)
USED_RELATIONS: Final = (
    *("pg_database", "pg_roles", "pg_settings", "pg_proc", "pg_stat_activity"),
    *("pg_db_role_setting", "pg_prepared_xacts", "pg_replication_slots"),
)
_ARGUMENTS: Final = re.compile(r'[a-z0-9_ ,"\[\]]*', re.ASCII)


@_explain_invalid("list of grants")
def read_grants(row: Row, role: str) -> tuple[str, ...]:
    """Read the answer to missing_grants.sql: the GRANT statements for our role. Raises TargetError.

    People run them, so the server contributes known names only.
    """
    answer = _take_document(row)
    grantee = quote_identifier(role)
    grants = []
    for name, arguments in _read_rows(answer, "missing_functions", 2):
        if (
            type(name) is not str
            or name not in USED_FUNCTIONS
            or not _ARGUMENTS.fullmatch(_check_text(arguments, "missing_functions", _TEXT_LENGTH))
        ):
            raise _InvalidError("missing_functions")
        grants.append(f"GRANT EXECUTE ON FUNCTION pg_catalog.{name}({arguments}) TO {grantee};")
    for name in _read_list(answer, "missing_relations"):
        if type(name) is not str or name not in USED_RELATIONS:
            raise _InvalidError("missing_relations")
        grants.append(f"GRANT SELECT ON pg_catalog.{name} TO {grantee};")
    return tuple(grants)


def _check_timeout_value(value: object) -> str:
    """Return a timeout in any format of PostgreSQL, such as 600000, 10min, .5 h or 0x927C0."""
    text = " ".join(_check_name(value, "timeouts").split())
    return _check_form(text, "timeouts", r"[-+.]?[0-9][0-9A-Za-z.+ -]{0,39}")
