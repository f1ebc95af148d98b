"""Finds the targets of a run: reads their secrets, and asks RDS where the instances are."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from threading import Lock
from typing import TYPE_CHECKING, Final, TypeVar

from session_reaper.aws.rds import UNLISTED, list_instances
from session_reaper.aws.secrets_manager import BATCH, PROCESS_CACHE, SecretCache, Secrets
from session_reaper.deadline import Deadline
from session_reaper.errors import ConfigurationError, DeadlineError
from session_reaper.observability import log_bug
from session_reaper.postgres.tls import resolve_host
from session_reaper.report.model import TargetReport, record_error, record_unfinished
from session_reaper.runs.parallel import Job, run_jobs
from session_reaper.runs.target_names import Found, select_by_name
from session_reaper.settings import Settings, Tag
from session_reaper.targets.fallback import use_fallback
from session_reaper.targets.providers import is_instance_of_rds
from session_reaper.targets.secret_document import (
    SecretError,
    parse_secret,
    resolve_targets,
)
from session_reaper.targets.target import (
    Endpoint,
    RdsListing,
    Secret,
    Target,
    TargetKey,
    name_of_secret,
)

if TYPE_CHECKING:
    from mypy_boto3_secretsmanager import SecretsManagerClient

T = TypeVar("T")
U = TypeVar("U")


class TargetDiscovery:
    """Finds the targets of one run, and rereads their secrets when a login fails. Thread-safe."""

    def __init__(
        self,
        settings: Settings,
        *,
        bypass_cache: bool,
        cache: SecretCache = PROCESS_CACHE,
        client: "SecretsManagerClient | None" = None,
        list_at_rds: Callable[[Deadline], RdsListing] = list_instances,
    ) -> None:
        """`bypass_cache`: read each secret from AWS. `client`: in place of the shared one."""
        account = settings.topic_arn.split(":")[4]
        self._settings = settings
        self._secrets = Secrets(account, cache, bypass_cache=bypass_cache, client=client)
        self._list_at_rds = list_at_rds
        self._listing: RdsListing | None = None
        self._listing_lock = Lock()

    def find(self, names: Sequence[str], deadline: Deadline) -> Sequence[Found]:
        """Return the targets with these names, or all; a report in place of each one not found.

        Raises ConfigurationError if a name is unknown, or if there is no target at all.
        """
        deadline = deadline.capped_at_share(0.5)  # the rest is for the targets
        tags = [self._settings.target_secret_tag] if self._settings.target_secret_tag else []
        list_tagged = partial(self._secrets.list_tagged, deadline=deadline)
        listed = _convert_all(list_tagged, tags, _report_unlisted_tag, deadline)
        unlisted = [each for each in listed if isinstance(each, TargetReport)]
        tagged = sorted(each for each in listed if isinstance(each, str))
        ids = [*dict.fromkeys([*self._settings.target_secrets, *tagged])]
        if not ids and not unlisted:
            raise ConfigurationError("TARGET_SECRET_TAG", "no secret has this tag")
        secrets = [*self._read_all(ids, deadline)]
        # Half of the time, so that the other targets are resolved even if RDS does not answer.
        resolve = partial(self._resolve, deadline=deadline.capped_at_share(0.5))
        found = _convert_all(resolve, secrets, _report_unparsed, deadline)
        # A secret may be found by name, by ARN and by tag.
        unique = {each.key if isinstance(each, Target) else id(each): each for each in found}
        return [*unlisted, *select_by_name(_add_addresses([*unique.values()], deadline), names)]

    def reread(self, target: Target, deadline: Deadline) -> Target:
        """Return the target as its secret describes it now. Raises TargetError."""
        for each in self._resolve(self._secrets.reread(target.secret_arn, deadline), deadline):
            if each.key == target.key:
                # Not in the secret: the name that `find` made unique, and what the run found out.
                return replace(each, name=target.name, pause_unknown=target.pause_unknown)
        return target

    def resolve_fallback(self, target: Target, deadline: Deadline) -> Target:
        """Return the target with its fallback secret's credentials. Raises TargetError."""
        secret = self._secrets.reread(target.fallback_secret or "", deadline)
        return use_fallback(target, secret, partial(self.list_instances, deadline))

    def _read_all(self, ids: Sequence[str], deadline: Deadline) -> Iterator[Secret | TargetReport]:
        def make_job(batch: Sequence[str]) -> Job[Sequence[Secret | SecretError]]:
            names = ", ".join(map(name_of_secret, batch))
            return Job(name=names, initial=(), run=lambda _: self._secrets.read(batch, deadline))

        batches = [ids[n : n + BATCH] for n in range(0, len(ids), BATCH)]
        results = run_jobs([*map(make_job, batches)], deadline)
        for batch, result in zip(batches, results, strict=True):
            for secret_id, read in zip_longest(batch, result.latest):
                if isinstance(read, Secret):
                    yield read
                    continue
                report = _report_secret(name_of_secret(secret_id), secret_id)
                # Without an error, its job did not end.
                yield record_error(report, read) if read else record_unfinished(report, result.bug)

    def list_instances(self, deadline: Deadline) -> RdsListing:
        """List RDS's instances once per run, even if that fails."""
        with self._listing_lock:
            if self._listing is None:
                try:
                    self._listing = self._list_at_rds(deadline)
                except Exception as bug:  # noqa: BLE001 -- most targets can be found without RDS
                    log_bug("a bug while listing the instances of RDS", bug)
                    self._listing = UNLISTED
            return self._listing

    def _resolve(self, secret: Secret, deadline: Deadline) -> Sequence[Target]:
        """Parse a secret, list RDS's instances if it needs them, and return its targets."""
        parsed = parse_secret(secret, whole_clusters=self._settings.whole_clusters)
        listing = self.list_instances(deadline) if parsed.needs_rds else RdsListing()
        return resolve_targets(parsed, listing)


