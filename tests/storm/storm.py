"""Runs a storm: healthy clients, leaks and two overlapping reapers on one server.

For comparison, two overlapping scripts can replace the reapers; they report nothing.

Three sources are compared: the healthy clients with the data, the reapers' reports, and the
server's log, which has a line for each session that was terminated.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from infra.local.aws import aws
from infra.local.postgres import Build, Server, server
from tests.storm.healthy import Break, HealthyResult
from tests.storm.reaper import ReaperRun

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tests.storm.script import Script

HEALTHY_CLIENTS = 40
LONGEST_IDLE = 0.030  # seconds that a healthy transaction is idle at most
LONGEST_IDLE_UNDER_HAIR_TRIGGER = 0.060
LEAKS = 160
REAPERS = 2
SCRIPT_AGE = 1.0  # seconds: as in the rule that matches most leaks
THRESHOLD = 0.7  # seconds: the shortest of any rule that a healthy session can match
HAIR_TRIGGER = 0.005  # seconds: below the transactions' own time
ADMIN_SHUTDOWN = "57P01"
_STOP_SECONDS = 90.0  # for a reaper's last run
_LOG_SLACK = 0.002  # seconds: the log has milliseconds
_ROLE_FILE = Path(__file__).parents[2] / "infra" / "database" / "reaper_role.sql"
_PASSWORD = "storm"  # noqa: S105 -- of a server that lives for minutes
_LEAKING = ["idle in transaction", "idle in transaction (aborted)"]
_LIMITS = {"max_terminations": 1000}
_POLICY = {
    "version": 1,
    "limits": _LIMITS,
    "rules": [
        {
            "name": "blockers",
            "match": {"state": ["idle in transaction"], "blocks": 1, "blocks_for": "300ms"},
            "confirm_after": "200ms",
        },
        {
            "name": "confirmed",
            "match": {"state": _LEAKING, "application": ["api-b"], "idle_for": "700ms"},
            "confirm_after": "200ms",
        },
        {"name": "idle-in-transaction", "match": {"state": _LEAKING, "idle_for": "1s"}},
        {
            "name": "under-pressure",
            "when": {"slots_used": "40%"},
            "until": {"slots_used": "30%"},
            "match": {"state": _LEAKING, "idle_for": "700ms"},
        },
        {
            "name": "runaway",
            "match": {"state": ["active"], "query_for": "2s"},
            "action": "cancel",
            "escalate_after": "500ms",
        },
    ],
}
_HAIR_TRIGGER_POLICY = {
    "version": 1,
    "limits": _LIMITS,
    "rules": [
        {
            "name": "hair-trigger",
            "match": {"state": _LEAKING, "idle_for": f"{HAIR_TRIGGER * 1000:.0f}ms"},
        }
    ],
}
_SETTINGS = {
    "max_connections": "300",
    "log_line_prefix": "%n %p %e ",
    "log_min_error_statement": "fatal",
    "autovacuum_naptime": "5s",
}
_LOG_LINE = re.compile(r"(\d+\.\d+) (\d+) (\w{5}) (\w+): +(.*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """A session that the server's log shows terminated."""

    at: float  # seconds since 1970
    pid: int
    was_working: bool  # a statement ran at that moment


