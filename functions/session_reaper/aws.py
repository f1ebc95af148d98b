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


def client(service: str, *, seconds: float = 3, tries: int = 2) -> Any:  # noqa: ANN401 -- the adapter that asks knows the client's type
    """The client of a service, kept for warm runs. Safe to use from several threads.

    Each try may take `seconds` to connect, and as many again for the answer.
    """
    with _MAKING:  # to make one is not safe
        # A client goes to one endpoint: who points the process elsewhere gets another.
        return _client(service, os.environ.get("AWS_ENDPOINT_URL"), seconds, tries)


@cache
def _client(service: str, _endpoint: str | None, seconds: float, tries: int) -> object:
    config = Config(
        connect_timeout=seconds,
        read_timeout=seconds,
        retries={"mode": "standard", "total_max_attempts": tries},
    )
    return _session().create_client(service, config=config)


@cache
def _session() -> Session:
    return get_session()
