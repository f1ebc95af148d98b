"""Situations of a fleet, each made of the messages of its stacks and digested as the hub does."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from session_reaper.errors import BlindError, ConfigurationError, TargetError
from session_reaper.fleet.digest import (
    digest_fleet,
    make_invalid_message_report,
    report_on_fleet,
)
from session_reaper.fleet.message import QUEUE, Spoke, read_spoke_report
from session_reaper.fleet.state import (
    SpokeNews,
    SpokeState,
    add_message,
    conclude_refused,
)
from session_reaper.grants import Membership
from session_reaper.report.model import Advice, Outcome, TargetReport, record_error
from session_reaper.sessions.session import Slots
from session_reaper.summary.console_links import FunctionLocation

from tests.builders import a_target_report, some_results
from tests.fleet import REGION, a_message, an_origin
from tests.summaries.situations import NOW, RUN_ID

if TYPE_CHECKING:
    from session_reaper.summary.digest import Digest

PLACE = FunctionLocation(
    region=REGION,
    function="session-reaper-hub-Hub-Pq56",
    log_group="session-reaper-hub-LogGroup-Cd78",
    dashboard=None,
)
ACCOUNTS = range(1, 21)
TARGETS = 50
REMIND_AFTER = 3600.0


@dataclass(kw_only=True)
class Fleet:
    """Twenty accounts with fifty targets each, whose hub runs every five minutes."""

    now: float = NOW
    states: dict[Spoke, SpokeState] = field(default_factory=dict)
    queue: SpokeState = field(default_factory=lambda: SpokeState(spoke=QUEUE))
    news: dict[Spoke, SpokeNews] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)

    def report(self, account: int, *targets: TargetReport, error: str = "") -> None:
        """Send the message of one stack's run: these targets, and quiet ones up to fifty."""
        quiet = [] if error else [_quiet(f"db-{n:02}") for n in range(len(targets), TARGETS)]
        origin = an_origin(_number(account), sent_at=self.now - 20, next_by=self.now + 280)
        body = a_message(origin, *targets, *quiet, run=f"{self.now}-{account}", error=error)
        report = read_spoke_report(body)
        news = self.news.setdefault(report.spoke, self._begin(report.spoke))
        add_message(news, report, self.now - 20, f"handle-{account}")

    def report_quiet(self, *but: int) -> None:
        """Send the messages of all other stacks."""
        for account in ACCOUNTS:
            if account not in but:
                self.report(account)

    def expect(self, account: int) -> None:
        """Tell the hub of a stack as a roll-out does."""
        spoke = Spoke(_number(account), REGION, "session-reaper")
        self.states[spoke] = SpokeState(spoke=spoke, expected_by=self.now + 300)

    def refuse(self, body: str) -> None:
        """Send a message that cannot be read."""
        try:
            read_spoke_report(body)
        except ConfigurationError as error:
            self.refused.append(str(error))

    def digest(self, *, after: float = 0) -> Digest:
        """Run the hub; the next messages are sent so many seconds later."""
        news = {spoke: self._begin(spoke) for spoke in self.states} | self.news
        refused: tuple[TargetReport, ...] = ()
        if self.refused:
            invalid = make_invalid_message_report(len(self.refused), self.refused[0])
            result = conclude_refused(self.queue, invalid, self.now, REMIND_AFTER)
            refused, self.queue = result.targets, result.state
        fleet = report_on_fleet(RUN_ID, news, refused, self.now, REMIND_AFTER, is_complete=True)
        self.states = dict(fleet.states)
        self.news, self.refused = {}, []
        self.now += after
        return digest_fleet(fleet, PLACE)

    def _begin(self, spoke: Spoke) -> SpokeNews:
        return SpokeNews(state=self.states.get(spoke, SpokeState(spoke=spoke)))


def _number(account: int) -> str:
    return f"{account:02}" + "7430291556"


def _quiet(name: str) -> TargetReport:
    return TargetReport(name=name, slots=Slots(max=100, reserved=3, used=20), used_after=20)


def _leaking(number: int, application: str, name: str, **session: object) -> TargetReport:
    results = some_results(number, Outcome.TERMINATED, application=application, **session)
    slots = Slots(max=100, reserved=3, used=64)
    code = "set-idle-in-transaction-timeout"
    advice = Advice(code=code, message="not sent to a hub", sql=None)
    return a_target_report(
        *results, name=name, slots=slots, used_after=64 - number, advice=(advice,)
    )


