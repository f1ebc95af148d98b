from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from threading import Barrier, Event, Lock
from typing import TYPE_CHECKING, Any, cast

import pytest
from botocore.exceptions import ClientError
from session_reaper.aws.secrets_manager import KEEP_SECONDS, SecretCache
from session_reaper.deadline import Deadline
from session_reaper.errors import ConfigurationError
from session_reaper.policy.enums import Mode
from session_reaper.report.model import Failure, TargetReport, TargetStatus, record_unfinished
from session_reaper.runs.discovery import TargetDiscovery
from session_reaper.runs.parallel import (
    Chain,
    Job,
    JobResult,
    PostponeError,
    Progress,
    run_chains,
    run_jobs,
)
from session_reaper.runs.plan import RunPlan
from session_reaper.runs.request import RunRequest
from session_reaper.runs.run import run as run_plan
from session_reaper.runs.run_time import share_time
from session_reaper.settings import read_settings
from session_reaper.targets.target import RdsListing, Secret, Target

from tests.builders import a_policy, a_secret, a_target_report

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ARN = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:"


class Meta:
    endpoint_url = "https://secretsmanager.invalid"


class SecretsManager:
    """Stands in for botocore's client: secrets by name, all of them tagged reap=yes."""

    meta = Meta()

    def __init__(self, secrets: Mapping[str, object]) -> None:
        self._secrets = secrets
        self.calls: list[list[str]] = []  # the names that each call asked for

    def get_secret_value(self, *, SecretId: str) -> dict[str, object]:  # noqa: N803 -- botocore's name
        self.calls.append([SecretId])
        name = SecretId.removeprefix(ARN)
        if name not in self._secrets:
            raise ClientError({"Error": {"Code": "AccessDeniedException"}}, "GetSecretValue")
        return {"Name": name, "ARN": ARN + name, "SecretString": self._secrets[name]}

    def batch_get_secret_value(self, *, SecretIdList: list[str]) -> dict[str, Any]:  # noqa: N803 -- as above
        self.calls.append(list(SecretIdList))
        names = [secret_id.removeprefix(ARN) for secret_id in SecretIdList]
        found = [name for name in names if name in self._secrets]
        return {
            "SecretValues": [
                {"Name": name, "ARN": ARN + name, "SecretString": self._secrets[name]}
                for name in dict.fromkeys(found)
            ],
            "Errors": [
                {"SecretId": secret_id, "ErrorCode": "ResourceNotFoundException", "Message": "…"}
                for secret_id, name in zip(SecretIdList, names, strict=True)
                if name not in self._secrets
            ],
        }

    def get_paginator(self, _operation: str) -> SecretsManager:
        return self

    def paginate(self, **_filters: object) -> list[dict[str, Any]]:
        tags = [{"Key": "reap", "Value": "yes"}]
        return [{"SecretList": [{"ARN": ARN + name, "Tags": tags}]} for name in self._secrets]


def run(
    secrets: Mapping[str, object] | SecretsManager, *names: str, **settings: str
) -> tuple[TargetReport, ...]:
    return run_with_cache(SecretCache(), secrets, names, settings, bypass_cache=True)


def run_with_cache(
    cache: SecretCache,
    secrets: Mapping[str, object] | SecretsManager,
    names: tuple[str, ...],
    settings: dict[str, str],
    *,
    bypass_cache: bool,
) -> tuple[TargetReport, ...]:
    client: Any = secrets if isinstance(secrets, SecretsManager) else SecretsManager(secrets)
    topic = "arn:aws:sns:eu-west-1:123456789012:topic"
    plan = RunPlan(
        request=RunRequest(targets=names, record=True),
        settings=read_settings({"TOPIC_ARN": topic, **settings}),
        policy=a_policy(),
        mode=Mode.OBSERVE,
    )
    discovery = TargetDiscovery(
        plan.settings, bypass_cache=bypass_cache, cache=cache, client=client
    )
    reports, _ = run_plan(plan, discovery, share_time(10))
    return reports


BROKEN = a_secret(name="broken", host=None)  # fails before anything goes out to the network


