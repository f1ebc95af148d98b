"""The SQL that a person runs when the server is full and the reaper cannot help.

It must work as printed for any role, so it leaves out the sessions that the role may not signal:
one of them would abort the whole statement. It is one SELECT with one semicolon, at its end, and
has no quotes but its own: every character of a pattern that could end a literal becomes a wildcard,
so that a pattern in it protects more, never less.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from session_reaper.policy.builtin import (
    PROVIDER_DATABASES,
    PROVIDER_ROLES,
    TOOLS,
    find_protection,
    find_protection_by_name,
    find_protection_by_role,
)
from session_reaper.policy.model import Policy, Protect
from session_reaper.policy.patterns import widen_classes
from session_reaper.policy.protections import Protection
from session_reaper.sessions.session import Names, State
from session_reaper.sessions.snapshot import Holder
from session_reaper.targets.providers import emergency_instructions, reserved_slot_instructions

EMERGENCY_AGE: Final = 300.0  # seconds in its state after which a statement here ends a session
EMERGENCY_AGE_IN_WORDS: Final = f"{EMERGENCY_AGE / 60:g} minutes"
_MAX_STATEMENT: Final = 1400  # characters; a summary does not show a longer one
_WAITING: Final = (State.IDLE, State.IDLE_IN_TRANSACTION, State.IDLE_IN_TRANSACTION_ABORTED)
_TERMINATE: Final = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE "
_LITERAL: Final = re.compile(r"[\w /@-]*", re.ASCII)


class EmergencySql(NamedTuple):
    """A statement, and whether it also spares what the policy protects."""

    statement: str
    spares_policy: bool

    def __str__(self) -> str:
        """The statement, and what it spares."""
        spared = "backups and other tools, but not what the policy protects"
        if self.spares_policy:
            spared = "what the policy protects, but not what a keep rule keeps"
        return f"{self.statement} (It spares {spared}.)"


def write_emergency_sql(policy: Policy, own_role: str) -> EmergencySql:
    """Write the statement that terminates the sessions idle in transaction for five minutes."""
    tools = [glob for tool in TOOLS for glob in tool.applications]
    return _write_within_limit("state LIKE 'idle in transaction%'", tools, policy, own_role)


LIST_HOLDERS: Final = (
    "SELECT count(*), state, usename, application_name, max(now() - state_change) AS oldest"
    " FROM pg_stat_activity WHERE backend_type = 'client backend' GROUP BY 2, 3, 4 ORDER BY 1 DESC;"
)
"""The statement that shows who holds the slots."""


def find_holder_protection(holder: Holder, policy: Policy) -> Protection | None:
    """Return what protects every session of a group, as far as its names and its role show."""
    names = Names(holder.role, "", holder.application)
    protection = (
        find_protection(holder)
        or find_protection_by_name(names)
        or policy.protect.find(names)
        or find_protection_by_role(holder)
    )
    is_lifted = protection and protection.can_be_lifted and holder.role in policy.lifted_roles
    return None if is_lifted else protection


def write_holder_sql(holder: Holder, policy: Policy, own_role: str) -> EmergencySql | None:
    """Write the statement that terminates the sessions of a group that wait for five minutes.

    None if the group does not wait for its clients, is protected, or has a name that needs quoting.
    """
    role, application = holder.role, holder.application
    if holder.state not in _WAITING or role is None or not _is_plain(role + application):
        return None
    if find_holder_protection(holder, policy):
        return None
    condition = (
        f"state = '{holder.state}' AND usename = '{role}' AND application_name = '{application}'"
    )
    return _write_within_limit(condition, (), policy, own_role)


def instruct_on_full_server(host: str, role: str, policy: Policy) -> str:
    """Write what to do about a server that has no slot for the reaper; `role` is the reaper's."""
    now = emergency_instructions(host, str(write_emergency_sql(policy, role)))
    later = reserved_slot_instructions(host, role)
    return f"{now} To see who holds the slots, run {LIST_HOLDERS} {later}"


def _is_plain(name: str) -> bool:
    return _LITERAL.fullmatch(name) is not None


def _write_within_limit(
    condition: str, tools: Sequence[str], policy: Policy, own_role: str
) -> EmergencySql:
    """Write the statement, without what the policy protects or lifts if that makes it too long."""
    statement = _write(condition, tools, policy, own_role)
    spares_policy = len(statement) <= _MAX_STATEMENT
    if not spares_policy:
        statement = _write(condition, tools, replace(policy, rules=(), protect=Protect()), own_role)
    return EmergencySql(statement=statement, spares_policy=spares_policy)


def _write(condition: str, tools: Sequence[str], policy: Policy, own_role: str) -> str:
    applications = [*tools, *policy.protect.applications]
    databases = [*PROVIDER_DATABASES, *policy.protect.databases]
    clients = ",".join(map(str, policy.protect.clients))
    parts = [
        condition,
        f"state_change < now() - interval '{EMERGENCY_AGE_IN_WORDS}'",
        "backend_type = 'client backend'",
        "(pg_has_role(usesysid, 'USAGE') OR pg_has_role('pg_signal_backend', 'USAGE'))",
        _spare_roles(policy, own_role),
        f"datname !~ '{_to_regex(databases)}'",
        *([f"application_name !~ '{_to_regex(applications)}'"] if applications else []),
        *([f"(client_addr <<= ANY ('{{{clients}}}'::inet[])) IS NOT TRUE"] if clients else []),
    ]
    return _TERMINATE + " AND ".join(parts) + ";"


def _spare_roles(policy: Policy, own_role: str) -> str:
    """Write the condition that spares protected roles; a role that was dropped has no row."""
    by_role = f"rolreplication OR rolname ~ '{_to_regex([*PROVIDER_ROLES, own_role])}'"
    lifted = sorted(filter(_is_plain, policy.lifted_roles))
    if lifted:
        by_role = f"({by_role}) AND rolname !~ '{_to_regex(lifted)}'"
    protected = f"rolsuper OR {by_role}"
    if not policy.protect.roles:
        return f"NOT EXISTS (SELECT FROM pg_roles WHERE oid = usesysid AND ({protected}))"
    protected += f" OR rolname ~ '{_to_regex(policy.protect.roles)}'"
    return f"EXISTS (SELECT FROM pg_roles WHERE oid = usesysid AND NOT ({protected}))"


def _to_regex(globs: Iterable[str]) -> str:
    """Return a regular expression of PostgreSQL that matches at least what the globs match."""
    return f"^({'|'.join(dict.fromkeys(''.join(_convert_glob(glob)) for glob in globs))})"


def _convert_glob(glob: str) -> Iterator[str]:
    """Replace wildcards, and the characters that need quoting, which match any character."""
    for character in widen_classes(glob).removesuffix("*"):
        if character == "*":
            yield ".*"
        else:
            yield character if _is_plain(character) else "."
    if not glob.endswith("*"):
        yield "$"
