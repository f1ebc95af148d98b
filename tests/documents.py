"""Strategies for policy documents as JSON values, both valid and invalid."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from session_reaper.policy.enums import Action, HeldResource, Mode, Order, QueryVisibility
from session_reaper.policy.model import CLOCKS, Limits, Match, Policy, Protect, Rule, Threshold
from session_reaper.sessions.session import State

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Document = dict[str, Any]

KEYS = sorted(
    {
        field.name
        for kind in (Policy, Rule, Match, Threshold, Protect, Limits)
        for field in fields(kind)
        if field.name != "liftable_roles"  # set by the function, not by a document
    }
)
"""Every key that a policy may contain."""

# -- valid policies --------------------------------------------------------------------------------

_RULE_NAMES = st.sampled_from(["idle-in-transaction", "on", "1", "5m", "rules[0]"]) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20
)
_GLOBS = st.sampled_from(
    [
        "app",
        "app_*",
        "*",
        "w?rker",
        "db[0-9]",
        "[!x]*",
        "a[[]b",
        "[]]",
        "null",
        "etl: a # b",
        f"*{'x' * 63}*",
    ]
)
_NAME_GLOBS = _GLOBS | st.sampled_from(["ÄPP*", "ä" * 31, "rdsadmin", "app_1", "deploy"])
_NETWORKS = st.sampled_from(
    [
        "10.0.8.7",
        "10.0.8.0/24",
        "10.0.0.0/255.0.0.0",
        "0.0.0.0/0",
        "::",
        "2001:db8::/32",
        "fe80::1%eth0",
    ]
)
_QUERY_GLOBS = st.sampled_from(
    ["select ?", "listen ", "[iu]*values ([?]*)", "a*b*c", "*(a+)+x[!0-9]", "naïve 😀"]
)
_PAUSES = st.sampled_from(["0s", "500ms", "1.5s", "2m30s", "0.08h", "5m", "1m1m"]) | st.builds(
    "{}s{}ms".format, st.integers(0, 200), st.integers(0, 999)
)
_DURATIONS = _PAUSES | st.sampled_from(["15m", "1h30m", "2d", "3650d"])
_SHARES = st.sampled_from(["100%", "050.0%"]) | st.decimals("0.01", 100, places=2).map("{}%".format)
_COUNTS = st.integers(1, 5) | st.integers(1, 10**12)
_MODES: st.SearchStrategy[str | bool] = st.sampled_from([*map(str, Mode), False])
_STATES: list[str] = [*map(str, State)]
_RUNNING = [str(State.ACTIVE), str(State.FASTPATH)]


def _one_or_many(values: st.SearchStrategy[str]) -> st.SearchStrategy[str | list[str]]:
    return values | st.lists(values, min_size=1, max_size=3)


def _some_of(keys: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[Document]:
    return st.fixed_dictionaries({}, optional=keys)


_CONDITIONS = _some_of(
    {
        "role": _one_or_many(_NAME_GLOBS),
        "database": _one_or_many(_NAME_GLOBS),
        "application": _one_or_many(_GLOBS) | st.just([""]),
        "client": _one_or_many(_NETWORKS),
        "query": _one_or_many(_QUERY_GLOBS),
        "wait_event_type": _one_or_many(st.sampled_from(["Lock", "Client", "L*", "IPC"])),
        "wait_event": _one_or_many(st.sampled_from(["Client*", "ClientWrite", "relation"])),
        "blocks": _COUNTS,
        "holds": _one_or_many(st.sampled_from([*map(str, HeldResource)])),
        "pins_vacuum_by": _COUNTS,
    }
)
_PROTECT = _some_of(
    {
        "roles": _one_or_many(_NAME_GLOBS),
        "applications": _one_or_many(_GLOBS),
        "databases": _one_or_many(_NAME_GLOBS),
        "clients": _one_or_many(_NETWORKS),
    }
)
_LIMITS = _some_of(
    {
        "max_terminations": _COUNTS,
        "max_per_application": _COUNTS,
        "max_per_run": _COUNTS,
        "max_share": _SHARES,
        "max_condemned": _COUNTS,
        "min_sessions": _COUNTS,
        "order": st.sampled_from([*map(str, Order)]),
    }
)


@st.composite
def _matches(
    draw: st.DrawFn, states: Sequence[str], *, cancelled: bool, kept: bool = False
) -> Document:
    state = draw(_one_or_many(st.sampled_from(states)))
    named = {state} if isinstance(state, str) else {*state}
    clocks = [clock for clock in CLOCKS if clock != "query_for" or "active" in named]
    times = draw(st.dictionaries(st.sampled_from(clocks), _DURATIONS, min_size=0 if kept else 1))
    match = {"state": state} | times | draw(_CONDITIONS)
    if named == {"active"}:
        flags = st.just(value=False) if cancelled else st.booleans()
        match |= draw(_some_of({"waiting_for_client": flags}))
    return match


@st.composite
def _pressures(draw: st.DrawFn, *, cancelled: bool) -> Document:
    """Draw `when` and an `until` below it."""
    low, high = sorted(draw(st.lists(st.integers(1, 100), min_size=2, max_size=2, unique=True)))
    keys = {"when": st.sampled_from([{"slots_used": f"{high}%"}, {"slots_free": low - 1}])}
    if not cancelled:
        keys["until"] = st.sampled_from([{"slots_used": f"{low}%"}, {"slots_free": high}])
    return draw(_some_of(keys))


@st.composite
def _rules(draw: st.DrawFn, name: str) -> Document:
    action = draw(st.sampled_from([{}, *({"action": action.value} for action in Action)]))
    if action == {"action": "keep"}:
        match = draw(_matches(_STATES, cancelled=False, kept=True))
        return {"name": name, "match": match} | action | draw(_pressures(cancelled=True))
    cancelled = action == {"action": "cancel"}
    match = draw(_matches(_RUNNING if cancelled else _STATES, cancelled=cancelled))
    keys = {"confirm_after": _PAUSES, "mode": _MODES}
    if cancelled:
        keys["escalate_after"] = _PAUSES
    pressure = draw(_pressures(cancelled=cancelled))
    return {"name": name, "match": match} | action | pressure | draw(_some_of(keys))


@st.composite
def policy_documents(draw: st.DrawFn) -> Document:
    """Draw a valid policy with any of the keys."""
    names = draw(st.lists(_RULE_NAMES, min_size=1, max_size=3, unique=True))
    keys = {
        "mode": _MODES,
        "protect": _PROTECT,
        "limits": _LIMITS,
        "queries": st.sampled_from([*map(str, QueryVisibility)]),
        "comment_tags": _one_or_many(st.sampled_from(["route", "action"])),
    }
    optional = draw(_some_of(keys))
    return {"version": 1, "rules": [draw(_rules(name)) for name in names]} | optional


# -- invalid policies ------------------------------------------------------------------------------

_KEYS = st.sampled_from([*KEYS, "x"])
_NEARLY = (
    st.sampled_from(
        ["active", "idle", "on", "kill", "cancel", "locks", "newest", "", 0, 1, -1, True]
    )
    | st.sampled_from(["301s", "3651d", "5 m", "-5m", "٣m", "0%", "101%", "100.1%", "5e1%", "50%"])
    | st.sampled_from(
        [
            "[",
            "[9-0]",
            "app_*",
            "(",
            ".*",
            "* = 42",
            "*",
            r"\q",
            "[[a]b",
            "x" * 501,
            "x" * 64,
            "ä",
            "localhost",
            "10.0.8.1/24",
        ]
    )
    | st.sampled_from(
        [
            1.0,
            2**70,
            [],
            {},
            [[]],
            ["active"],
            {"slots_used": "85%"},
            {"idle_for": "5m"},
        ]
    )
)


def json_values() -> st.SearchStrategy[Any]:
    """Draw any value that Python's JSON parser can return, and sometimes a word of the policy language."""
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters())
    return st.recursive(
        leaves | _NEARLY | _DURATIONS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3),
        max_leaves=8,
    )


