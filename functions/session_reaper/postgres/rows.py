"""Validates a server's answers and turns them into values.

A server may be broken, hostile, or not PostgreSQL. A value that passes has the type, range and
length that the rest of the program relies on, and can be encoded. Everything else is an error of
that target. No error message repeats a value, which could be anything.
"""

import json
import re
from base64 import b64decode
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import lru_cache, wraps
from ipaddress import ip_address, ip_network
from itertools import chain, islice
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
_MOMENT_LENGTH: Final = 40

_MOMENT: Final = r"\d{4,6}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?(?:Z|[+-]\d\d(?::\d\d){0,2})"


_P = ParamSpec("_P")
_T = TypeVar("_T")


class _InvalidError(Exception):
    """A value is invalid; the argument is its place in the answer."""


def _explain_invalid(statement: str) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """Raise TargetError in place of an invalid value in the answer to a statement.

    Not by a context manager, whose errors refer to themselves: then an answer of some megabytes
    stays in memory until the next garbage collection.
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
    return Verification(
        server=_read_server(answer),
        remaining=frozenset(_read_list(answer, "remaining", _are_pids)),
        can_see=_read(answer, "can_see", _are_flags),
        used=_read(answer, "used", _are_counts),
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
# Skips strings up to the next value. It matches at every position, so that the search stays linear
# in invalid JSON too.
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


# -- values ---------------------------------------------------------------------------------------


_Check = Callable[[Sequence[Any]], bool]
"""Returns whether all values, of which there is at least one, are valid."""


def _read(answer: Mapping[str, Any], key: str, check: _Check) -> Any:  # noqa: ANN401 -- the check decides
    if key not in answer or not check((answer[key],)):
        raise _InvalidError(key)
    return answer[key]


def _read_optional(answer: Mapping[str, Any], key: str, check: _Check) -> Any:  # noqa: ANN401 -- as above
    return None if answer.get(key, key) is None else _read(answer, key, check)


def _read_list(answer: Mapping[str, Any], key: str, check: _Check | None = None) -> Sequence[Any]:
    """Return the list under a key; SQL aggregates nothing to NULL."""
    values: Sequence[Any] = _read_optional(answer, key, _are_lists) or ()
    if values and check is not None and not check(values):
        raise _InvalidError(key)
    return values


def _read_rows(answer: Mapping[str, Any], key: str, width: int) -> Sequence[Sequence[Any]]:
    rows = _read_list(answer, key, _are_lists)
    if any(len(row) != width for row in rows):
        raise _InvalidError(key)
    return rows


def _read_table(answer: Mapping[str, Any], key: str, *checks: _Check) -> Sequence[Sequence[Any]]:
    """Return the rows under a key, with one check for each column."""
    rows = _read_rows(answer, key, len(checks))
    columns = zip(*rows, strict=True)
    if rows and not all(check(column) for check, column in zip(checks, columns, strict=True)):
        raise _InvalidError(key)
    return rows


def _or_null(check: _Check) -> _Check:
    def check_others(values: Sequence[Any]) -> bool:
        others = [each for each in values if each is not None]
        return not others or check(others)

    return check_others


def _make_type_check(kind: type) -> _Check:
    return lambda values: {kind}.issuperset(map(type, values))


def _make_number_check(least: float, most: float, *kinds: type) -> _Check:
    allowed = {*kinds}

    def check(values: Sequence[Any]) -> bool:
        # A NaN would pass both comparisons, but the JSON reader refuses it.
        has_type = allowed.issuperset(map(type, values))
        return has_type and least <= min(values) and max(values) <= most

    return check


def _make_text_check(most: int, is_valid: Callable[[str], object] | None = None) -> _Check:
    def check(values: Sequence[Any]) -> bool:
        if not {str}.issuperset(map(type, values)):
            return False
        texts = set(values)
        return (
            max(map(len, texts)) <= most
            and _is_encodable("".join(texts))
            and (is_valid is None or all(map(is_valid, texts)))
        )

    return check


def _is_encodable(text: str) -> bool:
    """Return whether the text has no NUL and no lone surrogate, so that it can be sent on."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


