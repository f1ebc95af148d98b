"""Where the targets are: from the settings to every instance that is to be dealt with."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Final, TypeVar

from session_reaper.concurrency import latest_of_all
from session_reaper.deadline import Deadline
from session_reaper.documents import named
from session_reaper.errors import ConfigurationError, DeadlineError, TargetError
from session_reaper.fallback import (
    FallbackRefusal,
    RdsListing,
    decide_fallback,
    needs_rds,
    read_fallback,
)
from session_reaper.rds import Rds
from session_reaper.report import TargetReport, crashed, failed
from session_reaper.secrets_manager import BATCH, Secrets
from session_reaper.settings import Settings, Tag
from session_reaper.targets import (
    Auth,
    Secret,
    SecretError,
    Target,
    TargetKey,
    name_of_secret,
    read_targets,
)

T = TypeVar("T")
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
        deadline = deadline.within(deadline.seconds() / 2)  # the other half is for the targets
        given = self._settings.target_secrets
        tags = [self._settings.target_secret_tag] if self._settings.target_secret_tag else []
        listing = [(f"tag {tag.key}={tag.value}", self._tagged(tag, deadline)) for tag in tags]
        tagged = _flat(latest_of_all(listing, _crashed, deadline))
        unlisted = [each for each in tagged if isinstance(each, TargetReport)]
        ids = [*dict.fromkeys([*given, *(each for each in tagged if isinstance(each, str))])]
        if not ids and not unlisted:
            raise ConfigurationError("TARGET_SECRET_TAG", "no secret bears this tag")
        batches = [ids[n : n + BATCH] for n in range(0, len(ids), BATCH)]
        reading = [(", ".join(batch), self._read(batch, deadline)) for batch in batches]
        secrets = _flat(latest_of_all(reading, _crashed, deadline))
        listed_by = deadline.within(deadline.seconds() / 2)  # else the secrets' own hosts will do
        describing = [(secret.name, self._described(secret, listed_by)) for secret in secrets]
        found = _distinct(_flat(latest_of_all(describing, _crashed, deadline)))
        return [*unlisted, *_named(found, names)]

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

    def authorized(self, target: Target) -> Target:
        """The target with a password that is good for the next minutes. Raises TargetError."""
        return self._rds.authorized(target) if target.auth is Auth.IAM else target

    def _targets(self, secret: Secret, deadline: Deadline) -> tuple[Target, ...]:
        whole = self._settings.whole_clusters
        instances = partial(self._rds.instances, deadline)
        return read_targets(secret, instances, whole_clusters=whole)

    # -- works, which each say first what is true if they never come to an end -----------------------

    def _tagged(self, tag: Tag, deadline: Deadline) -> Iterator[Sequence[str | TargetReport]]:
        name = f"tag {tag.key}={tag.value}"
        report = TargetReport(name=name, key=TargetKey(name))
        yield [failed(report, DeadlineError())]
        try:
            yield self._secrets.tagged(tag, deadline)
        except SecretError as error:
            yield [failed(report, error)]

    def _read(
        self, ids: Sequence[str], deadline: Deadline
    ) -> Iterator[Sequence[Secret | TargetReport]]:
        reports = [_unread(secret_id) for secret_id in ids]
        yield [failed(report, DeadlineError()) for report in reports]
        yield [
            failed(report, read) if isinstance(read, SecretError) else read
            for report, read in zip(reports, self._secrets.read(ids, deadline), strict=True)
        ]

    def _described(
        self, secret: Secret | TargetReport, deadline: Deadline
    ) -> Iterator[Sequence[_Found]]:
        if isinstance(secret, TargetReport):
            yield [secret]
            return
        key = TargetKey(secret.arn)
        report = TargetReport(name=secret.name, secret=secret.name, key=key)
        yield [failed(report, DeadlineError())]
        try:
            yield self._targets(secret, deadline)
        except SecretError as error:
            yield [failed(replace(report, name=error.target), error)]


def _unread(secret_id: str) -> TargetReport:
    """The report of a secret of which only the id is known."""
    name = name_of_secret(secret_id)
    return TargetReport(name=name, secret=name, key=TargetKey(secret_id))


def _flat(several: Iterable[Sequence[T]]) -> list[T]:
    return [each for few in several for each in few]


def _crashed(latest: Sequence[T | TargetReport], error: Exception) -> Sequence[T | TargetReport]:
    return [crashed(each, error) if isinstance(each, TargetReport) else each for each in latest]


def _distinct(found: Sequence[_Found]) -> Sequence[_Found]:
    """Each once, though one secret may be given by name, by ARN and by tag."""
    by_key = {i.key if isinstance(i, Target) else id(i): i for i in found}
    return tuple(by_key.values())


def _named(found: Sequence[_Found], names: Sequence[str]) -> Sequence[_Found]:
    """Those of these names, or groups of them, each by a name of its own.

    A target is found by the name in its secret, its group's, and the one it is reported by. A name
    that nobody has is a mistake.
    """
    by_name: dict[str, list[_Found]] = defaultdict(list)
    written, found = found, _with_unique_names(found)
    for before, each in zip(written, found, strict=True):
        group = each.group if isinstance(each, Target) else each.name
        for name in {before.name, each.name, group}:
            by_name[name].append(each)
    for index, name in enumerate(names):
        if name not in by_name:
            problem = f"no target is named {named(name)}; there are {', '.join(sorted(by_name))}"
            raise ConfigurationError(f"event.targets[{index}]", problem)
    wanted = {id(each) for name in names for each in by_name[name]}
    return [each for each in found if not names or id(each) in wanted]


def _with_unique_names(found: Sequence[_Found]) -> Sequence[_Found]:
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
