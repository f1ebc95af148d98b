"""The protections of a session: what protects it, in the words of reports."""

from enum import StrEnum
from typing import NamedTuple


class ProtectedBy(StrEnum):
    """The ground of a protection."""

    SUPERUSER = "superuser"
    OWN_ROLE = "our own role"
    REPLICATION_ROLE = "replication role"
    PROVIDER_ROLE = "provider's role"
    ROLE_DROPPED = "role dropped"
    BUILT_IN = "built in"
    ROLES = "protect.roles"
    APPLICATIONS = "protect.applications"
    DATABASES = "protect.databases"
    CLIENTS = "protect.clients"


class Protection(NamedTuple):
    """A reason for which no rule matches a session.

    `detail` is for the reason of a decision. `tool` is what a built-in protection is for.
    `can_be_lifted`: a rule of the stack's policy that names the role literally lifts it.
    """

    kind: ProtectedBy
    detail: str
    tool: str = ""
    can_be_lifted: bool = False

    @property
    def by(self) -> str:
        """Return what protects the session, as reports name it."""
        return f"{self.kind}: {self.tool}" if self.tool else self.kind.value