@dataclass(frozen=True, slots=True, kw_only=True)
class StormResult:
    """The observations of the three sources."""

    major: int
    healthy: HealthyResult
    deaths: Sequence[Death]
    runs: Sequence[ReaperRun]
    counts: Mapping[int, int]  # client -> commits that the data shows

    @property
    def broken(self) -> Sequence[Break]:
        """Healthy transactions that ended by an error before any threshold."""
        return [each for each in self.healthy.breaks if each.seconds < THRESHOLD]

    @property
    def stalled(self) -> Sequence[Break]:
        """Transactions that were idle beyond a threshold, because the machine delayed them."""
        return [each for each in self.healthy.breaks if each.seconds >= THRESHOLD]

    @property
    def wrong_counts(self) -> Sequence[str]:
        """Clients whose confirmed commits differ from the data."""
        differing = [
            f"client {client} committed {count}, the server has {self.counts.get(client)}"
            for client, count in self.healthy.counts.items()
            if self.counts.get(client) != count
        ]
        return [*self.healthy.wrong_counts, *differing]

    @property
    def unreported(self) -> Sequence[Death]:
        """Terminated sessions that no run reported as terminated or lingering."""
        reporting = self._group_runs_by_pid("terminated", "lingering")
        return [
            death
            for death in self.deaths
            if not any(
                _is_within(death, run, lingers=lingers) for run, lingers in reporting[death.pid]
            )
        ]

    @property
    def reported(self) -> Sequence[Death]:
        """Terminated sessions that at least one run reported as terminated."""
        reporting = self._group_runs_by_pid("terminated")
        return [
            death
            for death in self.deaths
            if any(_is_within(death, run, lingers=False) for run, _ in reporting[death.pid])
        ]

    @property
    def unproven(self) -> Sequence[tuple[ReaperRun, int]]:
        """Runs and pids that were reported terminated and are not in the server's log."""
        deaths = defaultdict(list)
        for death in self.deaths:
            deaths[death.pid].append(death)
        return [
            (run, each.pid)
            for run in self.runs
            for each in run.sessions
            if each.outcome == "terminated"
            and not any(_is_within(death, run, lingers=False) for death in deaths[each.pid])
        ]

    @property
    def problems(self) -> Sequence[str]:
        """Runs whose target was not `ok`."""
        return [run.problem for run in self.runs if run.problem]

    @property
    def killed_at_work(self) -> int:
        """How many healthy sessions had gone back to work when they were terminated, by log and by client.

        The log shows those that ran a statement at that moment. The client counts those that had
        changed their state more recently than any threshold: they had just finished a statement.
        """
        pids = {each.pid for each in self.healthy.breaks}
        logged = sum(death.was_working and death.pid in pids for death in self.deaths)
        return logged + sum(
            not each.had_gone_on and each.seconds < HAIR_TRIGGER for each in self.healthy.breaks
        )

    @property
    def complaints(self) -> Sequence[str]:
        """The faults that the storm found."""
        found = [
            *(f"broken: {each}" for each in self.broken),
            *(f"wrong count: {each}" for each in self.wrong_counts),
            *(f"terminated and not reported: {each}" for each in self.unreported),
            *(
                f"reported terminated without a line in the server's log: pid {pid}"
                for _, pid in self.unproven
            ),
            *(f"a run's target was not ok: {each}" for each in self.problems),
        ]
        return found if self.deaths else [*found, "no leak was terminated"]

    def count(self, outcome: str) -> int:
        """Count an outcome over all runs; two reapers may both report one session."""
        return sum(each.outcome == outcome for run in self.runs for each in run.sessions)

    @property
    def condemned_per_killing_run(self) -> Sequence[int]:
        """How many sessions each run condemned, in ascending order, without the runs that condemned none."""
        return sorted(len(run.sessions) for run in self.runs if run.sessions) or [0]

    def _group_runs_by_pid(self, *outcomes: str) -> Mapping[int, Sequence[tuple[ReaperRun, bool]]]:
        found = defaultdict(list)
        for run in self.runs:
            for each in run.sessions:
                if each.outcome in outcomes:
                    found[each.pid].append((run, each.outcome == "lingering"))
        return found


def _is_within(death: Death, run: ReaperRun, *, lingers: bool) -> bool:
    """Return whether a run can have caused a death; a lingering session may end after the run."""
    return run.began - _LOG_SLACK <= death.at and (lingers or death.at <= run.ended + _LOG_SLACK)


