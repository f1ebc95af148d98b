"""`make storm`: runs 200,000 healthy transactions per major while two reapers terminate leaks.

`python -m tests.storm SERVERS [--transactions N] [--majors 13 18] [--hair-trigger] [--compare]`
prints one row per major and ends with 1 if a healthy transaction was broken, if a report and the
server's log differ, or if no leak was terminated. With `--hair-trigger` the threshold lies below
the transactions' own time: then healthy sessions are terminated, and the table shows how many of
them had just gone back to work. With `--compare` the scripts of `tests/storm/script.py` also run,
each in a storm of its own.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from infra.local.postgres import npm_builds
from tests.storm.script import Script
from tests.storm.storm import HAIR_TRIGGER, StormResult, run_storm

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from infra.local.postgres import Build

_TRANSACTIONS = 200_000
_OLDEST_AND_NEWEST = (13, 18)


def main() -> None:
    """Run the storms and print the table."""
    arguments = _read_arguments()
    builds = npm_builds(arguments.servers)
    results = [
        run_storm(builds[major], arguments.transactions, hair_trigger=arguments.hair_trigger)
        for major in arguments.majors
    ]
    console = Console(width=150)
    if arguments.compare:
        console.print(_make_comparison_table(results, _run_scripts(builds, arguments)))
    if arguments.hair_trigger:
        console.print(_make_hair_trigger_table(results))
        return
    console.print(_make_table(results))
    wrong = [(result.major, each) for result in results for each in result.complaints]
    for major, complaint in wrong:
        console.print(f"PostgreSQL {major}: {complaint}", highlight=False)
    sys.exit(bool(wrong))


def _read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.storm")
    parser.add_argument("servers", type=Path, help="a folder with npm's PostgreSQL servers")
    parser.add_argument("--transactions", type=int, default=_TRANSACTIONS, help="for each major")
    parser.add_argument("--majors", type=int, nargs="+", default=_OLDEST_AND_NEWEST)
    parser.add_argument("--hair-trigger", action="store_true")
    parser.add_argument("--compare", action="store_true")
    return parser.parse_args()


def _run_scripts(
    builds: Mapping[int, Build], arguments: argparse.Namespace
) -> Iterator[tuple[str, StormResult]]:
    """Run a storm for each major and script; a hair trigger applies to the time in the state only."""
    scripts = [Script.LOOK_THEN_KILL] if arguments.hair_trigger else Script
    for major in arguments.majors:
        for script in scripts:
            yield (
                script,
                run_storm(
                    builds[major],
                    arguments.transactions,
                    hair_trigger=arguments.hair_trigger,
                    script=script,
                ),
            )


def _make_comparison_table(
    reapers: Sequence[StormResult], by_hand: Iterable[tuple[str, StormResult]]
) -> Table:
    table = Table(title="the same storm with other ways to terminate leaks", title_justify="left")
    for heading in (
        "PostgreSQL",
        "terminated by",
        "healthy transactions",
        "healthy transactions broken",
        "had just gone back to work",
        "sessions killed",
        "duration",
    ):
        table.add_column(heading, justify="right")
    named = [*(("session-reaper", each) for each in reapers), *by_hand]
    for name, result in sorted(named, key=lambda each: each[1].major):
        table.add_row(
            str(result.major),
            name,
            f"{result.healthy.transactions:,}",
            f"{len(result.healthy.breaks):,}",
            f"{result.killed_at_work:,}",
            f"{len(result.deaths):,}",
            f"{result.healthy.seconds:.0f} s",
        )
    return table


def _make_table(results: Sequence[StormResult]) -> Table:
    table = Table(title="healthy transactions under two overlapping reapers", title_justify="left")
    for heading in (
        "PostgreSQL",
        "healthy transactions",
        "broken",
        "stalled",
        "killed",
        "reported",
        "unreported",
        "unproven",
        "cancelled",
        "runs",
        "condemned per killing run",
        "longest wait",
        "duration",
    ):
        table.add_column(heading, justify="right")
    for result in results:
        condemned = result.condemned_per_killing_run
        table.add_row(
            str(result.major),
            f"{result.healthy.transactions:,}",
            str(len(result.broken) + len(result.wrong_counts)),
            str(len(result.stalled)),
            f"{len(result.deaths):,}",
            f"{len(result.reported):,}",
            str(len(result.unreported)),
            str(len(result.unproven)),
            f"{result.count('cancelled'):,}",
            f"{len(result.runs):,}",
            f"{median(condemned):.0f}, at most {condemned[-1]}",
            f"{result.healthy.longest_wait * 1000:.0f} ms",
            f"{result.healthy.seconds:.0f} s",
        )
    return table


def _make_hair_trigger_table(results: Sequence[StormResult]) -> Table:
    title = f"a threshold of {HAIR_TRIGGER * 1000:.0f} ms, below the transactions' own time"
    table = Table(title=title, title_justify="left")
    for heading in (
        "PostgreSQL",
        "healthy transactions",
        "healthy sessions killed",
        "had just gone back to work",
        "their commit finished",
        "escaped",
        "unreported",
        "unproven",
        "wrong counts",
        "duration",
    ):
        table.add_column(heading, justify="right")
    for result in results:
        table.add_row(
            str(result.major),
            f"{result.healthy.transactions:,}",
            f"{len(result.healthy.breaks):,}",
            str(result.killed_at_work),
            str(result.healthy.finished_in_doubt),
            f"{result.count('escaped'):,}",
            str(len(result.unreported)),
            str(len(result.unproven)),
            str(len(result.wrong_counts)),
            f"{result.healthy.seconds:.0f} s",
        )
    return table


if __name__ == "__main__":
    main()
