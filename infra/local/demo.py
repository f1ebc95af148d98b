"""`make demo`: the deployed code frees a database that refuses connections.

PostgreSQL, its error, every session and the Lambda handler are real; AWS is a stand-in on the
loopback. The exit status is 0 only if every claim that it prints held.
"""

import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any
from unittest.mock import patch

import pg8000.native
from rich.console import Console

from infra.local.aws import Aws, Email, aws
from infra.local.postgres import Server, bundled_builds, server
from infra.local.showing import as_email, as_slack

ROOT = Path(__file__).parents[2]
SETTINGS = {"max_connections": "20", "reserved_connections": "2"}
PASSWORD = "demo:p@ss/w%rd"  # noqa: S105 -- of a server that runs for seconds
HEALTHY_WORKERS = 4
LEAK_SECONDS = 2
POLICY = f"""\
version: 1
rules:
  - name: idle-in-transaction
    match:
      state: [idle in transaction]
      idle_for: {LEAK_SECONDS}s   # 5m in the bundled policy
"""

console = Console(width=100)


@dataclass
class Context:
    """The part of Lambda's context that the handler uses."""

    aws_request_id: str
    memory_limit_in_mb: int = 512

    def get_remaining_time_in_millis(self) -> int:
        """Return the time that template.yaml gives the function."""
        return 60_000


class Worker(Thread):
    """A healthy session, which runs short transactions one after another."""

    def __init__(self, connection: pg8000.native.Connection, stopped: Event) -> None:
        super().__init__(daemon=True)
        self.connection = connection
        self.stopped = stopped
        self.transactions = 0
        self.broken = False

    def run(self) -> None:
        """Run transactions until the stop; a failed one ends the session."""
        while not self.stopped.wait(0.002):
            try:
                self.connection.run("BEGIN")
                self.connection.run("SELECT count(*) FROM orders")
                self.connection.run("COMMIT")
            except (pg8000.native.Error, OSError):
                self.broken = True
                return
            self.transactions += 1


@dataclass
class Checks:
    """The claims of the demo, each with whether it held."""

    failed: int = 0

    def check(self, claim: str, *, holds: bool) -> None:
        """Print a claim and whether it holds."""
        self.failed += not holds
        mark = "[bold green]✓[/]" if holds else "[bold red]✗ NOT SO:[/]"
        console.print(f"  {mark} {claim}")


def main() -> int:
    """Run the demo; return the exit status."""
    checks = Checks()
    started = time.monotonic()
    with ExitStack() as stack:
        console.rule("[bold]session-reaper: the demo")
        major, build = max(bundled_builds().items())
        database = stack.enter_context(server(build, settings=SETTINGS))
        cloud = stack.enter_context(aws())
        _set_up(database, cloud)
        slots = f"max_connections={SETTINGS['max_connections']}"
        console.print(f"PostgreSQL {major} on 127.0.0.1:{database.port}, {slots}.\n")

        console.print("[bold]1. An application leaks")
        pool = stack.enter_context(_run_healthy_pool(database))
        leaks, error = _leak(database)
        console.print(
            f"  {len(pool)} healthy sessions work; an import leaves its transactions open."
        )
        console.print(f"  [red]FATAL: {error.get('M')}[/] (SQLSTATE {error.get('C')})")
        refused = error.get("C") == "53300" and "slots are reserved" in error.get("M", "")
        checks.check(f"after {len(leaks)} leaks the server refuses the application", holds=refused)
        time.sleep(LEAK_SECONDS)  # until the leaks are old enough; there is nothing to poll

        console.print("\n[bold]2. The Lambda, MODE=observe")
        seen = _invoke("observe")
        console.print(f"  {seen['summary']}")
        observed = (
            seen["totals"]["would_terminate"] == len(leaks) and not seen["totals"]["terminated"]
        )
        checks.check("it names every leak and touches none", holds=observed)
        _show(cloud.delivered())

        console.print("[bold]3. The Lambda, MODE=enforce")
        done = _invoke("enforce")
        console.print(f"  {done['summary']}")
        exact = done["totals"]["terminated"] == len(leaks) == sum(map(_is_dead, leaks))
        checks.check(f"{len(leaks)} sessions terminated, each seen gone", holds=exact)
        emails = cloud.delivered()
        _show(emails)
        checks.check("one summary says so", holds=[e.subject for e in emails] == [done["summary"]])

        console.print("\n[bold]4. The application")
        checks.check("it gets in again", holds=_can_connect(database))
        for worker in pool:
            worker.stopped.set()
            worker.join()
        transactions = sum(worker.transactions for worker in pool)
        unharmed = transactions > 0 and not any(worker.broken for worker in pool)
        checks.check(
            f"its {len(pool)} healthy sessions ran {transactions} transactions, none broken",
            holds=unharmed,
        )
    console.rule(f"[bold]{checks.failed} claims failed, {time.monotonic() - started:.1f} s")
    return min(checks.failed, 1)


