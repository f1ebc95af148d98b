"""The sentences of a summary in the words of the command line."""

from session_reaper.policy.enums import Mode
from session_reaper.summary.wording import Wording


def make_wording(policy_mode: Mode | None = None, *, enforces: bool = False) -> Wording:
    """Make the wording for a run under a policy of this mode, with or without --enforce."""
    missing = [
        *([] if policy_mode in (None, Mode.ENFORCE) else ["mode: enforce in the policy"]),
        *([] if enforces else ["--enforce"]),
    ]
    needs = " and ".join(missing or ["--enforce"])
    return Wording(
        if_enforced=f"With {needs}",
        enforce=f"run again with {needs}" + ("" if enforces else ": it asks first"),
        enforces_at_once=True,
        continues="The next `session-reaper reap` continues with the spared sessions.",
        later="when you run the command again",
        add_rule="No rule of the policy matches such sessions now: `session-reaper explain` shows why."
        " If they are only too young, run the command again later; otherwise write another policy"
        " (`session-reaper policy show-default > policy.yaml`) and add --policy policy.yaml.",
        name_role="Write --role with their role; the policy needs a rule for them, too.",
        lift="--role with their role includes them",
        details="--json shows all.",
    )
