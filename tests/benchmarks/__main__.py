"""`make bench`: compares session-reaper with a yardstick, a script of some twenty lines, in turn.

The ratios count: the machine's speed changes, but for both sides of a pair alike. Both connect by
TLS to the same PostgreSQL and use the same AWS stand-in. Ours verifies the certificate in full; the
yardstick sets `ssl_context=True`, which verifies nothing and makes a context for each connection.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.table import Table

from infra.local.aws import aws
from infra.local.certificates import make_tls
from infra.local.postgres import Server, npm_builds, server
from tests.benchmarks import decisions, decode, deployed, fleet
from tests.benchmarks.prepared import prepare_roles

PROBE = Path(__file__).with_name("probe.py")
OURS, YARDSTICK = "session_reaper.handler", "tests.benchmarks.yardstick"
ROUNDS = 15
VICTIMS = 100
PASSWORD = "bench"  # noqa: S105 -- of a server that lives for seconds
LIMITS = {
    "deployed": 0.7,
    "cold": None,
    "warm": 1.2,
    "kill": 1.5,
    "snapshot": 1.0,
    "decide": None,
    "fleet": 3.0,
}
TITLES = {
    "deployed": "cold start as deployed (yardstick: as a plain sam build leaves it)",
    "cold": "import and first quiet run, both with bytecode",
    "warm": "warm quiet run",
    "kill": f"verified kill of {VICTIMS} sessions (yardstick: unverified)",
    "decide": f"decisions on {decisions.SESSIONS:,} sessions by {decisions.RULES} rules, wanted"
    " < 50 ms (yardstick: a list comprehension)",
    "snapshot": f"a snapshot of {decode.ROWS:,} sessions: one JSON value (yardstick: driver rows)",
    "fleet": f"warm quiet run over {fleet.TARGETS} targets, all 10 ms away (yardstick: ours over one);"
    " the aim is 2",
}


def main() -> None:
    """Measure both in turn and print the table."""
    times: dict[str, dict[str, list[float]]] = {name: {OURS: [], YARDSTICK: []} for name in LIMITS}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        database = stack.enter_context(
            server(
                npm_builds(Path(sys.argv[1]))[18],
                settings={"max_connections": "130"},
                tls=make_tls(folder),
            )
        )
        cloud = stack.enter_context(aws())
        secret = prepare_roles(database, PASSWORD)
        cloud.put_secret("orders", secret)
        os.environ |= {
            "TARGET_SECRETS": "orders",
            "TOPIC_ARN": cloud.topic_arn,
            "MODE": "enforce",
            "PYTHONPATH": os.pathsep.join(["functions", "."]),
        }
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # the first round writes the bytecode
        functions = deployed.prepare_functions(folder)
        sizes = [function.describe_size(folder) for function in functions]
        found, rules = decisions.make_sessions(), decisions.make_policy()
        if decisions.decide_by_engine(found, rules) != decisions.decide_by_comprehension(
            found, rules
        ):
            raise SystemExit("engine and list comprehension condemn different sessions")
        for counted in [False, *[True] * ROUNDS]:
            for module in (OURS, YARDSTICK):
                for name, seconds in _run_probe(module, database).items():
                    if counted:
                        times[name][module].append(seconds)
            if counted:
                for module, function in zip((OURS, YARDSTICK), functions, strict=True):
                    seconds = function.measure_cold_start(deployed.select_environment())
                    times["deployed"][module].append(seconds)
                times["decide"][OURS].append(
                    decisions.measure_seconds(decisions.decide_by_engine, found, rules)
                )
                times["decide"][YARDSTICK].append(
                    decisions.measure_seconds(decisions.decide_by_comprehension, found, rules)
                )
                with contextlib.closing(database.connect()) as connection:
                    times["snapshot"][OURS].append(
                        decode.measure_seconds(decode.read_as_json, connection)
                    )
                    times["snapshot"][YARDSTICK].append(
                        decode.measure_seconds(decode.read_as_rows, connection)
                    )
        far = fleet.measure(database, cloud, secret)
    times["fleet"] = {OURS: far.many, YARDSTICK: far.one}
    size = (
        f"size as deployed: {sizes[0]} (yardstick: {sizes[1]}), both without boto3; wanted ≤ 10 MB"
    )
    _print(times, [size, *far.describe()])


def _run_probe(module: str, database: Server) -> dict[str, float]:
    """Measure a process: its cold start, warm runs, and a kill of sessions that we open before."""
    command = [sys.executable, str(PROBE), module]
    with subprocess.Popen(  # noqa: S603 -- our own probe
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        quiet = json.loads(process.stdout.readline())
        victims = [
            database.connect(
                user="app", unix_sock=database.unix_sock, application_name=f"leak-{n % 7}"
            )
            for n in range(VICTIMS)
        ]
        for victim in victims:
            victim.run("BEGIN")
        process.stdin.write("kill\n")
        process.stdin.flush()
        kill = json.loads(process.stdout.readline())
        for victim in victims:
            victim._usock.close()  # noqa: SLF001 -- its session is gone: a Terminate message would fail
        if kill["terminated"] != VICTIMS:
            raise SystemExit(f"{module} terminated {kill['terminated']} of {VICTIMS}")
    return {**quiet, "kill": kill["seconds"]}


def _print(times: dict[str, dict[str, list[float]]], lines: Iterable[str]) -> None:
    table = Table(title=f"medians of {ROUNDS} rounds in turn", title_justify="left")
    for heading in ("", "session-reaper", "yardstick", "ratio", "middle half", "wanted"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, by_module in times.items():
        ours, theirs = by_module[OURS], by_module[YARDSTICK]
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        table.add_row(
            TITLES[name],
            f"{statistics.median(ours) * 1000:.1f} ms",
            f"{statistics.median(theirs) * 1000:.1f} ms",
            f"{middle:.2f}",
            f"{low:.2f} to {high:.2f}",
            f"≤ {limit:.1f}" if (limit := LIMITS[name]) else "",
        )
    console = Console(width=110)
    console.print(table)
    for line in lines:
        console.print(line, highlight=False)


if __name__ == "__main__":
    main()