@pytest.mark.parametrize(
    "settings",
    [
        {"TARGET_SECRETS": f"orders,{ARN}orders"},
        {"TARGET_SECRETS": "orders", "TARGET_SECRET_TAG": "reap=yes"},
        {"TARGET_SECRETS": f"{ARN}orders", "TARGET_SECRET_TAG": "reap=yes"},
    ],
    ids=["name and ARN", "name and tag", "ARN and tag"],
)
def test_a_secret_configured_twice_is_one_target(settings: dict[str, str]) -> None:
    # A name that is invalid without a look-up.
    secrets = {"orders": a_secret(host="no..such..host")}
    reports = run(secrets, **settings)
    assert [report.name for report in reports] == ["orders"]
    assert reports[0].status is TargetStatus.FAILED


def test_each_invalid_secret_has_a_report_with_its_own_error() -> None:
    secrets = {"a": BROKEN, "b": "no json", "c": a_secret(engine="mysql")}
    reports = run(secrets, TARGET_SECRETS="a,b,c")
    messages = [report.error.message for report in reports if report.error]
    assert messages[0].startswith("secret a: host ")
    assert messages[1].startswith("secret b: the text must be JSON")
    assert messages[2].startswith("secret c: engine mysql ")


def test_a_bug_while_parsing_a_secret_does_not_affect_the_others() -> None:
    class CANARY:
        """A value that Secrets Manager never returns, so that parsing it raises TypeError."""

    reports = run({"odd": CANARY(), "a": BROKEN}, TARGET_SECRETS="odd,a")
    codes = {report.name: report.error.code for report in reports if report.error}
    assert codes == {"odd": "internal", "broken": "secret"}
    assert "CANARY" not in repr(reports)


def test_a_bug_while_listing_rds_leaves_the_host_of_each_secret() -> None:
    calls = []

    def list_with_a_bug(deadline: Deadline) -> RdsListing:
        calls.append(deadline)
        raise ArithmeticError

    a_cluster = partial(a_secret, dbClusterIdentifier="orders", dbInstanceIdentifier=None)
    secrets = {name: a_cluster(host=f"{name}.example") for name in ("a", "b")}
    topic = "arn:aws:sns:eu-west-1:123456789012:topic"
    settings = read_settings({"TOPIC_ARN": topic, "TARGET_SECRETS": "a,b"})
    discovery = TargetDiscovery(
        settings,
        bypass_cache=True,
        cache=SecretCache(),
        client=cast("Any", SecretsManager(secrets)),
        list_at_rds=list_with_a_bug,
    )
    found = discovery.find([], Deadline(10))
    assert [each.host for each in found if isinstance(each, Target)] == ["a.example", "b.example"]
    assert len(calls) == 1


def test_secrets_are_read_in_batches_of_twenty_and_keep_their_own_errors() -> None:
    names = [f"s{n}" for n in range(45)]
    fake = SecretsManager({name: BROKEN for name in names if name != "s7"})
    reports = run(fake, TARGET_SECRETS=",".join(names))
    assert sorted(map(len, fake.calls)) == [5, 20, 20]
    messages = [report.error.message for report in reports if report.error]
    assert len(messages) == 45
    assert messages[7] == "secret s7 cannot be read: ResourceNotFoundException"
    assert reports[7].name == "s7"
    assert messages[8].startswith("secret s8: host ")


def test_a_secret_of_another_account_is_read_by_itself() -> None:
    """BatchGetSecretValue does not reach across accounts; GetSecretValue does."""

    class Elsewhere(SecretsManager):
        def batch_get_secret_value(self, *, SecretIdList: list[str]) -> dict[str, Any]:  # noqa: N803 -- as above
            here = super().batch_get_secret_value(SecretIdList=[SecretIdList[0]])
            error = {"SecretId": SecretIdList[1], "ErrorCode": "AccessDeniedException"}
            return {**here, "Errors": [error]}

        def get_secret_value(self, *, SecretId: str) -> dict[str, object]:  # noqa: N803 -- as above
            return super().get_secret_value(
                SecretId=SecretId.replace("999999999999", "123456789012")
            )

    theirs = f"{ARN}b".replace("123456789012", "999999999999")
    fake = Elsewhere({"a": BROKEN, "b": BROKEN})
    reports = run(fake, TARGET_SECRETS=f"a,{theirs}")
    assert [report.error.message for report in reports if report.error] == [
        "secret a: host is missing",
        "secret b: host is missing",
    ]
    assert fake.calls[-1] == [f"{ARN}b"]


