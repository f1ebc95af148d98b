"""The command `top`."""

import time
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import chain
from typing import Final

from rich.console import Console
from rich.live import Live
from session_reaper.deadline import Deadline
from session_reaper.errors import ConnectionLostError
from session_reaper.sessions.snapshot import ALL_SESSIONS
from session_reaper.targets.target import Target

from session_reaper_cli.connections.login import LoginOptions, Say, log_in
from session_reaper_cli.results import ExitStatus, print_json
from session_reaper_cli.top.overview import Overview, make_overview, to_json
from session_reaper_cli.top.screen import draw

_SECONDS: Final = 15.0  # for one snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class TopOptions:
    """The options of `top`; `watch`: seconds between two refreshes, None for a single look."""

    target: Target
    login: LoginOptions
    watch: float | None
    as_json: bool


def show_top(options: TopOptions, output: Console, say: Say) -> ExitStatus:
    """Show the server once, or until Ctrl-C. Raises TargetError."""
    with closing(_look(options, say)) as looks:
        first = next(looks)  # before the screen is cleared: it may ask for the password
        if options.watch is None:
            _show(first, options, output)
            return ExitStatus.DONE
        overviews = chain([first], looks)
        with suppress(KeyboardInterrupt):  # the way to end it
            if output.is_terminal and not options.as_json:
                _refresh_in_place(overviews, options.watch, output)
            else:
                for overview in overviews:
                    _show(overview, options, output)
                    if output.quiet:  # its reader has read enough
                        break
                    time.sleep(options.watch)
    return ExitStatus.DONE


def _look(options: TopOptions, say: Say) -> Generator[Overview]:
    """Yield overviews over one connection, which is replaced once it is lost."""
    target = options.target
    while True:
        server, target = log_in(target, options.login, say)
        with closing(server):
            try:
                while True:
                    snapshot = server.take_snapshot(ALL_SESSIONS, Deadline(_SECONDS))
                    yield make_overview(target.name, snapshot, options.login.policy)
            except ConnectionLostError as error:
                say(f"{error.message}; connecting again")


def _show(overview: Overview, options: TopOptions, output: Console) -> None:
    if options.as_json:
        print_json(to_json(overview), output)
    else:
        output.print(draw(overview, output.width))


def _refresh_in_place(looks: Iterator[Overview], pause: float, output: Console) -> None:
    with Live(console=output, screen=True, auto_refresh=False) as live:
        for overview in looks:
            live.update(draw(overview, output.width), refresh=True)
            time.sleep(pause)
