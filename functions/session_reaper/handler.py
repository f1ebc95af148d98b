"""The Lambda entry point: from an event to the report of a run."""

# ruff: noqa: E402 -- what is imported stays: who looks through it for garbage meanwhile loses 15 ms
import gc

gc.disable()

from dataclasses import replace
from functools import partial
from threading import Semaphore
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from session_reaper.aws import PUBLISH_SECONDS
from session_reaper.deadline import Deadline
from session_reaper.directory import Directory
from session_reaper.memory import MEMORY_SECONDS, UNREADABLE, recall, remember
from session_reaper.news import compared, not_delivered
from session_reaper.observability import (
    emit_run_metrics,
    emit_target_metrics,
    logger,
)
from session_reaper.policy import Mode, Policy
from session_reaper.policy_source import load_policy
from session_reaper.reap import Operation, apply, check, reap, record, run_on_target
from session_reaper.report import Report, as_document, fitting, recordings
from session_reaper.request import (
    RunRequest,
    effective_mode,
    is_scheduled,
    policy_of_run,
    read_request,
)
from session_reaper.run import run
from session_reaper.settings import Notify, read_settings
from session_reaper.sns import publish
from session_reaper.summary import summarize

gc.freeze()
gc.enable()

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aws_lambda_powertools.utilities.typing import LambdaContext

    from session_reaper.errors import PublishError

# Lambda takes an answer of 6,291,556 bytes, and CloudWatch a line of 1 MB: what is longer would make
# an error of a run that has done everything, or no JSON of its line.
_ANSWER_BYTES: Final = 6_000_000
_LOG_BYTES: Final = 1_000_000
_LAST_SHARE: Final = 0.3  # kept back of the time of a function that has little


def lambda_handler(event: object, context: "LambdaContext") -> dict[str, Any]:
    """Deal with all that the event asks for; returns product.md's document.

    Raises ConfigurationError before anything is touched, PublishError if the summary did not go
    out. Trouble with a target is in the report.
    """
    began = monotonic()
    remaining = context.get_remaining_time_in_millis() / 1000
    end = Deadline(remaining)
    kept_back = min(MEMORY_SECONDS + PUBLISH_SECONDS, _LAST_SHARE * remaining)
    deadline = Deadline(remaining - kept_back)
    settings = read_settings()
    request = read_request(event)
    policy = policy_of_run(load_policy(settings.policy), request)
    mode = effective_mode(settings.mode, policy.mode, request.mode)
    run_id = context.aws_request_id or str(uuid4())
    logger.append_keys(run_id=run_id, mode=str(mode))
    # Who has just changed a secret and tries it by hand wants it read.
    directory = Directory(settings, fresh=not is_scheduled(event))
    work = partial(run_on_target, _operation(request, policy, mode), directory)
    targets = () if mode is Mode.OFF else run(directory, request.targets, work, deadline)
    report = Report(run_id=run_id, mode=mode, targets=targets)
    failures: Mapping[str, PublishError] = {}
    try:
        # What was asked for specially is told in any case, and says nothing of what is usual.
        table = settings.memory_table if request.is_usual and targets else None
        known = recall(table, end) if table else ()
        if known is None:
            report = replace(report, memory_problem=UNREADABLE)
        now, whole = time(), not request.targets
        report, learned = compared(report, known or (), now, settings.remind_after, whole=whole)
        if report.is_news or settings.notify is Notify.ALWAYS:
            topics = [settings.topic_arn]
            if report.is_critical and settings.critical_topic_arn:
                topics.append(settings.critical_topic_arn)
            failures = publish(summarize(report, settings.place, now), topics, end)
    finally:
        # No bug in what is told may keep what was done out of the log.
        for target in report.targets:
            if settings.target_metrics:
                emit_target_metrics(target)
        document = as_document(report)
        logger.info("run", extra=fitting(document, _LOG_BYTES))
    if table:
        untold = settings.topic_arn in failures
        remember(table, not_delivered(report, now) if untold else learned, end)
    for failure in failures.values():
        raise failure
    emit_run_metrics(report, monotonic() - began)
    if request.record:  # for the one who asked; too long for the log
        return {**document, "looks": recordings(report)}
    return fitting(document, _ANSWER_BYTES)


def _operation(request: RunRequest, policy: Policy, mode: Mode) -> Operation:
    if request.record or request.check:
        return record if request.record else check
    if request.apply:
        return partial(apply, policy, mode, request.apply)
    return _reaping(policy, mode)


def _reaping(policy: Policy, mode: Mode) -> Operation:
    most = policy.limits.max_per_run
    quota = None if most is None else Semaphore(most)
    return partial(reap, policy, mode, quota)