def run_storm(
    build: Build, transactions: int, *, hair_trigger: bool = False, script: Script | None = None
) -> StormResult:
    """Run one storm with a number of healthy transactions on a new server.

    A hair trigger has no leaks, because these are older sessions and would be terminated first.
    """
    longest_idle = LONGEST_IDLE_UNDER_HAIR_TRIGGER if hair_trigger else LONGEST_IDLE
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        database = stack.enter_context(server(build, settings=_SETTINGS))
        _prepare(database)
        cloud = stack.enter_context(aws())
        policy = _HAIR_TRIGGER_POLICY if hair_trigger else _POLICY
        secret = f"storm-{database.port}"  # the stand-in keeps the secrets of earlier storms
        cloud.put_secret(secret, _make_secret(database))
        cloud.ssm.put_parameter(
            Name="/storm/policy", Value=json.dumps(policy), Type="String", Overwrite=True
        )
        environment = {
            **os.environ,
            "TARGET_SECRETS": secret,
            "TOPIC_ARN": cloud.topic_arn,
            "MODE": "enforce",
            "POLICY": "ssm:/storm/policy",
            "PYTHONPATH": os.pathsep.join(["functions", "."]),
        }
        outputs = [folder / f"reaper-{number}" for number in range(REAPERS)]
        with ExitStack() as processes:
            if not hair_trigger:
                processes.enter_context(
                    _start_process("leaks", environment, database.unix_sock, LEAKS)
                )
            age = HAIR_TRIGGER if hair_trigger else SCRIPT_AGE
            by_hand = ("script", environment, script, database.unix_sock, age)
            for output in outputs:
                into = processes.enter_context(output.open("w"))
                command = by_hand if script else ("reaper", environment)
                processes.enter_context(_start_process(*command, into=into))
            arguments = (database.unix_sock, HEALTHY_CLIENTS, transactions, longest_idle)
            healthy = _run_healthy_clients(environment, *arguments)
        runs = [
            ReaperRun.from_json(line)
            for output in outputs
            for line in output.read_text().splitlines()
        ]
        with database.connect(unix_sock=database.unix_sock) as admin:
            counts = dict(admin.run("SELECT client, n FROM counters"))
        return StormResult(
            major=build.major,
            healthy=healthy,
            deaths=_read_deaths(database.log),
            runs=runs,
            counts=counts,
        )


def _prepare(database: Server) -> None:
    with database.connect(unix_sock=database.unix_sock) as admin:
        admin.run(_ROLE_FILE.read_text())
        admin.run(f"ALTER ROLE session_reaper PASSWORD '{_PASSWORD}'")
        admin.run("CREATE ROLE app LOGIN")
        admin.run("CREATE TABLE counters (client int PRIMARY KEY, n bigint) WITH (fillfactor = 10)")
        admin.run(
            "INSERT INTO counters SELECT client, 0 FROM generate_series(0, :last) AS client",
            last=HEALTHY_CLIENTS - 1,
        )
        admin.run("CREATE TABLE leaked (pid int); CREATE TABLE locked (id int PRIMARY KEY, n int)")
        admin.run("INSERT INTO locked SELECT id, 0 FROM generate_series(0, 9) AS id")
        admin.run("GRANT ALL ON counters, leaked, locked TO app")


def _make_secret(database: Server) -> dict[str, object]:
    return {
        "host": database.host,
        "port": database.port,
        "username": "session_reaper",
        "password": _PASSWORD,
        "dbname": "postgres",
        "sslmode": "disable",
    }


@contextmanager
def _start_process(
    name: str, environment: Mapping[str, str], *arguments: object, into: IO[str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Run a module of this package; closing its standard input ends it. Raises if it failed."""
    command = [sys.executable, "-m", f"tests.storm.{name}", *(str(each) for each in arguments)]
    with subprocess.Popen(  # noqa: S603 -- our own module
        command,
        stdin=subprocess.PIPE,
        stdout=into or subprocess.PIPE,
        text=True,
        env=dict(environment),
    ) as process:
        try:
            yield process
            assert process.stdin
            process.stdin.close()
            if process.wait(_STOP_SECONDS):
                raise RuntimeError(f"{name} ended with {process.returncode}")
        finally:
            process.kill()


def _run_healthy_clients(environment: Mapping[str, str], *arguments: object) -> HealthyResult:
    with _start_process("healthy", environment, *arguments) as process:
        assert process.stdout
        line = process.stdout.readline()
    return HealthyResult.from_json(line)


def _read_deaths(log: Path) -> Sequence[Death]:
    """Read the sessions that were terminated; a working one is logged with its statement."""
    lines = [
        found
        for line in log.read_text(errors="replace").splitlines()
        if (found := _LOG_LINE.match(line))
    ]
    working = {
        (found[2], found[1])
        for found in lines
        if found[3] == ADMIN_SHUTDOWN and found[4] == "STATEMENT"
    }
    return [
        Death(at=float(found[1]), pid=int(found[2]), was_working=(found[2], found[1]) in working)
        for found in lines
        if found[3] == ADMIN_SHUTDOWN and found[4] == "FATAL"
    ]
