"""Reads the compact report of a stack's run, which may come from a hostile account.

Numbers are bounded, texts are cut and made printable, and nothing in a message is shown as SQL or
as an instruction: the steps of a digest are the hub's own. Only the keys that a digest needs are
read, and unknown ones are ignored, because a stack may be newer than the hub. A change that an
older hub would misunderstand needs another version.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Annotated, Any, Final, NamedTuple

from session_reaper.decision.model import Decision, Verdict
from session_reaper.documents import (
    Read,
    T,
    boolean,
    mapping_of,
    non_negative_int,
    one_of,
    positive_int,
    short_repr,
)
from session_reaper.errors import ConfigurationError
from session_reaper.policy.durations import format_duration
from session_reaper.policy.enums import Mode
from session_reaper.policy.model import Match, Rule
from session_reaper.report.fleet_document import VERSION
from session_reaper.report.model import (
    Failure,
    IssueKey,
    IssueKind,
    Outcome,
    SessionResult,
    StackProblem,
    TargetReport,
    TargetStatus,
)
from session_reaper.report.text import NAME_LENGTH, printable
from session_reaper.sessions.session import Identity, Session, Slots, State
from session_reaper.targets.target import TargetKey

_MAX_BODY: Final = 600_000  # characters: a document within the envelope of SNS
_MAX_SESSIONS: Final = 300_000  # of one message
_MAX_SECONDS: Final = 1e11
_MAX_COUNT: Final = 1_000_000
_MAX_TARGETS: Final = 10_000
_MAX_ENTRIES: Final = 1_000  # of one list of a target
_LONGEST_INTERVAL: Final = 7 * 86400.0  # seconds
_SHORTEST_INTERVAL: Final = 60.0
_SEE_STACK: Final = "Follow the steps in the stack's own summary."
# Issues that do not follow from the status, the slots or the groups of a target.
_EXTRA_ISSUES: Final = (
    IssueKind.BLOCKER,
    IssueKind.PROTECTED,
    IssueKind.SECRET,
    IssueKind.FALLBACK,
)


class Spoke(NamedTuple):
    """Identifies a stack of the fleet, as the stack itself says."""

    account: str
    region: str
    stack: str

    @property
    def label(self) -> str:
        """The stack as a digest names it."""
        return f"{self.account}/{self.region}/{self.stack}"


class SpokeReport(NamedTuple):
    """One message of a stack. `sent_at` is by the stack's clock, `interval` in seconds."""

    spoke: Spoke
    run: str
    sent_at: float
    interval: float  # until its next message at the latest
    is_usual: bool
    mode: Mode | None
    problem: TargetReport | None  # an invalid configuration
    targets: tuple[TargetReport, ...]
    number_of_targets: int
    is_whole: bool  # it has targets, and none was left out
    cut: frozenset[TargetKey]  # targets of which sessions or issues were left out
    advice: tuple[str, ...]  # codes, once for each target


def read_spoke_report(body: str) -> SpokeReport:
    """Read the body of a queue's message: a document, or SNS's envelope around one.

    Raises ConfigurationError with the path of the offending key.
    """
    document = _parse(body)
    if isinstance(document, dict) and document.get("Type") == "Notification":
        document = _parse(document.get("Message"))
    if not isinstance(document, dict):
        raise ConfigurationError("message", "must be a JSON object")
    if document.get("version") != VERSION:
        given, account = (short_repr(document.get(key)) for key in ("version", "account"))
        problem = f"must be {VERSION}, not {given} as from account {account}"
        raise ConfigurationError("version", f"{problem}; update the hub before the stacks")
    message: _Message = _read_message(document, "")
    targets = (*message.targets, *_make_rest(message.stack, message.rest))
    if sum(group.count for target in targets for group in target.groups) > _MAX_SESSIONS:
        raise ConfigurationError("targets", f"have more than {_MAX_SESSIONS:,} sessions")
    spoke = Spoke(message.account, message.region, message.stack)
    return SpokeReport(
        spoke=spoke,
        run=message.run,
        sent_at=message.sent_at,
        interval=min(max(message.next_by - message.sent_at, _SHORTEST_INTERVAL), _LONGEST_INTERVAL),
        is_usual=message.usual,
        mode=None if message.configuration_error else _read_mode(message.mode),
        problem=_make_problem(spoke, message.configuration_error),
        targets=tuple(_make_target(spoke, target) for target in targets),
        number_of_targets=message.totals.targets,
        is_whole=bool(message.targets) and not message.targets_left_out,
        cut=frozenset([_REST_KEY, *map(_make_key, filter(_is_cut, message.targets))]),
        advice=tuple(code for target in message.targets for code in set(target.advice)),
    )


