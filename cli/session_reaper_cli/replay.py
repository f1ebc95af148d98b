"""Decides offline, with the engine of the Lambda, on a recorded snapshot.

A recording is what `record` or the event {"record": true} returned, or one snapshot from it. The
output has a head line per target and a line per session, ordered by pid, so that `diff` can compare
two replays. `--against` shows only the sessions on which two policies differ, in the form of a
diff.

A replay differs from a run where a recording does not tell enough:
- Queries are recorded as `query` globs match them, without literals and comments, so
  `waiting_for_client` may miss or find the word COPY in one.
- `confirm_after`, `escalate_after` and `limits.max_per_run` depend on time and on other targets.
- Sessions that would escape the guard are not known.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from session_reaper.decision.decide import decide
from session_reaper.decision.explain import ExplainedOutcome, Explanation, explain
from session_reaper.decision.limits import describe_pressure
from session_reaper.decision.model import Decision, Decisions, Verdict
from session_reaper.documents import short_repr
from session_reaper.errors import ConfigurationError
from session_reaper.policy.model import Policy
from session_reaper.report.text import printable
from session_reaper.sessions.session import State
from session_reaper.sessions.snapshot import Snapshot

from session_reaper_cli.policies import load, path_label

_MAX_NAME = 64  # characters: PostgreSQL's names have 63 bytes


def replay(recording: Path, policy: str, against: str | None, target: str | None) -> Iterator[str]:
    """Yield the lines of a replay; a policy of "" is the bundled one.

    Raises ConfigurationError if an input cannot be read.
    """
    snapshots = read_recording(recording, target)
    new = load(policy)
    if against is None:
        for name, snapshot in snapshots.items():
            yield from describe_verdicts(name, snapshot, new)
        return
    names = [path or "the bundled policy" for path in (against, policy)]
    yield from (f"--- {names[0]}", f"+++ {names[1]}")
    yield from describe_differences(snapshots, load(against), new)


# -- verdicts -------------------------------------------------------------------------------------


def decide_again(snapshot: Snapshot, policy: Policy) -> Decisions:
    """Decide on a recorded snapshot, whose queries are already redacted."""
    return decide(snapshot.sessions, snapshot.slots, policy, redact_query=str)


def describe_verdicts(name: str, snapshot: Snapshot, policy: Policy) -> Iterator[str]:
    """Yield the head line of a target and a line for each of its sessions."""
    decided = decide_again(snapshot, policy)
    yield "; ".join(_describe_target(name, snapshot, decided))
    for columns, explanation in _map_columns(decided, policy).items():
        yield f"{columns}  {_describe_verdict(explanation)}"


def describe_differences(
    snapshots: Mapping[str, Snapshot], before: Policy, after: Policy
) -> Iterator[str]:
    """Yield the sessions on which two policies differ, and a last line that counts them."""
    differing = 0
    for name, snapshot in snapshots.items():
        first = _map_columns(decide_again(snapshot, before), before)
        second = _map_columns(decide_again(snapshot, after), after)
        changed = [
            each
            for each in first
            if _get_verdict_and_rule(first[each]) != _get_verdict_and_rule(second[each])
        ]
        if changed:
            yield f"{name}:"
        for columns in changed:
            yield f"- {columns}  {_describe_verdict(first[columns])}"
            yield f"+ {columns}  {_describe_verdict(second[columns])}"
        differing += len(changed)
    total = sum(len(snapshot.sessions) for snapshot in snapshots.values())
    yield f"{differing} of {total} sessions differ"


_VERDICTS: Mapping[Verdict, str] = {
    Verdict.CONDEMN: "condemned",
    Verdict.SPARE: "spared",
    Verdict.OBSERVE: "only observed",
    Verdict.KEEP: "kept",
    Verdict.LEAVE: "left alone",
}


def _describe_target(name: str, snapshot: Snapshot, decided: Decisions) -> Iterator[str]:
    counts = {verdict: len(decided.having(verdict)) for verdict in _VERDICTS}
    left = decided.having(Verdict.LEAVE)
    protected = sum(decision.protection is not None for decision in left)
    counts[Verdict.LEAVE] -= protected
    words = [
        f"{counts[verdict]} {word}"
        for verdict, word in _VERDICTS.items()
        if counts[verdict] or verdict not in (Verdict.OBSERVE, Verdict.KEEP)
    ]
    shown = ", ".join([*words, f"{protected} protected"] if protected else words)
    yield f"{name}: {snapshot.slots}, {shown}"
    if decided.breaker:
        yield f"breaker: {decided.breaker}"
    yield from describe_pressure(decided)


def _map_columns(decided: Decisions, policy: Policy) -> dict[str, Explanation]:
    """Map the columns that describe a session, padded to equal widths, to what explains it."""
    explained = sorted(explain(decided, policy, str), key=lambda each: each.decision.pid)
    rows = [tuple(_list_cells(each.decision)) for each in explained]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return {
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)): each
        for row, each in zip(rows, explained, strict=True)
    }


def _list_cells(decision: Decision) -> Iterator[str]:
    session = decision.session
    yield str(decision.pid)
    for name in (session.role_label, session.database, session.application):
        yield printable(name, _MAX_NAME) or "-"
    yield session.client or "[local]"
    yield session.state


def _describe_verdict(explained: Explanation) -> str:
    rule = explained.decision.rule
    if explained.outcome in (ExplainedOutcome.KEPT, ExplainedOutcome.PROTECTED):
        return explained.reason
    if rule is None:
        return f"left alone: {explained.reason}"
    if explained.outcome is ExplainedOutcome.LEFT:
        return f"only observed by {rule.name}: {explained.reason}"
    if explained.outcome is ExplainedOutcome.SPARED:
        return f"spared, {rule.name}: {explained.reason}"
    return f"condemned by {rule.name}: {explained.reason}"


def _get_verdict_and_rule(explained: Explanation) -> object:
    """Return what two decisions are compared by; reasons also quote the thresholds of a policy."""
    decision = explained.decision
    rule = decision.rule and (decision.rule.name, decision.rule.action)
    return decision.verdict, rule


# -- reading --------------------------------------------------------------------------------------


def read_recording(path: Path, target: str | None = None) -> dict[str, Snapshot]:
    """Read the snapshots of a recording by target; a single snapshot is named after its file.

    Raises ConfigurationError with the place of an invalid value.
    """
    try:
        document = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigurationError(path_label(path), f"cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise ConfigurationError(path_label(path), "is not valid JSON") from None
    if not isinstance(document, dict) or not ("snapshots" in document or "sessions" in document):
        problem = 'must be what the event {"record": true} returned, or one snapshot from it'
        raise ConfigurationError(path_label(path), problem)
    place = "snapshots" if "snapshots" in document else ""
    snapshots = document.get("snapshots", {path.stem: document})
    if not isinstance(snapshots, dict) or not snapshots:
        raise ConfigurationError("snapshots", "has no snapshot; see the errors under targets")
    if target is not None and target not in snapshots:
        problem = f"unknown target {short_repr(target)}; known: {', '.join(snapshots)}"
        raise ConfigurationError("--target", problem)
    return {
        name: _read_snapshot(value, _join(place, name) if place else "")
        for name, value in snapshots.items()
        if target in (None, name)
    }


def _read_snapshot(value: object, place: str) -> Snapshot:
    snapshot: Snapshot = _read(Snapshot, value, place)
    if not snapshot.can_see:
        problem = "must be true; a run decides nothing if sessions are hidden from it"
        raise ConfigurationError(_join(place, "can_see"), problem)
    pids: set[int] = set()
    for index, session in enumerate(snapshot.sessions):
        here, pid = _join(place, f"sessions[{index}]"), session.identity.pid
        if pid in pids:
            raise ConfigurationError(f"{here}.identity.pid", f"duplicate pid {pid}")
        pids.add(pid)
        try:
            ip_address("::" if session.client is None else session.client)
        except ValueError:
            problem = f"must be an IP address, not {short_repr(session.client)}"
            raise ConfigurationError(f"{here}.client", problem) from None
    return snapshot


_LIMIT = 2**53  # JSON numbers are exact below
_EXPECTED: Mapping[object, str] = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    State: f"one of {', '.join(State)}",
    tuple: "a list",
}


@cache  # the same few types for thousands of sessions
def _get_hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


@cache
def _find_required(kind: Any) -> set[str]:  # noqa: ANN401 -- any dataclass
    """Return the keys without a default; later releases added the others."""
    has_default = {f.name for f in fields(kind) if (f.default, f.default_factory) != (MISSING,) * 2}
    return _get_hints(kind).keys() - has_default


def _join(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key


def _read(kind: Any, value: Any, place: str) -> Any:  # noqa: ANN401 -- JSON in, what the hint says out
    """Read a JSON value as a type hint of Snapshot describes it, without conversions."""
    inner = get_args(kind)
    if NoneType in inner:
        (kind,) = set(inner) - {NoneType}
        return None if value is None else _read(kind, value, place)
    if get_origin(kind) is tuple and isinstance(value, list):
        return tuple(_read(inner[0], item, f"{place}[{n}]") for n, item in enumerate(value))
    if get_origin(kind) is Mapping and isinstance(value, dict):
        names, items = inner
        return {
            _read(names, key, place): _read(items, item, _join(place, key))
            for key, item in value.items()
        }
    is_mapping = is_dataclass(kind) and isinstance(value, dict)
    if is_mapping:
        hints, required = _get_hints(kind), _find_required(kind)
        for key in [*hints, *value]:
            if key not in hints or (key in required and key not in value):
                problem = "unknown key" if key not in hints else "is missing"
                raise ConfigurationError(
                    _join(place, key), f"{problem}; recorded by another version?"
                )
        return kind(
            **{key: _read(hints[key], item, _join(place, key)) for key, item in value.items()}
        )
    return _read_plain(kind, value, place)


def _read_plain(kind: Any, value: Any, place: str) -> Any:  # noqa: ANN401 -- as above
    if kind in (int, float) and type(value) in (int, kind) and -_LIMIT < value < _LIMIT:
        return kind(value)
    if kind in (str, bool) and type(value) is kind:
        return value
    if kind is State and value in list(State):
        return State(value)
    expected = _EXPECTED.get(get_origin(kind) or kind, "an object")
    raise ConfigurationError(place or "snapshot", f"must be {expected}, not {short_repr(value)}")
