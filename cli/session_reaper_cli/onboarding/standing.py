"""Records which changes were made on the server and in Secrets Manager, in case of a failure."""

from dataclasses import dataclass
from enum import StrEnum

from session_reaper_cli.terminal import Say


class State(StrEnum):
    """The state of the role or of the secret."""

    ABSENT = "does not exist"
    KEPT = "is unchanged"
    CHANGED = "is created or changed"
    REMOVED = "is removed"
    UNKNOWN = "may be changed: the answer was lost"


@dataclass(slots=True, kw_only=True)
class Standing:
    """The role and the secret, with their states; these change while the command works."""

    role_name: str
    secret_name: str
    role: State
    secret: State
    is_tagged: bool

    def describe(self, say: Say, *, has_cause: bool) -> None:
        """Say the state of the role and of the secret, and what to do.

        `has_cause`: an error ended the command, and is printed afterwards; otherwise a person did.
        """
        say("The command did not finish. The state now:")
        say(f"- the role {self.role_name} {self.role}")
        say(f"- the secret {self.secret_name} {self.secret}")
        if self.secret in (State.KEPT, State.CHANGED) and not self.is_tagged:
            say("- the secret does not have the tag, so the function does not read it by the tag")
        fix = "Fix the cause below, and run" if has_cause else "Run"
        say(f"{fix} the same command again; it continues from there.")
