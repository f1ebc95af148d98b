"""The names of a run's targets: unique in its report, and those by which an event selects them."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from session_reaper.documents import key_label
from session_reaper.errors import ConfigurationError
from session_reaper.report.model import TargetReport
from session_reaper.targets.servers import are_one_server, group_by_server
from session_reaper.targets.target import Target

Found = Target | TargetReport
"""A target, or a report in place of one that could not be found."""


def select_by_name(found: Sequence[Found], names: Sequence[str]) -> Sequence[Found]:
    """Return the targets with these names, or all; make the names of the result unique.

    A target has three names: the one in its secret, its group's, and the unique one. The other
    targets of its server are selected as its alternates. Raises ConfigurationError if a name is
    unknown.
    """
    servers = group_by_server([each for each in found if isinstance(each, Target)])
    server_of = {target.key: n for n, server in enumerate(servers) for target in server}
    numbers = [
        server_of[each.key] if isinstance(each, Target) else -1 - index
        for index, each in enumerate(found)
    ]
    by_name: dict[str, list[Found]] = defaultdict(list)
    original, found = found, _make_names_unique(found, numbers)
    for before, each in zip(original, found, strict=True):
        group = each.group if isinstance(each, Target) else each.name
        for name in {before.name, each.name, group}:
            by_name[name].append(each)
    for index, name in enumerate(names):
        if name not in by_name:
            problem = f"unknown target {key_label(name)}; known: {', '.join(sorted(by_name))}"
            raise ConfigurationError(f"event.targets[{index}]", problem)
    if not names:
        return found
    wanted = {id(each): each for name in names for each in by_name[name]}
    targets = [each for each in wanted.values() if isinstance(each, Target)]
    selected: list[Found] = []
    for each in found:
        if id(each) in wanted:
            selected.append(each)
        elif isinstance(each, Target) and any(are_one_server(one, each) for one in targets):
            selected.append(replace(each, is_alternate=True))
    return selected


def _make_names_unique(found: Sequence[Found], servers: Sequence[int]) -> Sequence[Found]:
    """Add the secret to equal names and, if they are still equal, the ARN and the instance.

    `servers`: a number for each, equal where they may be one server. The first one of a server
    keeps its name if only others of that server have it.
    """
    levels = [0] * len(found)
    while True:
        names = [_name_at(level, each) for level, each in zip(levels, found, strict=True)]
        indices: dict[str, list[int]] = defaultdict(list)
        for index, name in enumerate(names):
            indices[name].append(index)
        equal = []
        for several in indices.values():
            is_one_server = len({servers[index] for index in several}) == 1
            equal += several[1:] if is_one_server else several
        raised = [index for index in equal if levels[index] < _MOST_PRECISE]
        if not raised:
            return [replace(each, name=n) for each, n in zip(found, names, strict=True)]
        for index in raised:
            levels[index] += 1


_MOST_PRECISE: Final = 2


def _name_at(level: int, each: Found) -> str:
    secret = each.secret_name if isinstance(each, Target) else each.secret
    identity = " ".join(part for part in (each.key.secret, each.key.instance) if part)
    return (each.name, f"{each.name} (secret {secret})", f"{each.name} ({identity})")[level]