@st.composite
def mistaken_documents(draw: st.DrawFn) -> Document:
    """Draw a valid policy in which one value was dropped, renamed, wrapped or replaced."""
    document: Document = json.loads(json.dumps(draw(policy_documents())))  # shares no values
    # Deep places come first, because hypothesis draws the first more often.
    places = [*_places(document)][::-1]
    holder, key = draw(st.sampled_from(places))
    mistake = draw(st.sampled_from(["slip", "replace", "drop", "rename", "wrap", "move"]))
    if mistake == "slip":
        holder[key] = draw(_NEARLY)
    elif mistake == "drop":
        del holder[key]
    elif mistake == "rename" and isinstance(holder, dict):
        holder[draw(_KEYS)] = holder.pop(key)
    elif mistake == "wrap":
        holder[key] = [holder[key]]
    elif mistake == "move":
        elsewhere, name = draw(st.sampled_from(places))
        holder[key] = json.loads(json.dumps(elsewhere[name]))
    else:
        holder[key] = draw(json_values())
    return document


def _places(value: object) -> Iterator[tuple[Any, Any]]:
    """Yield each mapping or list in `value` with each of its keys."""
    keys: Sequence[Any] = ()
    if isinstance(value, dict):
        keys = [*value]
    elif isinstance(value, list):
        keys = range(len(value))
    for key in keys:
        yield value, key
        yield from _places(value[key])  # type: ignore[index] # a dict or a list
