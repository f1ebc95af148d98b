"""Groups of condemned sessions and of failed targets, so that a summary has one entry per cause."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from ipaddress import ip_address, ip_network
from itertools import chain, takewhile
from typing import Final, NamedTuple

from session_reaper.deadline import Deadline
from session_reaper.decision.model import Decision
from session_reaper.policy.durations import format_duration
from session_reaper.report.headline import OUTCOME_PHRASES, count_of, write_headline
from session_reaper.report.model import Failure, Outcome, SessionResult, TargetReport, TargetStatus
from session_reaper.report.text import join_first, printable, truncate
from session_reaper.summary.prose import Name

_MOST_NAMES: Final = 5
_MOST_CAUSES: Final = 5  # of one failure
_NAME_LENGTH: Final = 60
_NAME_TAIL: Final = 39  # the end of a long name distinguishes it from similar ones
_QUERY_LENGTH: Final = 200
_MOST_COUNTED: Final = 50  # sessions of a group whose comment tags are read
_ORDER: Final = sorted(Outcome, key=lambda outcome: outcome is Outcome.ESCAPED)


@dataclass(frozen=True, kw_only=True)  # no slots: they leave no room for a cached_property
class Group:
    """Sessions of one application, client network and role with the same outcome and rule."""

    outcome: Outcome
    rule: str
    application: str  # application@client network
    role: str
    count: int
    oldest: Decision  # on the session that is longest in its state
    decisions: Sequence[Decision]
    comment_tags: Sequence[str] = ()
    deadline: Deadline | None = None  # for reading comment tags, which takes up to 2 ms each

    @cached_property
    def tags(self) -> str:
        """The most frequent value of each comment tag."""
        return ", ".join(_list_frequent_tags(self.decisions, self.comment_tags, self.deadline))

    @property
    def headline(self) -> str:
        """The number of sessions, and their outcome."""
        return f"{count_of(self.count, 'session')} {OUTCOME_PHRASES[self.outcome]}"

    @property
    def age(self) -> str:
        """The time for which the oldest session has been in its state."""
        return format_duration(self.oldest.session.idle_seconds)

    @property
    def query(self) -> str:
        """The oldest session's last statement, redacted."""
        return printable(self.oldest.session.redacted_query, _QUERY_LENGTH)

    @property
    def reason(self) -> str:
        """The reason why the oldest session was condemned."""
        return printable(self.oldest.reason)


class FailureGroup(NamedTuple):
    """Targets with the same failure and cause, or with the rarest causes of the same failure."""

    targets: Sequence[TargetReport]
    status: TargetStatus
    code: str
    message: str


@dataclass(frozen=True, kw_only=True)  # no slots: they leave no room for a cached_property
class TargetDigest:
    """One target that the summary reports."""

    report: TargetReport
    deadline: Deadline | None = None  # for reading comment tags

    @cached_property
    def headline(self) -> str:
        """The line that says what happened."""
        return write_headline(self.report)

    @cached_property
    def groups(self) -> Sequence[Group]:
        """The condemned sessions by outcome, the largest group of each first."""
        tags = self.report.policy.comment_tags if self.report.policy else ()
        return group_sessions(self.report.results, tags, self.deadline)


def group_sessions(
    results: Iterable[SessionResult],
    comment_tags: Sequence[str] = (),
    deadline: Deadline | None = None,
) -> Sequence[Group]:
    """Group sessions by outcome, rule, application, client network and role, largest first.

    Comment tags are read until the deadline.
    """
    members: dict[tuple[Outcome, str, str, str], list[Decision]] = defaultdict(list)
    for result in results:
        session, rule = result.decision.session, result.decision.rule
        application = f"{session.application or '(no name)'}@{mask_client(session.client)}"
        key = (result.outcome, rule.name if rule else "", application, session.role_label)
        members[key].append(result.decision)
    groups = [
        Group(
            outcome=outcome,
            rule=printable(rule, 63),
            application=printable(application, 90),
            role=printable(role, 63),
            count=len(decisions),
            oldest=max(decisions, key=lambda decision: decision.session.idle_seconds),
            decisions=decisions,
            comment_tags=comment_tags,
            deadline=deadline,
        )
        for (outcome, rule, application, role), decisions in members.items()
    ]
    return sorted(groups, key=lambda group: (_ORDER.index(group.outcome), -group.count))


def _list_frequent_tags(
    decisions: Sequence[Decision], keys: Sequence[str], deadline: Deadline | None
) -> Iterator[str]:
    """Yield the most frequent value of each tag, with its number unless all sessions have it."""
    in_time = takewhile(
        lambda _: deadline is None or deadline.remaining(), decisions[:_MOST_COUNTED]
    )
    tags = [decision.session.tags(keys) for decision in in_time] if keys else []
    for key in keys:
        values = Counter(each[key] for each in tags if key in each).most_common(1)
        for value, number in values:
            share = f" ({number} of {len(tags)})" if number < len(tags) else ""
            yield f"{printable(key, _NAME_LENGTH)} {value}{share}"


@lru_cache(maxsize=1024)
def mask_client(client: str | None) -> str:
    """Return the /24 network of a client, or the /64 of an IPv6 one: single hosts come and go.

    >>> mask_client("10.0.7.23"), mask_client("2001:db8::17"), mask_client(None)
    ('10.0.7.0/24', '2001:db8::/64', 'local')
    """
    if client is None:
        return "local"
    try:
        bits = 24 if ip_address(client).version == 4 else 64  # noqa: PLR2004 -- IP's two versions
        return str(ip_network(f"{client}/{bits}", strict=False))
    except ValueError:
        return client


_FailedTarget = tuple[TargetReport, Failure]


def group_failures(targets: Iterable[TargetReport]) -> Iterator[FailureGroup]:
    """Group targets by failure and cause: many targets often fail for the same reason.

    The causes of one failure are sorted by their frequency; if there are many, the rarest share a
    group.
    """
    by_failure: dict[tuple[TargetStatus, str, str], dict[str, list[_FailedTarget]]] = {}
    for target in targets:
        if error := target.error:
            causes = by_failure.setdefault((target.status, error.code, error.hint), {})
            causes.setdefault(error.cause, []).append((target, error))
    for (status, code, _), causes in by_failure.items():
        groups = sorted(causes.values(), key=len, reverse=True)
        most = len(groups) if len(groups) <= _MOST_CAUSES else _MOST_CAUSES - 1
        messages = [(members, _describe_cause(members)) for members in groups[:most]]
        if rest := groups[most:]:
            first = rest[0][0][1].message
            messages.append((list(chain(*rest)), f"{len(rest)} other causes, for example: {first}"))
        for members, message in messages:
            yield FailureGroup(
                targets=[target for target, _ in members],
                status=status,
                code=printable(code, 20),
                message=printable(message),
            )


def _describe_cause(members: Sequence[_FailedTarget]) -> str:
    """Write the cause with its step, which usually names the server, or the first of several."""
    steps = dict.fromkeys(failure.step for _, failure in members)
    failure = members[0][1]
    if len(steps) == 1:
        return failure.message
    return f"{failure.cause}, for example: {next(filter(None, steps))}"


def join_names(targets: Sequence[TargetReport]) -> Name:
    """Join the first names, and say how many more there are."""
    names = [truncate(printable(each.name), _NAME_LENGTH, tail=_NAME_TAIL) for each in targets]
    return Name(join_first(names, _MOST_NAMES))
