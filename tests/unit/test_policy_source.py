from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import yaml
from session_reaper.deadline import Deadline
from session_reaper.decision.decide import decide
from session_reaper.decision.model import Verdict
from session_reaper.errors import ConfigurationError
from session_reaper.policy.enums import Mode
from session_reaper.runs.policy_source import load_policy
from session_reaper.runs.policy_text import MAX_POLICY_LENGTH

from tests.builders import a_document, a_policy, a_session, some_slots

if TYPE_CHECKING:
    from pathlib import Path

    from session_reaper.policy.model import Policy
    from session_reaper.sessions.session import Session, Slots

YAML = """
# A comment
version: 1
mode: off
rules:
  - name: idle-in-transaction
    match:
      state: [idle in transaction]
      idle_for: 5m
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def load(folder: Path, text: str, name: str = "policy.yaml") -> Policy:
    path = folder / name
    path.write_text(text, "utf-8")
    return load_policy(str(path), Deadline(10))


def find_problem(folder: Path, text: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(folder, text)
    return str(caught.value).replace(str(folder), "")  # whose path contains the test's name


def decide_by_default(sessions: list[Session], slots: Slots) -> dict[int, str]:
    policy = load_policy("", Deadline(10))
    assert policy.mode is None  # so MODE alone applies
    decisions = decide(sessions, slots, policy).having(Verdict.CONDEMN)
    return {d.pid: d.rule.name for d in decisions if d.rule}


def test_the_bundled_policy_terminates_leaks_and_no_pooled_session() -> None:
    sessions = [
        a_session(pid=1, state="idle in transaction", idle_seconds=300),
        a_session(pid=2, state="idle in transaction (aborted)", idle_seconds=300),
        a_session(pid=3, state="idle in transaction", idle_seconds=299, connected_seconds=1e6),
        a_session(pid=4, state="idle", idle_seconds=1e6, transaction_seconds=None),
        a_session(pid=5, state="active", idle_seconds=1e6, query_seconds=1e6),
    ]
    rule = "idle-in-transaction"
    assert decide_by_default(sessions, some_slots(used=82)) == {1: rule, 2: rule}


def test_under_pressure_the_bundled_policy_terminates_only_as_many_younger_leaks_as_needed() -> (
    None
):
    leaks = [a_session(pid=n, idle_seconds=60 + n) for n in range(1, 40)]
    healthy = [a_session(pid=100, idle_seconds=59.9), a_session(pid=101, state="idle")]
    slots = some_slots(used=83, maximum=100, reserved=3)  # 85.6 %; 70 % is 67.9
    found = decide_by_default([*leaks, *healthy], slots)
    assert found == dict.fromkeys(range(24, 40), "under-pressure")  # the 16 that idle longest
    assert decide_by_default(leaks, some_slots(used=82)) == {}  # 84.5 %


def test_the_bundled_policy_terminates_a_wedged_session_and_no_copy() -> None:
    wedged = {"state": "active", "query_seconds": 900, "waiting_for_client": True}
    sessions = [
        a_session(pid=1, **wedged, query="UPDATE orders SET paid = true"),
        a_session(pid=2, **wedged, query="COPY orders FROM STDIN"),
        a_session(pid=3, **wedged | {"query_seconds": 899}),
        a_session(pid=4, **wedged | {"waiting_for_client": False}),
    ]
    assert decide_by_default(sessions, some_slots(used=10)) == {1: "wedged"}


def test_reads_yaml(folder: Path) -> None:
    assert load(folder, YAML) == a_policy(mode="off")


@pytest.mark.parametrize("indent", [None, 2])
def test_reads_json(folder: Path, indent: int | None) -> None:
    text = json.dumps(a_document(mode="observe"), indent=indent)
    assert load(folder, f"\n  {text}\n", "policy.json") == a_policy(mode="observe")


def test_ignores_a_byte_order_mark(folder: Path) -> None:
    assert load(folder, "\ufeff" + YAML).mode is Mode.OFF


def test_a_relative_path_starts_at_the_root_of_the_artifact(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert load_policy("session_reaper/policy/default_policy.json", Deadline(10)) == load_policy(
        "", Deadline(10)
    )


@pytest.mark.parametrize("source", ["nowhere.yaml", "session_reaper", "session_reaper/../x"])
def test_an_unreadable_policy_is_an_error_that_names_variable_and_source(source: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_policy(source, Deadline(10))
    assert source in str(caught.value)
    assert str(caught.value).startswith("POLICY")


def test_a_binary_file_is_an_error(folder: Path) -> None:
    (folder / "policy.yaml").write_bytes(b"version: \xff\xfe")
    with pytest.raises(ConfigurationError):
        load_policy(str(folder / "policy.yaml"), Deadline(10))


def test_an_error_names_the_source_and_the_place(folder: Path) -> None:
    problem = find_problem(folder, YAML.replace("5m", "300"))
    assert problem.startswith("POLICY /policy.yaml: ")
    assert "rules[0].match.idle_for: 300 has no unit" in problem


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("version: 1\nversion: 1\nrules: []", "line 1"),
        ("version: 1\nrules:\n - name: a\n   name: b", "line 3"),
        ("version: 1\nprotect: {roles: [a], roles: [b]}\nrules: []", "line 2"),
        ("version: 1\n<<: {version: 2}\nrules: []", "line 1"),
        ('{"version": 1, "version": 1}', "version"),
        ('{"version": 1, "protect": {"roles": ["a"], "roles": ["b"]}}', "roles"),
    ],
)
def test_a_duplicate_key_is_refused(folder: Path, line: str, place: str) -> None:
    problem = find_problem(folder, line)
    assert "duplicate key" in problem
    assert place in problem


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]",
        "version: &v 1\nrules: *v",
        "version: 1\nbase: &b {name: a}\nrules: [{<<: *b}]",
    ],
)
def test_aliases_are_refused(folder: Path, text: str) -> None:
    assert "alias" in find_problem(folder, text)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 500 + "]" * 500,
        '{"version": ' + "[" * 20_000 + "]" * 20_000 + "}",
        "".join("\n" + " " * depth + "a:" for depth in range(300)),
    ],
)
def test_a_deeply_nested_document_is_refused(folder: Path, text: str) -> None:
    assert find_problem(folder, text)


@pytest.mark.parametrize(
    "text",
    [
        *("a: 2026-13-45", "a: !!timestamp x", "a: !!bool x", "a: !!int ''", "a: !!float ''"),
        "a: " + ":".join(["1"] * 200) + ".5",
    ],
    ids=lambda text: text[:20],
)
def test_an_error_in_a_yaml_constructor_is_a_configuration_error(folder: Path, text: str) -> None:
    assert "document: is not valid YAML: " in find_problem(folder, text)


def test_a_policy_longer_than_the_limit_is_refused(folder: Path) -> None:
    longest = YAML + "#" * (MAX_POLICY_LENGTH - len(YAML))
    assert load(folder, longest).mode is Mode.OFF
    assert "longer than" in find_problem(folder, longest + "#")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n# nothing\n",
        "~",
        "- version: 1",
        "version",
        "version: 1\nrules: 2024-13-45",
        "version: 1\nrules: 2024-01-01",
        "version: 1\n\trules: []",
        "version: [1",
        "version: 1\n--- \nversion: 1",
        "version: !!python/object/apply:os.system [true]",
        "version: !!binary AAAA",
        "? [version]\n: 1",
        "version: \x01",
        "{",
        '{"version": 1,}',
        '{"version": NaN, "rules": []}',
        "version: 0x" + "f" * 5000 + "\nrules: []",
        "version: " + "9" * 5000 + "\nrules: []",
    ],
)
def test_a_document_that_is_not_a_policy_is_a_configuration_error(folder: Path, text: str) -> None:
    assert find_problem(folder, text)


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("protect: {roles: [no]}", "protect.roles[0]"),
        ("protect: {roles: [deploy, on]}", "protect.roles[1]"),
        ("protect: {roles: [~]}", "protect.roles[0]"),
        ("protect: {roles: [123]}", "protect.roles[0]"),
        ("protect: {roles: [2024-01-01]}", "protect.roles[0]"),
        ("protect: {roles:}", "protect.roles"),
        ("protect:", "protect"),
        ("limits: {max_terminations: yes}", "limits.max_terminations"),
        ("limits: {max_share: 1:30}", "limits.max_share"),
    ],
)
def test_a_bare_yaml_word_that_is_not_text_is_refused(folder: Path, line: str, place: str) -> None:
    assert f" {place}: " in find_problem(folder, f"{YAML}\n{line}\n")


@pytest.mark.parametrize(
    "text",
    [
        "postgres://app:hunter2@db.example/orders",
        "postgres://app:hunter2@db.example: orders: 1",
        '{"host": "db.example", "password": "hunter2"}',
        '{"host": "db.example", "password": "hunter2"',
        "host=db.example password=hunter2",
        *("hunter2", "[hunter2]", "a: b: hunter2", "*hunter2", "'hunter2", "\thunter2"),
        *("!hunter2", "!!hunter2 x", "!<hunter2> x", "!hunter2!x", "!it'shunter2"),
        *("!!int hunter2", "!!float hunter2", "!!bool hunter2"),
    ],
)
def test_a_possible_credential_is_not_shown(folder: Path, text: str) -> None:
    assert "hunter2" not in find_problem(folder, text)


def test_a_tag_that_another_library_adds_to_yaml_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        yaml.SafeLoader.yaml_multi_constructors, "!", lambda _, tag, __: {tag: "any"}
    )
    assert "is not valid YAML: could not determine a constructor" in find_problem(folder, "!Ref x")


def test_flow_yaml_that_begins_like_json_is_read_as_yaml(folder: Path) -> None:
    text = "{version: 1, mode: off, rules: [{name: idle-in-transaction, match: "
    text += "{state: [idle in transaction], idle_for: 5m}}]}"
    assert load(folder, text) == a_policy(mode="off")
