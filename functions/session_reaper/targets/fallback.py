"""Decides whether a fallback secret is for a target's server, and where it connects."""

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Final, NamedTuple

from session_reaper.errors import TargetError
from session_reaper.targets.secret_document import (
    IAM_NEEDS_VERIFICATION,
    is_managed_by_rds,
    read_own_endpoint,
    require_verified_for_iam,
)
from session_reaper.targets.target import Endpoint, Instance, RdsListing, Secret, SslMode, Target


class _Fallback(NamedTuple):
    """A parsed fallback secret."""

    target: Target  # host is "" if the secret has none
    is_managed: bool  # by RDS

    @property
    def endpoint(self) -> Endpoint | None:
        """Endpoint that the secret itself names."""
        return self.target.endpoint if self.target.host else None


_SAME_ENDPOINT: Final = (
    "Write the same host and port into the fallback secret as in the target's secret, character for"
    " character: another name of the same server (an alias, an address) counts as another server."
    " For the instances of a cluster, write an endpoint of the cluster as RDS lists it. Or use the"
    " master secret that RDS manages for this instance or cluster. A read replica needs a fallback"
    " secret of its own."
)


def use_fallback(
    target: Target, secret: Secret, list_instances: Callable[[], RdsListing]
) -> Target:
    """Return the target with the credentials of its fallback secret.

    The destination is the fallback secret's own host or an endpoint that RDS lists; what the
    target's secret claims never decides. The result keeps only the target's identity in reports.
    Lists the instances of RDS only if the decision needs them. Raises TargetError if the
    credentials may not be used.
    """
    fallback = _Fallback(target=read_own_endpoint(secret), is_managed=is_managed_by_rds(secret))
    if fallback.target.secret_arn == target.secret_arn:
        hint = "Write the name of a secret whose role has reserved slots."
        raise TargetError("fallback", "the secret is its own fallback_secret", hint)
    is_listing_needed = fallback.is_managed or fallback.endpoint != target.endpoint
    listing = list_instances() if is_listing_needed else RdsListing()
    destination = _find_destination(target, fallback, listing)
    if destination is None:
        raise _explain_refusal(fallback, listing)
    own = fallback.target
    if fallback.is_managed:
        own = replace(own, sslmode=SslMode.VERIFY_FULL, sslrootcert=None)
    verified = require_verified_for_iam(replace(own, host=destination.host, port=destination.port))
    if verified is None:
        reason = f"auth iam needs a verified connection, but its sslmode is {own.sslmode}"
        raise TargetError("fallback", reason, IAM_NEEDS_VERIFICATION)
    return replace(
        verified,
        name=target.name,
        group=target.group,
        secret_arn=target.secret_arn,
        instance=target.instance,
        is_reader=target.is_reader,
        unlisted=target.unlisted,
        fallback_secret=target.fallback_secret,
        instead_of=target.role,
    )


def _find_destination(target: Target, fallback: _Fallback, listing: RdsListing) -> Endpoint | None:
    """Return where the fallback secret connects; None if it is not for the target's server."""
    named, arn = target.endpoint, fallback.target.secret_arn
    managing = [each for each in listing.instances if arn in each.secret_arns]
    if fallback.is_managed and any(named in _list_endpoints(each) for each in managing):
        return named
    if fallback.endpoint == named:
        return Endpoint(fallback.target.host, fallback.target.port)
    for instance in listing.instances:
        own = Endpoint.of(instance.host, instance.port)
        if own == named and fallback.endpoint in _list_cluster_endpoints(instance):
            return own
    return None


def _list_endpoints(instance: Instance) -> Collection[Endpoint]:
    return (Endpoint.of(instance.host, instance.port), *_list_cluster_endpoints(instance))


def _list_cluster_endpoints(instance: Instance) -> Collection[Endpoint]:
    return tuple(Endpoint.of(host, instance.cluster_port) for host in instance.cluster_hosts)


def _explain_refusal(fallback: _Fallback, listing: RdsListing) -> TargetError:
    if fallback.endpoint is not None:
        reason = "it is for another server: its host and port are not the target's"
        hint = _SAME_ENDPOINT
    elif fallback.is_managed:
        reason = "RDS does not list it as the master secret of the target's instance or cluster"
        hint = _SAME_ENDPOINT
    else:
        reason = "host is missing, so it may be for any server"
        hint = f"Add host and port to it. {_SAME_ENDPOINT}"
    if listing.problem:
        reason += f" ({listing.problem})"
    return TargetError("fallback", reason, hint)
