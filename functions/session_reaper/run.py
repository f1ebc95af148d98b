"""All targets, at the same time; no one's trouble is another's."""

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from threading import Thread

from session_reaper.deadline import Deadline
from session_reaper.errors import ConfigurationError, DeadlineError
from session_reaper.observability import logger
from session_reaper.report import Failure, TargetReport, TargetStatus, failed
from session_reaper.secrets_manager import Secrets
from session_reaper.settings import Settings
from session_reaper.targets import SecretError, Target

_GRACE = 0.25  # seconds in which a target whose time is over may still say what it did


Work = Callable[[Target, Deadline], Iterator[TargetReport]]
"""What is done to one target; each report replaces the one before."""


def run(
    settings: Settings, names: Sequence[str], work: Work, deadline: Deadline
) -> tuple[TargetReport, ...]:
    """Do the work on the targets of these names, or on all. Raises ConfigurationError."""
    secrets = Secrets()
    ids = dict.fromkeys(settings.target_secrets)
    unlisted = []
    if settings.target_secret_tag:
        try:
            ids |= dict.fromkeys(secrets.tagged(settings.target_secret_tag))
        except SecretError as error:  # the targets that were named are dealt with all the same
            unlisted = [failed(TargetReport(name=error.target), error)]
    if not ids and not unlisted:
        raise ConfigurationError("TARGET_SECRET_TAG", "no secret bears this tag")
    read = _latest_of_all([_read(secrets, secret_id) for secret_id in ids], deadline)
    wanted = _named(_distinct(read), names)
    targets = [target for target in wanted if isinstance(target, Target)]
    unread = [report for report in wanted if isinstance(report, TargetReport)]
    reaped = _latest_of_all([work(target, deadline) for target in targets], deadline)
    return (*unlisted, *unread, *(report for report in reaped if isinstance(report, TargetReport)))


def _read(secrets: Secrets, secret_id: str) -> Iterator[Target | TargetReport]:
    yield failed(TargetReport(name=secret_id), DeadlineError())
    try:
        yield secrets.target(secret_id)
    except SecretError as error:
        yield failed(TargetReport(name=error.target), error)


def _distinct(read: Sequence[Target | TargetReport]) -> Sequence[Target | TargetReport]:
    """Each once, though one secret may be given by name, by ARN and by tag."""
    by_secret = {i.secret_arn if isinstance(i, Target) else id(i): i for i in read}
    return tuple(by_secret.values())


def _named(
    read: Sequence[Target | TargetReport], names: Sequence[str]
) -> Sequence[Target | TargetReport]:
    """Those of these names. A name that nobody has is a mistake, found before anything is done."""
    known = {item.name for item in read}
    for index, name in enumerate(names):
        if name not in known:
            problem = f"no target is named {name}; there are {', '.join(sorted(known))}"
            raise ConfigurationError(f"event.targets[{index}]", problem)
    return [item for item in read if not names or item.name in names]


class _Worker(Thread):
    """Advances one target's work; `latest` is the last that it said."""

    def __init__(self, work: Iterator[Target | TargetReport]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self.latest = next(work)  # what is true if nothing more is heard

    def run(self) -> None:
        try:
            for latest in self._work:
                self.latest = latest
        except Exception as error:  # noqa: BLE001 -- the bulkhead: a bug that one target brings out must not hide the others
            # Not the error's own text: it may hold anything.
            trace = traceback.format_tb(error.__traceback__)
            extra = {"target": self.latest.name, "error": type(error).__name__, "trace": trace}
            logger.error("a target's work ended with a bug", extra=extra)
            self.latest = _crashed(self.latest, error)


def _crashed(latest: Target | TargetReport, error: Exception) -> TargetReport:
    known = latest if isinstance(latest, TargetReport) else TargetReport(name=latest.name)
    failure = Failure(
        code="internal",
        message=f"session-reaper has a bug: {type(error).__name__}",
        hint="Please report it with the traceback in the log.",
    )
    return replace(known, status=TargetStatus.FAILED, error=failure)


def _latest_of_all(
    works: Sequence[Iterator[Target | TargetReport]], deadline: Deadline
) -> list[Target | TargetReport]:
    """Do all at the same time: the last that each said when all are done or the time is over."""
    workers = [_Worker(work) for work in works]
    for worker in workers:
        worker.start()
    over = deadline.plus(_GRACE)
    for worker in workers:
        worker.join(over.seconds())
    latest = [worker.latest for worker in workers]
    deadline.end()  # who is still at it finds its connection shut
    return latest
