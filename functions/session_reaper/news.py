"""What is news: the same trouble of the same target is told once in a while, its end once."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from session_reaper.policy import Mode
from session_reaper.report import (
    Outcome,
    Recovery,
    Report,
    TargetReport,
    TargetStatus,
)


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
    report: Report, known: Collection[Told], now: float, remind_after: float
) -> tuple[Report, Learned]:
    """The report beside what is told already, and what is to be remembered of it.

    `remind_after` is in seconds: by then the same trouble is news again.
    """
    by_target: dict[str, list[Told]] = defaultdict(list)
    for told in known:
        by_target[told.target].append(told)
    targets, over = [], []
    for target in report.targets:
        ended = [
            told for told in by_target[target.name] if _is_over(told.kind, target, report.mode)
        ]
        fresh = [t.kind for t in by_target[target.name] if now - t.at < remind_after]
        recovered = tuple(Recovery(kind=t.kind, seconds=max(0.0, now - t.since)) for t in ended)
        targets.append(replace(target, told=tuple(fresh), recovered=recovered))
        over += ended
    before = {(told.target, told.kind): told for told in known}
    learned = Learned(told=tuple(_telling(targets, before, now)), before=before, over=tuple(over))
    return replace(report, targets=tuple(targets)), learned


def _telling(
    targets: Collection[TargetReport], before: Mapping[tuple[str, str], Told], now: float
) -> Iterator[Told]:
    for target in targets:
        for kind in target.troubles:
            if kind not in target.told:
                known = before.get((target.name, kind))
                since = known.since if known else now
                yield Told(target=target.name, kind=kind, since=since, at=now)


def _is_over(kind: str, target: TargetReport, mode: Mode) -> bool:
    """Whether the run saw that this trouble has ended: what it could not see lasts."""
    if kind in target.troubles or not target.is_reached:
        return False
    if kind in (Outcome.WOULD_TERMINATE, Outcome.SPARED):
        return False  # they come and go with the sessions: their end is no news
    if kind == Outcome.LINGERING and mode is not Mode.ENFORCE:
        return False
    # Behind a breaker nobody was signalled; from the others we know once we are in.
    needs_all = kind in (Outcome.LINGERING, Outcome.DENIED, TargetStatus.BREAKER)
    return not needs_all or target.status is TargetStatus.OK
