"""Providers of PostgreSQL servers, and the instructions that differ between them."""

import re
from enum import StrEnum
from functools import lru_cache
from typing import Final

from session_reaper.grants import quote_identifier


class Provider(StrEnum):
    """The operator of a server."""

    VANILLA = "vanilla"
    RDS = "RDS"
    AURORA = "Aurora"
    AIVEN = "Aiven"


MASTERS: Final = {
    Provider.VANILLA: "a superuser",
    Provider.RDS: "the master user",
    Provider.AURORA: "the master user",
    Provider.AIVEN: "avnadmin",
}
"""The role with the most privileges that a customer has."""

# Cached, because a run compares each pair of secrets that share an address.
_MOST_HOSTS: Final = 4096


@lru_cache(_MOST_HOSTS)
def find_rds_region(host: str) -> str | None:
    """Return the region of an endpoint of RDS, Aurora or RDS Proxy; None for any other host."""
    found = re.search(r"\.([a-z]{2}[a-z-]*-\d+)\.rds\.amazonaws\.com(\.cn)?\.?$", host.lower())
    return found[1] if found else None


@lru_cache(_MOST_HOSTS)
def find_provider(host: str) -> Provider:
    """Return the provider that a host name indicates.

    The endpoint of an Aurora instance has the form of an RDS endpoint, so it counts as RDS.
    """
    name = host.lower().rstrip(".")
    if find_rds_region(name):
        aurora = re.search(r"\.cluster-(ro-|custom-)?\w+\.", name)
        return Provider.AURORA if aurora else Provider.RDS
    if name.endswith(".aivencloud.com"):
        return Provider.AIVEN
    return Provider.VANILLA


@lru_cache(_MOST_HOSTS)
def is_proxy(host: str) -> bool:
    """Return whether a host is an RDS Proxy, which only its name reveals."""
    return (
        find_rds_region(host) is not None and re.search(r"\.proxy-\w+\.", host.lower()) is not None
    )


def is_instance_of_rds(host: str) -> bool:
    """Return whether a host is the endpoint of one instance of RDS or Aurora."""
    return find_provider(host) is Provider.RDS and not is_proxy(host)


_NOW: Final = {
    Provider.VANILLA: "connect as a superuser, which has reserved slots, and run {sql}",
    Provider.RDS: "connect as the master user, which has reserved slots as a member of"
    " rds_superuser, and run {sql} If that login is refused too, reboot the instance.",
    Provider.AIVEN: "in the Aiven console, open the service's Current queries and terminate the"
    " sessions idle in transaction, or connect as avnadmin and run {sql}",
}

_NEXT_TIME: Final = {
    Provider.VANILLA: "PostgreSQL 16+: set reserved_connections = 2, restart, and"
    " run GRANT pg_use_reserved_connections TO {role}; Before 16: write the name of a superuser's secret"
    " as fallback_secret.",
    Provider.RDS: "write the name of the master user's secret as fallback_secret; on PostgreSQL 16+"
    " set reserved_connections = 2 in the parameter group, reboot, and"
    " run GRANT pg_use_reserved_connections TO {role};",
    Provider.AIVEN: "let the applications connect through a PgBouncer pool that leaves slots free, or"
    " raise max_connections; on PostgreSQL 16+, if you have the privilege,"
    " run GRANT pg_use_reserved_connections TO {role};",
}
_AUTHORITY: Final = {
    Provider.VANILLA: "Store the PEM text of the server's CA in the secret as sslrootcert. (The"
    " endpoints of RDS and Aurora do not need it: their CAs are built in.)",
    Provider.RDS: "The artifact's copy of AWS's certificates may be older than this region or CA: run"
    " `make certs` and deploy, or store AWS's bundle for the region as sslrootcert.",
    Provider.AIVEN: "Store the project's CA in the secret as sslrootcert: `avn project ca-get`, or CA"
    " certificate in the console.",
}


def emergency_instructions(host: str, sql: str) -> str:
    """Write how to free slots of a full server now; `sql` is the statements for that."""
    return f"To free slots now, {_NOW[_get_operator(host)].format(sql=sql)}"


def reserved_slot_instructions(host: str, role: str) -> str:
    """Write how to reserve slots for the next time that the server is full."""
    instructions = _NEXT_TIME[_get_operator(host)].format(role=quote_identifier(role))
    return f"For the next time: {instructions}"


def _get_operator(host: str) -> Provider:
    provider = find_provider(host)
    return Provider.RDS if provider is Provider.AURORA else provider


def explain_unknown_authority(host: str) -> str:
    """Write how to trust the CA that issued a server's certificate."""
    return _AUTHORITY[_get_operator(host)]
