"""The report as JSON: the return value, the log line, recordings."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from session_reaper.deadline import Deadline
from session_reaper.decision.explain import ExplainedOutcome, Explanation
from session_reaper.decision.model import Decision
from session_reaper.decision.out_of_reach import UnreachableBlocker
from session_reaper.errors import ConfigurationError
from session_reaper.policy.enums import QueryVisibility
from session_reaper.policy.model import Policy
from session_reaper.report.headline import write_summary_line
from session_reaper.report.model import (
    Failure,
    Outcome,
    Report,
    RoleSetting,
    SessionResult,
    TargetReport,
    TargetStatus,
)
from session_reaper.report.protected import ProtectedGroup, group_protected
from session_reaper.report.text import printable
from session_reaper.sessions.redaction import redact_for_matching
from session_reaper.sessions.server_facts import Check
from session_reaper.sessions.snapshot import Holder, Snapshot

_MOST_SESSIONS: Final = 15_000  # roughly as many as fit into Lambda's response


def to_document(
    report: Report,
    deadline: Deadline | None = None,
    *,
    verdict: str = "",
    steps: Sequence[str] = (),
) -> dict[str, Any]:
    """Build the JSON document that a run returns and logs; `verdict` and `steps` are the digest's.

    If there are more sessions than a response has room for, or than can be described by the
    deadline, leaves out the same share of each target's; `sessions_left_out` is their number.
    """
    number = sum(len(_get_sessions(target)) for target in report.targets)
    share = min(1.0, _MOST_SESSIONS / number) if number else 1.0
    targets = []
    for left, target in zip(range(len(report.targets), 0, -1), report.targets, strict=True):
        within = None if deadline is None else deadline.capped_at_share(1 / left)
        targets.append(_describe_target(target, share, within))
    return {
        "run_id": report.run_id,
        "mode": str(report.mode),
        "status": report.status.value,
        "verdict": verdict,
        "steps": list(steps),
        "summary": write_summary_line(report),
        "totals": report.totals | {"spared": sum(map(_count_spared, report.targets))},
        "targets": targets,
    }


def _get_sessions(target: TargetReport) -> Sequence[SessionResult | Explanation]:
    return target.results if target.explained is None else target.explained


def _count_spared(target: TargetReport) -> int:
    return sum(each.outcome.value == Outcome.SPARED.value for each in _get_sessions(target))


def truncate_document(document: dict[str, Any], most: int) -> dict[str, Any]:
    """Leave out parts of the document until it fits into `most` bytes of JSON.

    First sessions, the same share of each target's and the least important first; then the end of
    every other list of a target; then whole targets, those that are ok first. `sessions_left_out`,
    `advice_left_out`, `targets_left_out` and so on count them.
    """
    size = len(json.dumps(document))  # ASCII: no encoding of it is longer
    if size <= most:
        return document
    share = 0.95 * most / size
    targets = document["targets"]
    for cut in (_cut_sessions, _cut_lists):
        shorter = [cut(target, share) for target in targets]
        if shorter != targets:
            return truncate_document({**document, "targets": shorter}, most)
    if not targets:
        return document
    urgent = sorted(targets, key=lambda target: target["status"] == TargetStatus.OK.value)
    return truncate_document(_cut_list({**document, "targets": urgent}, "targets", share), most)


_LEFT_OUT_FIRST: Final[Mapping[str, int]] = {
    ExplainedOutcome.LEFT: 3,
    ExplainedOutcome.PROTECTED: 2,
    Outcome.SPARED: 1,
}


def _cut_sessions(target: dict[str, Any], share: float) -> dict[str, Any]:
    sessions = sorted(target["sessions"], key=lambda s: _LEFT_OUT_FIRST.get(s["outcome"], 0))
    return _cut_list({**target, "sessions": sessions}, "sessions", share)


def _cut_lists(document: dict[str, Any], share: float) -> dict[str, Any]:
    """Leave out the end of each list in an object and in the objects that it contains."""
    for key, value in list(document.items()):
        if isinstance(value, list):
            document = _cut_list(document, key, share)
        elif isinstance(value, dict):
            document = {**document, key: _cut_lists(value, share)}
    return document


def _cut_list(document: dict[str, Any], key: str, share: float) -> dict[str, Any]:
    """Leave out the end of one list, and count it."""
    whole = document[key]
    kept = whole[: int(share * len(whole))]
    left_out = document.get(f"{key}_left_out", 0) + len(whole) - len(kept)
    return {**document, key: kept, **({f"{key}_left_out": left_out} if left_out else {})}


def _describe_target(
    target: TargetReport, share: float, deadline: Deadline | None
) -> dict[str, Any]:
    number = len(_get_sessions(target))
    sessions = list(_describe_sessions(target, int(share * number), deadline))
    applied = target.applied
    return {
        "name": target.name,
        "secret": target.secret,
        "also": list(target.also),
        "status": target.status.value,
        "error": _describe_failure(target.error),
        "slots": target.slots
        and {
            "max": target.slots.max,
            "reserved": target.slots.reserved,
            "usable": target.slots.usable,
            "used_before": target.slots.used,
            "used_after": target.used_after,
        },
        **_leave_out_empty(
            holders=[_describe_holder(each) for each in target.holders],
            reader=target.reader,
            fallback_secret=target.fallback_secret,
            pressure=list(target.pressure),
            check=target.checked and _describe_check(target.checked),
        ),
        **({} if applied is None else {"applied": [_describe_setting(each) for each in applied]}),
        **_leave_out_empty(
            unchanged=[each._asdict() for each in target.unchanged],
            recovered=[
                {"kind": key.kind.value, "detail": list(key.detail), "seconds": seconds}
                for key, seconds in target.recovered
            ],
        ),
        "sessions": sessions,
        **_leave_out_empty(sessions_left_out=number - len(sessions)),
        "protected": [
            _describe_protected(group)
            for group in group_protected(target.protected)[:_MOST_PROTECTED]
        ],
        **_leave_out_empty(
            blockers_out_of_reach=[_describe_blocker(each) for each in target.blockers]
        ),
        "advice": [advice._asdict() for advice in target.advice],
    }


def _leave_out_empty(**values: object) -> dict[str, object]:
    """Return the values that are not empty, null, false or 0."""
    return {name: value for name, value in values.items() if value}


def _describe_holder(holder: Holder) -> dict[str, Any]:
    return {
        "application": holder.application,
        "role": holder.role,
        "client": holder.client,
        "state": holder.state,
        "count": holder.count,
        "oldest_seconds": _round_down(holder.oldest_seconds),
    }


_MOST_PROTECTED: Final = 50  # groups of one target


def _describe_protected(group: ProtectedGroup) -> dict[str, Any]:
    return {
        "rule": group.rule,
        "by": group.protection.by,
        "role": group.role,
        "application": group.application,
        "count": group.count,
        "oldest_seconds": _round_down(group.oldest_seconds),
    }


def _describe_blocker(blocker: UnreachableBlocker) -> dict[str, Any]:
    longest = blocker.waiters[0].seconds if blocker.waiters else None
    return {
        "rule": blocker.rule.name,
        "by": blocker.by,
        "pid": blocker.decision and blocker.decision.pid,
        "waiting": len(blocker.waiters),
        "longest_seconds": _round_down(longest),
    }


def _describe_failure(failure: Failure | None) -> dict[str, str] | None:
    if failure is None:
        return None
    return {"code": failure.code, "message": failure.message, "hint": failure.hint}


def _describe_setting(setting: RoleSetting) -> dict[str, Any]:
    document = setting._asdict() | {"error": _describe_failure(setting.error)}
    del document["excess"]  # which only the advice needs
    return document


def _describe_check(check: Check) -> dict[str, Any]:
    server, snapshot = check.server, check.snapshot
    return {
        "version": server.version,
        "provider": server.provider.value,
        "tls": server.tls and server.tls._asdict(),
        "in_recovery": snapshot.reader,
        "behind_pooler": snapshot.behind_pooler,
        "role": {
            "name": server.role,
            "superuser": server.superuser,
            "connection_limit": server.connection_limit,
            "sees": snapshot.can_see,
            "signals": snapshot.can_signal,
            "reserved_slot": server.has_reserved_slot,
        },
        "timeouts": [timeout._asdict() for timeout in server.timeouts],
    }


def _describe_sessions(
    target: TargetReport, most: int, deadline: Deadline | None
) -> Iterator[dict[str, Any]]:
    """Describe at most `most` sessions until the deadline, the least important only if all fit."""
    results = _get_sessions(target)
    if most < len(results):
        results = sorted(results, key=lambda each: _LEFT_OUT_FIRST.get(each.outcome, 0))[:most]
    for result in results:
        if deadline is not None and deadline.remaining() == 0:
            return
        session = describe_session(result.decision, target.policy)
        if isinstance(result, Explanation):
            session |= {"rule": result.rule and result.rule.name, "reason": result.reason}
        yield {**session, "outcome": result.outcome.value}


_QUERY_LENGTH: Final = 2000  # characters of a query shown in full; a server may keep a megabyte


def describe_session(decision: Decision, policy: Policy | None) -> dict[str, Any]:
    """Build the JSON object of a session and the decision on it, with what the policy lets show."""
    session = decision.session
    is_full = policy is not None and policy.queries is QueryVisibility.FULL
    return {
        "pid": session.identity.pid,
        "role": session.role,
        "database": session.database,
        "application": session.application,
        "client": session.client,
        "state": session.state.value,
        "idle_seconds": _round_down(session.idle_seconds),
        "transaction_seconds": _round_down(session.transaction_seconds),
        "connected_seconds": _round_down(session.connected_seconds),
        "rule": decision.rule and decision.rule.name,
        "reason": decision.reason,
        "query": printable(session.query, _QUERY_LENGTH, "\n\t")
        if is_full
        else session.redacted_query,
        **_leave_out_empty(
            tags=session.tags(policy.comment_tags if policy else ()), query_id=session.query_id
        ),
    }


def _round_down(seconds: float | None) -> float | None:
    """Round down to a tenth, as reasons do."""
    return None if seconds is None else int(seconds * 10) / 10


MAX_RECORDING = 5_000_000  # bytes of JSON: Lambda's response is limited to 6 MB


def to_recordings(report: Report) -> dict[str, Any]:
    """Return the recorded snapshots of a run as JSON, by target, for a replay.

    Raises ConfigurationError if they do not fit into Lambda's response.
    """
    snapshots = {t.name: to_recording(t.recorded) for t in report.targets if t.recorded is not None}
    size = len(json.dumps(snapshots))
    if size > MAX_RECORDING:
        problem = f"the snapshots have {size:,} bytes, more than {MAX_RECORDING:,}; name one target"
        raise ConfigurationError("event.record", problem)
    return snapshots


def to_recording(snapshot: Snapshot) -> dict[str, Any]:
    """Return a snapshot as JSON with its queries redacted and without their ends."""
    document = asdict(snapshot)
    for session in document["sessions"]:
        session["query"] = redact_for_matching(session["query"])
        del session["query_end"]
    return document
