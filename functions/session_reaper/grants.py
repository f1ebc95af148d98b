"""GRANT statements for our role, with quoted identifiers."""

from dataclasses import dataclass
from typing import Final

_INHERIT_OPTION_SINCE: Final = 160000


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """The facts that decide whether our role can use the privileges of roles granted to it.

    `server_version` is the server's server_version_num, `inherits` our role's rolinherit.
    """

    server_version: int
    inherits: bool

    def grant(self, granted: str, role: str) -> str:
        """Write the statement that grants a role's privileges so that our role can use them.

        Up to PostgreSQL 15 a NOINHERIT role cannot use the privileges of roles granted to it. From
        16 on each grant has its own INHERIT option, which a second GRANT changes only if it names
        it.
        """
        if self.server_version >= _INHERIT_OPTION_SINCE:
            return f"GRANT {granted} TO {quote_identifier(role)} WITH INHERIT TRUE;"
        grant = f"GRANT {granted} TO {quote_identifier(role)};"
        return grant if self.inherits else f"ALTER ROLE {quote_identifier(role)} INHERIT; {grant}"


UNKNOWN_MEMBERSHIP: Final = Membership(server_version=0, inherits=True)


def quote_identifier(identifier: str) -> str:
    """Quote an identifier for SQL."""
    return '"{}"'.format(identifier.replace('"', '""'))
