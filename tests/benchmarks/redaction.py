"""`python -m tests.benchmarks.redaction`: counts what other SQL lexers would leak in place of ours.

None of them is a dependency. Those that are installed are measured:
uv run --no-project --with pytest,sqlglot,sqlparse,pygments,sqlfluff,pglast python -m …
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "functions"))

from session_reaper.sessions.redaction import redact

from tests.canary_queries import (
    BACKSLASHED,
    COMMENTED,
    CUT_OFF,
    DOLLARS,
    LITERALS,
    MISQUOTED,
    VALUES,
    leaks,
)

Redact = Callable[[str], str]
FRAMES = ("call f(a, {}, b)", "select a={}", "values ({}),({})", "select {}::text\n--x\n, {}", "{}")
VALID = [
    *(frame.replace("{}", literal) for literal in LITERALS for frame in FRAMES),
    *COMMENTED,
]
TWO_WAYS = [*BACKSLASHED, *DOLLARS]  # depends on a setting of the session, or on the version
OTHERS = [*MISQUOTED, *(query for query, _ in VALUES)]  # not literals by the lexical rules
QUERY = "select o.id, 'x''y', E'a\\n', $$b$$, 1.5e3 /* c */ from orders o where o.id = $1 and b\n"


def _load_sqlglot() -> Redact:
    dialect = import_module("sqlglot.dialects").Postgres()
    kinds = import_module("sqlglot.tokens").TokenType
    literals = {kind for kind in kinds if kind.name.endswith(("STRING", "NUMBER"))}

    def redact_by_it(query: str) -> str:
        tokens = dialect.tokenize(query)
        return " ".join(
            "?" if t.token_type in literals else query[t.start : t.end + 1] for t in tokens
        )

    return redact_by_it


def _redact_by_types(
    read: Callable[[str], Iterable[tuple[Any, str]]],
    kinds: Any,  # noqa: ANN401 -- a library's
    name: object,
) -> Redact:
    """Redact by a hierarchy of token types; `name` is the type of a quoted identifier."""

    def show(kind: object, text: str) -> str:
        if kind in kinds.Comment:
            return " "
        hidden = (kind in kinds.Literal and kind is not name) or kind in kinds.Error
        return "?" if hidden else text

    return lambda query: "".join(show(kind, text) for kind, text in read(query))


def _load_sqlparse() -> Redact:
    parse, kinds = import_module("sqlparse").parse, import_module("sqlparse.tokens")

    def read(query: str) -> Iterable[tuple[Any, str]]:
        return ((t.ttype, t.value) for statement in parse(query) for t in statement.flatten())

    return _redact_by_types(read, kinds, kinds.Literal.String.Symbol)


def _load_pygments() -> Redact:
    lexer, kinds = import_module("pygments.lexers").PostgresLexer(), import_module("pygments.token")
    return _redact_by_types(lexer.get_tokens, kinds, kinds.String.Name)


def _load_sqlfluff() -> Redact:
    core = import_module("sqlfluff.core")
    lexer = import_module("sqlfluff.core.parser").Lexer(
        config=core.FluffConfig(overrides={"dialect": "postgres"})
    )

    def show(kind: str, text: str) -> str:
        if "comment" in kind:
            return " "
        hidden = ("quote" in kind and kind != "double_quote") or "literal" in kind
        return "?" if hidden or kind == "unlexable" else text

    def redact_by_it(query: str) -> str:
        segments, _ = lexer.lex(query)
        return "".join(show(segment.get_type(), segment.raw) for segment in segments)

    return redact_by_it


def _load_pglast() -> Redact:
    scan = import_module("pglast.parser").scan
    literals = {"SCONST", "ICONST", "FCONST", "BCONST", "XCONST", "USCONST"}

    def redact_by_it(query: str) -> str:
        tokens = [t for t in scan(query) if "COMMENT" not in t.name]
        return " ".join("?" if t.name in literals else query[t.start : t.end + 1] for t in tokens)

    return redact_by_it


LEXERS: Mapping[str, Callable[[], Redact]] = {
    "ours": lambda: redact,
    "sqlglot": _load_sqlglot,
    "sqlparse": _load_sqlparse,
    "pygments": _load_pygments,
    "sqlfluff": _load_sqlfluff,
    "pglast": _load_pglast,
}


def cut_everywhere(queries: Iterable[str]) -> Iterator[str]:
    """Yield each query cut at every byte, as a server may cut it."""
    for query in queries:
        whole = query.encode()
        yield from (whole[:end].decode(errors="replace") for end in range(1, len(whole)))


def count_faults(redact_by_it: Redact, queries: Iterable[str]) -> Counter[str]:
    """Count the queries that leak, and those that raise an exception."""
    count: Counter[str] = Counter()
    for query in queries:
        try:
            if leaks(redact_by_it(query)):
                count["leaks"] += 1
        except Exception:  # noqa: BLE001 -- the measurement itself: raises of any kind are counted
            count["raises"] += 1
    return count


def measure_seconds(redact_by_it: Redact, length: int) -> float:
    """Measure the redaction of one query of this length; return the minimum."""
    query = (QUERY * (length // len(QUERY) + 1))[:length].rpartition("\n")[0]
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        redact_by_it(query)
        best = min(best, time.perf_counter() - start)
    return best


def main() -> None:
    sets = {
        "whole": VALID,
        "cut": [*CUT_OFF, *cut_everywhere(VALID)],
        "two ways": TWO_WAYS,
        "others": OTHERS,
    }
    print({name: len(queries) for name, queries in sets.items()})  # noqa: T201 -- a command
    for name, make in LEXERS.items():
        with suppress(ImportError):
            lexer = make()
            found = {label: dict(count_faults(lexer, queries)) for label, queries in sets.items()}
            times = [f"{measure_seconds(lexer, length) * 1e6:.0f} µs" for length in (200, 2000)]
            print(name, *found.items(), *times, sep="\n  ")  # noqa: T201 -- a command


if __name__ == "__main__":
    main()
