"""Whose PostgreSQL it is, and what is to be done there: each provider has its own ways."""

import re
from enum import StrEnum
from typing import Final

from session_reaper.errors import quote_identifier


class Provider(StrEnum):
    """Who runs the server."""

    VANILLA = "vanilla"
    RDS = "RDS"
    AURORA = "Aurora"
    AIVEN = "Aiven"


def rds_region(host: str) -> str | None:
    """The region of an endpoint of RDS, Aurora or RDS Proxy; None of any other host."""
    found = re.search(r"\.([a-z]{2}[a-z-]*-\d+)\.rds\.amazonaws\.com(\.cn)?\.?$", host.lower())
    return found[1] if found else None


def provider_of(host: str) -> Provider:
    """The provider as far as a host's name tells: all that is known of a server that lets nobody in.

    An instance of Aurora is called like one of RDS; what holds for one holds for the other.
    """
    name = host.lower().rstrip(".")
    if rds_region(name):
        aurora = re.search(r"\.cluster-(ro-|custom-)?\w+\.", name)
        return Provider.AURORA if aurora else Provider.RDS
    if name.endswith(".aivencloud.com"):
        return Provider.AIVEN
    return Provider.VANILLA


def is_proxy(host: str) -> bool:
    """Whether it is an RDS Proxy, which nothing in the connection betrays."""
    return rds_region(host) is not None and re.search(r"\.proxy-\w+\.", host.lower()) is not None


_END_LEAKS: Final = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE state LIKE 'idle in transaction%' AND state_change < now() - interval '5 minutes'"
    " AND application_name !~* '^(pg|barman|wal-g)'; (It leaves backups alone, but knows nothing of"
    " what your policy protects.)"
)

_NOW: Final = {
    Provider.VANILLA: f"sign in as a superuser, who has reserved slots, and run {_END_LEAKS}",
    Provider.RDS: "sign in as the master user, who has reserved slots as a member of rds_superuser,"
    f" and run {_END_LEAKS} If he gets in no more, reboot the instance.",
    Provider.AIVEN: "in the console of Aiven open the service's Current queries and terminate the"
    f" sessions idle in transaction, or sign in as avnadmin and run {_END_LEAKS}",
}

_FOR_THE_NEXT_TIME: Final = {
    Provider.VANILLA: "PostgreSQL 16+: set reserved_connections = 2, restart, and"
    " GRANT pg_use_reserved_connections TO {role}; before 16: name the secret of a superuser as"
    " fallback_secret.",
    Provider.RDS: "name the master user's secret as fallback_secret; on PostgreSQL 16+ set"
    " reserved_connections = 2 in the parameter group, reboot, and"
    " GRANT pg_use_reserved_connections TO {role}.",
    Provider.AIVEN: "let the applications connect by a PgBouncer pool that leaves slots free, or"
    " raise max_connections; if PostgreSQL is 16+ and you may, GRANT pg_use_reserved_connections"
    " TO {role}.",
}


def reserved_slot_instructions(host: str, role: str) -> str:
    """What to do now about a full server, and what to set up for the next time."""
    provider = provider_of(host)
    same = Provider.RDS if provider is Provider.AURORA else provider
    later = _FOR_THE_NEXT_TIME[same].format(role=quote_identifier(role))
    return f"Now: {_NOW[same]} For the next time: {later}"


def explain_unknown_authority(host: str) -> str:
    """What to do where nobody that we trust vouches for the server's certificate."""
    if provider_of(host) is Provider.AIVEN:
        return (
            "Store the project's CA in the secret as sslrootcert: `avn project ca-get`, or CA"
            " certificate in the console."
        )
    if provider_of(host) is Provider.VANILLA:
        return (
            "Store the PEM text of the server's CA in the secret as sslrootcert. (RDS and Aurora by"
            " their own endpoints need none: their CAs are built in.)"
        )
    return (
        "The artifact's copy of AWS's certificates may be older than this region or CA: run"
        " `make certs` and deploy, or store AWS's bundle of the region as sslrootcert."
    )
