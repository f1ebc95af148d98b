"""The text of the secret that the function reads, in the shape of RDS's secrets."""

import json
from collections.abc import Mapping
from typing import Any, Final

from session_reaper.documents import key_label
from session_reaper.errors import ConfigurationError
from session_reaper.targets.providers import Provider, find_provider, is_instance_of_rds
from session_reaper.targets.secret_document import parse_secret
from session_reaper.targets.target import Auth, Endpoint, Secret, SslMode, Target

from session_reaper_cli.connections.parameters import LOOPBACK

_HIDDEN: Final = ("password", "sslrootcert")


def write_text(target: Target, role: str, password: str, earlier: Mapping[str, Any]) -> str:
    """Write the secret of a role on the target's server; without a password, for IAM.

    Keys of an earlier secret that are not ours stay, such as fallback_secret. So do its TLS
    settings if they verify the server and those of the target do not.
    """
    document = {
        **earlier,
        "engine": "postgres",
        "host": target.host,
        "port": target.port,
        "username": role,
        "password": password,
        "auth": "" if password else Auth.IAM.value,
        "dbname": target.database,
        **_name_instance(target.host),
    }
    if target.is_verified or not _is_verified(earlier):
        document |= {"sslmode": target.sslmode.value, "sslrootcert": target.sslrootcert or ""}
    return json.dumps({key: value for key, value in document.items() if value != ""})


def parse_text(secret: Secret) -> Mapping[str, Any]:
    """Return the keys of a secret. Raises ConfigurationError unless it is a JSON object."""
    try:
        document = json.loads(secret.text)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        problem = "exists, and must be a JSON object for onboard to change it; write another --name"
        raise ConfigurationError(f"secret {secret.name}", problem)
    return document


def require_same_login(secret: Secret, target: Target, role: str) -> Target:
    """Return an existing secret's target. Raises ConfigurationError if it is for another login."""
    place = f"secret {secret.name}"
    keys = parse_text(secret)
    if not keys.get("host"):
        raise ConfigurationError(place, "exists, and has no host; write another --name")
    found = parse_secret(secret, whole_clusters=False).target
    if found.role != role:
        problem = f"exists, and is for the role {key_label(found.role)}, not {role}"
        raise ConfigurationError(place, f"{problem}; write another --name")
    # One that names a tunnel's end never worked for the function.
    if found.endpoint != target.endpoint and found.host not in LOOPBACK:
        problem = (
            f"exists, and is for {_describe(found.endpoint)}, not {_describe(target.endpoint)}"
        )
        raise ConfigurationError(place, f"{problem}; write another --name")
    return found


def show_text(text: str) -> str:
    """Return the secret's text without the password, for people."""
    document = json.loads(text)
    return json.dumps({k: "(not shown)" if k in _HIDDEN else v for k, v in document.items()})


def warn_about_tls(target: Target) -> str:
    """Return a warning if the function would not verify the server, else ""."""
    if target.sslmode is SslMode.VERIFY_FULL:
        return ""
    if target.sslmode is SslMode.DISABLE:
        return "sslmode=disable: the function will connect in plaintext"
    aiven = find_provider(target.host) is Provider.AIVEN
    how = (
        "fetch the project's CA (avn project ca-get --target-filepath ca.pem) and write"
        " sslmode=verify-full&sslrootcert=ca.pem"
        if aiven
        else "write sslmode=verify-full, and the CA's file as sslrootcert"
    )
    return f"sslmode={target.sslmode}: another server could impersonate this one; {how} in the URI"


def _is_verified(earlier: Mapping[str, Any]) -> bool:
    mode = earlier.get("sslmode", SslMode.VERIFY_FULL)
    has_authorities = bool(earlier.get("sslrootcert"))
    return bool(earlier) and (
        mode == SslMode.VERIFY_FULL or (mode == SslMode.VERIFY_CA and has_authorities)
    )


def _name_instance(host: str) -> Mapping[str, str]:
    """Return RDS's identifier in an endpoint; a cluster's secret is for each of its instances."""
    first, kind, *_ = (*host.lower().split("."), "")
    if is_instance_of_rds(host):
        return {"dbInstanceIdentifier": first}
    is_writer = find_provider(host) is Provider.AURORA and kind.startswith("cluster-")
    if is_writer and not kind.startswith(("cluster-ro-", "cluster-custom-")):
        return {"dbClusterIdentifier": first}
    return {}


def _describe(endpoint: Endpoint) -> str:
    return f"{endpoint.host}:{endpoint.port}"