_are_flags: Final = _make_type_check(bool)
_are_lists: Final = _make_type_check(list)
_are_pids: Final = _make_number_check(1, _INT32, int)
_are_counts: Final = _make_number_check(0, _INT32, int)
_are_instants: Final = _make_number_check(0, _INT53, int)
_are_seconds: Final = _make_number_check(0, _MOST_SECONDS, int, float)
_are_ages: Final = _make_number_check(-_INT32 - 1, _INT32, int)
_are_moments: Final = _make_text_check(_MOMENT_LENGTH, re.compile(_MOMENT, re.ASCII).fullmatch)
_are_names: Final = _make_text_check(_NAME_LENGTH)
_are_optional_names: Final = _or_null(_are_names)
# A later release may have states that we do not know.
_are_states: Final = _make_text_check(40, re.compile(r"[a-z ()]+").fullmatch)


# -- the snapshot ---------------------------------------------------------------------------------


def _read_server(answer: Mapping[str, Any]) -> ServerIdentity:
    return ServerIdentity(
        started=_read(answer, "started", _are_instants),
        checkpointer=_read_optional(answer, "checkpointer", _are_pids),
        checkpointer_started=_read_optional(answer, "checkpointer_started", _are_instants),
    )


@_explain_invalid("snapshot")
def read_snapshot(
    row: Row, *, own_roles: Collection[str | None], backend_pid: int, has_waits: bool = True
) -> Snapshot:
    """Read the answer to snapshot.sql. Raises TargetError.

    `own_roles`: the names of our roles. `backend_pid`: the pid in the server's greeting.
    `has_waits`: the statement asked for lock waits.
    """
    answer = _take_document(row)
    if not has_waits and answer.get("waits") is not None:
        raise _InvalidError("waits")
    waits = tuple(_read_waits(answer))
    _check_cost(waits)
    waiters = map_waiters_by_root(waits)
    if sum(map(len, waiters.values())) > _MOST_WAITERS:
        raise _InvalidError("waits")
    hidden = _read(answer, "hidden", _are_counts)
    most = _read(answer, "max", _are_counts)
    used = _read(answer, "used", _are_counts) + hidden
    _check_counts(answer, used, most)
    used -= _read(answer, "transient", _make_number_check(0, used, int))
    return Snapshot(
        role=_read(answer, "role", _are_names),
        slots=Slots(max=most, reserved=_read(answer, "reserved", _are_counts), used=used),
        can_see=_read(answer, "can_see", _are_flags),
        hidden=hidden,
        can_signal=_read(answer, "can_signal", _are_flags),
        untracked=_read(answer, "untracked", _are_counts),
        reader=_read(answer, "reader", _are_flags),
        behind_pooler=_read(answer, "pid", _are_pids) != backend_pid,
        server=_read_server(answer),
        taken_at=_read(answer, "taken_at", _are_instants),
        membership=Membership(
            server_version=_read(answer, "server_version", _are_counts),
            inherits=_read(answer, "inherits", _are_flags),
        ),
        states=_read_states(answer),
        oldest_idle_in_transaction=float(_read(answer, "oldest_idle_in_transaction", _are_seconds)),
        lock_waiters=len(_read_list(answer, "lock_waiters")),
        prepared_waiters=waiters.get(PREPARED, ())[:_MOST_PREPARED_WAITERS],
        sessions=tuple(_read_sessions(answer, waiters, own_roles)),
    )


_MOST_SESSIONS: Final = 20_000
_MOST_REPLACED: Final = 100
# The waiters of prepared transactions belong to no session, so no claim on memory covers them.
_MOST_PREPARED_WAITERS: Final = 200


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
    states = _read_list(answer, "states", _or_null(_are_states))
    return {state: states.count(state) for state in State}


