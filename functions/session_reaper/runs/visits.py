"""Keeps a run from visiting one server twice, whatever number of secrets lead to it.

Secrets with the same host or address are tried one after another until one of them connects. All
others connect, and stop if their server turns out to be one that was visited already. What a server
says about itself proves nothing: a hostile one may claim to be another. So the claim counts only
between connections to one endpoint; elsewhere each server must show the session that the reaper has
on the other. Only a full server may have no slot for that; then the claim and an equal certificate
count.

Which secret connects first is a race. So a visit waits, for a short time and before its operation
signals any session, for those that may give the server its name, or have more rights.
"""

import secrets
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from enum import Enum, auto
from threading import Event, Lock
from typing import Final, NamedTuple

from session_reaper.aws.rds import with_iam_token
from session_reaper.deadline import Deadline
from session_reaper.errors import FullError, TargetError
from session_reaper.postgres.server import APPLICATION_NAME, Server
from session_reaper.runs.parallel import PostponeError
from session_reaper.sessions.snapshot import NO_SESSIONS, ServerIdentity, Snapshot
from session_reaper.targets.providers import is_instance_of_rds, is_proxy
from session_reaper.targets.servers import (
    Place,
    ServerIndex,
    are_instances_of_rds,
    find_place,
    group_by_server,
    list_routes,
)
from session_reaper.targets.target import Endpoint, Target, TargetKey

_LOGIN_SECONDS: Final = 3.0
_LOGIN_SHARE: Final = 0.25  # of the time left, at most
_PROOF_SECONDS: Final = 3.0  # for all proofs of one target; a hostile server may take all of it
_PROOF_SHARE: Final = 0.2  # of the time left, at most
_TURN_SECONDS: Final = 2.0  # to wait for others that are connecting; they may hang
_TURN_SHARE: Final = 0.1  # of the time left, at most
_ALL_RIGHTS: Final = 2
_ENDING_SHARE: Final = 0.5  # of the time left, to wait on a full server for another visit's end
_LEAVING_SECONDS: Final = 0.5  # in which the server frees the slot of a connection that has ended
_PAUSE: Final = 0.1  # seconds between two attempts to get it
_MOST_PROOFS: Final = 3  # for one target: hostile servers may make any number of claims


class VisitedError(Exception):
    """Another target's visit covers this server.

    `later`: a snapshot that was taken here after that visit, if the servers could not be compared.
    """

    def __init__(self, later: Snapshot | None = None) -> None:
        super().__init__()
        self.later = later


class _Visit(NamedTuple):
    """A login of a target, and what the server says about itself.

    `place` has the target with the role and the password that were used. `certificate`: the
    server's, in DER; None in plaintext.
    """

    place: Place
    certificate: bytes | None
    claim: ServerIdentity | None
    rights: int  # 2: to see and to signal other roles' sessions, 1: to see them, 0: neither

    @property
    def is_identified(self) -> bool:
        """Whether the claim is complete, and about the server that has accepted the connection."""
        is_complete = self.claim is not None and self.claim.checkpointer_started is not None
        return is_complete and not self.place.is_pooled

    @property
    def key(self) -> TargetKey:
        """The key of the target that connected."""
        return self.place.target.key


class _Comparison(Enum):
    """Whether two visits are to one server."""

    SAME = auto()
    ALIKE = auto()  # the server has no slot to prove it
    DIFFERENT = auto()
    UNKNOWN = auto()  # no slot is free for the proof yet


class _Group:
    """Targets that may be one server, as far as hosts and addresses tell, in configured order."""

    def __init__(self, targets: Sequence[Target]) -> None:
        self.targets = targets
        self.by_route = ServerIndex[Target]()
        self.visits = ServerIndex[_Visit]()
        self.is_visited = False
        self.untried = {target.key for target in targets}
        for target in targets:
            self.by_route.add(list_routes(target), target)


class _Candidate(NamedTuple):
    """A target that may turn out to be the server of another one.

    `position`: in configured order. `group`: the targets that may be one server with it, and
    itself. `has_connected` is set once its job has connected, or cannot; `has_ended` once its job
    has ended.
    """

    target: Target
    position: int
    group: _Group
    is_instance_of_rds: bool
    has_connected: Event
    has_ended: Event