def _report_unlisted_tag(tag: Tag) -> TargetReport:
    """Build the report of a tag whose secrets are unknown."""
    name = f"tag {tag.key}={tag.value}"
    return TargetReport(name=name, key=TargetKey(name))


def _report_unparsed(secret: Secret) -> TargetReport:
    return _report_secret(secret.name, secret.arn)


def _report_secret(name: str, secret_id: str) -> TargetReport:
    """Build the report of a secret whose targets are unknown."""
    return TargetReport(name=name, secret=name, key=TargetKey(secret_id))


def _convert_all(
    convert: Callable[[T], Sequence[U]],
    given: Iterable[T | TargetReport],
    report: Callable[[T], TargetReport],
    deadline: Deadline,
) -> list[U | TargetReport]:
    """Convert values; keep reports, and build one with `report` where that fails or comes too late.

    Not in parallel, because threads would only take turns.
    """
    found: list[U | TargetReport] = []
    for one in given:
        if isinstance(one, TargetReport):
            found.append(one)
            continue
        try:
            deadline.check()
            found += convert(one)
        except SecretError as error:
            found.append(record_error(replace(report(one), name=error.target), error))
        except DeadlineError as error:
            found.append(record_error(report(one), error))
        except Exception as bug:  # noqa: BLE001 -- a bug in one must not hide the others
            unfinished = record_unfinished(report(one), bug)
            log_bug("a bug while finding a target", bug, target=unfinished.name)
            found.append(unfinished)
    return found


def _add_addresses(found: Sequence[Found], deadline: Deadline) -> Sequence[Found]:
    """Add the addresses of hosts to targets, where they can show which hosts are one server."""
    places = list(dict.fromkeys(t.endpoint for t in found if isinstance(t, Target)))
    # Instances of RDS are servers of their own, whatever their addresses.
    if len(places) < 2 or all(is_instance_of_rds(place.host) for place in places):  # noqa: PLR2004 -- two to compare
        return found

    def make_job(place: Endpoint) -> Job[tuple[str, ...]]:
        return Job(name=place.host, initial=(), run=lambda _: resolve_host(place.host, place.port))

    # A name that does not resolve in this time only costs the comparison.
    resolved = run_jobs([*map(make_job, places)], deadline.capped_at(_RESOLVE_SECONDS))
    addresses = dict(zip(places, (result.latest for result in resolved), strict=True))
    return [
        replace(each, addresses=addresses[each.endpoint]) if isinstance(each, Target) else each
        for each in found
    ]


_RESOLVE_SECONDS: Final = 2.0
