"""`make replay`: what a policy says of a recorded look, decided offline by the deployed engine.

    python -m infra.replay RECORDING [POLICY] [--target NAME] [--against OTHER_POLICY]

RECORDING is what the event {"record": true} returned, or one look of it. Each target gets a head
line, then one line for each session in the order of pids: two replays can be compared by `diff`.
With --against, only the sessions of which the two policies say different things, as a diff has it.

Not everything can be replayed. Queries are recorded as `query` globs match them, without literals
and comments: only `waiting_for_client` may find the word COPY in these, and is decided otherwise.
confirm_after and escalate_after play out in time, limits.max_per_run between targets that answer at
the same time. Nor is it known who would have escaped.
"""

import argparse
import json
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from session_reaper.deadline import Deadline
from session_reaper.decision.decide import decide
from session_reaper.decision.limits import describe_pressure
from session_reaper.decision.model import Decision, Decisions, Verdict
from session_reaper.documents import short_repr
from session_reaper.errors import ConfigurationError
from session_reaper.policy.model import Policy
from session_reaper.report.text import printable
from session_reaper.runs.policy_source import load_policy
from session_reaper.sessions.session import State
from session_reaper.sessions.snapshot import Snapshot

_MOST_OF_A_NAME, _MOST_OF_A_LINE = 64, 2000  # characters: PostgreSQL's names have 63 bytes


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the verdicts; the exit status: 2 for what cannot be read, in one line."""
    options = _parser().parse_args(arguments)
    try:
        looks = read_recording(options.recording, options.target)
        policy = _policy(options.policy)
        if options.against is None:
            lines = [line for name, look in looks.items() for line in verdicts(name, look, policy)]
        else:
            old = _policy(options.against)
            names = [path or "the bundled policy" for path in (options.against, options.policy)]
            lines = [f"--- {names[0]}", f"+++ {names[1]}", *differences(looks, old, policy)]
    except ConfigurationError as error:
        print(printable(f"replay: {error}", _MOST_OF_A_LINE), file=sys.stderr)
        return 2
    for line in lines:
        print(printable(line, _MOST_OF_A_LINE))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="replay", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recording", type=Path, metavar="RECORDING", help="a JSON file")
    parser.add_argument(
        "policy", nargs="?", default="", metavar="POLICY", help="YAML or JSON; else the bundled one"
    )
    parser.add_argument("--target", metavar="NAME", help="of a recording of several, this one")
    parser.add_argument(
        "--against", metavar="OTHER_POLICY", help='the policy until now; "" is the bundled one'
    )
    return parser


def _policy(path: str) -> Policy:
    source = str(Path(path).resolve()) if path else ""
    return load_policy(source, Deadline(10))


# -- verdicts -------------------------------------------------------------------------------------


def decide_again(look: Snapshot, policy: Policy) -> Decisions:
    """Decide on a recorded look; its queries are redacted already."""
    return decide(look.sessions, look.slots, policy, redact_query=str)


def verdicts(name: str, look: Snapshot, policy: Policy) -> Iterator[str]:
    """A target's head line, and a line for each of its sessions."""
    decided = decide_again(look, policy)
    yield "; ".join(_head(name, look, decided))
    for who, decision in _by_pid(decided).items():
        yield f"{who}  {_verdict(decision)}"


def differences(looks: Mapping[str, Snapshot], before: Policy, after: Policy) -> Iterator[str]:
    """The sessions that meet another verdict, or the same by another rule; the last line counts."""
    differing = 0
    for name, look in looks.items():
        first = _by_pid(decide_again(look, before))
        second = _by_pid(decide_again(look, after))
        changed = [who for who in first if _essence(first[who]) != _essence(second[who])]
        if changed:
            yield f"{name}:"
        for who in changed:
            yield f"- {who}  {_verdict(first[who])}"
            yield f"+ {who}  {_verdict(second[who])}"
        differing += len(changed)
    yield f"{differing} of {sum(len(look.sessions) for look in looks.values())} sessions differ"


def _head(name: str, look: Snapshot, decided: Decisions) -> Iterator[str]:
    condemned, spared, left = (
        len(decided.having(verdict)) for verdict in (Verdict.CONDEMN, Verdict.SPARE, Verdict.LEAVE)
    )
    slots = f"slots {look.slots.used}/{look.slots.usable}"
    yield f"{name}: {slots}, {condemned} condemned, {spared} spared, {left} left alone"
    if decided.breaker:
        yield f"breaker: {decided.breaker}"
    yield from describe_pressure(decided)


def _by_pid(decided: Decisions) -> dict[str, Decision]:
    """The decisions by who it is about, in columns; the same sessions give the same columns."""
    decisions = sorted(decided.decisions, key=lambda decision: decision.pid)
    rows = [tuple(_cells(decision)) for decision in decisions]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    return dict(zip(padded, decisions, strict=True))