class Visits:
    """The servers that a run has visited. Thread-safe."""

    def __init__(self, targets: Sequence[Target] = ()) -> None:
        """`targets`: those of the run, in configured order."""
        self.groups = group_by_server(targets)
        groups = [_Group(targets) for targets in self.groups]
        group_of = {target.key: group for group in groups for target in group.targets}
        self._candidates = {
            target.key: _Candidate(
                target=target,
                position=position,
                group=group_of[target.key],
                is_instance_of_rds=is_instance_of_rds(target.host),
                has_connected=Event(),
                has_ended=Event(),
            )
            for position, target in enumerate(targets)
        }
        self._lock = Lock()
        self._connecting: set[TargetKey] = set()
        # Targets whose connection takes a slot. Instances of RDS are kept apart, because each is
        # one server.
        self._connected: set[TargetKey] = set()
        self._connected_instances: set[TargetKey] = set()
        self._visits: dict[TargetKey, _Visit] = {}
        self._visits_by_claim: dict[ServerIdentity | None, list[_Visit]] = defaultdict(list)
        # One proof at a time, because those of one server would take each other's slot.
        self._proofs: dict[ServerIdentity | None, Lock] = defaultdict(Lock)
        # For each visit, the target whose operation runs on the server.
        self._leaders: dict[TargetKey, TargetKey] = {}
        self._members: dict[TargetKey, list[TargetKey]] = defaultdict(list)  # the reverse
        self._working: set[TargetKey] = set()  # the leaders whose operation has begun
        self._postponed: dict[TargetKey, int] = {}  # the rights of these targets
        self._full: set[Endpoint] = set()

    def record_full(self, target: Target) -> None:
        """Record that a target's server has no free slot."""
        with self._lock:
            self._full.add(target.endpoint)

    def is_full(self, target: Target) -> bool:
        """Return whether the server of a target had no free slot for another secret."""
        with self._lock:
            return target.endpoint in self._full

    def record_connected(self, target: Target) -> None:
        """Record that the job of a target has a connection."""
        with self._lock:
            self._list_connected(target).add(target.key)

    def may_get_slot(self, target: Target) -> bool:
        """Return whether another target's job has a connection that may be to a target's server.

        Its slot is free for this target once that job ends.
        """
        own = self._candidates[target.key]
        with self._lock:
            if self._connected or not own.is_instance_of_rds:
                return bool(self._connected or self._connected_instances)
            return any(each.key in self._connected_instances for each in own.group.targets)

    def has_any_of_group(self, target: Target) -> bool:
        """Return whether one of the targets that may be one server with this one has connected."""
        with self._lock:
            return self._candidates[target.key].group.is_visited

    def find_leader(self, target: Target) -> TargetKey | None:
        """Return the key of the target whose operation runs on a target's server, if any does."""
        with self._lock:
            if target.key in self._leaders:
                return self._leaders[target.key]
            found = self._candidates[target.key].group.visits.find(list_routes(target))
            visits = [each for each in found if each.place.leads_to_server_of(target)]
            if not visits:
                return None
            return self._leaders[min(visits, key=self._get_position).key]

    def list_others(self, target: Target) -> Sequence[Target]:
        """Return the other targets of a target's server, as far as hosts and addresses tell."""
        place = find_place(target)
        found = self._find_targets(place)
        others = {each.key: each for each in found if place.has_endpoint_of(each)}
        others.pop(target.key, None)
        return sorted(others.values(), key=self._get_position)

    def begin(self, target: Target, deadline: Deadline) -> Deadline:
        """Record that a target is tried, and return the deadline for connecting.

        It leaves time for the other targets of the group, but any number of them leaves this one
        enough for a login. Raises VisitedError if the target need not connect.
        """
        own = self._candidates[target.key]
        with self._lock:
            own.group.untried.discard(target.key)
            visits = own.group.visits.find(list_routes(target))
            is_covered = any(visit.place.covers(target) for visit in visits)
            if is_covered or (target.is_alternate and own.group.is_visited):
                raise VisitedError
            self._connecting.add(target.key)
            own.has_connected.clear()
            own.has_ended.clear()  # a postponed job begins twice
            share = deadline.remaining() / (1 + len(own.group.untried))
            least = min(_LOGIN_SECONDS, _LOGIN_SHARE * deadline.remaining())
            return deadline.capped_at(max(share, least))

    def end_turn(self, target: Target) -> None:
        """Record that a target has connected, or cannot; other visits need not wait for it."""
        with self._lock:
            self._connecting.discard(target.key)
        self._candidates[target.key].has_connected.set()

    def end(self, target: Target) -> None:
        """Record that the job of a target has ended, and its connection."""
        self.end_turn(target)
        with self._lock:
            self._list_connected(target).discard(target.key)
        self._candidates[target.key].has_ended.set()

    def admit(
        self,
        target: Target,
        connected: Target,
        server: Server,
        snapshot: Snapshot,
        deadline: Deadline,
    ) -> Target:
        """Record that an operation runs on a target's server, and return the target that names it.

        Raises VisitedError if another target's operation does, and PostponeError if a secret that
        was not tried yet may have a role with more rights.
        """
        # Not the target: its secret may have changed since, also the host.
        place = Place(
            target=connected,
            address=server.address,
            is_verified=connected.is_verified,
            is_pooled=snapshot.behind_pooler or is_proxy(target.host),
        )
        if target.is_alternate and not self._is_requested(place):
            raise VisitedError
        rights = snapshot.can_see + (snapshot.can_see and snapshot.can_signal)
        if rights < _ALL_RIGHTS and self._should_postpone(place, rights):
            raise PostponeError
        visit = _Visit(
            place=place,
            certificate=server.certificate,
            claim=snapshot.server,
            rights=rights,
        )
        self._register(visit, server, deadline)
        self.end_turn(target)
        self._wait_for_others(visit, deadline)
        with self._lock:
            if self._leaders[visit.key] != visit.key:
                raise VisitedError
            self._working.add(visit.key)
            return min(self._list_names(visit), key=lambda each: each.position).target

    def _register(self, visit: _Visit, server: Server, deadline: Deadline) -> None:
        """Add a visit. Raises VisitedError if an earlier one is to the same server.

        An earlier visit of a role with fewer rights stops instead, unless its operation has begun.
        """
        compared: list[_Visit] = []
        inferior: list[_Visit] = []
        proofs = deadline.capped_at_share(_PROOF_SHARE, _PROOF_SECONDS)
        while (rival := self._add_unless_visited(visit, compared)) is not None:
            compared.append(rival)
            is_better = visit.rights > rival.rights
            comparison = _Comparison.DIFFERENT
            with suppress(TargetError):
                comparison = self._compare(visit, rival, server, proofs)
                if comparison is _Comparison.UNKNOWN:
                    comparison = self._compare_on_full_server(visit, rival, server, deadline)
            if comparison not in (_Comparison.SAME, _Comparison.ALIKE):
                continue
            if not is_better:
                with self._lock:
                    self._add(visit, self._leaders[rival.key])
                is_proven = comparison is _Comparison.SAME
                raise VisitedError(None if is_proven else _look_again(server, deadline))
            inferior.append(rival)
        if server.application_name != APPLICATION_NAME:
            server.rename(APPLICATION_NAME, deadline)
        for rival in inferior:
            self._take_over(visit, rival)

    def _compare(
        self, visit: _Visit, rival: _Visit, server: Server, deadline: Deadline
    ) -> _Comparison:
        """Compare the servers of two visits that claim to be one. `server`: the visit's connection.

        Raises TargetError.
        """
        target = visit.place.target
        kept, stopped = (visit, rival) if visit.rights > rival.rights else (rival, visit)
        has_same_certificate = visit.certificate == rival.certificate
        has_same_key = has_same_certificate and visit.certificate is not None
        is_secure = has_same_key or kept.place.is_as_secure_as(stopped.place.target)
        if not is_secure or are_instances_of_rds(rival.place.target, target):
            return _Comparison.DIFFERENT
        if rival.place.has_endpoint_of(replace(target, addresses=(visit.place.address,))):
            return _Comparison.SAME
        # Where many clients share one address (behind a NAT or a pooler), a server that passes our
        # login on could prove that it is the other one. But it does not have the key of the other's
        # certificate.
        if not has_same_certificate:
            return _Comparison.DIFFERENT
        try:
            return _prove_same_server(server, rival, deadline)
        except FullError:
            return _Comparison.UNKNOWN

    def _compare_on_full_server(
        self, visit: _Visit, rival: _Visit, server: Server, deadline: Deadline
    ) -> _Comparison:
        """Compare servers once the rival has left its slot; by less than a proof if it leaves none.

        Raises TargetError.
        """
        own = visit.place.target
        may_be_alike = visit.is_identified and rival.is_identified
        if visit.rights > rival.rights:
            # The rival is to stop, so it waits for this visit; in plaintext it stops for a proof
            # only.
            may_be_alike &= visit.certificate is not None
        elif _is_full(own, deadline):
            self.end_turn(own)  # the rival may be waiting for this visit
            ending = deadline.capped_at_share(_ENDING_SHARE)
            may_be_alike &= self._candidates[rival.key].has_ended.wait(ending.remaining())
        with self._lock:
            lock = self._proofs[visit.claim]
        proofs = deadline.capped_at_share(_PROOF_SHARE, _PROOF_SECONDS)
        with proofs.hold(lock):
            leaving = proofs.capped_at(_LEAVING_SECONDS)
            while True:
                with suppress(FullError):
                    return _prove_same_server(server, rival, proofs)
                # A hostile rival may pretend to be full, so the visit's own server must be full,
                # too.
                is_full = _is_full(own, proofs)
                if not leaving.remaining():
                    break
                time.sleep(min(_PAUSE, leaving.remaining()))
        return _Comparison.ALIKE if is_full and may_be_alike else _Comparison.DIFFERENT

    def _take_over(self, visit: _Visit, rival: _Visit) -> None:
        """Let a visit's leader also lead the rival, and all that the rival's leader leads.

        By now, a visit with more rights than this one may lead either of them.
        """
        with self._lock:
            leader, former = self._leaders[visit.key], self._leaders[rival.key]
            is_better = self._visits[leader].rights > self._visits[former].rights
            if is_better and former not in self._working:
                members = self._members.pop(former)
                self._members[leader] += members
                self._leaders |= dict.fromkeys(members, leader)

    def _wait_for_others(self, visit: _Visit, deadline: Deadline) -> None:
        """Wait for targets that connect now and may take over this visit, or name its server."""
        within = deadline.capped_at_share(_TURN_SHARE, _TURN_SECONDS)
        own = self._candidates[visit.key]
        with self._lock:
            connecting = [self._candidates[key] for key in self._connecting]
        for other in connecting:
            if other.is_instance_of_rds and own.is_instance_of_rds:
                continue  # they have different endpoints, so they are different servers
            first = self._candidates[other.group.targets[0].key]
            if first.position < own.position or visit.rights < _ALL_RIGHTS:
                other.has_connected.wait(within.remaining())

    def _list_names(self, visit: _Visit) -> Iterator[_Candidate]:
        """List the targets of a visit's server, of each group that has connected to it."""
        for key in self._members[visit.key]:
            place = self._visits[key].place
            yield self._candidates[key]
            for target in filter(place.leads_to_server_of, self._find_targets(place)):
                yield self._candidates[target.key]

    def _should_postpone(self, place: Place, rights: int) -> bool:
        """Return whether a target should wait for others of its server, maybe with more rights."""
        target = place.target
        with self._lock:
            if target.key in self._postponed:
                return False
            untried = self._candidates[target.key].group.untried
            others = [
                other
                for other in self._find_targets(place)
                if other.key in untried or self._postponed.get(other.key, 0) > rights
            ]
            if not any(map(place.covers, others)):
                return False
            self._postponed[target.key] = rights
            return True

    def _find_targets(self, place: Place) -> Iterator[Target]:
        """Find the targets that may lead to a place, of the group that has connected to it."""
        return self._candidates[place.target.key].group.by_route.find(place.routes)

    def _is_requested(self, place: Place) -> bool:
        """Return whether the run is about a target that leads to a place."""
        requested = (each for each in self._find_targets(place) if not each.is_alternate)
        return any(map(place.leads_to_server_of, requested))

    def _get_position(self, each: Target | _Visit) -> int:
        return self._candidates[each.key].position

    def _list_connected(self, target: Target) -> set[TargetKey]:
        is_instance = self._candidates[target.key].is_instance_of_rds
        return self._connected_instances if is_instance else self._connected

    def _add(self, visit: _Visit, leader: TargetKey) -> None:
        self._visits[visit.key] = visit
        group = self._candidates[visit.key].group
        group.visits.add(visit.place.routes, visit)
        group.is_visited = True
        self._leaders[visit.key] = leader
        self._members[leader].append(visit.key)

    def _add_unless_visited(self, visit: _Visit, compared: Sequence[_Visit]) -> _Visit | None:
        """Add a visit, or return an earlier one that may be to the same server."""
        with self._lock:
            rivals = self._visits_by_claim[visit.claim]
            if visit.claim is not None and len(compared) < _MOST_PROOFS:
                for earlier in rivals:
                    may_stop = self._leaders[earlier.key] not in self._working
                    if earlier not in compared and (may_stop or earlier.rights >= visit.rights):
                        return earlier
            self._add(visit, visit.key)
            rivals.append(visit)
        return None


