"""Records the calls that the package makes to AWS."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from session_reaper.aws import clients as aws

if TYPE_CHECKING:
    from collections.abc import Iterator

_HOOK: Final = "before-sign"  # botocore calls it for every try and for presigned tokens
_SERVICES: Final = {"monitoring": "cloudwatch"}  # by the name that it signs under


@contextmanager
def record_calls() -> Iterator[list[str]]:
    """Record every call that the package's clients make within the block, as service:Operation."""
    calls: list[str] = []

    def note(**signing: Any) -> None:  # noqa: ANN401 -- botocore's own
        service = _SERVICES.get(signing["signing_name"], signing["signing_name"])
        calls.append(f"{service}:{signing['operation_name']}")

    _forget_clients()  # a client has the hooks that its session had when it was made
    aws.get_session().events.register(_HOOK, note)
    try:
        yield calls
    finally:
        _forget_clients()


def _forget_clients() -> None:
    aws._make_client.cache_clear()  # noqa: SLF001
    aws.get_session.cache_clear()
