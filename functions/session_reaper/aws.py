"""How every AWS client here is made."""

from typing import Final

from botocore.config import Config

# Two tries of 3 + 3 s and a pause: no call holds a run for longer than 13 s. PUBLISH_SECONDS is
# what a run keeps back for its last call.
CONFIG: Final = Config(
    connect_timeout=3,
    read_timeout=3,
    retries={"mode": "standard", "total_max_attempts": 2},
)
PUBLISH_SECONDS: Final = 13.0
