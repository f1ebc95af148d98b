"""Record the snapshots again, or only the verdicts on them.

python -m tests.recordings [SERVERS_FOLDER]    # npm's servers 13 to 18 (default: the bundled ones)
python -m tests.recordings --verdicts          # after a change of policies or of reasons
"""

from __future__ import annotations

import argparse
import json
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from pg8000.native import literal
from session_reaper.deadline import Deadline
from session_reaper.postgres.server import Server
from session_reaper.report.document import to_recording
from session_reaper.sessions.snapshot import ALL_SESSIONS
from session_reaper.targets.target import Auth, SslMode, Target

from infra.local.postgres import Build, bundled_builds, npm_builds, server
from tests.recordings import FOLDER, write_verdicts
from tests.recordings.scene import PASSWORD, open_scene

if TYPE_CHECKING:
    from infra.local.postgres import Server as PostgresServer

_ROLE_FILE = Path(__file__).parents[2] / "infra" / "database" / "reaper_role.sql"
_SETTINGS = {"max_connections": "40"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("servers", nargs="?", type=Path, metavar="SERVERS_FOLDER")
    parser.add_argument("--verdicts", action="store_true")
    options = parser.parse_args()
    if not options.verdicts:
        builds = bundled_builds() if options.servers is None else npm_builds(options.servers)
        for build in builds.values():
            _record(build)
    for recording in sorted(FOLDER.glob("postgresql-*.json")):
        recording.with_suffix(".txt").write_text(write_verdicts(recording), "utf-8")
        print(recording.with_suffix(".txt").name)


def _record(build: Build) -> None:
    with server(build, settings=_SETTINGS) as running:
        with running.connect(unix_sock=running.unix_sock) as root:
            root.run(_ROLE_FILE.read_text())
            root.run(f"ALTER ROLE session_reaper PASSWORD {literal(PASSWORD)}")
        with open_scene(running):
            recording = _take_snapshot(running)
    path = FOLDER / f"postgresql-{build.major}.json"
    path.write_text(json.dumps(recording, indent=1) + "\n", "utf-8")
    print(path.name)


def _take_snapshot(running: PostgresServer) -> object:
    deadline = Deadline(30)
    target = Target(
        name="orders",
        group="orders",
        secret_arn="",
        auth=Auth.PASSWORD,
        is_auth_given=False,
        fallback_secret=None,
        host=running.host,
        port=running.port,
        role="session_reaper",
        password=PASSWORD,
        database="postgres",
        sslmode=SslMode.DISABLE,
        sslrootcert=None,
    )
    with closing(Server.connect(target, deadline)) as connected:
        return to_recording(connected.take_snapshot(ALL_SESSIONS, deadline))


if __name__ == "__main__":
    main()
