"""Where the targets are: from the settings to every instance that is to be dealt with."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from session_reaper.deadline import Deadline
from session_reaper.errors import ConfigurationError
from session_reaper.parallel import Job, JobResult, run_jobs
from session_reaper.rds import Rds
from session_reaper.report import TargetReport, failed, unfinished
from session_reaper.secrets_manager import BATCH, Secrets
from session_reaper.settings import Settings, Tag
from session_reaper.targets import Auth, Secret, SecretError, Target, by_fallback, read_targets

T = TypeVar("T")
_Given = TypeVar("_Given")
_Found = Target | TargetReport  # or why it was not


class Directory:
    """The targets of one run, and their credentials whenever those are needed."""

    def __init__(self, settings: Settings, *, fresh: bool) -> None:
        """`fresh`: read every secret anew, whatever an earlier run of this process has read."""
        self._settings = settings
        account = settings.topic_arn.split(":")[4]
        self._secrets = Secrets(account, fresh=fresh)
        self._rds = Rds()

    def find(self, names: Sequence[str], deadline: Deadline) -> Sequence[_Found]:
        """The targets of these names, or all; a report in place of each that is not to be had.

        Raises ConfigurationError if a name is nobody's, or if there is no target at all.
        """
        deadline = deadline.capped_at(deadline.remaining() / 2)  # the other half is for the targets
        given = self._settings.target_secrets
        tags = [self._settings.target_secret_tag] if self._settings.target_secret_tag else []
        listing = [(tag, [f"tag {tag.key}={tag.value}"]) for tag in tags]
        tagged = _gather(self._tagged, listing, deadline)
        unlisted = [each for each in tagged if isinstance(each, TargetReport)]
        ids = [*dict.fromkeys([*given, *(each for each in tagged if isinstance(each, str))])]
        if not ids and not unlisted:
            raise ConfigurationError("TARGET_SECRET_TAG", "no secret bears this tag")
        batches = [tuple(ids[n : n + BATCH]) for n in range(0, len(ids), BATCH)]
        secrets = _gather(self._read, [(batch, batch) for batch in batches], deadline)
        listed_by = deadline.capped_at(deadline.remaining() / 2)  # else the secrets' own hosts do
        describe = partial(self._described, deadline=listed_by)
        found = _distinct(_gather(describe, [(each, [each.name]) for each in secrets], deadline))
        return [*unlisted, *_named(found, names)]

    def again(self, target: Target, deadline: Deadline) -> Target:
        """The same target as its secret describes it now. Raises TargetError."""
        secret = self._secrets.again(target.secret_arn)
        for each in self._targets(secret, deadline):
            if each.name == target.name:
                return each
        return target

    def fallback(self, target: Target) -> Target:
        """The target with its fallback secret's role. Raises TargetError."""
        return by_fallback(target, self._secrets.again(target.fallback_secret or ""))

    def authorized(self, target: Target) -> Target:
        """The target with a password that is good for the next minutes. Raises TargetError."""
        return self._rds.authorized(target) if target.auth is Auth.IAM else target

    def _targets(self, secret: Secret, deadline: Deadline) -> tuple[Target, ...]:
        whole = self._settings.whole_clusters
        instances = partial(self._rds.instances, deadline)
        return read_targets(secret, instances, whole_clusters=whole)

    # -- jobs: each returns reports in place of what it could not find --------------------------------

    def _tagged(self, tag: Tag) -> Sequence[str | TargetReport]:
        try:
            return self._secrets.tagged(tag)
        except SecretError as error:
            return [failed(TargetReport(name=error.target), error)]

    def _read(self, ids: Sequence[str]) -> Sequence[Secret | TargetReport]:
        return [
            failed(TargetReport(name=read.target), read) if isinstance(read, SecretError) else read
            for read in self._secrets.read(ids)
        ]

    def _described(self, secret: Secret | TargetReport, deadline: Deadline) -> Sequence[_Found]:
        if isinstance(secret, TargetReport):
            return [secret]
        try:
            return self._targets(secret, deadline)
        except SecretError as error:
            return [failed(TargetReport(name=error.target), error)]


def _gather(
    do: Callable[[_Given], Sequence[T | TargetReport]],
    given: Iterable[tuple[_Given, Sequence[str]]],
    deadline: Deadline,
) -> list[T | TargetReport]:
    """Do a job for everything given, at the same time; return what all of them found.

    A job that does not end leaves a report for each of its names.
    """

    def job(one: _Given, names: Sequence[str]) -> Job[Sequence[T | TargetReport]]:
        initial = [TargetReport(name=name) for name in names]
        return Job(name=", ".join(names), initial=initial, run=lambda _: do(one))

    jobs = [job(one, names) for one, names in given]
    found: list[T | TargetReport] = []
    for result in run_jobs(jobs, deadline):
        found += result.latest if result.is_complete else _unfinished(result)
    return found


def _unfinished(result: JobResult[Sequence[T | TargetReport]]) -> Iterator[TargetReport]:
    for each in result.latest:
        if isinstance(each, TargetReport):
            yield unfinished(each, result.bug)


def _distinct(found: Sequence[_Found]) -> Sequence[_Found]:
    """Each once, though one secret may be given by name, by ARN and by tag."""
    by_key = {(i.secret_arn, i.name) if isinstance(i, Target) else id(i): i for i in found}
    return tuple(by_key.values())


def _named(found: Sequence[_Found], names: Sequence[str]) -> Sequence[_Found]:
    """Those of these names, or groups of them. A name that nobody has is a mistake."""
    by_name: dict[str, list[_Found]] = defaultdict(list)
    for each in found:
        for name in {each.name, each.group if isinstance(each, Target) else each.name}:
            by_name[name].append(each)
    for index, name in enumerate(names):
        if name not in by_name:
            problem = f"no target is named {name}; there are {', '.join(sorted(by_name))}"
            raise ConfigurationError(f"event.targets[{index}]", problem)
    wanted = {id(each) for name in names for each in by_name[name]}
    return [each for each in found if not names or id(each) in wanted]
