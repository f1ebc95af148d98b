"""Jobs that run at the same time, none of which can delay or hide another."""

import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Event
from typing import Final, Generic, TypeVar

from session_reaper.deadline import Deadline
from session_reaper.observability import logger

T = TypeVar("T")

# Lambda gives a function 1,024 threads and as many open files, sockets included; the rest of the
# process needs some. https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html
MAX_THREADS: Final = 900
_GRACE: Final = 0.25  # seconds in which a job whose time is over may still record its result

_pool = ThreadPoolExecutor(max_workers=MAX_THREADS, thread_name_prefix="job")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult(Generic[T]):
    """What one job had found when the run read it."""

    latest: T
    is_complete: bool = False  # False: the time was over, or a bug ended the job
    bug: Exception | None = None


class Progress(Generic[T]):
    """The latest result of one job: its thread writes it, the run reads it when the time is over.

    Each value replaces the one before, and must be true even if nothing follows it.
    """

    def __init__(self, latest: T) -> None:
        self._result = JobResult(latest=latest)
        self._ended = Event()

    @property
    def result(self) -> JobResult[T]:
        """What the job has found so far."""
        return self._result

    def update(self, latest: T) -> None:
        """Record an intermediate value: the job has more to do."""
        self._result = JobResult(latest=latest)

    def complete(self, latest: T) -> None:
        """Record a value that is whole; what may follow only adds to it."""
        self._result = JobResult(latest=latest, is_complete=True)

    def fail(self, bug: Exception) -> None:
        """Record that a bug ended the job; the latest value stays."""
        self._result = replace(self._result, is_complete=False, bug=bug)

    def end(self) -> None:
        """Record that the job's thread has left it."""
        self._ended.set()

    def wait(self, seconds: float) -> None:
        """Wait until the job's thread has left it, for so many seconds at most."""
        self._ended.wait(seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job(Generic[T]):
    """A piece of work for one thread."""

    name: str  # for the log
    initial: T  # the result if the job never starts
    run: Callable[[Progress[T]], T]  # returns the complete result


def run_jobs(
    jobs: Sequence[Job[T]], deadline: Deadline, pool: ThreadPoolExecutor = _pool
) -> list[JobResult[T]]:
    """Run all jobs at the same time; return what each has found when all end or the time is over.

    A bug in one job is logged with its traceback and ends that job only.
    """
    started = [(job, Progress(job.initial)) for job in jobs]
    for job, progress in started:
        try:
            pool.submit(_run_job, job, progress, deadline)
        except RuntimeError:
            # "can't start new thread": the pool has queued the job, and a thread that becomes free
            # takes it.
            logger.warning("no thread for a job yet", extra={"job": job.name})
    grace = deadline.extended_by(_GRACE)
    for _, progress in started:
        progress.wait(grace.remaining())
    return [progress.result for _, progress in started]


def _run_job(job: Job[T], progress: Progress[T], deadline: Deadline) -> None:
    try:
        if deadline.remaining():  # the run may have ended while the job was queued
            progress.complete(job.run(progress))
    # A bug that one target triggers must not keep the run from the others. It is not hidden: the
    # log has its traceback, and the run's report names it.
    except Exception as bug:  # noqa: BLE001 -- the bulkhead: logged, reported, and only this job ends
        # The error's own text may hold anything, so only its type is logged.
        trace = traceback.format_tb(bug.__traceback__)
        extra = {"target": job.name, "error": type(bug).__name__, "trace": trace}
        logger.error("a bug ended a job", extra=extra)
        progress.fail(bug)
    finally:
        progress.end()
