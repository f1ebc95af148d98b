"""Several works at the same time, none of which can hold up or hide the others."""

import traceback
from collections.abc import Callable, Iterable, Iterator
from threading import Semaphore, Thread
from typing import Generic, TypeVar

from session_reaper.deadline import Deadline
from session_reaper.observability import logger

T = TypeVar("T")

# Lambda lets a function have 1,024 threads and as many open files, sockets included: some are for the
# rest. https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html
_ROOM = Semaphore(900)
_GRACE = 0.25  # seconds in which a work whose time is over may still say what it did


class _Worker(Thread, Generic[T]):
    """Advances one work; `latest` is the last that it said."""

    def __init__(self, name: str, work: Iterator[T], crashed: Callable[[T, Exception], T]) -> None:
        super().__init__(daemon=True, name=name)
        self._work = work
        self._crashed = crashed
        self._room = _ROOM
        self.latest = next(work)  # what is true if nothing more is heard

    def run(self) -> None:
        try:
            for latest in self._work:
                self.latest = latest
        # A bug that one target brings out must not keep the run from the others. It is not hidden:
        # it is logged with its traceback here, and `crashed` puts it into the report.
        except Exception as error:  # noqa: BLE001 -- the bulkhead: logged, reported, and only this work ends
            # Not the error's own text: it may hold anything.
            trace = traceback.format_tb(error.__traceback__)
            extra = {"target": self.name, "error": type(error).__name__, "trace": trace}
            logger.error("a target's work ended with a bug", extra=extra)
            self.latest = self._crashed(self.latest, error)
        finally:
            self._room.release()


def latest_of_all(
    works: Iterable[tuple[str, Iterator[T]]],
    crashed: Callable[[T, Exception], T],
    deadline: Deadline,
) -> list[T]:
    """Do all at the same time: the last that each said when all are done or the time is over.

    Each work has a name, for the log. `crashed` makes of the last that a work said what is to be
    said after a bug ended it.
    """
    workers = [_Worker(name, work, crashed) for name, work in works]
    started = 0
    for worker in workers:
        if not _ROOM.acquire(timeout=deadline.seconds()):
            break  # so many hang, here or still from before, that there was no place for the rest
        try:
            worker.start()
        except RuntimeError:  # the process may have no more threads, whatever takes them
            _ROOM.release()
            break
        started += 1
    over = deadline.plus(_GRACE)
    for worker in workers[:started]:
        worker.join(over.seconds())
    latest = [worker.latest for worker in workers]
    deadline.end()  # who is still at it finds its connection shut
    return latest