def make_stack_report(spoke: Spoke, problem: StackProblem, cause: str, hint: str) -> TargetReport:
    """Build the report of a problem of the stack itself, beside those of its targets."""
    return TargetReport(
        name=spoke.label,
        key=SILENCE_KEY if problem is StackProblem.SILENT else STACK_KEY,
        status=TargetStatus.FAILED,
        stack_problem=problem,
        error=Failure(code=problem.value, cause=cause, hint=hint),
    )


_REST_KEY: Final = TargetKey("rest")
_SEVERAL: Final = "several"

STACK_KEY: Final = TargetKey("stack")
"""The key of a stack's own issues, except of its silence, which ends although others last."""

SILENCE_KEY: Final = TargetKey("silence")

QUEUE: Final = Spoke("fleet", "queue", "messages")
"""The hub's queue, whose refused messages are an issue like those of a stack."""


def _parse(text: object) -> Any:  # noqa: ANN401 -- any JSON, which the readers check
    if not isinstance(text, str) or len(text) > _MAX_BODY:
        raise ConfigurationError("message", f"must be at most {_MAX_BODY:,} characters of JSON")
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise ConfigurationError("message", "must be JSON") from None


def _refuse_constant(name: str) -> float:
    raise ValueError(name)  # NaN and Infinity


def _read_text(most: int, value: object, place: str) -> str:
    if not isinstance(value, str):
        raise ConfigurationError(place, f"must be text, not {short_repr(value)}")
    return printable(value, most)


def _read_name(value: object, place: str) -> str:
    """Read an account, a region, a stack or a run."""
    text = _read_text(140, value, place)
    if not text or not all(c.isalnum() or c in "-_.:/" for c in text):
        raise ConfigurationError(place, f"invalid name {short_repr(text)}")
    return text


def _read_account(value: object, place: str) -> str:
    account = _read_name(value, place)
    if not re.fullmatch("[0-9]{12}", account):
        raise ConfigurationError(place, f"must have 12 digits, not {short_repr(account)}")
    return account


def _read_optional(read: Read[T], value: object, place: str) -> T | None:
    return None if value is None else read(value, place)


def _read_count(read: Read[int], value: object, place: str) -> int:
    count = read(value, place)
    if count > _MAX_COUNT:
        raise ConfigurationError(place, f"must be at most {_MAX_COUNT:,}")
    return count


def _read_number(value: object, place: str) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # False for NaN and infinity, too.
    if not is_number or not 0 <= value < _MAX_SECONDS:  # type: ignore[operator] # checked
        raise ConfigurationError(place, f"must be a number of seconds, not {short_repr(value)}")
    return float(value)  # type: ignore[arg-type] # checked


def _read_items(read: Read[T], most: int, value: object, place: str) -> tuple[T, ...]:
    if not isinstance(value, list) or len(value) > most:
        raise ConfigurationError(place, f"must be a list of at most {most:,}")
    return tuple(read(item, f"{place}[{index}]") for index, item in enumerate(value))


def _read_mode(text: str) -> Mode | None:
    return next((mode for mode in Mode if str(mode) == text), None)


