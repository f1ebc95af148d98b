"""Starts the command, also as `python -m session_reaper_cli` without its installation."""

import sys

_INTERRUPTED = 130  # an exit status


def main() -> None:
    """Run the command and exit; Ctrl-C while Python still loads it shows no traceback."""
    try:
        from session_reaper_cli.main import main as run_command  # noqa: PLC0415 -- it takes 100 ms
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    run_command()


if __name__ == "__main__":
    main()
