"""The verdict on a run: a word, such as RESOLVED or ACTION NEEDED, and the reason."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from enum import StrEnum
from itertools import chain
from typing import Final, NamedTuple

from session_reaper.decision.explain import ExplainedOutcome
from session_reaper.policy.enums import Mode
from session_reaper.report.headline import count_of, write_recoveries, write_settings
from session_reaper.report.model import Outcome, Report, StackProblem, TargetReport, TargetStatus
from session_reaper.report.text import printable
from session_reaper.summary.groups import join_names
from session_reaper.summary.prose import Name, Prose, Statement, join_prose, to_plain
from session_reaper.summary.wording import OF_FUNCTION, Wording


class VerdictWord(StrEnum):
    """The first word of a summary."""

    ACTION_NEEDED = "ACTION NEEDED"
    RESOLVED = "RESOLVED"
    RECOVERED = "RECOVERED"
    OBSERVED = "OBSERVED"
    QUIET = "QUIET"
    CHECKED = "CHECKED"
    EXPLAINED = "EXPLAINED"
    RECORDED = "RECORDED"
    APPLIED = "APPLIED"
    OFF = "OFF"


class RunVerdict(NamedTuple):
    """The first word of a summary, and the reason for it."""

    word: VerdictWord
    detail: Prose

    def __str__(self) -> str:
        return f"{self.word}: {to_plain(self.detail)}"


def choose_verdict(report: Report, wording: Wording = OF_FUNCTION) -> RunVerdict:
    """Return the verdict on a run."""
    if report.configuration_error:
        return _make_verdict(VerdictWord.ACTION_NEEDED, _CONFIGURATION)
    if report.mode is Mode.OFF:
        return _make_verdict(VerdictWord.OFF, "no target was examined, because the mode is off.")
    # The sessions are the answer, also where applications cannot connect.
    if any(target.explained is not None for target in report.targets) and not report.failed:
        return _make_verdict(VerdictWord.EXPLAINED, _count_explained(report))
    results = " ".join(_list_results(report, wording))
    joined = join_prose(_list_unresolved(report, wording), "; ")
    if joined:
        return _make_verdict(VerdictWord.ACTION_NEEDED, *joined, f". {results}".rstrip())
    return _choose_for_manual_run(report) or _choose_for_reaping(report, results)


_CONFIGURATION: Final = (
    "the configuration is invalid. Nothing is examined and nothing is terminated until it is fixed."
)


def _make_verdict(word: VerdictWord, *detail: str | Name | Statement) -> RunVerdict:
    first, *others = detail
    if isinstance(first, str):
        first = first[:1].upper() + first[1:]
    return RunVerdict(word=word, detail=(first, *others))


def _count_explained(report: Report) -> str:
    explained = [each for target in report.targets for each in target.explained or ()]
    counts = Counter(each.outcome for each in explained)
    parts = [f"{counts[outcome]} {outcome}" for outcome in ExplainedOutcome if counts[outcome]]
    found = f"{count_of(len(explained), 'session')}: {', '.join(parts)}" if parts else "no sessions"
    return f"{found}. Nothing was touched."


def _choose_for_manual_run(report: Report) -> RunVerdict | None:
    """Return the verdict on a `record`, `check` or `apply` run; None for any other."""
    recorded = sum(target.recorded is not None for target in report.targets)
    if recorded:
        found = f"{_count_with_verb(recorded, 'target', 'targets')} recorded."
        return _make_verdict(VerdictWord.RECORDED, f"{found} Nothing was changed.")
    if any(target.checked for target in report.targets):
        issues = count_of(sum(len(target.advice) for target in report.targets), "issue")
        return _make_verdict(VerdictWord.CHECKED, f"{issues} found. Nothing was changed.")
    applied = [target.applied for target in report.targets if target.applied is not None]
    if applied:
        settings = write_settings(chain.from_iterable(applied))
        return _make_verdict(VerdictWord.APPLIED, f"{settings}. No session was touched.")
    return None


def _choose_for_reaping(report: Report, results: str) -> RunVerdict:
    if report.counts[Outcome.TERMINATED] or report.counts[Outcome.CANCELLED]:
        return _make_verdict(VerdictWord.RESOLVED, results)
    if report.counts[Outcome.SPARED] and report.mode is Mode.ENFORCE:
        return _make_verdict(VerdictWord.ACTION_NEEDED, f"no session was terminated. {results}")
    if results:
        return _make_verdict(VerdictWord.OBSERVED, results)
    recovered = [target for target in report.targets if target.recovered]
    if recovered:
        ended = write_recoveries(chain.from_iterable(target.recovered for target in recovered))
        return _make_verdict(
            VerdictWord.RECOVERED, join_names(recovered), f" recovered ({printable(ended)})."
        )
    return _make_verdict(VerdictWord.QUIET, "there was nothing to terminate.")


def _list_results(report: Report, wording: Wording) -> Iterator[str]:
    """List what happened to sessions; in an `apply` run they are only the evidence for settings."""
    if any(target.applied is not None for target in report.targets):
        return
    if number := report.counts[Outcome.TERMINATED]:
        yield f"{_count_with_verb(number, 'session', 'sessions')} terminated and verified gone."
    if number := report.counts[Outcome.CANCELLED]:
        yield f"{_count_with_verb(number, 'query', 'queries')} cancelled."
    if number := report.counts[Outcome.WOULD_TERMINATE]:
        is_observing = report.mode is Mode.OBSERVE
        cause = wording.if_enforced if is_observing else wording.if_all_enforced
        yield f"{cause}, {count_of(number, 'session')} would be terminated."
    number = report.counts[Outcome.SPARED]
    if number and report.mode is Mode.ENFORCE:
        yield f"{_count_with_verb(number, 'session', 'sessions')} spared."
    if report.mode is Mode.OBSERVE and any(target.results for target in report.targets):
        yield "Nothing was touched."


def _count_with_verb(number: int, singular: str, plural: str) -> str:
    return f"1 {singular} was" if number == 1 else f"{number} {plural} were"


def _list_unresolved(report: Report, wording: Wording) -> Iterator[Prose]:
    """List everything that the run leaves unresolved."""
    targets_by_problem: dict[str, list[TargetReport]] = defaultdict(list)
    for target in report.targets:
        for problem in _list_problems(target):
            targets_by_problem[problem].append(target)
    for problem, targets in targets_by_problem.items():
        unreached = count_of(len(targets), "target")
        if wording.sees_all:
            unreached = f"{len(targets)} of {count_of(len(report.targets), 'target')}"
        subject = f"{unreached} " if problem == _UNREACHED else ""
        yield (f"{subject}{problem} ", join_names(targets))
    if report.mode is Mode.ENFORCE:
        if number := report.counts[Outcome.LINGERING]:
            has = "was signalled but has" if number == 1 else "were signalled but have"
            yield (f"{count_of(number, 'session')} {has} not exited",)
        if number := report.counts[Outcome.DENIED]:
            yield (f"the reaper's role may not terminate {count_of(number, 'session')}",)


_UNREACHED: Final = "could not be reached:"


def _list_problems(target: TargetReport) -> Iterator[str]:
    """List what is unresolved on one target, in words that the target's name follows."""
    if not target.is_fine:
        yield _describe_status(target)
    if target.is_exhausted:
        yield "every slot is still in use on"
    if target.blockers:
        yield "a blocker that the reaper cannot end holds up sessions on"
    if target.protected_to_report:
        block = any(group.waiters for group in target.protected_to_report)
        yield f"a rule matches protected sessions that {'block others' if block else 'hold slots'} on"
    if target.reported_issues:
        yield "the stack reports issues of its own on"
    for secret in target.failed_secrets:
        yield f"secret {printable(secret.name)} failed, so the run used another one on"
    if target.fallback_secret is not None:
        yield "the reaper could connect only with the fallback secret on"


_PROBLEMS: Final[Mapping[StackProblem | TargetStatus, str]] = {
    StackProblem.SILENT: "no report arrives from",
    StackProblem.CONFIGURATION: "the configuration is invalid in",
    StackProblem.INVALID_MESSAGE: "reports cannot be read in",
    TargetStatus.BLIND: "the reaper cannot see other sessions on",
    TargetStatus.FULL: "no connection slot is left on",
    TargetStatus.BREAKER: "the breaker stopped all terminations on",
}


def _describe_status(target: TargetReport) -> str:
    if problem := _PROBLEMS.get(target.stack_problem or target.status):
        return problem
    if target.slots is None:
        return _UNREACHED
    return "settings were refused on" if target.applied else "the run was not completed on"
