"""A fallback secret for a server without a free slot."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.integration.stage import Stage

RESCUE = "rescue"  # its name


def store_superuser(stage: Stage) -> str:
    """Store the secret of a superuser, which has reserved slots also before PostgreSQL 16."""
    role = stage.role("rescuer", "SUPERUSER")
    stage.aws.put_secret(RESCUE, stage.secret(username=role))
    return RESCUE
