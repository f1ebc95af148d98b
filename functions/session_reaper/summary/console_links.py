"""Links into the AWS console."""

from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import quote

# The console's domain by the prefix of a partition's regions.
_CONSOLES = {
    "cn": "amazonaws.cn",
    "eusc": "amazonaws-eusc.eu",
    "us-gov": "amazonaws-us-gov.com",
    "us-iso": "c2s.ic.gov",
    "us-isob": "sc2s.sgov.gov",
    "eu-isoe": "cloud.adc-e.uk",
    "us-isof": "csp.hci.ic.gov",
}


class FunctionLocation(NamedTuple):
    """The region, name and log group of the function, for the links of a summary."""

    region: str
    function: str
    log_group: str
    dashboard: str | None


def link_to_console(location: FunctionLocation | None, run_id: str) -> Mapping[str, str]:
    """Return URLs by name: the run's log lines, the dashboard if there is one, the function."""
    if location is None:
        return {}
    partition = next((p for p in _CONSOLES if location.region.startswith(f"{p}-")), "")
    domain = _CONSOLES.get(partition, "aws.amazon.com")
    console = f"https://{location.region}.console.{domain}"
    watch = f"{console}/cloudwatch/home?region={location.region}#"
    # The console expects the part after # to be encoded twice, with $ instead of %.
    group = _encode_twice(location.log_group)
    query = _encode_twice(f'"{run_id}"')
    log = f"{watch}logsV2:log-groups/log-group/{group}/log-events$3FfilterPattern$3D{query}"
    function = f"{console}/lambda/home?region={location.region}#/functions/{location.function}"
    dashboard = f"{watch}dashboards/dashboard/{location.dashboard}"
    links = {"log": log, "dashboard": dashboard if location.dashboard else "", "function": function}
    return {name: url for name, url in links.items() if url}


def _encode_twice(text: str) -> str:
    return quote(quote(text, safe=""), safe="").replace("%", "$")
