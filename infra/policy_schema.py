"""Keeps the published JSON Schema of a policy up to date.

python -m infra.policy_schema             prints it
python -m infra.policy_schema --write     writes infra/policies/policy.schema.json
python -m infra.policy_schema --check     fails if that file is out of date
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from session_reaper_cli.policy_schema import write_schema

SCHEMA_FILE = Path(__file__).parent / "policies" / "policy.schema.json"


def main(arguments: Sequence[str], schema_file: Path = SCHEMA_FILE) -> None:
    """Print, write or check the schema."""
    parser = argparse.ArgumentParser(prog="python -m infra.policy_schema")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--write", action="store_true", help=f"write {SCHEMA_FILE.name}")
    group.add_argument(
        "--check", action="store_true", help=f"fail if {SCHEMA_FILE.name} is out of date"
    )
    chosen = parser.parse_args(arguments)
    schema = write_schema()
    if chosen.write:
        schema_file.write_text(schema, "utf-8")
    elif not chosen.check:
        print(schema, end="")
    elif not schema_file.exists() or schema_file.read_text("utf-8") != schema:
        sys.exit(f"{SCHEMA_FILE.name} is out of date; run `make schema`.")


if __name__ == "__main__":
    main(sys.argv[1:])
