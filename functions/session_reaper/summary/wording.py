"""The sentences of a summary that differ between the function and the command."""

from typing import Final, NamedTuple


class Wording(NamedTuple):
    """How the reader of a summary follows what it recommends.

    Parts of sentences, in the form of `OF_FUNCTION`. `enforces_at_once`: what `enforce` says takes
    effect now, so nothing else is needed to free slots. `sees_all`: the report is on all targets,
    with the holders of their slots.
    """

    if_enforced: str
    enforce: str
    enforces_at_once: bool
    continues: str
    later: str
    add_rule: str
    name_role: str
    lift: str
    details: str
    if_all_enforced: str = "If all rules had mode enforce"
    enforce_all: str = "set the mode of their rule to enforce"
    mode: str = "mode"
    sees_all: bool = True


OF_FUNCTION: Final = Wording(
    if_enforced="In mode enforce",
    enforce="set the mode to enforce",
    enforces_at_once=False,
    continues="No action is needed for the spared sessions: the next run continues with them.",
    later="in the next run",
    add_rule="To let the reaper end such sessions, add a rule for them to the policy;"
    ' {"explain": true} shows what spares each one now.',
    name_role="To let the reaper end such sessions, add a rule for them to the policy that names the"
    " role.",
    lift="name the role in the rule to include them",
    details="The log has them.",
)

OF_HUB: Final = OF_FUNCTION._replace(
    enforce="set the mode of their stack to enforce",
    if_all_enforced="If all stacks and rules had mode enforce",
    enforce_all="set the mode of their stack or rule to enforce",
    mode="highest mode",
    sees_all=False,
)
"""The wording of a fleet's digest: no holders, and targets since the last digest only."""
