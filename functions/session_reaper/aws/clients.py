"""How every AWS client here is made, and how every call ends in time.

The timeouts of a client bound one read of a socket each. They bound neither a name that does not
resolve, nor a list of addresses, nor an answer that arrives byte by byte. So each call runs in a
thread of its own, and its caller waits until the deadline and no longer. A call that nobody waits for
any more may still finish later: every call here may be made twice.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from threading import Lock
from time import monotonic
from typing import Any, Final, Generic, TypeVar

# botocore, not boto3: clients are all we need, and a cold start is some 20 ms shorter without the rest.
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.loaders import Loader
from botocore.parsers import ResponseParserError
from botocore.session import Session, get_session

from session_reaper.deadline import Deadline
from session_reaper.errors import NoAnswerError, NoThreadError

T = TypeVar("T")

MAX_PAGES: Final = 1000
"""Pages of one list: 100,000 secrets or instances."""

AWS_ERRORS: Final = (
    NoAnswerError,
    *(ClientError, BotoCoreError),
    # What answers is no AWS, but a proxy with a page of its own: botocore's parsers raise these, and so
    # does who reads what they made of it.
    *(ResponseParserError, AttributeError, LookupError, TypeError, ValueError),
)
"""What a call may raise; to be caught around the call and the reading of its answer alone."""

# Of one service at the same time. A call that never ends keeps its thread, so the number also bounds
# what a broken service can take of the threads that Lambda lets a function have (1,024).
_THREADS: Final = 16
_MAKING: Final = Lock()


class PendingCall(Generic[T]):
    """A call that runs in another thread."""

    def __init__(self, service: str, operation: Callable[[], T], deadline: Deadline) -> None:
        """Start the operation in a thread for calls to this service."""
        self._operation = operation
        self._deadline = deadline
        self._began = monotonic()
        self._is_awaited = True
        self._future: Future[T] | None = None
        if deadline.remaining() > 0:
            try:
                self._future = _threads(service, _endpoint()).submit(self._run)
            except RuntimeError:  # the process may not have more threads
                self._is_awaited = False  # the call is in the queue all the same

    def result(self) -> T:
        """Return what the operation returned, or raise what it raised.

        Raises NoAnswerError if the operation has not ended by the deadline, or has not begun;
        NoThreadError if there is no thread for it.
        """
        if self._future is None and not self._is_awaited:
            raise NoThreadError("no thread for the call")
        if self._future is None:
            raise NoAnswerError("no time is left for the call")
        wait([self._future], self._deadline.remaining())
        if not self._future.done():
            self._is_awaited = False
            self._future.cancel()
            raise NoAnswerError(f"no answer in {monotonic() - self._began:.1f} s")
        return self._future.result()

    def _run(self) -> T:
        if not self._is_awaited:
            raise NoAnswerError("nobody waits for the answer any more")
        return self._operation()


def call(service: str, operation: Callable[[], T], deadline: Deadline) -> T:
    """Run the operation, which calls this service, and wait for its result until the deadline.

    Raises NoAnswerError, or what the operation raises.
    """
    return PendingCall(service, operation, deadline).result()


def iterate_pages(
    found: Iterable[Mapping[str, Any]], token: str, deadline: Deadline
) -> Iterator[Any]:
    """Yield the pages of a list; `token` is the key of a page that says where the next one begins.

    Raises NoAnswerError if the list has no end: it repeats itself, has too many pages, or is longer
    than the deadline. For use within an operation, which nothing else ends once its caller has left.
    """
    tokens: set[str] = set()
    for page in found:
        yield page
        more = page.get(token)
        if not more:
            return
        if repr(more) in tokens:
            raise NoAnswerError("the list repeats itself")
        tokens.add(repr(more))
        if len(tokens) >= MAX_PAGES:
            raise NoAnswerError(f"the list has more than {MAX_PAGES:,} pages")
        if deadline.remaining() == 0:
            raise NoAnswerError("the list was not complete in time")


def describe_error(error: Exception) -> str:
    """Say in a few words why a call failed, without what the other side said."""
    if isinstance(error, NoAnswerError):
        return str(error)
    if isinstance(error, ClientError):
        return str(error.response.get("Error", {}).get("Code", "ClientError"))
    return type(error).__name__


def explain_error(error: Exception) -> str:
    """Say why a call failed, with what AWS said about it."""
    if isinstance(error, NoAnswerError):
        return f"{error}; check that the function reaches AWS (in a VPC: an endpoint or a NAT)"
    if isinstance(error, (ClientError, BotoCoreError)):
        return " ".join(str(error).split())
    kind = type(error).__name__
    return f"the answer is not one of AWS ({kind}); a proxy may have answered in its place"


@cache
def _threads(service: str, _endpoint: str | None) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_THREADS, thread_name_prefix=f"call-{service}")


def _endpoint() -> str | None:
    """Where all calls of this process go, if not to AWS."""
    return os.environ.get("AWS_ENDPOINT_URL")


def get_client(service: str, *, seconds: float = 3, tries: int = 2) -> Any:  # noqa: ANN401 -- the adapter that asks knows the client's type
    """The client of a service, kept for warm runs. Safe to use from several threads.

    Each try may take `seconds` to connect, and as many again for the answer.
    """
    with _MAKING:  # to make one is not safe
        # A client goes to one endpoint: who points the process elsewhere gets another.
        return _client(service, _endpoint(), seconds, tries)


@cache
def _client(service: str, _endpoint: str | None, seconds: float, tries: int) -> object:
    config = Config(
        connect_timeout=seconds,
        read_timeout=seconds,
        retries={"mode": "standard", "total_max_attempts": tries},
        max_pool_connections=_THREADS,
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