_TEXT = partial(_read_text, 200)
_COUNT = partial(_read_count, positive_int)
_SLOT_COUNT = partial(_read_count, non_negative_int)
_mapping_of = partial(mapping_of, ignore_unknown=True)


def _read_issue(value: object, place: str) -> tuple[str, ...]:
    """Read the kind and the details of an issue."""
    found = _read_items(_TEXT, 5, value, place)
    if not found:
        raise ConfigurationError(place, "must have the kind of an issue")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Error:
    code: Annotated[str, partial(_read_text, 20)]
    message: Annotated[str, _TEXT]
    step: Annotated[str, _TEXT] = ""  # the message begins with it

    def to_failure(self) -> Failure:
        prefix = f"{self.step}: "
        if not self.step or not self.message.startswith(prefix):
            return Failure(code=self.code, cause=self.message, hint=_SEE_STACK)
        cause = self.message.removeprefix(prefix)
        return Failure(code=self.code, cause=cause, hint=_SEE_STACK, step=self.step)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Slots:
    max: Annotated[int, _SLOT_COUNT]
    reserved: Annotated[int, _SLOT_COUNT]
    used_before: Annotated[int, _SLOT_COUNT]
    used_after: Annotated[int | None, partial(_read_optional, _SLOT_COUNT)] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rest:
    outcome: Annotated[Outcome, one_of(Outcome)]
    count: Annotated[int, _COUNT]
    oldest_seconds: Annotated[float, _read_number]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group(_Rest):
    rule: Annotated[str, _TEXT]
    application: Annotated[str, _TEXT]
    role: Annotated[str | None, partial(_read_optional, partial(_read_text, NAME_LENGTH))]
    state: Annotated[State, one_of(State)]
    reason: str = ""  # not read from the message


@dataclass(frozen=True, slots=True, kw_only=True)
class _LeftOut:
    groups: Annotated[int, non_negative_int] = 0
    issues: Annotated[int, non_negative_int] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    name: Annotated[str, _TEXT]
    key: Annotated[tuple[str, ...], partial(_read_items, partial(_read_text, 600), 2)]
    status: Annotated[TargetStatus, one_of(TargetStatus)]
    error: Annotated[_Error | None, _mapping_of(_Error)] = None
    slots: Annotated[_Slots | None, _mapping_of(_Slots)] = None
    groups: Annotated[
        tuple[_Group, ...], partial(_read_items, _mapping_of(_Group), _MAX_ENTRIES)
    ] = ()
    issues: Annotated[
        tuple[tuple[str, ...], ...], partial(_read_items, _read_issue, _MAX_ENTRIES)
    ] = ()
    advice: Annotated[tuple[str, ...], partial(_read_items, _read_name, _MAX_ENTRIES)] = ()
    left_out: Annotated[_LeftOut, _mapping_of(_LeftOut)] = _LeftOut()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Totals:
    targets: Annotated[int, non_negative_int]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Message:
    account: Annotated[str, _read_account]
    region: Annotated[str, _read_name]
    stack: Annotated[str, _read_name]
    run: Annotated[str, _read_name]
    sent_at: Annotated[float, _read_number]
    next_by: Annotated[float, _read_number]
    usual: Annotated[bool, boolean]
    mode: Annotated[str, _TEXT]
    configuration_error: Annotated[str, _TEXT]
    totals: Annotated[_Totals, _mapping_of(_Totals)]
    targets: Annotated[
        tuple[_Target, ...], partial(_read_items, _mapping_of(_Target), _MAX_TARGETS)
    ]
    targets_left_out: Annotated[int, non_negative_int] = 0
    rest: Annotated[tuple[_Rest, ...], partial(_read_items, _mapping_of(_Rest), len(Outcome))] = ()


_read_message = _mapping_of(_Message)


def _make_problem(spoke: Spoke, configuration_error: str) -> TargetReport | None:
    if not configuration_error:
        return None
    hint = (
        "Correct the configuration as its error says. Until then, this stack examines and terminates"
        " nothing."
    )
    return make_stack_report(spoke, StackProblem.CONFIGURATION, configuration_error, hint)


