"""Merges the results of secrets that lead to one server into one report."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Final, NamedTuple

from session_reaper.observability import log_other_name
from session_reaper.report.model import FailedSecret, Failure, TargetReport, TargetStatus
from session_reaper.runs.visits import Visits
from session_reaper.targets.servers import ServerIndex, are_one_server, find_place, list_routes
from session_reaper.targets.target import Target, TargetKey

_MOST_TELLING: Final = (TargetStatus.FULL, TargetStatus.BLIND, TargetStatus.FAILED)


class SecretResult(NamedTuple):
    """The result of one target. `has_ended`: its turn came and ended before the run's time did."""

    target: Target
    report: TargetReport
    has_ended: bool


def merge_results(results: Sequence[SecretResult], visits: Visits) -> list[TargetReport]:
    """Return one report for each server; results and reports are in configured order."""
    by_leader: dict[TargetKey, list[SecretResult]] = defaultdict(list)
    failed = ServerIndex[Target]()
    positions = {result.target.key: position for position, result in enumerate(results)}
    leaders: dict[TargetKey, TargetKey] = {}
    for result in results:
        leader = visits.find_leader(result.target)
        if leader is None:
            # No secret of this server connected, so only their hosts and addresses can be compared.
            target = result.target
            failed.add(find_place(target).routes, target)
            found = failed.find_first(list_routes(target), partial(are_one_server, target))
            first = min(found, key=lambda each: positions[each.key])
            leader = leaders.setdefault(target.key, leaders.get(first.key, first.key))
        by_leader[leader].append(result)
    return [
        _merge(leader, members)
        for leader, members in by_leader.items()
        if not all(member.target.is_alternate for member in members)
    ]


def _merge(leader: TargetKey, members: Sequence[SecretResult]) -> TargetReport:
    """Merge the results of one server's secrets; the first one names it."""
    by_key = {member.target.key: member for member in members}
    chosen = by_key[leader].report
    if len(members) == 1 and chosen.key == leader:
        return chosen
    if chosen.slots is None:
        chosen = min(members, key=_rank).report
    chosen = _add_exhaustion(chosen, members)
    first, *others = (member.target for member in members)
    failed = tuple(_list_failures(members, chosen))
    error = chosen.error
    if failed and error is None:
        error = _explain(failed[0])
    elif failed and error is not None and chosen.slots is None:
        error = _add_failures(error, failed)
        failed = ()
    also = dict.fromkeys(target.secret_name for target in others)
    also.pop(first.secret_name, None)
    merged = replace(
        chosen,
        name=first.name,
        secret=first.secret_name,
        key=first.key,
        also=tuple(also),
        also_keys=tuple(target.key for target in others),
        failed_secrets=failed,
        error=error,
    )
    if merged.results and merged.name != chosen.name:
        log_other_name(merged, chosen.name)
    return merged


def _add_exhaustion(chosen: TargetReport, members: Iterable[SecretResult]) -> TargetReport:
    """Add to the report of a server that a later snapshot shows every slot in use.

    Only secrets whose server could not be compared have such a snapshot, so it may be another
    server's.
    """
    later = next((m.report for m in members if m.report.is_exhausted), chosen)
    if chosen.slots is None or later.slots is None or chosen.is_exhausted:
        return chosen
    slots = replace(later.slots, used=chosen.slots.used)
    return replace(chosen, slots=slots, used_after=later.used_after, holders=later.holders)


def _rank(member: SecretResult) -> int:
    is_known = member.has_ended and member.report.error is not None
    known = [status for status in _MOST_TELLING if is_known and status is member.report.status]
    return _MOST_TELLING.index(known[0]) if known else len(_MOST_TELLING)


def _list_failures(members: Iterable[SecretResult], chosen: TargetReport) -> Iterable[FailedSecret]:
    """List the failures that the chosen report does not show.

    A role that sees too little does not count as a failure while another secret's role sees
    everything.
    """
    for member in members:
        report, error = member.report, member.report.error
        is_failure = report.status in (TargetStatus.FAILED, TargetStatus.FULL)
        if error is None or not is_failure or not member.has_ended or report is chosen:
            continue
        if chosen.error is None or chosen.error.code != error.code:
            yield FailedSecret(name=member.target.secret_name, failure=error)


def _add_failures(error: Failure, failed: Sequence[FailedSecret]) -> Failure:
    """Add to the error of a server where no secret works the errors of its other secrets."""
    others = "; ".join(
        f"secret {each.name}: {each.failure.code}, {each.failure.cause}" for each in failed
    )
    return error._replace(cause=f"{error.cause} ({others})")


def _explain(secret: FailedSecret) -> Failure:
    step = f"secret {secret.name}" + (f", {secret.failure.step}" if secret.failure.step else "")
    hint = f"Secret {secret.name}: {secret.failure.hint}"
    return secret.failure._replace(step=step, hint=hint)