_MOST_HOLDERS: Final = 10


@_explain_invalid("list of holders")
def read_holders(row: Row, slots: Slots) -> tuple[Holder, ...]:
    """Read the answer to holders.sql. Raises TargetError.

    `slots`: those of the snapshot, since which more sessions may have connected.
    """
    answer = _take_document(row)
    rows = _read_table(
        answer,
        "holders",
        *(_are_optional_names, _are_optional_names),
        _or_null(_make_text_check(_NAME_LENGTH, _read_network)),
        *(_are_states, _are_pids, _are_seconds),
        *[_or_null(_are_flags)] * 3,
    )
    holders = tuple(
        Holder(
            application=application or "",
            role=role,
            client=client and _read_network(client),
            state=state,
            count=count,
            oldest_seconds=float(oldest),
            superuser=bool(flags[0]),
            replication=bool(flags[1]),
            own_role=bool(flags[2]),
        )
        for application, role, client, state, count, oldest, *flags in rows
    )
    total = sum(holder.count for holder in holders)
    if len(rows) > _MOST_HOLDERS or total > slots.max + _MOST_REPLACED:
        raise _InvalidError("holders")
    return holders


def _read_network(text: str) -> str | None:
    """Return a network as `mask_client` writes it; None if it is invalid."""
    try:
        network = ip_network(text)
    except ValueError:
        return None
    is_usual = network.prefixlen == (24 if network.version == 4 else 64)  # noqa: PLR2004 -- IP's two versions
    return str(network) if is_usual and "%" not in text else None


def _read_waits(answer: Mapping[str, Any]) -> Iterator[Wait]:
    rows = _read_table(
        answer,
        "waits",
        *(_are_pids, _are_flags, _are_optional_names, _are_optional_names),
        *(_are_seconds, _are_lists_of_blockers),
    )
    for pid, is_session, role, application, seconds, blocked_by in rows:
        waiter = Waiter(
            pid=pid, role=role or "", application=application or "", seconds=float(seconds)
        )
        yield Wait(waiter=waiter, is_session=is_session, blocked_by=tuple(blocked_by))


def _are_lists_of_blockers(values: Sequence[Any]) -> bool:
    return _are_lists(values) and (not any(values) or _are_counts([*chain.from_iterable(values)]))


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
    lock_waiters = set(_read_list(answer, "lock_waiters", _are_pids))
    for row in rows:
        yield _read_session(
            dict(zip(SESSION_COLUMNS, row, strict=True)),
            waiters.get(row[pid], ()),
            own_roles,
            waits_for_lock=row[pid] in lock_waiters,
        )


def _check_columns(columns: Mapping[str, Sequence[Any]]) -> None:
    """Check all values of one kind at once.

    One by one, those of 5,000 rows would take longer than the rest of the run.
    """

    def are_valid(names: Sequence[str]) -> bool:
        values = [value for name in names for value in columns[name] if value is not None]
        return not values or _COLUMN_CHECKS[names[0]](values)

    def is_missing(name: str) -> bool:
        return name in _REQUIRED and None in columns[name]

    if not all(map(are_valid, _COLUMNS_OF_ONE_KIND)) or any(map(is_missing, _REQUIRED)):
        invalid = (name for name in columns if is_missing(name) or not are_valid([name]))
        raise _InvalidError(f"sessions: {next(invalid)}")


@lru_cache(maxsize=10_000)  # clients return in every run
def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return "%" not in text


