"""Keep every logger but our own silent below WARNING.

At DEBUG, botocore logs the secrets that it reads and urllib3 logs the URL of the webhook. Lambda,
Powertools and the environment can ask for that level in several ways, at any time, for any logger.
`logging.disable` goes before all of them. It holds for every logger of the process, whenever it is
made, so our own logger is of a class that it does not concern.
"""

import logging
from typing import Final

_HIGHEST_SILENT: Final = logging.INFO


class _OwnLogger(logging.Logger):
    """A logger that only its own level silences."""

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802 -- logging's name
        """Return whether a message of this level is logged."""
        return level >= self.getEffectiveLevel()


def silence_libraries() -> None:
    """Log nothing below WARNING from here on, except by our own logger."""
    logging.disable(_HIGHEST_SILENT)
    # Its warnings name the URL of the webhook and repeat what the other side sent.
    logging.getLogger("urllib3").setLevel(logging.CRITICAL)


def make_own_logger(name: str) -> None:
    """Make the logger of this name one that `silence_libraries` does not concern."""
    logging.getLogger(name).__class__ = _OwnLogger
