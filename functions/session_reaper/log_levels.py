"""Silences the loggers of all libraries below WARNING.

At DEBUG, botocore logs the secrets that it reads and urllib3 logs the URL of the webhook. Lambda,
Powertools and the environment can set that level in several ways, at any time, for any logger.
`logging.disable` overrides all of them, for every logger of the process. Our own logger has a class
that ignores it.
"""

import logging


class _OwnLogger(logging.Logger):
    """A logger that `logging.disable` does not affect."""

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802 -- the name is logging's
        """Return whether a message of this level is logged."""
        return level >= self.getEffectiveLevel()


def silence_libraries() -> None:
    """Let only our own logger log below WARNING from now on."""
    logging.disable(logging.INFO)
    # Its warnings contain the URL of the webhook and text from the server.
    logging.getLogger("urllib3").setLevel(logging.CRITICAL)


def make_own_logger(name: str) -> None:
    """Exempt the logger with this name from `silence_libraries`."""
    logging.getLogger(name).__class__ = _OwnLogger
