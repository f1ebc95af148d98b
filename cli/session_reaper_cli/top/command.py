"""The command `top`."""

import time
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from itertools import chain
from typing import Final

from rich.console import Console
from rich.live import Live
from session_reaper.deadline import Deadline
from session_reaper.errors import ConnectionLostError
from session_reaper.sessions.snapshot import ALL_SESSIONS

from session_reaper_cli.connections.login import Invocation, log_in
from session_reaper_cli.results import ExitStatus, print_json
from session_reaper_cli.top.overview import Overview, make_overview, to_json
from session_reaper_cli.top.screen import draw

_SECONDS: Final = 15.0  # for one snapshot


def show_top(call: Invocation, watch: float | None) -> ExitStatus:
    """Show the server once, or every `watch` seconds until Ctrl-C. Raises TargetError."""
    with closing(_look(call)) as looks:
        first = next(looks)  # before the screen is cleared: it may ask for the password
        if watch is None:
            _show(first, call)
            return ExitStatus.DONE
        overviews = chain([first], looks)
        with suppress(KeyboardInterrupt):  # the way to end it
            if call.output.is_terminal and not call.as_json:
                _refresh_in_place(overviews, watch, call.output)
            else:
                for overview in overviews:
                    _show(overview, call)
                    if call.output.quiet:  # its reader has read enough
                        break
                    time.sleep(watch)
    return ExitStatus.DONE


def _look(call: Invocation) -> Generator[Overview]:
    """Yield overviews over one connection, which is replaced once it is lost."""
    while True:
        server, call = log_in(call)
        with closing(server):
            try:
                while True:
                    snapshot = server.take_snapshot(ALL_SESSIONS, Deadline(_SECONDS))
                    yield make_overview(call.target.name, snapshot, call.policy)
            except ConnectionLostError as error:
                call.say(f"{error.message}; connecting again")


def _show(overview: Overview, call: Invocation) -> None:
    if call.as_json:
        print_json(to_json(overview), call.output)
    else:
        call.output.print(draw(overview, call.output.width))


def _refresh_in_place(looks: Iterator[Overview], pause: float, output: Console) -> None:
    with Live(console=output, screen=True, auto_refresh=False) as live:
        for overview in looks:
            live.update(draw(overview, output.width), refresh=True)
            time.sleep(pause)
