"""Frozen dataclasses for the values that exist once per session, of which a server may have thousands."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

__all__ = ["session_value"]

if TYPE_CHECKING:
    from dataclasses import dataclass as session_value
else:

    def session_value(*, frozen: bool, **options: bool) -> Callable[[type], type]:
        """Make a dataclass that only mypy keeps frozen: to create one takes a third of the time."""
        return dataclass(unsafe_hash=frozen, **options)
