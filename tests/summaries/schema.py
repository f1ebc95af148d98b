"""The schema of a custom notification of Amazon Q Developer in chat applications."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SCHEMA: dict[str, Any] = json.loads(
    Path(__file__).with_name("custom_notification.schema.json").read_text()
)
