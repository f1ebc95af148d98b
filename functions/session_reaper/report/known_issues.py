"""Compares a report with the issues that earlier summaries have reported.

An issue is reported when it begins, again after a while if it lasts, and once when it has ended.

A target is identified by its secret and instance, not by its name: a secret may choose a name that
belongs to another target.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from session_reaper.policy.enums import Mode
from session_reaper.report.headline import write_summary_line
from session_reaper.report.model import (
    IssueKey,
    IssueKind,
    Recovery,
    Report,
    TargetReport,
    TargetStatus,
)
from session_reaper.report.text import printable
from session_reaper.targets.target import TargetKey

MOST_UNDELIVERED: Final = 5
"""Undelivered summary lines that are kept and shown; older ones are only counted."""

_PASSING: Final = (
    IssueKind.WOULD_TERMINATE,
    IssueKind.SPARED,
    IssueKind.DENIED,
    IssueKind.PROTECTED,
)
"""Issues that come and go with sessions: their end is not reported, their items expire."""
_ROOM: Final = 0.9  # share of the slots below which a server is no longer exhausted


class KnownIssue(NamedTuple):
    """An issue that was reported. Moments are seconds since 1970."""

    target: TargetKey
    key: IssueKey
    since: float  # first reported
    reported_at: float  # last reported
    previously: float = 0.0  # reported before that; 0 for a new issue


class StateUpdate(NamedTuple):
    """The changes that a published summary makes to the notification state."""

    reported: tuple[KnownIssue, ...]
    ended: tuple[KnownIssue, ...]


def with_stable_keys(report: Report, function_arn: str) -> Report:
    """Return the report with keys of targets that later runs find again; call this once only."""
    targets = (
        replace(
            target,
            key=to_stable_key(target.key, function_arn),
            also_keys=tuple(to_stable_key(key, function_arn) for key in target.also_keys),
        )
        for target in report.targets
    )
    return replace(report, targets=tuple(targets))


def to_stable_key(key: TargetKey, function_arn: str) -> TargetKey:
    """Return the key with the ARN of its secret, without the six characters that AWS appends.

    A secret that cannot be read is known as it was configured: by its name, which belongs to the
    function's own account and region, or by its ARN.
    """
    if key.secret.startswith("arn:"):
        return key._replace(secret=re.sub(r"-[A-Za-z0-9]{6}$", "", key.secret))
    _, partition, _, region, account, *_ = function_arn.split(":")
    arn = f"arn:{partition}:secretsmanager:{region}:{account}:secret:{key.secret}"
    return key._replace(secret=arn)


def compare_with_known(
    report: Report,
    known: Collection[KnownIssue],
    now: float,
    remind_after: float,
    *,
    covers_all: bool,
) -> tuple[Report, StateUpdate]:
    """Return the report with its known and ended issues, and the update of the notification state.

    The keys of its targets are stable. An issue counts as new again after `remind_after` seconds.
    With `covers_all` the report covers all targets, so the issues of any other target are dropped.
    """
    targets_by_key = _index_targets([target.key, *target.also_keys] for target in report.targets)
    unread = {
        target.key.secret
        for target in report.targets
        if not target.key.instance and not target.is_reached
    }
    current: dict[int, list[IssueKey]] = defaultdict(list)
    recovered: dict[int, dict[IssueKey, float]] = defaultdict(dict)
    ended: list[KnownIssue] = []
    for issue in known:
        owned = targets_by_key.get(issue.target, ())
        if issue.key.kind is IssueKind.UNDELIVERED:
            ended.append(issue)
        elif owned and all(_has_ended(issue.key, report.targets[i], report.mode) for i in owned):
            # Two secrets that are one target by now may have had the same issue.
            since_known = recovered[owned[0]].get(issue.key, 0.0)
            recovered[owned[0]][issue.key] = max(since_known, now - issue.since)
            ended.append(issue)
        elif not owned and covers_all and issue.target.secret not in unread:
            ended.append(issue)
        elif 0 <= now - issue.reported_at < remind_after:
            for index in owned:
                current[index].append(issue.key)
    targets = tuple(
        replace(
            target,
            known_issues=tuple(current[index]),
            recovered=tuple(Recovery(issue=i, seconds=s) for i, s in recovered[index].items()),
        )
        if index in current or index in recovered
        else target
        for index, target in enumerate(report.targets)
    )
    by_key = {(issue.target, issue.key): issue for issue in known}
    reported = tuple(
        report_again(target.key, key, by_key.get((target.key, key)), now)
        for target in targets
        for key in target.new_issues
    )
    lost = _list_undelivered(known)
    report = replace(
        report,
        targets=targets,
        undelivered=tuple(" ".join(issue.key.detail[:1]) for issue in lost),
        undelivered_before=_count_undelivered(lost) - len(lost),
    )
    return report, StateUpdate(reported=reported, ended=tuple(ended))


def mark_undelivered(report: Report, known: Iterable[KnownIssue], now: float) -> StateUpdate:
    """Make the next run report this one, whose summary was not published.

    Only the newest few are kept, so the state does not grow while nothing can be published. A run
    whose only news was an earlier undelivered summary is not kept, because it would replace one
    that matters.
    """
    lost = _list_undelivered(known)
    if lost and not any(target.should_notify for target in report.targets):
        return StateUpdate(reported=(), ended=())
    line = write_summary_line(replace(report, undelivered=(), undelivered_before=0))
    detail = (printable(line, 200), str(_count_undelivered(lost)))
    key = IssueKey(IssueKind.UNDELIVERED, detail)
    target = TargetKey(f"run {report.run_id}")
    issue = KnownIssue(target=target, key=key, since=now, reported_at=now)
    return StateUpdate(reported=(issue,), ended=tuple(lost[MOST_UNDELIVERED - 1 :]))


def _list_undelivered(known: Iterable[KnownIssue]) -> Sequence[KnownIssue]:
    """Return the undelivered summaries, newest first."""
    lost = (issue for issue in known if issue.key.kind is IssueKind.UNDELIVERED)
    return sorted(lost, key=lambda issue: issue.reported_at, reverse=True)


def _count_undelivered(lost: Sequence[KnownIssue]) -> int:
    """Count the undelivered summaries, with those that are not kept any more."""
    before = (issue.key.detail[1] for issue in lost if len(issue.key.detail) > 1)
    return max([len(lost), *(int(number) + 1 for number in before if number.isdecimal())])


def _index_targets(keys: Iterable[Iterable[TargetKey]]) -> Mapping[TargetKey, list[int]]:
    """Map each key to the indexes of its targets, which may have several keys.

    The key of a whole secret, which is used while the secret cannot be read, has all its instances.
    """
    targets_by_key: dict[TargetKey, list[int]] = defaultdict(list)
    for index, own in enumerate(keys):
        for each in dict.fromkeys(k for key in own for k in (key, TargetKey(key.secret))):
            targets_by_key[each].append(index)
    return targets_by_key


def report_again(
    target: TargetKey, key: IssueKey, earlier: KnownIssue | None, now: float
) -> KnownIssue:
    """Return the issue as it is reported now; `earlier` is None for a new one."""
    since, previously = (earlier.since, earlier.reported_at) if earlier else (now, 0.0)
    return KnownIssue(target=target, key=key, since=since, reported_at=now, previously=previously)


def _has_ended(key: IssueKey, target: TargetReport, mode: Mode) -> bool:
    """Return whether the issue has ended; one that the run could not check has not."""
    is_checked = target.is_reached and target.status is not TargetStatus.PAUSED
    if not is_checked or key in target.issues or key.kind in _PASSING:
        return False
    match key.kind:
        case IssueKind.EXHAUSTED:  # a server that stays almost full is not reported in every run
            return target.share_used < _ROOM
        case IssueKind.LINGERING:
            is_seen = mode is Mode.ENFORCE and target.status is TargetStatus.OK
            return is_seen and target.condemned_pids.isdisjoint(key.detail)
        case IssueKind.BREAKER:
            return target.status is TargetStatus.OK
        case IssueKind.SECRET:  # with another error it has not recovered either
            return all(secret.name not in key.detail[:1] for secret in target.failed_secrets)
    return True  # the run has connected