def _set_up(database: Server, cloud: Aws) -> None:
    admin = database.connect()
    with contextlib.closing(admin):
        admin.run((ROOT / "infra/database/reaper_role.sql").read_text())
        admin.run(f"ALTER ROLE session_reaper PASSWORD {pg8000.native.literal(PASSWORD)}")
        admin.run(f"CREATE ROLE shop LOGIN PASSWORD {pg8000.native.literal(PASSWORD)}")
        admin.run("CREATE TABLE orders (id integer); GRANT SELECT ON orders TO shop")
    cloud.put_secret(
        "prod/orders",
        {
            "engine": "postgres",
            "host": database.host,
            "port": database.port,
            "username": "session_reaper",
            "password": PASSWORD,
            "dbname": "postgres",
            "dbInstanceIdentifier": "orders",
            "sslmode": "disable",  # the embedded server has no TLS compiled in
        },
    )
    cloud.ssm.put_parameter(Name="session-reaper-policy", Value=POLICY, Type="String")
    os.environ |= {
        "TARGET_SECRETS": "prod/orders",
        "TOPIC_ARN": cloud.topic_arn,
        "POLICY": "ssm:session-reaper-policy",
        "AWS_LAMBDA_FUNCTION_NAME": "session-reaper",  # as Lambda sets it, for links
    }


def _connect(database: Server, application: str) -> pg8000.native.Connection:
    return database.connect(user="shop", password=PASSWORD, application_name=application)


@contextmanager
def _run_healthy_pool(database: Server) -> Iterator[list[Worker]]:
    stopped = Event()
    workers = [Worker(_connect(database, "shop-api"), stopped) for _ in range(HEALTHY_WORKERS)]
    for worker in workers:
        worker.start()
    try:
        yield workers
    finally:
        stopped.set()
        for worker in workers:
            worker.join()


def _leak(database: Server) -> tuple[list[pg8000.native.Connection], dict[str, str]]:
    """Leave transactions open until the server refuses a connection; return them and its error."""
    leaks: list[pg8000.native.Connection] = []
    while True:
        try:
            connection = _connect(database, "nightly-import")
        except pg8000.native.DatabaseError as error:
            return leaks, error.args[0]
        connection.run("BEGIN")
        connection.run("SELECT * FROM orders WHERE id = 4711 /* customer 0815 */")
        leaks.append(connection)


def _invoke(mode: str) -> dict[str, Any]:
    """Run the deployed handler on the schedule's event; its log lines are not shown."""
    event = json.loads((ROOT / "events/scheduled.json").read_text())
    with patch.dict(os.environ, MODE=mode), contextlib.redirect_stdout(io.StringIO()):
        from session_reaper.handler import lambda_handler  # noqa: PLC0415 -- its log goes to the standard output at the time of the import

        return lambda_handler(event, Context(aws_request_id=f"demo-{mode}"))  # type: ignore[arg-type] # a stand-in


def _show(emails: list[Email]) -> None:
    for email in emails:
        console.print(as_email(email.subject, email.body))
        console.print(as_slack(email.chat))


def _is_dead(connection: pg8000.native.Connection) -> bool:
    try:
        connection.run("SELECT 1")
    except (pg8000.native.Error, OSError):
        return True
    return False


def _can_connect(database: Server) -> bool:
    try:
        _connect(database, "shop-api").close()
    except pg8000.native.Error:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
