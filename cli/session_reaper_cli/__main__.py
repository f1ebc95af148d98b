"""`python -m session_reaper_cli`: the command without its installation."""

from session_reaper_cli.main import main

main()
