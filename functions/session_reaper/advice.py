"""What needs to be mended without haste: pure functions of what was seen."""

from collections.abc import Iterator

from session_reaper.errors import quoted
from session_reaper.report import Advice
from session_reaper.sessions import Look
from session_reaper.targets import SslMode, Target


def advice_on_connection(target: Target) -> Iterator[Advice]:
    """What the secret asks for and should not."""
    if target.sslmode is SslMode.DISABLE:
        yield Advice(
            code="encrypt-connection",
            message="The secret says sslmode disable: the connection is plaintext. Switch TLS on"
            " at the server and write verify-full into the secret.",
            sql=None,
        )


def advice_on_look(look: Look) -> Iterator[Advice]:
    """What the look showed to be missing."""
    if not look.can_signal:
        yield Advice(
            code="grant-signal-backend",
            message=f"Role {look.role} can terminate sessions only of roles it is a member of.",
            sql=f"GRANT pg_signal_backend TO {quoted(look.role)};",
        )
    if look.untracked:
        yield Advice(
            code="track-activities",
            message=f"{look.untracked} sessions hide their state (track_activities is off):"
            " no rule can match them. Switch it on.",
            sql=None,
        )