def an_unreached_target(name: str, cause: str = "no response in time") -> TargetReport:
    error = TargetError(
        "timeout",
        cause,
        "not sent to a hub",
        step=f"connecting to {name}.c3xample.{REGION}.rds.amazonaws.com:5432",
    )
    return record_error(TargetReport(name=name), error)


def _observed(number: int, name: str) -> TargetReport:
    results = some_results(number, Outcome.WOULD_TERMINATE, application="api", role="shop")
    slots = Slots(max=100, reserved=3, used=64)
    return a_target_report(*results, name=name, slots=slots, used_after=64)


def _blind(name: str) -> TargetReport:
    membership = Membership(server_version=180000, inherits=True)
    return record_error(TargetReport(name=name), BlindError("session_reaper", membership))


def _exhausted(name: str) -> TargetReport:
    return TargetReport(name=name, slots=Slots(max=100, reserved=3, used=97), used_after=97)


_BROKEN = "POLICY ssm:/reaper/policy: rules[1].match.idle_for: 300 has no unit; write 300s or 5m"
_NEWER = '{"version": 2, "account": "077430291556"}'


def leaks_in_three_accounts() -> Digest:
    fleet = Fleet()
    fleet.report_quiet(3, 9, 14)
    fleet.report(3, _leaking(12, "api", "orders", role="shop"))
    fleet.report(
        9,
        _leaking(4, "api", "orders", role="shop"),
        _leaking(2, "report-export", "invoices", role="reporting"),
    )
    fleet.report(14, _leaking(1, "", "stock", role="batch"))
    return fleet.digest()


def the_same_cause_in_many_accounts() -> Digest:
    fleet = Fleet()
    fleet.report_quiet(*range(4, 12))
    for account in range(4, 12):
        fleet.report(account, an_unreached_target("orders"), an_unreached_target("stock"))
    return fleet.digest()


def a_broken_policy() -> Digest:
    fleet = Fleet()
    fleet.report_quiet()
    fleet.digest(after=300)
    fleet.report_quiet(4)
    fleet.report(4, error=_BROKEN)
    return fleet.digest()


def a_silent_stack_and_one_that_is_back() -> Digest:
    fleet = Fleet()
    fleet.report_quiet()
    fleet.digest(after=960)
    fleet.report_quiet(7)
    fleet.digest(after=1500)
    fleet.report_quiet(18)
    return fleet.digest()


def a_stack_that_was_never_heard() -> Digest:
    fleet = Fleet()
    fleet.expect(20)
    fleet.report_quiet(20)
    fleet.digest(after=1020)
    fleet.report_quiet(20)
    return fleet.digest()


def messages_that_cannot_be_read() -> Digest:
    fleet = Fleet()
    fleet.report_quiet(8)
    for _ in range(3):
        fleet.refuse(_NEWER)
    return fleet.digest()


def everything_at_once() -> Digest:
    fleet = Fleet()
    fleet.report_quiet()
    fleet.digest(after=960)
    fleet.report_quiet(1, 2, 3, 4, 5, 6, 20)
    fleet.report(1, _leaking(12, "api", "orders", role="shop"))
    fleet.report(2, _leaking(4, "api", "orders", role="shop"), an_unreached_target("stock"))
    fleet.report(3, _leaking(1, "worker", "invoices", role="batch"), an_unreached_target("orders"))
    fleet.report(4, error=_BROKEN)
    fleet.report(5, _exhausted("orders"))
    fleet.report(6, _blind("payments"))
    fleet.refuse(_NEWER)
    return fleet.digest()


def leaks_in_accounts_that_only_observe() -> Digest:
    fleet = Fleet()
    fleet.report_quiet(3, 9, 14)
    for account, number in ((3, 12), (9, 4), (14, 2)):
        fleet.report(account, _observed(number, "orders"))
    return fleet.digest()


def quiet_again() -> Digest:
    fleet = Fleet()
    fleet.report_quiet(2)
    fleet.report(2, an_unreached_target("orders"))
    fleet.digest(after=1500)
    fleet.report_quiet(2)
    fleet.report(2, _quiet("orders"))
    return fleet.digest()


FLEET_SITUATIONS = {
    f"fleet-{make.__name__.replace('_', '-')}": make
    for make in (
        leaks_in_three_accounts,
        the_same_cause_in_many_accounts,
        a_broken_policy,
        a_silent_stack_and_one_that_is_back,
        a_stack_that_was_never_heard,
        messages_that_cannot_be_read,
        everything_at_once,
        leaks_in_accounts_that_only_observe,
        quiet_again,
    )
}
