"""What is news: the same trouble of the same target is told once in a while, its end once."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from session_reaper.policy import Mode
from session_reaper.report import (
    EXHAUSTED,
    Outcome,
    Recovery,
    Report,
    TargetReport,
    TargetStatus,
    clean,
)

_PASSING: Final = (Outcome.WOULD_TERMINATE, Outcome.SPARED, Outcome.DENIED)
"""They come and go with the sessions: their end is no news, and is forgotten in time."""
_ROOM: Final = 0.9  # of the slots: with fewer used the server is no longer exhausted
_UNTOLD: Final = "untold "


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A trouble that a summary has told. Moments are seconds since 1970."""

    target: str
    kind: str
    since: float  # first told
    at: float  # last told


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What a summary changes in the memory, once it is out."""

    told: tuple[Told, ...]
    before: Mapping[tuple[str, str], Told]  # what was known of those, by target and kind
    over: tuple[Told, ...]


def compared(
    report: Report, known: Collection[Told], now: float, remind_after: float, *, whole: bool
) -> tuple[Report, Learned]:
    """The report beside what is told already, and what is to be remembered of it.

    `remind_after` is in seconds: by then the same trouble is news again. `whole`: the report has
    all targets, so what is known of others is of none any more.
    """
    by_name: dict[str, list[int]] = defaultdict(list)
    for index, target in enumerate(report.targets):
        for name in {target.name, target.secret}:
            by_name[name].append(index)
    fresh: dict[int, list[str]] = defaultdict(list)
    ended: dict[int, list[Recovery]] = defaultdict(list)
    untold, over = [], []
    for told in known:
        owners = by_name[told.target]
        if told.kind.startswith(_UNTOLD):
            untold.append(told.kind.removeprefix(_UNTOLD))
            over.append(told)
        elif owners and all(_is_over(told, report.targets[i], report.mode) for i in owners):
            lasted = max(0.0, now - told.since)
            ended[owners[0]].append(Recovery(kind=told.kind, seconds=lasted))
            over.append(told)
        elif not owners and whole:
            over.append(told)
        elif 0 <= now - told.at < remind_after:
            for index in owners:
                fresh[index].append(told.kind)
    targets = tuple(
        replace(target, told=tuple(fresh[index]), recovered=tuple(ended[index]))
        for index, target in enumerate(report.targets)
    )
    before = {(told.target, told.kind): told for told in known}
    telling = tuple(_telling(targets, before, now))
    learned = Learned(told=telling, before=before, over=tuple(over))
    return replace(report, targets=targets, untold=tuple(untold)), learned


def not_delivered(report: Report, now: float) -> Learned:
    """To be told by the next summary: that of this run did not go out."""
    kind = f"{_UNTOLD}{clean(report.summary, 200)}"
    told = Told(target=f"run {report.run_id}", kind=kind, since=now, at=now)
    return Learned(told=(told,), before={}, over=())


def _telling(
    targets: Sequence[TargetReport], before: Mapping[tuple[str, str], Told], now: float
) -> Iterator[Told]:
    for target in targets:
        for kind in target.troubles:
            if kind not in target.told:
                known = before.get((target.name, kind))
                since = known.since if known else now
                yield Told(target=target.name, kind=kind, since=since, at=now)


def _is_over(told: Told, target: TargetReport, mode: Mode) -> bool:
    """Whether the run saw that this trouble has ended: what it could not see lasts."""
    kind, _, pid = told.kind.partition(" ")
    if told.kind in target.troubles or not target.is_reached or kind in _PASSING:
        return False
    if kind == EXHAUSTED:  # else a server on the brink would be told of in every run
        return target.share_used < _ROOM
    if kind == Outcome.LINGERING:
        condemned = {str(fate.decision.pid) for fate in target.fates}
        seen = mode is Mode.ENFORCE and target.status is TargetStatus.OK
        return seen and pid not in condemned
    # A breaker's own end takes a run without one; from the others we know once we are in.
    return kind != TargetStatus.BREAKER or target.status is TargetStatus.OK
