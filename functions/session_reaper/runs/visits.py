"""Keeps a run from visiting one server twice, whatever number of secrets lead to it.

Secrets with the same host or address are tried one after another until one of them gets in. All others
connect, and stop if their server turns out to be one that was visited already. What a server says about
itself proves nothing: a hostile one may claim to be another. So the claim counts only between
connections to one endpoint; elsewhere each server must show the session that the reaper has on the other.
"""

import secrets
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from threading import Lock
from typing import Final

from session_reaper.aws.rds import with_iam_token
from session_reaper.deadline import Deadline
from session_reaper.errors import TargetError
from session_reaper.postgres.server import APPLICATION_NAME, Server
from session_reaper.runs.parallel import PostponeError
from session_reaper.sessions.snapshot import ServerIdentity, Snapshot
from session_reaper.targets.providers import is_proxy
from session_reaper.targets.servers import Place, are_instances_of_rds, are_one_server
from session_reaper.targets.target import Target, TargetKey

_LOGIN_SECONDS: Final = 3.0
_LOGIN_SHARE: Final = 0.25  # of the time left, at most
_PROOF_SECONDS: Final = 3.0  # for all proofs of one target; a hostile server may take all of it
_PROOF_SHARE: Final = 0.2  # of the time left, at most
_ALL_RIGHTS: Final = 2
_MOST_PROOFS: Final = 3  # for one target: hostile servers may make any number of claims


class VisitedError(Exception):
    """Another target's visit covers this server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Visit:
    """A login of a target, and what the server says about itself.

    `connected`: the target with the role and the password that were used. `certificate`: the server's,
    in DER; None in plaintext. `owner`: the key of the target whose operation runs on the server.
    """

    place: Place
    connected: Target
    certificate: bytes | None
    claim: ServerIdentity | None
    rights: int  # 2: to see and to signal other roles' sessions, 1: to see them, 0: neither
    owner: TargetKey


class Visits:
    """The servers that a run has visited. Thread-safe."""

    def __init__(self, groups: Iterable[Sequence[Target]] = ()) -> None:
        """`groups`: targets that may be one server."""
        self._lock = Lock()
        self._visits: dict[TargetKey, _Visit] = {}
        self._visits_by_claim: dict[ServerIdentity | None, list[_Visit]] = defaultdict(list)
        self._groups = {target.key: group for group in groups for target in group}
        self._tried: set[TargetKey] = set()
        self._postponed: dict[TargetKey, int] = {}  # the rights of these targets
        self._full: set[TargetKey] = set()

    def record_full(self, target: Target) -> None:
        """Record that a target's server has no free slot."""
        with self._lock:
            self._full.add(target.key)

    def is_full(self, target: Target) -> bool:
        """Return whether the server of a target had no free slot for another secret."""
        with self._lock:
            return any(
                other.key in self._full and other.endpoint == target.endpoint
                for other in self.list_group(target)
            )

    def has_any_of(self, group: Iterable[Target]) -> bool:
        """Return whether one of these targets has got in."""
        with self._lock:
            return bool(self._list_visits(group))

    def find_owner(self, target: Target) -> TargetKey | None:
        """Return the key of the target whose operation runs on a target's server, if there is one."""
        with self._lock:
            if target.key in self._visits:
                return self._visits[target.key].owner
            found = (
                visit.owner
                for visit in self._list_visits(self.list_group(target))
                if visit.place.leads_to_server_of(target)
            )
            return next(found, None)

    def list_group(self, target: Target) -> Sequence[Target]:
        """Return the targets that may be one server with this one, and itself, in configured order."""
        return self._groups.get(target.key, (target,))

    def list_others(self, target: Target) -> Sequence[Target]:
        """Return the other targets of a target's server, as far as hosts and addresses tell."""
        others = (each for each in self.list_group(target) if each.key != target.key)
        return tuple(each for each in others if are_one_server(target, each))

    def begin(self, target: Target, deadline: Deadline) -> Deadline:
        """Record that a target is tried, and return the deadline for connecting.

        It leaves time for the other targets of the group, but any number of them leaves this one
        enough for a login. Raises VisitedError if the target need not connect.
        """
        with self._lock:
            self._tried.add(target.key)
            visits = self._list_visits(self.list_group(target))
            if any(visit.place.covers(target) for visit in visits):
                raise VisitedError
            if target.is_alternate and visits:
                raise VisitedError
            share = deadline.remaining() / (1 + len(self._list_untried(target)))
            least = min(_LOGIN_SECONDS, _LOGIN_SHARE * deadline.remaining())
            return deadline.capped_at(max(share, least))

    def admit(
        self,
        target: Target,
        connected: Target,
        server: Server,
        snapshot: Snapshot,
        deadline: Deadline,
    ) -> Target:
        """Record that an operation runs on a target's server, and return the target that names it.

        Raises VisitedError if another target's operation does, and PostponeError if a secret that was
        not tried yet may have a role with more rights.
        """
        # Not the target: its secret may have changed since, also the host.
        place = Place(
            target=connected,
            address=server.address,
            is_verified=connected.is_verified,
            is_pooled=snapshot.behind_pooler or is_proxy(target.host),
        )
        group = self.list_group(target)
        requested = [each for each in group if not each.is_alternate]
        if target.is_alternate and not any(map(place.leads_to_server_of, requested)):
            raise VisitedError
        rights = snapshot.can_see + (snapshot.can_see and snapshot.can_signal)
        if rights < _ALL_RIGHTS and self._should_postpone(place, rights):
            raise PostponeError
        visit = _Visit(
            place=place,
            connected=connected,
            certificate=server.certificate,
            claim=snapshot.server,
            rights=rights,
            owner=target.key,
        )
        refuted: list[_Visit] = []
        proofs = deadline.capped_at(min(_PROOF_SECONDS, _PROOF_SHARE * deadline.remaining()))
        while (rival := self._add_unless_visited(visit, refuted)) is not None:
            if _is_same_server(visit, rival, server, proofs):
                with self._lock:
                    self._visits[target.key] = replace(visit, owner=rival.owner)
                raise VisitedError
            refuted.append(rival)
        if refuted:
            server.find_application("", own_name=APPLICATION_NAME, deadline=deadline)
        return next(filter(place.leads_to_server_of, group), target)

    def _should_postpone(self, place: Place, rights: int) -> bool:
        """Return whether a target should wait for others of its server, which may have more rights."""
        target = place.target
        with self._lock:
            if target.key in self._postponed:
                return False
            others = [
                other
                for other in self.list_group(target)
                if other.key not in self._tried or self._postponed.get(other.key, 0) > rights
            ]
            if not any(map(place.covers, others)):
                return False
            self._postponed[target.key] = rights
            return True

    def _list_untried(self, target: Target) -> list[Target]:
        return [each for each in self.list_group(target) if each.key not in self._tried]

    def _list_visits(self, group: Iterable[Target]) -> list[_Visit]:
        return [self._visits[target.key] for target in group if target.key in self._visits]

    def _add_unless_visited(self, visit: _Visit, refuted: Sequence[_Visit]) -> _Visit | None:
        """Add a visit, or return an earlier one that may be to the same server."""
        with self._lock:
            rivals = self._visits_by_claim[visit.claim]
            if visit.claim is not None and len(refuted) < _MOST_PROOFS:
                for earlier in rivals:
                    if earlier.rights >= visit.rights and earlier not in refuted:
                        return earlier
            self._visits[visit.place.target.key] = visit
            rivals.append(visit)
        return None