def _cells(decision: Decision) -> Iterator[str]:
    session = decision.session
    yield str(decision.pid)
    for name in (session.role, session.database, session.application):
        yield printable(name, _MOST_OF_A_NAME) or "-"
    yield session.client or "[local]"
    yield session.state


def _verdict(decision: Decision) -> str:
    if decision.rule is None:
        return f"left alone: {decision.reason}"
    if decision.verdict is Verdict.SPARE:
        return f"spared, {decision.rule.name}: {decision.reason}"
    return f"condemned by {decision.rule.name}: {decision.reason}"


def _essence(decision: Decision) -> object:
    """What of a decision makes another one. A reason has numbers of the policy in it."""
    rule = decision.rule and (decision.rule.name, decision.rule.action)
    return decision.verdict, rule


# -- reading --------------------------------------------------------------------------------------


def read_recording(path: Path, target: str | None = None) -> dict[str, Snapshot]:
    """The looks of a recording by target; a look by itself is named as its file.

    Raises ConfigurationError with the place of what is no recording.
    """
    try:
        document = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigurationError(str(path), f"cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError, too
        raise ConfigurationError(str(path), "is not JSON") from None
    if not isinstance(document, dict) or not ("looks" in document or "sessions" in document):
        problem = 'is neither what the event {"record": true} returned nor one look of it'
        raise ConfigurationError(str(path), problem)
    looks, place = document.get("looks", {path.stem: document}), "looks" * ("looks" in document)
    if not isinstance(looks, dict) or not looks:
        raise ConfigurationError("looks", "holds no look; targets says why")
    if target is not None and target not in looks:
        raise ConfigurationError("--target", f"{target} is not among {', '.join(looks)}")
    return {
        name: _look(value, _at(place, name) if place else "")
        for name, value in looks.items()
        if target in (None, name)
    }


def _look(value: object, place: str) -> Snapshot:
    look: Snapshot = _read(Snapshot, value, place)
    if not look.can_see:
        raise ConfigurationError(_at(place, "can_see"), "is false: a run decides nothing then")
    pids: set[int] = set()
    for index, session in enumerate(look.sessions):
        here, pid = _at(place, f"sessions[{index}]"), session.identity.pid
        if pid in pids:
            raise ConfigurationError(f"{here}.identity.pid", f"{pid} is there twice")
        pids.add(pid)
        try:
            ip_address("::" if session.client is None else session.client)
        except ValueError:
            problem = f"{short_repr(session.client)} is no address"
            raise ConfigurationError(f"{here}.client", problem) from None
    return look


_MOST = 2**53  # every age, count and moment is less
_CALLED: Mapping[object, str] = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    State: "a state that a rule may name",
    tuple: "a list",
}


@cache  # the same few for thousands of sessions
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


@cache
def _required(kind: Any) -> set[str]:  # noqa: ANN401 -- any dataclass
    """What every recording has; what came later has a default."""
    has_default = {f.name for f in fields(kind) if (f.default, f.default_factory) != (MISSING,) * 2}
    return _hints(kind).keys() - has_default


def _at(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key


def _read(kind: Any, value: Any, place: str) -> Any:  # noqa: ANN401 -- JSON in, what the hint says out
    """A value of JSON as a type hint of the look has it; nothing is converted in silence."""
    inner = get_args(kind)
    if NoneType in inner:
        (kind,) = set(inner) - {NoneType}
        return None if value is None else _read(kind, value, place)
    if get_origin(kind) is tuple and isinstance(value, list):
        return tuple(_read(inner[0], item, f"{place}[{n}]") for n, item in enumerate(value))
    if get_origin(kind) is Mapping and isinstance(value, dict):
        names, items = inner
        return {
            _read(names, key, place): _read(items, item, _at(place, key))
            for key, item in value.items()
        }
    is_mapping = is_dataclass(kind) and isinstance(value, dict)
    if is_mapping:
        hints, required = _hints(kind), _required(kind)
        for key in [*hints, *value]:
            if key not in hints or (key in required and key not in value):
                problem = "is missing" if key in hints else "unknown key"
                raise ConfigurationError(_at(place, key), f"{problem}: of another version?")
        return kind(
            **{key: _read(hints[key], item, _at(place, key)) for key, item in value.items()}
        )
    return _plain(kind, value, place)


def _plain(kind: Any, value: Any, place: str) -> Any:  # noqa: ANN401 -- as above
    if kind in (int, float) and type(value) in (int, kind) and -_MOST < value < _MOST:
        return kind(value)
    if kind in (str, bool) and type(value) is kind:
        return value
    if kind is State and value in list(State):
        return State(value)
    wanted = _CALLED.get(get_origin(kind) or kind, "an object")
    raise ConfigurationError(place or "look", f"{short_repr(value)} is not {wanted}")


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` is no trouble
    sys.exit(main())
