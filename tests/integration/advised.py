"""The advice of a run, and role names that its SQL has to quote."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.integration.stage import Run

HOSTILE_NAMES = ['o"brien', "back\\slash", "naïve 名", "semi; DROP ROLE app; --", ":name", "App"]


def sql_by_code(run: Run) -> dict[str, str | None]:
    """Return the SQL of each advice on the one target."""
    given = run.target()["advice"]
    sql = {advice["code"]: advice["sql"] for advice in given}
    assert len(sql) == len(given), "a code is there twice"
    return sql