def test_without_permission_for_batches_each_secret_is_read_by_itself() -> None:
    class Single(SecretsManager):
        def batch_get_secret_value(self, **_: object) -> dict[str, Any]:
            raise ClientError({"Error": {"Code": "AccessDeniedException"}}, "BatchGetSecretValue")

    fake = Single({"a": BROKEN, "b": "no json"})
    reports = run(fake, TARGET_SECRETS="a,b,c")
    assert fake.calls == [["a"], ["b"], ["c"]]
    assert [report.name for report in reports] == ["broken", "b", "c"]


def test_a_scheduled_run_uses_cached_secrets_for_fifteen_minutes() -> None:
    fake = SecretsManager({"a": BROKEN, "b": BROKEN})
    now = [1_000_000.0]
    cache = SecretCache(clock=lambda: now[0])

    def reads(*, bypass_cache: bool) -> list[list[str]]:
        fake.calls.clear()
        settings = {"TARGET_SECRETS": "a,b"}
        run_with_cache(cache, fake, (), settings, bypass_cache=bypass_cache)
        return [*fake.calls]

    assert reads(bypass_cache=False) == [["a", "b"]]
    assert reads(bypass_cache=False) == []
    assert reads(bypass_cache=True) == [["a", "b"]]
    now[0] += KEEP_SECONDS
    assert reads(bypass_cache=False) == [["a", "b"]]


def test_an_old_value_replaces_no_secret_that_was_created_again() -> None:
    cache = SecretCache()
    old, new = (Secret(name="a", arn=arn, text=arn) for arn in ("arn-1", "arn-2"))
    cache.keep("", "a", old)
    cache.keep("", "arn-1", old)
    cache.keep("", "a", new)
    cache.keep("", "arn-1", old)
    assert cache.find("", "a") == new


def test_a_secret_that_is_read_again_is_kept_under_all_its_ids() -> None:
    cache = SecretCache()
    cache.keep("", "a", Secret(name="a", arn="arn-1", text="before"))
    cache.keep("", "arn-1", Secret(name="a", arn="arn-1", text="after"))
    kept = cache.find("", "a")
    assert kept is not None
    assert kept.text == "after"


