"""The connection of a database's owner, who creates, changes and drops the reaper's role."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.resources import files
from typing import Final, NamedTuple

from pg8000.native import literal
from session_reaper.deadline import Deadline
from session_reaper.errors import TargetError
from session_reaper.postgres.driver import Connection, Row
from session_reaper.postgres.server import CONNECT_SECONDS, Server
from session_reaper.targets.target import Target

from session_reaper_cli.connections.login import with_token

_SECONDS: Final = 15.0  # for one statement
_SHOWN_SEVERITIES: Final = ("NOTICE", "WARNING")
_FOLDER: Final = files("session_reaper_cli.onboarding")


class RoleFacts(NamedTuple):
    """The columns of role_facts.sql. `version`: the server's server_version_num."""

    version: int
    is_own: bool  # the owner's own role
    exists: bool
    has_powers: bool  # a superuser, or a role that may create, replicate or bypass
    is_from_role_file: bool
    has_rds_iam: bool  # the server has the role rds_iam
    uses_iam: bool  # the role is a member of it


def write_role_sql(role: str) -> str:
    """Write the role's file for a role of this name, which must need no quotes."""
    text = (_FOLDER / "reaper_role.sql").read_text("utf-8")
    return re.sub(r"\bsession_reaper\b", role, text)


class Owner(Server):
    """A connection that writes, in one transaction at a time, and keeps the server's notices."""

    def __init__(self, target: Target, connection: Connection, application_name: str) -> None:
        super().__init__(target, connection, application_name)
        connection.keeps_notices = True

    def read_role(self, role: str) -> RoleFacts:
        """Read the facts about a role. Raises TargetError."""
        query = (_FOLDER / "role_facts.sql").read_text("utf-8").format(role=literal(role))
        ((version, *flags),) = self.run("reading the role", query)
        return RoleFacts(int(bytes(version or b"0")), *(each == b"t" for each in flags))

    def run(self, step: str, statement: str) -> list[Row]:
        """Run a statement. Raises TargetError."""
        with self._expect_answer(step, Deadline(_SECONDS)):
            rows: list[Row] = self._connection.run(statement)
        return rows

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Open a transaction for the block, which commits it; an error undoes it."""
        self.run("beginning", "BEGIN READ WRITE")
        try:
            yield
        except BaseException:
            with suppress(TargetError):  # without its connection the server undoes it, too
                self.run("undoing", "ROLLBACK")
            raise

    def commit(self) -> None:
        """Commit. Raises TargetError; ConnectionLostError if it is unknown whether it did."""
        self.run("committing", "COMMIT")

    def take_notices(self) -> Iterator[str]:
        """Yield the server's notices and warnings since the last call."""
        while self._connection.notices:
            notice = self._connection.notices.popleft()
            text = {key.decode(): value.decode("utf-8", "replace") for key, value in notice.items()}
            if text.get("S") in _SHOWN_SEVERITIES:
                yield " ".join(filter(None, (text.get("M"), text.get("H"))))


def connect_owner(target: Target) -> Owner:
    """Connect once as the owner. Raises TargetError."""
    return Owner.connect(with_token(target), Deadline(CONNECT_SECONDS))
