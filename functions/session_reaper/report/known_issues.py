"""What is news: the same trouble of the same target is told once in a while, its end once.

A target is known by its secret and instance. Its name is for people: a secret may choose one that
belongs to another target.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from session_reaper.policy.enums import Mode
from session_reaper.report.headline import write_summary_line
from session_reaper.report.model import (
    EXHAUSTED,
    Outcome,
    Recovery,
    Report,
    TargetReport,
    TargetStatus,
)
from session_reaper.report.text import printable
from session_reaper.targets.target import TargetKey

_PASSING: Final = (Outcome.WOULD_TERMINATE, Outcome.SPARED, Outcome.DENIED)
"""They come and go with the sessions: their end is no news, and is forgotten in time."""
_ROOM: Final = 0.9  # of the slots: with fewer used the server is no longer exhausted
_UNTOLD: Final = "untold "


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownIssue:
    """A trouble that a summary has told. Moments are seconds since 1970."""

    key: TargetKey
    kind: str
    since: float  # first told
    at: float  # last told


@dataclass(frozen=True, slots=True, kw_only=True)
class StateUpdate:
    """What a summary changes in the memory, once it is out."""

    told: tuple[KnownIssue, ...]
    before: Mapping[tuple[TargetKey, str], KnownIssue]  # what was known of those
    over: tuple[KnownIssue, ...]


def to_stable_key(key: TargetKey, function_arn: str) -> TargetKey:
    """Return the key with the ARN of its secret, without the six characters that AWS appends.

    A secret that cannot be read is known as it was configured: by its name, which is one of the
    function's own account and region, or by its ARN. Once it can be read, its whole ARN is known.
    """
    if key.secret.startswith("arn:"):
        return replace(key, secret=re.sub(r"-[A-Za-z0-9]{6}$", "", key.secret))
    _, partition, _, region, account, *_ = function_arn.split(":")
    arn = f"arn:{partition}:secretsmanager:{region}:{account}:secret:{key.secret}"
    return replace(key, secret=arn)


def compare_with_known(  # noqa: PLR0913 -- the report, and all that decides what is news in it
    report: Report,
    known: Collection[KnownIssue],
    now: float,
    remind_after: float,
    *,
    whole: bool,
    function_arn: str,
) -> tuple[Report, StateUpdate]:
    """The report beside what is told already, and what is to be remembered of it.

    `remind_after` is in seconds: by then the same trouble is news again. `whole`: the report has
    all targets, so what is known of others is of none any more. `function_arn` is our own.
    """
    keys = [to_stable_key(target.key, function_arn) for target in report.targets]
    by_key: dict[TargetKey, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        # What is known of a secret that could not be read holds for each of its instances.
        for each in {key, TargetKey(key.secret)}:
            by_key[each].append(index)
    unread = {
        key.secret
        for key, target in zip(keys, report.targets, strict=True)
        if not key.instance and not target.is_reached
    }
    fresh: dict[int, list[str]] = defaultdict(list)
    ended: dict[int, list[Recovery]] = defaultdict(list)
    untold, over = [], []
    for told in known:
        owners = by_key[told.key]
        if told.kind.startswith(_UNTOLD):
            untold.append(told.kind.removeprefix(_UNTOLD))
            over.append(told)
        elif owners and all(_has_ended(told, report.targets[i], report.mode) for i in owners):
            lasted = max(0.0, now - told.since)
            ended[owners[0]].append(Recovery(kind=told.kind, seconds=lasted))
            over.append(told)
        elif not owners and whole and told.key.secret not in unread:
            over.append(told)
        elif 0 <= now - told.at < remind_after:
            for index in owners:
                fresh[index].append(told.kind)
    targets = tuple(
        replace(target, told=tuple(fresh[index]), recovered=tuple(ended[index]))
        for index, target in enumerate(report.targets)
    )
    before = {(told.key, told.kind): told for told in known}
    telling = tuple(_issues_told(zip(keys, targets, strict=True), before, now))
    learned = StateUpdate(told=telling, before=before, over=tuple(over))
    return replace(report, targets=targets, undelivered=tuple(untold)), learned


def remember_undelivered(report: Report, now: float) -> StateUpdate:
    """To be told by the next summary: that of this run did not go out."""
    kind = f"{_UNTOLD}{printable(write_summary_line(report), 200)}"
    told = KnownIssue(key=TargetKey(f"run {report.run_id}"), kind=kind, since=now, at=now)
    return StateUpdate(told=(told,), before={}, over=())


def _issues_told(
    targets: Iterable[tuple[TargetKey, TargetReport]],
    before: Mapping[tuple[TargetKey, str], KnownIssue],
    now: float,
) -> Iterator[KnownIssue]:
    for key, target in targets:
        for kind in target.new_troubles:
            known = before.get((key, kind))
            since = known.since if known else now
            yield KnownIssue(key=key, kind=kind, since=since, at=now)


def _has_ended(told: KnownIssue, target: TargetReport, mode: Mode) -> bool:
    """Whether the run saw that this trouble has ended: what it could not see lasts."""
    kind, _, pid = told.kind.partition(" ")
    if target.has_trouble(told.kind) or not target.is_reached or kind in _PASSING:
        return False
    if kind == EXHAUSTED:  # else a server on the brink would be told of in every run
        return target.share_used < _ROOM
    if kind == Outcome.LINGERING:
        seen = mode is Mode.ENFORCE and target.status is TargetStatus.OK
        return seen and pid not in target.condemned_pids
    # A breaker's own end takes a run without one; from the others we know once we are in.
    return kind != TargetStatus.BREAKER or target.status is TargetStatus.OK
