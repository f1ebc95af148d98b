"""How every AWS client here is made."""

import os
from functools import cache
from threading import Lock
from typing import Any, Final

# botocore, not boto3: clients are all we need, and a cold start is some 20 ms shorter without the rest.
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.loaders import Loader
from botocore.parsers import ResponseParserError
from botocore.session import Session, get_session

PUBLISH_SECONDS: Final = 13.0
"""What a run keeps back for its last call: two tries of 3 + 3 s, and a pause."""

AWS_ERRORS: Final = (
    *(ClientError, BotoCoreError),
    # What answers is no AWS, but a proxy with a page of its own: botocore's parsers raise these, and so
    # does who reads what they made of it.
    *(ResponseParserError, AttributeError, LookupError, TypeError, ValueError),
)
"""What a call may raise; to be caught around the call and the reading of its answer alone."""

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
    session = get_session()
    session.register_component("data_loader", _Loader())
    return session


class _Loader(Loader):
    """Of what botocore reads at every cold start, what is for us: it is 25 ms shorter."""

    # It would look into the folders of all its 400 services, twice, to see that ours is one.
    def list_available_services(self, type_name: str) -> list[str]:  # noqa: ARG002 -- botocore's
        """Those that `client` is asked for."""
        return ["dynamodb", "rds", "secretsmanager", "sns", "ssm"]

    # It would parse 1.2 MB of endpoints, and then go by the rules that each of ours has instead.
    def load_data_with_path(self, name: str) -> tuple[Any, str]:
        """A document of its data folder, and where that is."""
        if name == "endpoints":
            return {"partitions": []}, self.BUILTIN_DATA_PATH
        return super().load_data_with_path(name)