def _prove_same_server(server: Server, rival: _Visit, deadline: Deadline) -> _Comparison:
    """Compare a server with that of a rival: each must show the session that we have on the other.

    Connects as the rival, and renames the session on the server. Neither server can know the name
    of the session on the other. A server that passes a login on to another one could, but there the
    session does not come from our own address. Raises TargetError; FullError if there is no slot.
    """
    here, there = (f"{APPLICATION_NAME} {secrets.token_hex(8)}" for _ in range(2))
    target = with_iam_token(rival.place.target)
    with closing(Server.connect(target, deadline, application_name=there)) as connected:
        # One expression: an error of the second server proves nothing.
        is_same = server.find_application(
            there, connected.origin, own_name=here, deadline=deadline
        ) and connected.find_application(here, server.origin, own_name=there, deadline=deadline)
    return _Comparison.SAME if is_same else _Comparison.DIFFERENT


def _look_again(server: Server, deadline: Deadline) -> Snapshot | None:
    """Take a snapshot of the slots that are used; None if that fails."""
    with suppress(TargetError):
        return server.take_snapshot(NO_SESSIONS, deadline)
    return None


def _is_full(target: Target, deadline: Deadline) -> bool:
    """Return whether a target's server has no slot for another connection. Raises TargetError."""
    try:
        Server.connect(with_iam_token(target), deadline).close()
    except FullError:
        return True
    return False
