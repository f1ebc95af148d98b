"""The compact report of a run for a fleet's hub: counts and codes, no session and no query."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from session_reaper.report.model import Report, SessionResult, TargetReport, rank_by_urgency
from session_reaper.report.protected import group_protected
from session_reaper.report.text import NAME_LENGTH, printable

VERSION: Final = 1
MAX_BYTES: Final = 200_000
_LISTS: Final = ("groups", "protected", "issues", "advice")
# Entries of each list of a target; the first number that lets the report fit is used.
_ENTRIES: Final = (50, 10, 3, 1, 0)
_TEXT_LENGTH: Final = 200
_VERDICT_LENGTH: Final = 1000


class RunOrigin(NamedTuple):
    """Identifies the stack of a run within a fleet, and says when its reports are sent.

    Moments are seconds since 1970 by the function's clock. `next_by` is the latest moment of the
    stack's next report. `is_usual`: the run did what a scheduled run does, on all targets.
    """

    account: str
    region: str
    stack: str
    sent_at: float
    next_by: float
    is_usual: bool


def write_fleet_document(report: Report, origin: RunOrigin, verdict: str) -> str:
    """Write a report with stable keys as ASCII JSON of at most MAX_BYTES.

    Leaves out the ends of the targets' lists first, then whole targets, the least urgent first;
    `left_out` of a target and `targets_left_out` count them. `rest` has the sessions of all groups
    that are left out.
    """
    targets = sorted(
        report.targets, key=lambda t: (not t.is_critical, not t.issues, *rank_by_urgency(t))
    )
    beginning = _describe_run(report, origin, verdict)
    whole = [_describe_target(target) for target in targets]
    for most in _ENTRIES:
        described = [_cut(target, most) for target in whole]
        rest = _sum_groups(group for target in whole for group in target["groups"][most:])
        if rest:
            beginning["rest"] = rest
        text = _encode({**beginning, "targets": described})
        if len(text) <= MAX_BYTES:
            return text
    room = MAX_BYTES - len(_encode(beginning)) - len(',"targets_left_out":1000000,"targets":[]')
    kept = []
    for target in described:
        room -= len(_encode(target)) + 1
        if room < 0:
            break
        kept.append(target)
    left_out = len(targets) - len(kept)
    return _encode({**beginning, "targets_left_out": left_out, "targets": kept})


def _encode(document: object) -> str:
    return json.dumps(document, separators=(",", ":"))


def _describe_run(report: Report, origin: RunOrigin, verdict: str) -> dict[str, Any]:
    return {
        "version": VERSION,
        "account": origin.account,
        "region": origin.region,
        "stack": origin.stack,
        "run": report.run_id,
        "sent_at": round(origin.sent_at, 3),
        "next_by": round(origin.next_by, 3),
        "usual": origin.is_usual,
        "mode": report.mode_label,
        "status": report.status.value,
        "verdict": printable(verdict, _VERDICT_LENGTH),
        "configuration_error": printable(report.configuration_error, _TEXT_LENGTH),
        "totals": report.totals,
    }


def _describe_target(target: TargetReport) -> dict[str, Any]:
    slots = target.slots
    error = target.error
    return {
        "name": printable(target.name, _TEXT_LENGTH),
        "key": [target.key.secret, target.key.instance],
        "status": target.status.value,
        "error": error
        and {
            "code": printable(error.code, NAME_LENGTH),
            "message": printable(error.message, _TEXT_LENGTH),
            "step": printable(error.step, _TEXT_LENGTH),
        },
        "slots": slots
        and {
            "max": slots.max,
            "reserved": slots.reserved,
            "used_before": slots.used,
            "used_after": target.used_after,
        },
        "groups": _group_results(target.results),
        "protected": [
            {
                "rule": printable(group.rule, NAME_LENGTH),
                "by": printable(group.protection.by, NAME_LENGTH),
                "role": group.role and printable(group.role, NAME_LENGTH),
                "application": printable(group.application, NAME_LENGTH),
                "count": group.count,
                "oldest_seconds": int(group.oldest_seconds),
            }
            for group in group_protected(target.protected)
        ],
        "issues": [
            [issue.kind.value, *(printable(each, _TEXT_LENGTH) for each in issue.detail)]
            for issue in target.issues
        ],
        "advice": list(dict.fromkeys(advice.code for advice in target.advice)),
    }


def _group_results(results: Iterable[SessionResult]) -> Sequence[dict[str, Any]]:
    """Group sessions by outcome, rule, application, role and state, the largest group first."""
    ages: dict[tuple[str, str, str, str | None, str], list[float]] = defaultdict(list)
    for result in results:
        session, rule = result.decision.session, result.decision.rule
        name = rule.name if rule else ""
        key = (result.outcome.value, name, session.application, session.role, session.state.value)
        ages[key].append(session.idle_seconds)
    return [
        {
            "outcome": outcome,
            "rule": printable(rule, NAME_LENGTH),
            "application": printable(application, NAME_LENGTH),
            "role": role and printable(role, NAME_LENGTH),
            "state": state,
            "count": len(seconds),
            "oldest_seconds": int(max(seconds)),
        }
        for (outcome, rule, application, role, state), seconds in sorted(
            ages.items(), key=lambda item: -len(item[1])
        )
    ]


def _sum_groups(groups: Iterable[Mapping[str, Any]]) -> Sequence[dict[str, Any]]:
    """Add up groups of sessions by outcome."""
    by_outcome: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for group in groups:
        by_outcome[group["outcome"]].append(group)
    return [
        {
            "outcome": outcome,
            "count": sum(group["count"] for group in members),
            "oldest_seconds": max(group["oldest_seconds"] for group in members),
        }
        for outcome, members in by_outcome.items()
    ]


def _cut(target: dict[str, Any], most: int) -> dict[str, Any]:
    """Leave out empty values and the end of each list; `left_out` counts the entries by list."""
    shown = {key: value for key, value in target.items() if value not in (None, [])}
    left_out = {key: len(target[key]) - most for key in _LISTS if len(target[key]) > most}
    for key in left_out:
        shown[key] = target[key][:most]
    return shown | ({"left_out": left_out} if left_out else {})
