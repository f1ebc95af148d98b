"""The terminal: what goes to people and what to programs.

Results go to the standard output; progress, questions and errors go to the standard error. Colours
are for terminals only, and NO_COLOR switches them off (rich's own rules).
"""

import os
import shutil
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from textwrap import wrap
from typing import Final

from rich.console import Console
from session_reaper.report.text import printable

from session_reaper_cli.streams import drop

NARROWEST: Final = 60  # columns
PLAIN_WIDTH: Final = 100  # columns if the output is not a terminal
_LONGEST: Final = 2000  # characters of a line


class _Console(Console):
    """A console that becomes quiet once its reader has ended, as after `| head`.

    The command goes on, so that its exit status still says what happened.
    """

    def on_broken_pipe(self) -> None:
        """Drop this output and all that follows."""
        self.quiet = True
        drop(sys.stderr if self.stderr else sys.stdout)


Say = Callable[[str], None]
"""Tells the user what the command is doing."""


def make_console(*, stderr: bool = False) -> Console:
    """Return the console for results or, with `stderr`, for progress, questions and errors."""
    console = _Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    if console.width < NARROWEST:  # noqa: PLR1730 -- a width that is set follows the terminal no more
        console.width = NARROWEST
    return console


def is_interactive() -> bool:
    """Return whether a person can read a question and answer it."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def ask(question: str) -> bool:
    """Ask a question; anything but yes, such as the end of the input, means no."""
    print(f"{question} [y/N]: ", end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline()
    if not answer.endswith("\n"):
        print(file=sys.stderr)
    return answer.strip().lower() in ("y", "yes")


def show_traceback(bug: Exception) -> None:
    """Show where a bug happened, if the user wants to know; its text may hold anything."""
    if os.environ.get("SESSION_REAPER_TRACEBACK"):
        with suppress(OSError):
            print("".join(traceback.format_tb(bug.__traceback__)), file=sys.stderr)


def say(line: str) -> None:
    """Write a line of progress or a warning; it is lost if the standard error is closed."""
    with suppress(OSError):
        print(printable(line, _LONGEST), file=sys.stderr, flush=True)


def say_sentences(text: str) -> None:
    """Write sentences, on a terminal in lines that break between words."""
    columns = max(NARROWEST, shutil.get_terminal_size().columns)
    width = columns if sys.stderr.isatty() else _LONGEST
    for line in wrap(text, width, break_long_words=False, break_on_hyphens=False):
        say(line)
