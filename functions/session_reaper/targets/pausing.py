"""Decides whether a target of Aurora Serverless may be skipped, because no session can be due."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from session_reaper.targets.target import Instance, RdsListing, Target

_ANY_INSTANCE: Final = re.compile(r"\.cluster-(?:ro|custom)-")  # a reader or custom endpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class IdleMoments:
    """The latest moment, in seconds since 1970, at which each instance had no connection.

    An instance without such a moment is not in `latest`. `problem`: why the moments are unknown.
    """

    latest: Mapping[str, float] = field(default_factory=dict)
    problem: str = ""


def find_pause_group(target: Target, listing: RdsListing) -> frozenset[str]:
    """Return the instances that a connection wakes or keeps awake; empty if one never pauses.

    The writer and the readers of failover tier 0 and 1 pause and wake together; each other reader
    pauses on its own. A reader or custom endpoint may lead to any instance of its cluster.
    """
    host = target.host.lower().removesuffix(".")
    reached = [each for each in listing.instances if each.host.lower() == host]
    if not reached:
        members = [each for each in listing.instances if host in map(str.lower, each.cluster_hosts)]
        reached = [each for each in members if _ANY_INSTANCE.search(host) or not each.is_reader]
    groups = [_find_group(each, listing.instances) for each in reached]
    if any(not _can_pause(group) for group in groups):
        return frozenset()
    return frozenset(each.identifier for group in groups for each in group)


def may_skip(group: Collection[str], idle: IdleMoments, now: float, window: float) -> bool:
    """Return whether each instance of a group had no connection in the last `window` seconds.

    Every session is then younger than the window, the shortest time of a rule, so none is due. An
    instance without a datapoint may have sessions.
    """
    since = now - window
    return bool(group) and all(since <= idle.latest.get(each, -1.0) <= now for each in group)


def _find_group(instance: Instance, instances: Iterable[Instance]) -> tuple[Instance, ...]:
    if not instance.pauses_with_writer:
        return (instance,)
    return tuple(
        each for each in instances if each.cluster == instance.cluster and each.pauses_with_writer
    )


def _can_pause(group: Collection[Instance]) -> bool:
    """Return whether a group can pause; one that follows a writer that RDS does not list cannot."""
    is_whole = any(not each.is_reader or not each.pauses_with_writer for each in group)
    return is_whole and all(each.may_pause for each in group)
