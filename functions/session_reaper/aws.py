"""How every AWS client here is made."""

import os
from functools import cache
from threading import Lock
from typing import Any, Final

# botocore, not boto3: clients are all we need, and a cold start is some 20 ms shorter without the rest.
from botocore.config import Config
from botocore.session import Session, get_session

PUBLISH_SECONDS: Final = 13.0
"""What a run keeps back for its last call: two tries of 3 + 3 s, and a pause."""

_MAKING: Final = Lock()
_CONFIG: Final = Config(
    connect_timeout=3,
    read_timeout=3,
    retries={"mode": "standard", "total_max_attempts": 2},
)


def client(service: str) -> Any:  # noqa: ANN401 -- the adapter that asks knows the client's type
    """The client of a service, kept for warm runs. Safe to use from several threads."""
    with _MAKING:  # to make one is not safe
        # A client goes to one endpoint: who points the process elsewhere gets another.
        return _client(service, os.environ.get("AWS_ENDPOINT_URL"))


@cache
def _client(service: str, _endpoint: str | None) -> object:
    return _session().create_client(service, config=_CONFIG)


@cache
def _session() -> Session:
    return get_session()
