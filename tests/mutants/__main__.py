"""The second half of `make mutants`: change the guard, which is SQL, and check that tests fail.

Each mutant is one statement with one condition removed or reversed, in a copy of the tree. The
integration tests have to fail on the oldest and the newest server.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
QUERIES = Path("functions") / "session_reaper" / "postgres" / "queries"
PARTS = ("functions", "infra", "tests", "events", "pyproject.toml", "README.md")
# The tests of each statement, on the oldest and the newest server.
_ANY = "pg13 or pg18"
TESTS = {
    "signal": [
        "tests/integration/test_guard.py",
        "tests/integration/test_lock_waits.py",
        "tests/integration/test_privileges.py",
        "-k",
        f"({_ANY}) and (test_guard or test_lock_waits or revoked_after_the_snapshot)",
    ],
    "verify": [
        "tests/integration/test_guard.py",
        "tests/integration/test_limits.py",
        "tests/integration/test_rules.py",
        "-k",
        f"({_ANY}) and (test_limits or reused_pid or hidden or cancel or outlives or small_server or no_more_leaks)",
    ],
}


# No test can notice these; docs/mutants.md explains why.
EXPLAINED = {
    "signal.sql without WHERE a.pid = CAST(:pid AS integer)",
    "verify.sql IS NULL in 'can_see', count(*) FILTER (WHERE a.backend_type IS NULL AND a.usesysid IS NOT NULL",
}


def generate_mutants(statement: str) -> Iterator[tuple[str, str]]:
    """Yield each statement with one condition removed or one comparison reversed, and its description."""
    conditions = re.findall(r"^ *(?:WHERE|AND) .*$", statement, re.MULTILINE)
    for condition in conditions:
        word = condition.split()[0]
        gone = f"{word} true" + " -- " + condition.split(maxsplit=1)[1]
        yield f"without {condition.strip()}", statement.replace(condition, gone, 1)
    for old, new in (
        ("IS NOT DISTINCT FROM", "IS DISTINCT FROM"),
        (" = ", " <> "),
        ("true)", "false)"),
        ("<> pg_backend_pid()", "= pg_backend_pid()"),
        ("IS NOT NULL", "IS NULL"),
        ("NOT LIKE", "LIKE"),
    ):
        for found in re.finditer(re.escape(old), statement):
            line = statement[: found.end()].splitlines()[-1].strip()
            reversed_statement = statement[: found.start()] + new + statement[found.end() :]
            yield f"{new.strip()} in {line}", reversed_statement


def main() -> None:
    """Test all mutants; the exit status is 1 if one survives that docs/mutants.md does not explain."""
    unexplained = killed = tried = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for part in PARTS:
            source = ROOT / part
            if source.is_dir():
                shutil.copytree(source, copy / part)
            else:
                shutil.copy(source, copy / part)
        for name, tests in TESTS.items():
            path = copy / QUERIES / f"{name}.sql"
            whole = path.read_text("utf-8")
            comments, statement = _split(whole)
            for what, mutant in generate_mutants(statement):
                path.write_text(comments + mutant, "utf-8")
                is_killed, mutant_name = _is_killed(copy, tests), f"{name}.sql {what}"
                tried, killed = tried + 1, killed + is_killed
                unexplained += not is_killed and mutant_name not in EXPLAINED
                print(f"{'killed  ' if is_killed else 'SURVIVED'} {mutant_name}", flush=True)
            path.write_text(whole, "utf-8")
    print(f"{killed} of {tried} mutants of the guard killed, {unexplained} not explained")
    sys.exit(unexplained > 0)


def _split(whole: str) -> tuple[str, str]:
    lines = whole.splitlines(keepends=True)
    first = next(n for n, line in enumerate(lines) if not line.startswith("--"))
    return "".join(lines[:first]), "".join(lines[first:])


def _is_killed(copy: Path, tests: list[str]) -> bool:
    servers = [f"--servers={Path(sys.argv[1]).resolve()}"] if sys.argv[1:] else []
    command = [sys.executable, "-m", "pytest", "-q", "-x", *tests, *servers]
    done = subprocess.run(command, cwd=copy, capture_output=True, check=False)  # noqa: S603 -- our own tests
    if done.returncode not in {0, 1}:  # not a test that failed: nothing was tested
        raise SystemExit(done.stdout.decode()[-2000:])
    return done.returncode == 1


if __name__ == "__main__":
    main()
