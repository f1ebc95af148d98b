"""Where the targets are: from the settings to every instance that is to be dealt with."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Final, TypeVar

from session_reaper.aws.rds import Rds
from session_reaper.aws.secrets_manager import BATCH, Secrets
from session_reaper.deadline import Deadline
from session_reaper.documents import key_label
from session_reaper.errors import ConfigurationError, TargetError
from session_reaper.report.model import TargetReport, record_error, record_unfinished
from session_reaper.runs.parallel import Job, JobResult, run_jobs
from session_reaper.settings import Settings, Tag
from session_reaper.targets.fallback import (
    FallbackRefusal,
    RdsListing,
    decide_fallback,
    needs_rds,
    read_fallback,
)
from session_reaper.targets.secret_document import SecretError, read_targets
from session_reaper.targets.target import Auth, Secret, Target, TargetKey, name_of_secret

T = TypeVar("T")
_Given = TypeVar("_Given")
_Found = Target | TargetReport  # or why it was not


class TargetDiscovery:
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
        listing = [(tag, [_report_unlisted_tag(tag)]) for tag in tags]
        tagged = _run_all(partial(self._tagged, deadline=deadline), listing, deadline)
        unlisted = [each for each in tagged if isinstance(each, TargetReport)]
        ids = [*dict.fromkeys([*given, *(each for each in tagged if isinstance(each, str))])]
        if not ids and not unlisted:
            raise ConfigurationError("TARGET_SECRET_TAG", "no secret bears this tag")
        batches = [tuple(ids[n : n + BATCH]) for n in range(0, len(ids), BATCH)]
        reading = [(batch, [_report_unread(secret_id) for secret_id in batch]) for batch in batches]
        secrets = _run_all(partial(self._read, deadline=deadline), reading, deadline)
        listed_by = deadline.capped_at(deadline.remaining() / 2)  # else the secrets' own hosts do
        describing = [(secret, [_report_undescribed(secret)]) for secret in secrets]
        describe = partial(self._described, deadline=listed_by)
        found = _deduplicate(_run_all(describe, describing, deadline))
        return [*unlisted, *_select_by_name(found, names)]

    def again(self, target: Target, deadline: Deadline) -> Target:
        """The same target as its secret describes it now. Raises TargetError."""
        secret = self._secrets.again(target.secret_arn, deadline)
        for each in self._targets(secret, deadline):
            if each.key == target.key:
                return replace(each, name=target.name)  # which discovery made unique
        return target

    def fallback(self, target: Target, deadline: Deadline) -> Target:
        """How the fallback secret connects to the target's server. Raises TargetError."""
        fallback = read_fallback(self._secrets.again(target.fallback_secret or "", deadline))
        listing = self._listing(deadline) if needs_rds(target, fallback) else RdsListing()
        decision = decide_fallback(target, fallback, listing)
        if isinstance(decision, FallbackRefusal):
            raise decision.as_error()
        return decision

    def _listing(self, deadline: Deadline) -> RdsListing:
        try:
            return RdsListing(instances=self._rds.instances(deadline))
        except TargetError as error:
            return RdsListing(problem=error.message)

    def with_iam_token(self, target: Target) -> Target:
        """The target with a password that is good for the next minutes. Raises TargetError."""
        return self._rds.with_iam_token(target) if target.auth is Auth.IAM else target

    def _targets(self, secret: Secret, deadline: Deadline) -> tuple[Target, ...]:
        whole = self._settings.whole_clusters
        instances = partial(self._rds.instances, deadline)
        return read_targets(secret, instances, whole_clusters=whole)

    # -- jobs: each returns reports in place of what it could not find --------------------------------

    def _tagged(self, tag: Tag, deadline: Deadline) -> Sequence[str | TargetReport]:
        try:
            return self._secrets.tagged(tag, deadline)
        except SecretError as error:
            return [record_error(_report_unlisted_tag(tag), error)]

    def _read(self, ids: Sequence[str], deadline: Deadline) -> Sequence[Secret | TargetReport]:
        found = zip(ids, self._secrets.read(ids, deadline), strict=True)
        return [
            record_error(_report_unread(secret_id), read) if isinstance(read, SecretError) else read
            for secret_id, read in found
        ]

    def _described(self, secret: Secret | TargetReport, deadline: Deadline) -> Sequence[_Found]:
        if isinstance(secret, TargetReport):
            return [secret]
        try:
            return self._targets(secret, deadline)
        except SecretError as error:
            return [record_error(replace(_report_undescribed(secret), name=error.target), error)]


