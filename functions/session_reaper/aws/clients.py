"""AWS clients, and calls that end by a deadline.

A client's timeouts bound each read of a socket. They do not bound name resolution, a list of
addresses, or an answer that arrives byte by byte. Each call therefore runs in a thread of its own,
and its caller waits until the deadline at most. The call may still finish later, so every call must
be safe to repeat.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from threading import Lock
from time import monotonic
from typing import Any, Final, Generic, TypeVar

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.loaders import Loader
from botocore.parsers import ResponseParserError

from session_reaper.deadline import Deadline
from session_reaper.errors import NoAnswerError, NoThreadError
from session_reaper.settings import read_aws_endpoint

T = TypeVar("T")

MAX_PAGES: Final = 1000
"""Pages of one list: 100,000 secrets or instances."""

AWS_ERRORS: Final = (
    NoAnswerError,
    *(ClientError, BotoCoreError),
    # If a proxy answers with a page of its own, botocore's parsers raise these, and so does the
    # code that reads the parsed answer.
    *(ResponseParserError, AttributeError, LookupError, TypeError, ValueError),
)
"""The exceptions of a call. Catch them only around the call and the reading of its answer."""

_ERROR_CODE: Final = re.compile(r"[A-Za-z][A-Za-z0-9.]{0,79}")
_MESSAGE_LENGTH: Final = 1000  # characters; messages about missing permissions contain long ARNs
_HEADER_OR_MARKUP: Final = re.compile(r"[<{]|x-amz-|authorization:|aws4-hmac", re.IGNORECASE)

# Per service. A call that never ends keeps its thread, so this also bounds what a broken service
# takes of the 1,024 threads that Lambda allows.
_THREADS: Final = 16
_client_lock: Final = Lock()


class PendingCall(Generic[T]):
    """A call that runs in another thread."""

    def __init__(self, service: str, operation: Callable[[], T], deadline: Deadline) -> None:
        """Start the operation in one of the threads for calls to this service."""
        self._operation = operation
        self._deadline = deadline
        self._began = monotonic()
        self._is_awaited = True
        self._future: Future[T] | None = None
        self._refusal = NoAnswerError("no time is left for the call")
        if deadline.remaining() > 0:
            try:
                self._future = _make_pool(service, read_aws_endpoint()).submit(self._run)
            except RuntimeError:  # no thread can be started, but the call is in the queue
                self._is_awaited = False
                self._refusal = NoThreadError("no thread for the call")

    def result(self) -> T:
        """Wait for the operation; return what it returned, or raise what it raised.

        Raises NoAnswerError if it has not ended by the deadline, or had no time to begin;
        NoThreadError if no thread could be started for it.
        """
        if self._future is None:
            raise self._refusal
        wait([self._future], self._deadline.remaining())
        if not self._future.done():
            self._is_awaited = False
            self._future.cancel()
            raise NoAnswerError(f"no answer in {monotonic() - self._began:.1f} s")
        return self._future.result()

    def _run(self) -> T:
        if not self._is_awaited:
            raise NoAnswerError("the caller did not wait for the call")
        return self._operation()


def call(service: str, operation: Callable[[], T], deadline: Deadline) -> T:
    """Run an operation that calls this service, and wait for its result until the deadline.

    Raises NoAnswerError, or what the operation raises.
    """
    return PendingCall(service, operation, deadline).result()


def iterate_pages(
    pages: Iterable[Mapping[str, Any]], token_key: str, deadline: Deadline
) -> Iterator[Any]:
    """Yield the pages of a list. `token_key` is the key of the token for the next page.

    Raises NoAnswerError if a token is repeated, if there are too many pages, or if the deadline has
    passed. An operation that lists needs this, because it runs on after its caller has stopped
    waiting.
    """
    tokens: set[str] = set()
    for page in pages:
        yield page
        token = page.get(token_key)
        if not token:
            return
        if repr(token) in tokens:
            raise NoAnswerError("the list repeats itself")
        tokens.add(repr(token))
        if len(tokens) >= MAX_PAGES:
            raise NoAnswerError(f"the list has more than {MAX_PAGES:,} pages")
        if deadline.remaining() == 0:
            raise NoAnswerError("the list was not complete in time")


def describe_error(error: Exception) -> str:
    """Describe why a call failed in a few words, without the text of the answer."""
    if isinstance(error, NoAnswerError):
        return str(error)
    if isinstance(error, ClientError):
        return _get_error_code(error) or "the answer is not from AWS"
    return type(error).__name__


def explain_error(error: Exception) -> str:
    """Explain why a call failed, with the message from AWS.

    The message of an answer that is not from AWS is left out: a proxy's page may repeat the
    request, and with it the function's credentials.
    """
    if isinstance(error, NoAnswerError):
        return f"{error}; check that the function can reach AWS (in a VPC: an endpoint or a NAT)"
    if isinstance(error, ClientError):
        code = _get_error_code(error)
        message = str(error.response.get("Error", {}).get("Message", ""))
        is_short_line = len(message) <= _MESSAGE_LENGTH and message.isprintable()
        if code and is_short_line and not _HEADER_OR_MARKUP.search(message):
            return f"{code}: {message}"
        kind = code or "an error without a code"
    elif isinstance(error, BotoCoreError):
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    else:
        kind = type(error).__name__
    return f"the answer is not from AWS ({kind}); a proxy may have answered instead"


def _get_error_code(error: ClientError) -> str | None:
    """Return the code of an error if it has the form of AWS's codes."""
    code = error.response.get("Error", {}).get("Code")
    return code if isinstance(code, str) and _ERROR_CODE.fullmatch(code) else None


@cache
def _make_pool(service: str, _endpoint: str | None) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_THREADS, thread_name_prefix=f"call-{service}")


def get_client(service: str, *, seconds: float = 3, tries: int = 2) -> Any:  # noqa: ANN401 -- each adapter knows its client's type
    """Return the client of a service, kept for warm runs. Safe to use from several threads.

    Each try takes at most `seconds` to connect, and as long again for the answer.
    """
    with _client_lock:  # boto3 sessions are not thread-safe, clients are
        return _make_client(service, read_aws_endpoint(), seconds, tries)


@cache
def _make_client(service: str, _endpoint: str | None, seconds: float, tries: int) -> object:
    config = Config(
        connect_timeout=seconds,
        read_timeout=seconds,
        retries={"mode": "standard", "total_max_attempts": tries},
        max_pool_connections=_THREADS,
    )
    session: Any = get_session()  # its stubs accept literal service names only
    return session.client(service, config=config)


@cache
def get_session() -> boto3.Session:
    """Return the session of all clients, kept for warm runs."""
    core = botocore.session.get_session()
    core.register_component("data_loader", _Loader())
    return boto3.Session(botocore_session=core)


class _Loader(Loader):
    """Skips data that the first client would read; docs/decisions.md has the figures."""

    def list_available_services(self, type_name: str) -> list[str]:  # noqa: ARG002 -- botocore's signature
        """Return our services, and those from which a profile on a laptop gets its credentials.

        botocore searches the folders of all its 400 services, twice.
        """
        ours = ["cloudwatch", "dynamodb", "rds", "secretsmanager", "sns", "sqs", "ssm"]
        return [*ours, "signin", "sso", "sso-oidc", "sts"]

    def load_data_with_path(self, name: str) -> tuple[Any, str]:
        """Load a file of botocore's data, except the 1.2 MB of endpoints.

        Each of our services has endpoint rules of its own, which botocore prefers.
        """
        if name == "endpoints":
            return {"partitions": []}, self.BUILTIN_DATA_PATH
        return super().load_data_with_path(name)
