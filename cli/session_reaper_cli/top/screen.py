"""Draws what `top` shows, from 60 columns up."""

from collections.abc import Iterator, Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from session_reaper.policy.durations import format_duration
from session_reaper.report.headline import count_of
from session_reaper.report.text import printable, truncate
from session_reaper.sessions.session import Session

from session_reaper_cli.top.overview import Overview, SessionGroup

_MOST_GROUPS: Final = 15
_MOST_CHAINS: Final = 5
_MOST_WAITERS: Final = 3
_LONGEST_REASON: Final = 120  # characters
_GAP: Final = 2  # columns between two cells
_WIDE: Final = 90  # columns from which the client network is shown
_WARNING, _CRITICAL = 0.85, 1.0  # shares of the usable slots
_SHORT: Final = {
    "idle in transaction": "idle in tx",
    "idle in transaction (aborted)": "aborted tx",
    "fastpath function call": "fastpath",
}


def draw(overview: Overview, width: int) -> RenderableType:
    """Draw an overview for a screen of this width."""
    return Group(*_list_parts(overview, width))


def _list_parts(overview: Overview, width: int) -> Iterator[RenderableType]:
    yield _draw_title(overview)
    yield from _draw_slots(overview, width)
    hidden = overview.snapshot.hidden
    if hidden:
        yield Text(
            f"{count_of(hidden, 'session')} {'is' if hidden == 1 else 'are'} hidden from this"
            f" role ({overview.snapshot.role}); pg_read_all_stats shows them.",
            "yellow",
        )
    yield Text()
    yield _draw_groups(overview.groups, width)
    if overview.blockers:
        yield Text()
        yield Text("Lock chains", "bold")
        for blocker in overview.blockers[:_MOST_CHAINS]:
            yield from _draw_chain(blocker)
        if len(overview.blockers) > _MOST_CHAINS:
            yield Text(f"  … and {len(overview.blockers) - _MOST_CHAINS} more")
    yield Text()
    yield from _draw_plans(overview)


def _draw_title(overview: Overview) -> Text:
    replica = " (replica)" if overview.snapshot.reader else ""
    return Text.assemble(
        (printable(overview.target, 60), "bold"), f"{replica}  role {overview.snapshot.role}"
    )


def _draw_slots(overview: Overview, width: int) -> Iterator[Text]:
    slots = overview.snapshot.slots
    share = slots.used / slots.usable if slots.usable > 0 else 1.0
    style = "red" if share >= _CRITICAL else "yellow" if share >= _WARNING else "green"
    label = f" {slots.used}/{slots.usable} used, {slots.reserved} reserved"
    room = min(40, width - len("slots  []") - len(label))
    full = min(room, round(share * room))
    yield Text.assemble(
        "slots  [", ("█" * full, style), ("·" * (room - full), "dim"), "]", (label, style)
    )
    if share >= _CRITICAL:
        yield Text("FULL: ordinary roles cannot connect.", "bold red")


def _draw_groups(groups: Sequence[SessionGroup], width: int) -> Table:
    headers = ["count", "application", "role", "client", "state", "oldest", "holds"]
    rows = [headers, *(_list_cells(group) for group in groups[:_MOST_GROUPS])]
    if width < _WIDE:
        rows = [
            [cell for cell, header in zip(row, headers, strict=True) if header != "client"]
            for row in rows
        ]
    widths = _fit_widths(rows, width)
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0))
    for header in rows[0]:
        table.add_column(header, justify="right" if header in ("count", "oldest") else "left")
    for row in rows[1:]:
        # A cell is text, not markup: names come from outside.
        cells = (truncate(cell, most) for cell, most in zip(row, widths, strict=True))
        table.add_row(*(Text(cell, no_wrap=True) for cell in cells))
    if len(groups) > _MOST_GROUPS:
        rest = groups[_MOST_GROUPS:]
        number = sum(group.count for group in rest)
        table.add_row(Text(str(number)), Text(f"in {len(rest)} more", no_wrap=True))
    return table


def _list_cells(group: SessionGroup) -> list[str]:
    return [
        str(group.count),
        printable(group.application, 63) or "(no name)",
        printable(group.role, 63),
        group.client,
        _SHORT.get(group.state, group.state),
        format_duration(group.oldest_seconds),
        ", ".join(_list_held(group)),
    ]


def _fit_widths(rows: Sequence[Sequence[str]], width: int) -> list[int]:
    """Return the widths of columns that fit: the widest one loses a character at a time."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    while sum(widths) + _GAP * len(widths) > width:
        widths[widths.index(max(widths))] -= 1
    return widths


def _list_held(group: SessionGroup) -> Iterator[str]:
    if group.blocks:
        yield f"blocks {group.blocks}"
    if group.locks:
        yield count_of(group.locks, "lock")
    if group.pins:
        yield f"vacuum by {group.pins:,}"


def _draw_chain(root: Session) -> Iterator[RenderableType]:
    name = printable(root.application, 40) or "(no name)"
    head = (
        f"  pid {root.identity.pid} {name} (role {printable(root.role_label, 40)}),"
        f" {root.state} for {format_duration(root.idle_seconds)},"
        f" blocks {count_of(len(root.waiters), 'session')}:"
    )
    yield Text(head)
    for waiter in root.waiters[:_MOST_WAITERS]:
        waiting = printable(waiter.application, 40) or "(no name)"
        yield Text(f"    └ pid {waiter.pid} {waiting}, waits for {format_duration(waiter.seconds)}")
    more = len(root.waiters) - _MOST_WAITERS
    if more > 0:
        yield Text(f"    └ and {more} more")


def _draw_plans(overview: Overview) -> Iterator[Text]:
    if overview.breaker:
        yield Text(f"The breaker stops all: {overview.breaker}.", "yellow")
    for plan in overview.plans:
        held = f" ({plan.held_back} held back)" if plan.held_back else ""
        yield Text.assemble(
            "The policy would ",
            (f"{plan.action} {count_of(plan.count, 'session')}", "bold"),
            f"{held} by rule {plan.rule}: {printable(plan.example, _LONGEST_REASON)}",
        )
    if any(plan.count for plan in overview.plans):
        yield Text("`session-reaper reap --enforce` does it, and asks first.")
    if not overview.plans:
        yield Text(
            "The policy would terminate none of these sessions; `session-reaper explain` shows why."
        )
    for by, number in overview.protected:
        yield Text(f"{count_of(number, 'session')} that a rule matches: protected ({by}).")
    if overview.own_role:
        role = overview.snapshot.role
        yield Text(
            f"{role} is the role of this command: `reap --role {role}` works on its sessions."
        )
