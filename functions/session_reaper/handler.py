"""The Lambda entry point: from an event to the report of a run."""

from functools import partial
from threading import Semaphore
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from session_reaper.aws import PUBLISH_SECONDS
from session_reaper.deadline import Deadline
from session_reaper.directory import Directory
from session_reaper.observability import emit_metrics, logger
from session_reaper.policy import Mode, Policy
from session_reaper.policy_source import load_policy
from session_reaper.reap import Deal, check, reap, record, visited
from session_reaper.report import Report, as_document, recordings
from session_reaper.request import effective_mode, is_scheduled, policy_of_run, read_request
from session_reaper.run import run
from session_reaper.settings import Notify, read_settings
from session_reaper.sns import publish
from session_reaper.summary import summarize

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

_PUBLISH_SHARE: Final = 0.3  # of the time of a function that has little


def lambda_handler(event: object, context: "LambdaContext") -> dict[str, Any]:
    """Deal with all that the event asks for; returns product.md's document.

    Raises ConfigurationError before anything is touched, PublishError if the summary did not go
    out. Trouble with a target is in the report.
    """
    remaining = context.get_remaining_time_in_millis() / 1000
    deadline = Deadline(remaining - min(PUBLISH_SECONDS, _PUBLISH_SHARE * remaining))
    settings = read_settings()
    request = read_request(event)
    policy = policy_of_run(load_policy(settings.policy), request)
    mode = effective_mode(settings.mode, policy.mode, request.mode)
    run_id = context.aws_request_id or str(uuid4())
    logger.append_keys(run_id=run_id, mode=str(mode))
    # Who has just changed a secret and tries it by hand wants it read.
    directory = Directory(settings, fresh=not is_scheduled(event))
    deal = _reaping(policy, mode)
    if request.record or request.check:
        deal = record if request.record else check
    work = partial(visited, deal, directory)
    targets = () if mode is Mode.OFF else run(directory, request.targets, work, deadline)
    report = Report(run_id=run_id, mode=mode, targets=targets)
    document = as_document(report)
    logger.info("run", extra=document)
    for target in targets:
        emit_metrics(target)
    if report.is_news or settings.notify is Notify.ALWAYS:
        publish(summarize(report), settings.topic_arn)
    if request.record:  # for the one who asked; too long for the log
        return {**document, "looks": recordings(report)}
    return document


def _reaping(policy: Policy, mode: Mode) -> Deal:
    most = policy.limits.max_per_run
    quota = None if most is None else Semaphore(most)
    return partial(reap, policy, mode, quota)
