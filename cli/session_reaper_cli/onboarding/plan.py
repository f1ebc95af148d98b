"""Plans the changes of onboarding on the server and in the secret."""

import json
import secrets
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from session_reaper.errors import ConfigurationError
from session_reaper.grants import quote_identifier
from session_reaper.postgres.scram import make_verifier
from session_reaper.settings import Tag
from session_reaper.targets.target import Target

from session_reaper_cli.onboarding.owner import RoleFacts, write_role_sql
from session_reaper_cli.onboarding.secret_text import parse_text, write_text
from session_reaper_cli.onboarding.vault import StoredSecret

ROLE: Final = "session_reaper"
_OLDEST: Final = 130000
_PASSWORD_BYTES: Final = 32
_VERIFIER_SHOWN: Final = "SCRAM-SHA-256$… (computed here; the password never reaches the server)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """The owner's choices."""

    name: str  # of the secret
    role: str
    tag: Tag | None
    iam: bool
    rotate: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """One statement, and how it may be shown."""

    text: str = field(repr=False)
    shown: str


class Write(Enum):
    """How the secret is written."""

    NOTHING = auto()
    CREATE = auto()
    PUT = auto()
    DELETE = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The changes. All statements are one transaction; the secret is written before its commit."""

    statements: tuple[Statement, ...]
    write: Write
    text: str = field(default="", repr=False)  # of the secret
    restores: bool = False
    tag: Tag | None = None  # None if the secret has it, or none is wanted
    sets_password: bool = False
    is_password_new: bool = False

    @property
    def is_removal(self) -> bool:
        """Whether role and secret go."""
        return not self.text


def refuse_role(role: str, facts: RoleFacts) -> None:
    """Raise ConfigurationError if the role may not be changed or dropped here."""
    if facts.version < _OLDEST:
        raise ConfigurationError("server", "needs PostgreSQL 13 or newer")
    if facts.is_own:
        problem = "you are connected as this role; connect as the owner of the database"
    elif facts.has_powers:
        problem = "is a superuser, or may create or replicate; the reaper needs a role of its own"
    elif facts.exists and not facts.is_from_role_file and role != ROLE:
        problem = "exists, and was not made by the role's file, so something else may use it"
    else:
        return
    raise ConfigurationError(f"role {role}", f"{problem}. Write another --role")


def make_plan(
    wish: Wish, target: Target, facts: RoleFacts, stored: StoredSecret | None, *, is_working: bool
) -> Plan:
    """Plan the changes. `is_working`: the login in the stored secret works now.

    The password of an existing secret is kept, and the role gets it if the login does not work: so
    the next run repairs what an interrupted one has left. Raises ConfigurationError.
    """
    if wish.iam and not facts.has_rds_iam:
        problem = "needs the role rds_iam, which only servers of RDS and Aurora have"
        raise ConfigurationError("--iam", problem)
    is_readable = stored is not None and not stored.is_deleted
    earlier = parse_text(stored.secret) if stored and is_readable else {}
    kept = "" if wish.rotate or wish.iam else str(earlier.get("password") or "")
    password = "" if wish.iam else kept or secrets.token_urlsafe(_PASSWORD_BYTES)
    text = write_text(target, wish.role, password, earlier)
    write = Write.PUT if stored else Write.CREATE
    if is_readable and json.loads(text) == earlier:
        write = Write.NOTHING
    has_tag = wish.tag is None or (stored is not None and wish.tag in stored.tags)
    sets_password = not wish.iam and not (kept and is_working and not facts.uses_iam)
    return Plan(
        statements=_write_statements(wish, facts, password if sets_password else ""),
        write=write,
        text=text,
        restores=stored is not None and stored.is_deleted,
        tag=None if has_tag else wish.tag,
        sets_password=sets_password,
        is_password_new=sets_password and not kept,
    )


def plan_removal(wish: Wish, facts: RoleFacts, stored: StoredSecret | None) -> Plan:
    """Plan to drop the role and to delete the secret."""
    drop = f"DROP ROLE {quote_identifier(wish.role)}"
    has_secret = stored is not None and not stored.is_deleted
    return Plan(
        statements=(Statement(text=drop, shown=drop),) if facts.exists else (),
        write=Write.DELETE if has_secret else Write.NOTHING,
    )


def _write_statements(wish: Wish, facts: RoleFacts, password: str) -> tuple[Statement, ...]:
    role = quote_identifier(wish.role)
    sql = write_role_sql(wish.role)
    statements = [Statement(text=sql, shown=sql)]
    if wish.iam != facts.uses_iam:
        verb, to = ("GRANT", "TO") if wish.iam else ("REVOKE", "FROM")
        change = f"{verb} rds_iam {to} {role}"
        statements.append(Statement(text=change, shown=change))
    if password:
        alter = f"ALTER ROLE {role} PASSWORD '{{}}'"
        text = alter.format(make_verifier(password))
        statements.append(Statement(text=text, shown=alter.format(_VERIFIER_SHOWN)))
    return tuple(statements)