def _make_target(spoke: Spoke, target: _Target) -> TargetReport:
    slots = target.slots
    error = target.error
    pids = iter([int(detail[0]) for kind, *detail in target.issues if _is_lingering(kind, detail)])
    if error is None and target.status not in (TargetStatus.OK, TargetStatus.PAUSED):
        error = _Error(code=target.status.value, message=str(target.status))
    return TargetReport(
        name=f"{spoke.account}/{spoke.region}/{target.name}",
        key=_make_key(target),
        status=target.status,
        error=error.to_failure() if error else None,
        slots=Slots(max=slots.max, reserved=slots.reserved, used=slots.used_before)
        if slots
        else None,
        used_after=slots.used_after if slots else None,
        results=tuple(
            result
            for group in target.groups
            for result in _make_results(group, spoke.account, pids)
        ),
        reported_issues=tuple(_list_extra_issues(target.issues)),
    )


def _make_key(target: _Target) -> TargetKey:
    secret, instance = (*target.key, "", "")[:2]
    return TargetKey(secret, instance)


def _is_cut(target: _Target) -> bool:
    return bool(target.left_out.groups or target.left_out.issues)


def _is_lingering(kind: str, detail: Sequence[str]) -> bool:
    return kind == IssueKind.LINGERING and detail[0:1] != [] and detail[0].isdecimal()


def _make_rest(stack: str, rest: Iterable[_Rest]) -> Iterator[_Target]:
    """Make one target of all sessions whose groups were left out, so that every number is true."""
    groups = tuple(
        _Group(
            outcome=each.outcome,
            rule=_SEVERAL,
            application=_SEVERAL,
            role=_SEVERAL,
            state=State.IDLE_IN_TRANSACTION,
            count=each.count,
            oldest_seconds=each.oldest_seconds,
            reason="the report has no room for their groups",
        )
        for each in rest
    )
    if groups:
        name = f"{stack} (rest of its report)"
        yield _Target(name=name, key=_REST_KEY, status=TargetStatus.OK, groups=groups)


def _list_extra_issues(issues: Iterable[Sequence[str]]) -> Iterable[IssueKey]:
    for kind, *detail in issues:
        if kind in _EXTRA_ISSUES:
            yield IssueKey(IssueKind(kind), tuple(detail))


def _make_results(group: _Group, account: str, pids: Iterator[int]) -> Sequence[SessionResult]:
    """Build the results of a group; all of them are one object, because only their number is known.

    Lingering sessions have pids, as far as the message has them. The account stands for the network
    of the clients, which a message does not contain.
    """
    identity = Identity(
        pid=0,
        backend_start="",
        xact_start=None,
        state_change=None,
        query_start=None,
        state=group.state,
    )
    session = Session(
        identity=identity,
        role=group.role,
        database="",
        application=group.application,
        client=account,
        query="",
        idle_seconds=group.oldest_seconds,
        transaction_seconds=None,
        connected_seconds=group.oldest_seconds,
        query_seconds=None,
        waiting_for_client=False,
        xid_age=None,
        xmin_age=None,
        locks=None,
        waiters=(),
        superuser=False,
        replication=False,
        own_role=False,
        signalable=True,
    )
    decision = Decision(
        session=session,
        verdict=Verdict.CONDEMN,
        rule=Rule(name=group.rule, match=Match(state=(group.state,))),
        reasons=(group.reason or f"{group.state} for {format_duration(group.oldest_seconds)}",),
    )
    result = SessionResult(decision=decision, outcome=group.outcome)
    own_pids = islice(pids, group.count) if group.outcome is Outcome.LINGERING else ()
    sessions = (replace(session, identity=replace(identity, pid=pid)) for pid in own_pids)
    known = [result._replace(decision=decision._replace(session=each)) for each in sessions]
    return (*known, *(result,) * (group.count - len(known)))
