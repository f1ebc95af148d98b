"""`python -m session_reaper_cli`: the command without its installation."""

import sys

from session_reaper_cli.main import run

sys.exit(run(sys.argv[1:]))
