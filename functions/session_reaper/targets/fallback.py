"""Whether a fallback secret is for the same server as its target, and where it connects."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Final

from session_reaper.errors import TargetError
from session_reaper.targets.secret_document import (
    IAM_NEEDS_VERIFICATION,
    is_managed_by_rds,
    read_own_endpoint,
    require_verified_for_iam,
)
from session_reaper.targets.target import Instance, Secret, SslMode, Target


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server listens. Equal if the names are the same but for case and a final dot."""

    host: str
    port: int

    @classmethod
    def of(cls, host: str, port: int) -> "Endpoint":
        """The endpoint in the one form that is compared."""
        return cls(host.lower().removesuffix("."), port)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fallback:
    """A fallback secret, read as if it were a target's own."""

    target: Target  # its host is "" if the secret names none
    is_managed: bool  # by RDS

    @property
    def endpoint(self) -> Endpoint | None:
        """What the secret itself names."""
        return Endpoint.of(self.target.host, self.target.port) if self.target.host else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RdsListing:
    """What RDS lists, or why it cannot be asked."""

    instances: Collection[Instance] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FallbackRefusal:
    """Why the fallback secret may not be used, and what to write."""

    reason: str
    hint: str

    def as_error(self) -> TargetError:
        """The refusal as the error of a target."""
        return TargetError("fallback", self.reason, self.hint)


_SAME_ENDPOINT: Final = (
    "Write into the fallback secret the same host and port as in the target's secret, character for"
    " character: another name of the same server (an alias, an address) counts as another server."
    " For the instances of a cluster write an endpoint of the cluster as RDS lists it. Or name the"
    " master secret that RDS manages for this instance or cluster. A read replica needs a fallback"
    " secret of its own."
)


def read_fallback(secret: Secret) -> Fallback:
    """Read a fallback secret. Raises SecretError."""
    return Fallback(target=read_own_endpoint(secret), is_managed=is_managed_by_rds(secret))


def needs_rds(target: Target, fallback: Fallback) -> bool:
    """Return whether only RDS can say if the fallback secret is for the target's server."""
    return fallback.is_managed or fallback.endpoint != Endpoint.of(target.host, target.port)


def decide_fallback(
    target: Target, fallback: Fallback, listing: RdsListing
) -> Target | FallbackRefusal:
    """Return how the fallback secret connects to the target's server, or why it may not.

    The destination is the fallback secret's own host or an endpoint that RDS lists, never a claim of
    the target's secret. Of the target only its identity in reports is kept.
    """
    if fallback.target.secret_arn == target.secret_arn:
        reason = "the secret names itself"
        return FallbackRefusal(reason=reason, hint="Name the secret of a role with reserved slots.")
    destination = _destination(target, fallback, listing)
    if destination is None:
        return _refusal(fallback, listing)
    own = fallback.target
    if fallback.is_managed:
        own = replace(own, sslmode=SslMode.VERIFY_FULL, sslrootcert=None)
    verified = require_verified_for_iam(replace(own, host=destination.host, port=destination.port))
    if verified is None:
        reason = f"auth iam needs a verified connection, and its sslmode is {own.sslmode}"
        return FallbackRefusal(reason=reason, hint=IAM_NEEDS_VERIFICATION)
    return replace(
        verified,
        name=target.name,
        group=target.group,
        secret_arn=target.secret_arn,
        instance=target.instance,
        reader=target.reader,
        unlisted=target.unlisted,
        fallback_secret=target.fallback_secret,
        instead_of=target.role,
    )


def _destination(target: Target, fallback: Fallback, listing: RdsListing) -> Endpoint | None:
    """Where the fallback secret connects for this target; None if it is for another server."""
    named = Endpoint.of(target.host, target.port)
    if fallback.is_managed:
        for instance in listing.instances:
            if fallback.target.secret_arn in instance.secret_arns and named in _endpoints(instance):
                return named  # which RDS lists
    if fallback.endpoint == named:
        return Endpoint(fallback.target.host, fallback.target.port)
    for instance in listing.instances:
        own = Endpoint.of(instance.host, instance.port)
        if own == named and fallback.endpoint in _cluster_endpoints(instance):
            return own
    return None


def _endpoints(instance: Instance) -> Collection[Endpoint]:
    return (Endpoint.of(instance.host, instance.port), *_cluster_endpoints(instance))


def _cluster_endpoints(instance: Instance) -> Collection[Endpoint]:
    return tuple(Endpoint.of(host, instance.cluster_port) for host in instance.cluster_hosts)


def _refusal(fallback: Fallback, listing: RdsListing) -> FallbackRefusal:
    if fallback.endpoint is not None:
        reason = "it is for another server: it does not name the target's host and port"
        hint = _SAME_ENDPOINT
    elif fallback.is_managed:
        reason = "it is not the master secret of the target's instance or cluster by RDS's list"
        hint = _SAME_ENDPOINT
    else:
        reason = "it names no host, so it may be for any server"
        hint = f"Add host and port to it. {_SAME_ENDPOINT}"
    if listing.problem:
        reason += f" ({listing.problem})"
    return FallbackRefusal(reason=reason, hint=hint)