def _is_same_server(visit: _Visit, rival: _Visit, server: Server, deadline: Deadline) -> bool:
    """Return whether two visits that claim to be to the same server are."""
    target = visit.place.target
    has_same_key = visit.certificate is not None and visit.certificate == rival.certificate
    is_secure = has_same_key or rival.place.is_as_secure_as(target)
    if not is_secure or are_instances_of_rds(rival.connected, target):
        return False
    if rival.place.has_endpoint_of(replace(target, addresses=(visit.place.address,))):
        return True
    # Where many clients share one address (behind a NAT or a pooler), a server that passes our login on
    # could prove that it is the other one. But it does not have the key of the other's certificate.
    if visit.certificate != rival.certificate:
        return False
    return _prove_same_server(server, rival.connected, deadline)


def _prove_same_server(server: Server, other: Target, deadline: Deadline) -> bool:
    """Return whether another target's server shows our session on a server, and the reverse.

    Renames our session. Neither server can know the name of the session on the other. A server that
    passes a login on to another one could, but there the session does not come from our own address.
    """
    here, there = (f"{APPLICATION_NAME} {secrets.token_hex(8)}" for _ in range(2))
    is_same = False
    with suppress(TargetError):
        connected = Server.connect(with_iam_token(other), deadline, application_name=there)
        with closing(connected):
            # One expression: an error of the second server proves nothing.
            is_same = server.find_application(
                there, own_name=here, deadline=deadline
            ) and connected.find_application(here, own_name=there, deadline=deadline)
    return is_same
