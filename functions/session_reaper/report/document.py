"""The report as JSON: the return value, the log line, recordings."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, Final

from session_reaper.deadline import Deadline
from session_reaper.decision.model import Decision
from session_reaper.errors import ConfigurationError
from session_reaper.policy.enums import QueryVisibility
from session_reaper.report.headline import write_summary_line
from session_reaper.report.model import Outcome, Report, SessionResult, TargetReport
from session_reaper.report.text import printable
from session_reaper.sessions.redaction import redact_for_matching
from session_reaper.sessions.server_facts import Check
from session_reaper.sessions.snapshot import Snapshot

# A response of Lambda has room for some 15,000 sessions.
_MOST_SESSIONS: Final = 15_000


def to_document(report: Report, deadline: Deadline | None = None) -> dict[str, Any]:
    """The report as the JSON document of the contract.

    It leaves out sessions beyond what an answer has room for, and those that are not described by
    the deadline, of each target alike; it then says how many as `sessions_left_out`.
    """
    number = sum(len(target.results) for target in report.targets)
    share = min(1.0, _MOST_SESSIONS / number) if number else 1.0
    targets = []
    for done, target in enumerate(report.targets):
        seconds = None if deadline is None else deadline.remaining() / (len(report.targets) - done)
        targets.append(
            _target_document(target, share, None if seconds is None else Deadline(seconds))
        )
    return {
        "run_id": report.run_id,
        "mode": str(report.mode),
        "status": report.status.value,
        "summary": write_summary_line(report),
        "totals": {
            "targets": len(report.targets),
            "failed": report.failed,
            **{o.value: report.count(o) for o in Outcome if o is not Outcome.SPARED},
        },
        "targets": targets,
    }


def truncate_document(document: dict[str, Any], most: int) -> dict[str, Any]:
    """The document, or what of it fits into so many bytes of JSON.

    What does not are sessions, of each target alike, first those that were spared; it then says
    how many as `sessions_left_out`.
    """
    size = len(json.dumps(document))  # ASCII: no encoding of it is longer
    if size <= most or not any(target["sessions"] for target in document["targets"]):
        return document
    share = 0.95 * most / size
    targets = [_truncate_target(target, share) for target in document["targets"]]
    return truncate_document({**document, "targets": targets}, most)


def _truncate_target(target: dict[str, Any], share: float) -> dict[str, Any]:
    sessions = sorted(target["sessions"], key=lambda s: s["outcome"] == Outcome.SPARED.value)
    kept = sessions[: int(share * len(sessions))]
    left_out = target.get("sessions_left_out", 0) + len(sessions) - len(kept)
    return {**target, "sessions": kept, **({"sessions_left_out": left_out} if left_out else {})}


def _target_document(
    target: TargetReport, share: float, deadline: Deadline | None
) -> dict[str, Any]:
    sessions = list(_session_documents(target, int(share * len(target.results)), deadline))
    left_out = len(target.results) - len(sessions)
    return {
        "name": target.name,
        "secret": target.secret,
        "status": target.status.value,
        "error": target.error
        and {
            "code": target.error.code,
            "message": target.error.message,
            "hint": target.error.hint,
        },
        "slots": target.slots
        and {
            "max": target.slots.max,
            "reserved": target.slots.reserved,
            "usable": target.slots.usable,
            "used_before": target.slots.used,
            "used_after": target.used_after,
        },
        # All else of a target is always there; these only if they say something.
        **({"reader": True} if target.reader else {}),
        **({"fallback_secret": target.fallback_secret} if target.fallback_secret else {}),
        **({"pressure": list(target.pressure)} if target.pressure else {}),
        **({"check": _check_document(target.checked)} if target.checked else {}),
        **({} if target.applied is None else {"applied": [asdict(s) for s in target.applied]}),
        **({"recovered": [asdict(each) for each in target.recovered]} if target.recovered else {}),
        "sessions": sessions,
        **({"sessions_left_out": left_out} if left_out else {}),
        "advice": [
            {"code": advice.code, "message": advice.message, "sql": advice.sql}
            for advice in target.advice
        ],
    }


def _check_document(check: Check) -> dict[str, Any]:
    server, snapshot = check.server, check.snapshot
    return {
        "version": server.version,
        "provider": server.provider.value,
        "tls": server.tls and asdict(server.tls),
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
        "timeouts": [asdict(timeout) for timeout in server.timeouts],
    }


def _session_documents(
    target: TargetReport, most: int, deadline: Deadline | None
) -> Iterator[dict[str, Any]]:
    """Describe so many sessions at most; of too many those that were spared are left out first."""
    results: Sequence[SessionResult] = target.results
    if most < len(results):
        results = sorted(results, key=lambda result: result.outcome is Outcome.SPARED)[:most]
    for result in results:
        if deadline is not None and deadline.remaining() == 0:
            return
        yield {**describe_session(result.decision, target.queries), "outcome": result.outcome.value}


_MOST_OF_A_QUERY = 2000  # characters, where it is shown in full: a server may keep a megabyte of it


def describe_session(decision: Decision, queries: QueryVisibility) -> dict[str, Any]:
    """A decision on a session as JSON."""
    session = decision.session
    is_full = queries is QueryVisibility.FULL
    return {
        "pid": session.identity.pid,
        "role": session.role,
        "database": session.database,
        "application": session.application,
        "client": session.client,
        "state": session.state.value,
        "idle_seconds": _tenths(session.idle_seconds),
        "transaction_seconds": _tenths(session.transaction_seconds),
        "connected_seconds": _tenths(session.connected_seconds),
        "rule": decision.rule and decision.rule.name,
        "reason": decision.reason,
        "query": printable(session.query, _MOST_OF_A_QUERY, "\n\t")
        if is_full
        else session.redacted_query,
        **({"query_id": session.query_id} if session.query_id else {}),
    }


def _tenths(seconds: float | None) -> float | None:
    return None if seconds is None else int(seconds * 10) / 10  # as reasons say it, rounded down


MAX_RECORDING = 5_000_000  # bytes of JSON: Lambda returns 6 MB with all around it


def to_recordings(report: Report) -> dict[str, Any]:
    """Return the recorded snapshots of a run as JSON, by target, for a replay.

    Raises ConfigurationError if they are larger than an answer of Lambda can be.
    """
    snapshots = {t.name: to_recording(t.recorded) for t in report.targets if t.recorded is not None}
    size = len(json.dumps(snapshots))
    if size > MAX_RECORDING:
        problem = f"the snapshots have {size:,} bytes, more than {MAX_RECORDING:,}; name one target"
        raise ConfigurationError("event.record", problem)
    return snapshots


def to_recording(snapshot: Snapshot) -> dict[str, Any]:
    """Return a snapshot as JSON with its queries redacted."""
    document = asdict(snapshot)
    for session in document["sessions"]:
        session["query"] = redact_for_matching(session["query"])
    return document
