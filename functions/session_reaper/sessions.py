"""What was seen on one server."""

from dataclasses import dataclass, field
from enum import StrEnum


class State(StrEnum):
    """The states of `pg_stat_activity.state` that a rule may name.

    The others are protected: NULL (a background process), `disabled` (`track_activities` is off:
    what it does is unknown) and `starting` (PostgreSQL 18, not signed in yet).
    """

    ACTIVE = "active"
    IDLE = "idle"
    IDLE_IN_TRANSACTION = "idle in transaction"
    IDLE_IN_TRANSACTION_ABORTED = "idle in transaction (aborted)"
    FASTPATH = "fastpath function call"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What must all still hold when a session is signalled.

    The moments are the server's own text, to the microsecond, and go back to it unread.
    """

    pid: int
    backend_start: str
    xact_start: str | None
    state_change: str | None
    state: State


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One client backend other than our own. Ages are seconds by the server's clock, never < 0."""

    identity: Identity
    role: str
    database: str
    application: str  # "" where the client gave none
    client: str | None  # None on a Unix socket
    query: str = field(repr=False)  # raw: holds literals, must not leave without redaction
    idle_seconds: float  # since state_change
    transaction_seconds: float | None  # since xact_start
    connected_seconds: float  # since backend_start
    query_seconds: float | None  # since query_start; None unless active
    superuser: bool
    replication: bool
    own_role: bool

    @property
    def state(self) -> State:
        """The state it was in when we looked."""
        return self.identity.state


@dataclass(frozen=True, slots=True, kw_only=True)
class Slots:
    """Connection slots. `used` counts client backends other than our own connection."""

    max: int
    reserved: int  # every kind: superuser, reserved_connections, the provider's
    used: int

    @property
    def usable(self) -> int:
        """What ordinary roles can use."""
        return self.max - self.reserved


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One look at one server."""

    role: str  # ours
    slots: Slots
    can_see: bool  # other roles' sessions
    can_signal: bool  # sessions of every role that is no superuser
    untracked: int  # client backends whose state is `disabled`
    sessions: tuple[Session, ...]  # those that a rule could match, in no order