def _report_unlisted_tag(tag: Tag) -> TargetReport:
    """Build the report of a list of secrets that is not known."""
    name = f"tag {tag.key}={tag.value}"
    return TargetReport(name=name, key=TargetKey(name))


def _report_unread(secret_id: str) -> TargetReport:
    """Build the report of a secret of which only the id is known."""
    name = name_of_secret(secret_id)
    return TargetReport(name=name, secret=name, key=TargetKey(secret_id))


def _report_undescribed(secret: Secret | TargetReport) -> TargetReport:
    """Build the report of a secret whose text does not describe a target yet."""
    if isinstance(secret, TargetReport):
        return secret
    return TargetReport(name=secret.name, secret=secret.name, key=TargetKey(secret.arn))


def _run_all(
    do: Callable[[_Given], Sequence[T | TargetReport]],
    given: Iterable[tuple[_Given, Sequence[TargetReport]]],
    deadline: Deadline,
) -> list[T | TargetReport]:
    """Do a job for everything given, at the same time; return what all of them found.

    A job that does not end leaves the reports that are given with it.
    """

    def job(one: _Given, reports: Sequence[TargetReport]) -> Job[Sequence[T | TargetReport]]:
        names = ", ".join(report.name for report in reports)
        return Job(name=names, initial=list(reports), run=lambda _: do(one))

    jobs = [job(one, reports) for one, reports in given]
    found: list[T | TargetReport] = []
    for result in run_jobs(jobs, deadline):
        found += result.latest if result.is_complete else _report_unfinished(result)
    return found


def _report_unfinished(result: JobResult[Sequence[T | TargetReport]]) -> Iterator[TargetReport]:
    for each in result.latest:
        if isinstance(each, TargetReport):
            yield record_unfinished(each, result.bug)


def _deduplicate(found: Sequence[_Found]) -> Sequence[_Found]:
    """Each once, though one secret may be given by name, by ARN and by tag."""
    by_key = {i.key if isinstance(i, Target) else id(i): i for i in found}
    return tuple(by_key.values())


def _select_by_name(found: Sequence[_Found], names: Sequence[str]) -> Sequence[_Found]:
    """Those of these names, or groups of them, each by a name of its own.

    A target is found by the name in its secret, its group's, and the one it is reported by. A name
    that nobody has is a mistake.
    """
    by_name: dict[str, list[_Found]] = defaultdict(list)
    written, found = found, _make_names_unique(found)
    for before, each in zip(written, found, strict=True):
        group = each.group if isinstance(each, Target) else each.name
        for name in {before.name, each.name, group}:
            by_name[name].append(each)
    for index, name in enumerate(names):
        if name not in by_name:
            problem = (
                f"no target is named {key_label(name)}; there are {', '.join(sorted(by_name))}"
            )
            raise ConfigurationError(f"event.targets[{index}]", problem)
    wanted = {id(each) for name in names for each in by_name[name]}
    return [each for each in found if not names or id(each) in wanted]


def _make_names_unique(found: Sequence[_Found]) -> Sequence[_Found]:
    """The same, told apart by secret and, if that is not enough, by ARN and instance."""
    levels = [0] * len(found)
    while True:
        names = [_name_at(level, each) for level, each in zip(levels, found, strict=True)]
        holders: dict[str, list[int]] = defaultdict(list)
        for index, name in enumerate(names):
            holders[name].append(index)
        alike = [index for several in holders.values() if len(several) > 1 for index in several]
        raised = [index for index in alike if levels[index] < _MOST_PRECISE]
        if not raised:
            return [replace(each, name=n) for each, n in zip(found, names, strict=True)]
        for index in raised:
            levels[index] += 1


_MOST_PRECISE: Final = 2


def _name_at(level: int, each: _Found) -> str:
    secret = each.secret_name if isinstance(each, Target) else each.secret
    identity = " ".join(part for part in (each.key.secret, each.key.instance) if part)
    return (each.name, f"{each.name} (secret {secret})", f"{each.name} ({identity})")[level]