def test_to_keep_a_secret_compares_it_with_no_other() -> None:
    compared = 0

    class Arn(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += str(self) != str(other)
            return super().__eq__(other)

        def __ne__(self, other: object) -> bool:
            return not self == other

    cache = SecretCache()
    for number in range(1000):
        name = f"a-{number}"
        cache.keep("", name, Secret(name=name, arn=Arn(name), text=""))
    assert compared < 1000


def test_an_unknown_target_name_is_an_error() -> None:
    with pytest.raises(
        ConfigurationError, match=r"^event\.targets\[1\]: unknown target .*nobody.*; known: broken"
    ):
        run({"a": BROKEN}, "broken", "nobody", TARGET_SECRETS="a")


def test_a_request_selects_targets_by_name() -> None:
    secrets = {"a": BROKEN, "b": "no json"}
    for name in ("b", "broken"):
        reports = run(secrets, name, TARGET_SECRETS="a,b")
        assert [report.name for report in reports] == [name]


def test_two_broken_secrets_with_one_name_are_two_targets() -> None:
    reports = run({"a": BROKEN, "b": BROKEN}, TARGET_SECRETS="a,b")
    assert len(reports) == 2


def test_a_tag_that_no_secret_has_is_an_error() -> None:
    settings = {"TARGET_SECRET_TAG": "reap=ye"}
    with pytest.raises(ConfigurationError, match=r"^TARGET_SECRET_TAG: "):
        run({"a": BROKEN}, **settings)


def test_a_denied_listing_of_secrets_does_not_affect_configured_secrets() -> None:
    class Unlisted(SecretsManager):
        def get_paginator(self, _operation: str) -> SecretsManager:
            raise ClientError({"Error": {"Code": "AccessDeniedException"}}, "ListSecrets")

    fake = Unlisted({"a": BROKEN})
    tag = {"TARGET_SECRET_TAG": "reap=yes"}
    reports = run(fake, TARGET_SECRETS="a", **tag)
    assert [report.name for report in reports] == ["tag reap=yes", "broken"]


# -- all at the same time ---------------------------------------------------------------------------


def a_job(name: str, do: Callable[[Progress[str]], str]) -> Job[str]:
    return Job(name=name, initial=f"{name}, not begun", run=do)


def results(jobs: list[Job[str]], deadline: Deadline, threads: int = 50) -> list[JobResult[str]]:
    return run_jobs(jobs, deadline, ThreadPoolExecutor(threads))


def latest(jobs: list[Job[str]], deadline: Deadline, threads: int = 50) -> list[str]:
    return [result.latest for result in results(jobs, deadline, threads)]


def test_jobs_run_at_the_same_time() -> None:
    here, there = Event(), Event()

    def first(_: Progress[str]) -> str:
        here.set()
        assert there.wait(60)
        return "first"

    def second(_: Progress[str]) -> str:
        assert here.wait(60)
        there.set()
        return "second"

    assert latest([a_job("a", first), a_job("b", second)], Deadline(60)) == ["first", "second"]


def test_however_many_hang_the_run_waits_once() -> None:
    never = Event()

    def hang(progress: Progress[str]) -> str:
        progress.update("begun")
        never.wait(60)
        return "too late"

    start = time.monotonic()
    found = results([a_job("a", hang) for _ in range(40)], Deadline(2))
    never.set()
    assert time.monotonic() - start < 20  # one wait after the other would take 40 s
    assert [(result.latest, result.is_complete) for result in found] == [("begun", False)] * 40


class Counted(ThreadPoolExecutor):
    """A pool of one thread that counts the jobs that have been submitted and have not ended."""

    def __init__(self) -> None:
        super().__init__(1)
        self.most = self._open = 0
        self.has_many = Event()
        self._lock = Lock()

    def submit(
        self,
        *work: Any,  # noqa: ANN401
        **named: Any,  # noqa: ANN401
    ) -> Future[Any]:
        with self._lock:
            self._open += 1
            self.most = max(self.most, self._open)
        if self._open >= 32:
            self.has_many.set()
        future = super().submit(*work, **named)
        future.add_done_callback(self._end)
        return future

    def _end(self, _: Future[Any]) -> None:
        with self._lock:
            self._open -= 1


def test_of_many_jobs_few_begin_before_others_have_ended() -> None:
    pool = Counted()

    def job(_: Progress[str]) -> str:
        assert pool.has_many.wait(60)
        return "done"

    found = run_jobs([a_job("a", job)] * 2000, Deadline(600), pool)
    assert [result.latest for result in found] == ["done"] * 2000
    assert pool.most < 200


def test_jobs_that_hang_hold_the_others_back_for_a_moment_only() -> None:
    never = Event()

    def hang(progress: Progress[str]) -> str:
        progress.update("begun")
        never.wait(60)
        return "too late"

    found = latest([a_job("a", hang)] * 900, Deadline(4), threads=900)
    never.set()
    assert found == ["begun"] * 900


def test_a_result_that_is_complete_counts_even_if_more_was_to_come() -> None:
    never = Event()

    def go_on(progress: Progress[str]) -> str:
        progress.complete("done")
        never.wait(60)
        return "done, and more"

    (result,) = results([a_job("a", go_on)], Deadline(2))
    assert (result.latest, result.is_complete) == ("done", True)
    never.set()


def test_jobs_beyond_the_threads_wait_until_one_is_free() -> None:
    lock, running, most = Lock(), 0, 0
    pairs = Barrier(2, timeout=60)

    def work(name: str, _: Progress[str]) -> str:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        pairs.wait()  # both threads are busy, and a third would be counted
        with lock:
            running -= 1
        return name

    names = [f"target-{n}" for n in range(6)]
    jobs = [a_job(name, partial(work, name)) for name in names]
    assert latest(jobs, Deadline(60), threads=2) == names
    assert most == 2


def test_a_job_that_finds_no_thread_in_time_does_not_begin_later() -> None:
    never, pool = Event(), ThreadPoolExecutor(1)
    begun: list[str] = []

    def hang(progress: Progress[str]) -> str:
        begun.append("one")
        progress.update("begun")
        never.wait(60)
        return "too late"

    found = run_jobs([a_job("a", hang), a_job("b", hang)], Deadline(2), pool)
    assert [result.latest for result in found] == ["begun", "b, not begun"]
    never.set()
    pool.shutdown()
    assert begun == ["one"]


class Starved(ThreadPoolExecutor):
    """A pool in a process that can start so many threads and no more."""

    def __init__(self, threads: int) -> None:
        super().__init__(50)
        self._left = threads

    def _adjust_thread_count(self) -> None:
        if self._idle_semaphore.acquire(timeout=0):
            return
        if not self._left:
            raise RuntimeError("can't start new thread")
        self._left -= 1
        super()._adjust_thread_count()


def test_jobs_that_no_thread_can_be_started_for_wait_for_one_that_runs() -> None:
    def job(name: str) -> Job[str]:
        return a_job(name, lambda _: name)

    jobs = [job(name) for name in "abcdef"]
    found = run_jobs(jobs, Deadline(60), Starved(2))
    assert [result.latest for result in found] == [*"abcdef"]
    assert all(result.is_complete for result in found)


def test_a_process_that_can_start_no_thread_at_all_has_a_report_of_every_target() -> None:
    found = run_jobs([a_job("a", lambda _: "done")], Deadline(0.1), Starved(0))
    assert found == [JobResult(latest="a, not begun")]


def test_a_bug_is_logged_with_its_target_and_traceback(caplog: pytest.LogCaptureFixture) -> None:
    def break_down(_: Progress[str]) -> str:
        raise LookupError("CANARY")

    results([a_job("orders", break_down)], Deadline(60))
    (logged,) = (vars(record) for record in caplog.records)
    assert (logged["target"], logged["error"]) == ("orders", "LookupError")
    assert "in break_down" in logged["trace"][-1]


def test_a_bug_keeps_what_was_known_and_tells_no_more_than_its_kind() -> None:
    def break_down(progress: Progress[TargetReport]) -> TargetReport:
        progress.update(a_target_report(name="orders"))
        raise LookupError("CANARY")

    job = Job(name="orders", initial=TargetReport(name="orders"), run=break_down)
    (result,) = run_jobs([job], Deadline(60))
    report = record_unfinished(result.latest, result.bug)
    assert report.status is TargetStatus.FAILED
    assert report.slots == a_target_report().slots
    assert report.error is not None
    assert report.error.code == "internal"
    assert "LookupError" in report.error.message
    assert "CANARY" not in repr(report)


def test_a_report_cut_off_by_the_time_keeps_the_error_that_came_first() -> None:
    known = a_target_report(status=TargetStatus.FAILED, error=Failure(code="x", cause="", hint=""))
    assert record_unfinished(known, None) == known
    cut = record_unfinished(a_target_report(), None)
    assert cut.error is not None
    assert cut.error.code == "deadline"


# -- chains ----------------------------------------------------------------------------------------


def test_jobs_of_a_chain_run_in_order_and_a_postponed_one_last() -> None:
    began: list[str] = []

    def record_name(name: str) -> Callable[[Progress[str]], str]:
        def run(progress: Progress[str]) -> str:
            progress.update("half done")
            began.append(name)
            if began == ["a"]:
                raise PostponeError
            return name

        return run

    jobs = [a_job(name, record_name(name)) for name in "abc"]
    chain = Chain(jobs=jobs, may_split=lambda: False)
    ((*found,),) = run_chains([chain], Deadline(30), ThreadPoolExecutor(5))
    assert began == ["a", "b", "c", "a"]
    assert [result.latest for result in found] == ["a", "b", "c"]
    assert all(result.is_complete for result in found)


def test_a_bug_in_one_job_of_a_chain_ends_only_that_job() -> None:
    def fail(_: Progress[str]) -> str:
        raise ZeroDivisionError

    jobs = [a_job("a", fail), a_job("b", lambda _: "done")]
    ((first, second),) = run_chains([Chain(jobs=jobs, may_split=lambda: False)], Deadline(30))
    assert isinstance(first.bug, ZeroDivisionError)
    assert second.latest == "done"


def test_the_rest_of_a_chain_runs_in_parallel_once_it_may_split() -> None:
    barrier = Barrier(2, timeout=20)

    def meet(_: Progress[str]) -> str:
        barrier.wait()
        return "met"

    began = Event()

    def begin(_: Progress[str]) -> str:
        began.set()
        return "began"

    jobs = [a_job("a", begin), a_job("b", meet), a_job("c", meet)]
    (found,) = run_chains([Chain(jobs=jobs, may_split=began.is_set)], Deadline(30))
    assert [result.latest for result in found] == ["began", "met", "met"]


def test_a_job_that_takes_long_does_not_take_the_time_of_the_rest_of_its_chain() -> None:
    others = Barrier(3, timeout=20)

    def wait_for_others(_: Progress[str]) -> str:
        others.wait()
        return "met"

    jobs = [a_job(name, wait_for_others) for name in "abc"]
    (found,) = run_chains([Chain(jobs=jobs, may_split=lambda: False)], Deadline(2))
    assert [result.latest for result in found] == ["met", "met", "met"]