_COLUMN_CHECKS: Final[Mapping[str, _Check]] = {
    "pid": _are_pids,
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
    "locks": _are_counts,
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


@_explain_invalid("server facts")
def read_facts(row: Row, tls: Tls | None) -> ServerFacts:
    """Read the answer to server_facts.sql. Raises TargetError."""
    answer = _take_document(row)
    return ServerFacts(
        tls=tls,
        version=_read(answer, "version", _are_versions),
        major=_read(answer, "major", _make_number_check(0, 1000, int)),
        provider=Provider(_read(answer, "provider", _are_providers)),
        role=_read(answer, "role", _are_names),
        superuser=_read(answer, "superuser", _are_flags),
        inherits=_read(answer, "inherits", _are_flags),
        connection_limit=_read_optional(answer, "connection_limit", _are_counts),
        granted_reserved=_read(answer, "granted_reserved", _are_flags),
        reserved_slots=_read(answer, "reserved_slots", _are_counts),
        soon=_read(answer, "soon", _make_text_check(_MOMENT_LENGTH)),
        databases=tuple(_read_list(answer, "databases", _are_names)),
        timeouts=tuple(
            Timeout(role=role, database=database, name=name, value=value and _join_words(value))
            for role, database, name, value in _read_table(
                answer,
                "timeouts",
                _are_optional_names,
                _are_optional_names,
                _are_names,
                _or_null(_are_timeouts),
            )
        ),
        idle=tuple(
            IdleSessions(application=application or "", role=role, number=number)
            for application, role, number in _read_table(
                answer, "idle", _are_optional_names, _are_names, _are_counts
            )
        ),
        prepared=tuple(
            PreparedTransaction(database=database, seconds=float(seconds))
            for database, seconds in _read_table(answer, "prepared", _are_names, _are_seconds)
        ),
        replication_slots=tuple(
            ReplicationSlot(name=name, active=active, held=held)
            for name, active, held in _read_table(
                answer,
                "replication_slots",
                _are_slot_names,
                _are_flags,
                _make_number_check(-_INT32, _INT32, int),
            )
        ),
    )


def _join_words(text: str) -> str:
    return " ".join(text.split())


def _is_timeout(text: str) -> bool:
    """Return whether PostgreSQL may write a timeout like this: 600000, 10min, .5 h, 0x927C0."""
    return re.fullmatch(r"[-+.]?[0-9][0-9A-Za-z.+ -]{0,39}", _join_words(text)) is not None


_are_timeouts: Final = _make_text_check(_NAME_LENGTH, _is_timeout)
_are_providers: Final = _make_text_check(_NAME_LENGTH, frozenset(map(str, Provider)).__contains__)
# Such as 18.4, 17beta1 or 15.3 (Debian 15.3-1.pgdg120+1).
_are_versions: Final = _make_text_check(
    100, re.compile(r"[0-9]{1,3}[0-9A-Za-z.()+~ _-]*").fullmatch
)
# A name goes into a statement.
_are_slot_names: Final = _make_text_check(_NAME_LENGTH, re.compile(r"[a-z0-9_]+").fullmatch)


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
_are_functions: Final = _make_text_check(_NAME_LENGTH, frozenset(USED_FUNCTIONS).__contains__)
_are_relations: Final = _make_text_check(_NAME_LENGTH, frozenset(USED_RELATIONS).__contains__)
_are_arguments: Final = _make_text_check(1000, re.compile(r'[a-z0-9_ ,"\[\]]*').fullmatch)


@_explain_invalid("list of grants")
def read_grants(row: Row, role: str) -> tuple[str, ...]:
    """Read the answer to missing_grants.sql: the GRANT statements for our role. Raises TargetError.

    People run them, so the server contributes known names only.
    """
    answer = _take_document(row)
    functions = _read_table(answer, "missing_functions", _are_functions, _are_arguments)
    relations = _read_list(answer, "missing_relations", _are_relations)
    grantee = quote_identifier(role)
    return (
        *(f"GRANT EXECUTE ON FUNCTION pg_catalog.{n}({a}) TO {grantee};" for n, a in functions),
        *(f"GRANT SELECT ON pg_catalog.{name} TO {grantee};" for name in relations),
    )
