"""Runs jobs in parallel, so that none of them can delay or hide another."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from queue import Empty, SimpleQueue
from threading import Event
from typing import Final, Generic, NamedTuple, TypeVar

from session_reaper.deadline import Deadline
from session_reaper.observability import log_bug, logger

T = TypeVar("T")

# Lambda allows 1,024 threads and as many open files, sockets included; calls to AWS need some too.
# https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html
MAX_THREADS: Final = 900
_GRACE: Final = 0.25  # seconds after the deadline in which a job may still record its result
_CHAINED_SHARE: Final = 0.5  # of the time; after it, no job waits for another of its chain
# A thousand logins that begin at once share the processor, and then many take longer than a login
# may. Each thread that waits for the interpreter's lock also takes processor time.
_MOST_YOUNG: Final = 64
_YOUNG_SECONDS: Final = 2.0
_YOUNG_SHARE: Final = 0.05  # of the whole time, at most

_pool = ThreadPoolExecutor(max_workers=MAX_THREADS, thread_name_prefix="job")


class JobResult(NamedTuple, Generic[T]):
    """The result of one job.

    It is incomplete if the run's time was over or a bug ended the job.
    """

    latest: T
    is_complete: bool = False
    bug: Exception | None = None


class Progress(Generic[T]):
    """The latest result of one job: its thread writes it, and the run reads it.

    Each value replaces the one before, and must be true even if no other follows.
    """

    def __init__(self, latest: T) -> None:
        self._result = JobResult(latest=latest)
        self._ended = Event()

    @property
    def result(self) -> JobResult[T]:
        """The result of the job so far."""
        return self._result

    def update(self, latest: T) -> None:
        """Record a value that the job will replace."""
        self._result = JobResult(latest=latest)

    def complete(self, latest: T) -> None:
        """Record a complete value; a later one may only add to it."""
        self._result = JobResult(latest=latest, is_complete=True)

    def fail(self, bug: Exception) -> None:
        """Record the bug that ended the job; the latest value stays."""
        self._result = JobResult(latest=self._result.latest, bug=bug)

    def end(self) -> None:
        """Record that the job has ended."""
        self._ended.set()

    def wait(self, seconds: float) -> None:
        """Wait until the job has ended, for so many seconds at most."""
        self._ended.wait(seconds)


class Job(NamedTuple, Generic[T]):
    """Work for one thread.

    `initial` is the result if the job never starts. `run` returns the complete result.
    """

    name: str
    initial: T
    run: Callable[[Progress[T]], T]


class PostponeError(Exception):
    """Raised by a job that should run again after the other jobs of its chain."""


class Chain(NamedTuple, Generic[T]):
    """Jobs that run one after another.

    Once a job has ended and `may_split` returns true, or half of the time is over, those that have
    not begun run in parallel: a job that takes long must not take the time of the others.
    """

    jobs: Sequence[Job[T]]
    may_split: Callable[[], bool] = lambda: True


def run_jobs(
    jobs: Sequence[Job[T]], deadline: Deadline, pool: ThreadPoolExecutor = _pool
) -> list[JobResult[T]]:
    """Run all jobs in parallel; return their results once all end or the time is over.

    A bug is logged with its traceback and ends only its own job.
    """
    chains = [Chain(jobs=(job,)) for job in jobs]
    return [result for (result,) in run_chains(chains, deadline, pool)]


def run_chains(
    chains: Iterable[Chain[T]], deadline: Deadline, pool: ThreadPoolExecutor = _pool
) -> list[list[JobResult[T]]]:
    """Run all chains in parallel; return the results of their jobs, as `run_jobs` does."""
    started = [_StartedChain(chain, deadline, pool) for chain in chains]
    waiting = deque(started)
    begun: list[_StartedChain[T]] = []
    chained = deadline.capped_at_share(_CHAINED_SHARE)
    young = _YoungChains(deadline)
    while waiting and young.wait(chained):
        chain = waiting.popleft()
        young.add(chain.submit(chain.queue))
        begun.append(chain)
    for chain in begun:
        if len(chain.jobs) > 1:
            chain.wait(chained)
            chain.split(chain.queue)
    for chain in waiting:
        for each in chain.jobs:
            if young.wait(deadline):
                young.add(chain.submit(deque([each])))
    grace = deadline.extended_by(_GRACE)
    for chain in started:
        chain.wait(grace)
    return [[each.progress.result for each in chain.jobs] for chain in started]


class _StartedJob(NamedTuple, Generic[T]):
    job: Job[T]
    progress: Progress[T]


class _StartedChain(Generic[T]):
    """The jobs of a chain; the thread that runs it and the run itself take them from one queue."""

    def __init__(self, chain: Chain[T], deadline: Deadline, pool: ThreadPoolExecutor) -> None:
        self.jobs = [_StartedJob(job, Progress(job.initial)) for job in chain.jobs]
        self.queue = deque(self.jobs)
        self._may_split = chain.may_split
        self._deadline = deadline
        self._pool = pool

    def submit(self, jobs: deque[_StartedJob[T]]) -> Future[None] | None:
        """Run jobs one after another in one thread; return None if no thread can be started yet."""
        name = jobs[0].job.name
        try:
            return self._pool.submit(self._run, jobs)
        except RuntimeError:
            # "can't start new thread". The jobs are queued, and another thread will run them.
            logger.warning("no thread for a job yet", extra={"job": name})
            return None

    def split(self, jobs: deque[_StartedJob[T]]) -> None:
        """Let those of the jobs that have not begun run in parallel."""
        for each in _take_all(jobs):
            self.submit(deque([each]))

    def wait(self, until: Deadline) -> None:
        """Wait until all jobs have ended, or the deadline has passed."""
        for each in self.jobs:
            each.progress.wait(until.remaining())

    def _run(self, jobs: deque[_StartedJob[T]]) -> None:
        for started in _take_all(jobs):
            job, progress = started
            try:
                if self._deadline.remaining():  # the job may have been queued until now
                    progress.complete(job.run(progress))
            except PostponeError:
                progress.update(job.initial)
                jobs.append(started)
                continue
            except Exception as bug:  # noqa: BLE001 -- a bug on one target must not stop the others' jobs
                log_bug("a bug ended a job", bug, target=job.name)
                progress.fail(bug)
            progress.end()
            if self._may_split():
                self.split(jobs)


def _take_all(jobs: deque[T]) -> Iterator[T]:
    """Take one job after another, including those added meanwhile, until none is left."""
    with suppress(IndexError):
        while True:
            yield jobs.popleft()


class _YoungChains:
    """The chains that began a moment ago and have not ended; those that hang do not stay young."""

    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline
        self._youth = min(_YOUNG_SECONDS, _YOUNG_SHARE * deadline.remaining())
        self._young: dict[int, Deadline] = {}
        self._ended: SimpleQueue[int] = SimpleQueue()
        self._numbers = count()

    def add(self, chain: Future[None] | None) -> None:
        """Add a chain that was submitted; None if it is queued and its end will not be known."""
        number = next(self._numbers)
        self._young[number] = self._deadline.capped_at(self._youth)
        if chain is not None:
            chain.add_done_callback(lambda _: self._ended.put(number))

    def wait(self, until: Deadline) -> bool:
        """Wait until one more may begin; return False if that takes too long."""
        while len(self._young) >= _MOST_YOUNG and until.remaining():
            oldest, youth = next(iter(self._young.items()))
            try:
                ended = self._ended.get(timeout=min(youth.remaining(), until.remaining()))
                self._young.pop(ended, None)
            except Empty:
                if not youth.remaining():
                    del self._young[oldest]
        return until.remaining() > 0
