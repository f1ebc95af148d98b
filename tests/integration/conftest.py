from __future__ import annotations

import logging
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from moto.backends import get_backend
from moto.core.models import DEFAULT_ACCOUNT_ID
from pg8000.native import literal
from session_reaper.aws.secrets_manager import PROCESS_CACHE

from infra.local.aws import REGION, Aws, aws
from infra.local.postgres import Build, bundled_builds, npm_builds, remove_folders, server
from tests.integration.botocore_files import share_files
from tests.integration.fork_client import stop_program
from tests.integration.stage import (
    PASSWORD,
    REAPER,
    ROLE_FILE,
    TABLE,
    Stage,
    state_table,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from pg8000.native import Connection

    from infra.local.postgres import Server, Tls


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "every_major: runs on every available server instead of the newest"
    )
    config.addinivalue_line("markers", "tls: needs a server that was built with TLS")
    config.addinivalue_line("markers", "postgres_fdw: needs a server with contrib's extensions")
    config.addinivalue_line("markers", "majors(low, high): the versions that have the feature")
    share_files()


def _builds(config: pytest.Config) -> dict[int, Build]:
    folder: Path | None = config.getoption("--servers", default=None)
    builds = bundled_builds() if folder is None else npm_builds(folder)
    if not builds:
        raise pytest.UsageError(f"no PostgreSQL server in {folder or 'the installed packages'}")
    return builds


def _has_contrib(build: Build) -> bool:
    return any((build.bin.parent / "share").rglob("postgres_fdw.control"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test on the newest server, or with the mark `every_major` on all of them.

    Of the bundled servers all are used only with `--thorough`; `make matrix` has all majors.
    """
    if "build" not in metafunc.fixturenames:
        return
    builds = _builds(metafunc.config)
    marks = {mark.name: mark for mark in metafunc.definition.iter_markers()}
    if "majors" in marks:
        low, high = marks["majors"].args
        builds = {major: build for major, build in builds.items() if low <= major <= high}
    if "tls" in marks:
        builds = {major: build for major, build in builds.items() if build.tls}
    if "postgres_fdw" in marks:
        builds = {n: build for n, build in builds.items() if _has_contrib(build)}
    config = metafunc.config
    uses_all = config.getoption("--servers") is not None or config.getoption("--thorough")
    is_for_all = "every_major" in marks and uses_all
    chosen = sorted(builds) if is_for_all else sorted(builds)[-1:]
    metafunc.parametrize(
        "build",
        [builds[major] for major in chosen],
        ids=[f"pg{major}" for major in chosen],
        indirect=True,
        scope="session",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect tests that none of the servers supports; `make matrix` has servers for them."""
    without = [item for item in items if "NOTSET" in item.name or _lacks_tls(item)]
    items[:] = [item for item in items if item not in without]
    config.hook.pytest_deselected(items=without)


def _lacks_tls(item: pytest.Item) -> bool:
    """Return whether a parameter of the test needs TLS, and its server was built without."""
    build = item.callspec.params.get("build") if hasattr(item, "callspec") else None
    return item.get_closest_marker("tls") is not None and build is not None and not build.tls


def pytest_sessionfinish() -> None:
    """Remove the servers' folders now: xdist kills a worker whose exit takes long."""
    stop_program()
    remove_folders()


@pytest.fixture(scope="session")
def build(request: pytest.FixtureRequest) -> Build:
    found: Build = request.param
    return found


@pytest.fixture(scope="session")
def _servers() -> Iterator[Callable[[Build], Server]]:
    """Keep one server per build until the end."""
    with ExitStack() as stack:
        running: dict[Build, Server] = {}

        def running_server(build: Build) -> Server:
            if build not in running:
                running[build] = stack.enter_context(server(build, settings=_SETTINGS))
                with running[build].connect(unix_sock=running[build].unix_sock) as root:
                    prepare(root)
            return running[build]

        yield running_server


_SMALL = {"shared_buffers": "16MB"}  # a session then takes a tenth less of processor time
_SETTINGS = _SMALL | {"max_connections": "80", "max_wal_senders": "4", "wal_level": "logical"}


def prepare(root: Connection) -> None:
    """Create the reaper's role by its file, and set its password."""
    root.run(ROLE_FILE.read_text())
    root.run(f"ALTER ROLE {REAPER} PASSWORD {literal(PASSWORD)}")


@pytest.fixture
def postgres(build: Build, _servers: Callable[[Build], Server]) -> Server:
    return _servers(build)


@pytest.fixture
def root(postgres: Server) -> Iterator[Connection]:
    with postgres.connect(unix_sock=postgres.unix_sock) as connection:
        yield connection


@pytest.fixture(scope="session")
def _stand_in() -> Iterator[Aws]:
    with aws() as stand_in:
        yield stand_in


@pytest.fixture
def cloud(_stand_in: Aws) -> Iterator[Aws]:
    """The stand-in, without secrets, parameters and mails of other tests."""
    _stand_in.delivered()
    PROCESS_CACHE.clear()
    yield _stand_in
    for service in ("secretsmanager", "ssm"):  # it runs in this process: no need to ask by HTTP
        get_backend(service)[DEFAULT_ACCOUNT_ID][REGION].reset()


@pytest.fixture
def stage(
    postgres: Server, root: Connection, cloud: Aws, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Stage]:
    with Stage(server=postgres, root=root, aws=cloud, monkeypatch=monkeypatch) as made:
        yield made


@pytest.fixture
def table(stage: Stage) -> Iterator[None]:
    """The notification state's table, as template.yaml has it."""
    with state_table(stage.aws, TABLE):
        stage.monkeypatch.setenv("MEMORY_TABLE", TABLE)
        stage.target()
        yield


Output = pytest.CaptureFixture[str]


@pytest.fixture
def output(capsys: Output) -> Iterator[Output]:
    """Capture what a run writes; the logger would go on writing to the stdout of its import."""
    handlers = [
        handler
        for handler in logging.getLogger("session-reaper").handlers
        if isinstance(handler, logging.StreamHandler)
    ]
    streams = [handler.setStream(_CurrentStdout()) for handler in handlers]
    yield capsys
    for handler, stream in zip(handlers, streams, strict=True):
        handler.setStream(stream)


class _CurrentStdout:
    """Writes to the stdout of the moment: pytest sets another one for each phase of a test."""

    def write(self, text: str) -> int:
        return sys.stdout.write(text)

    def flush(self) -> None:
        sys.stdout.flush()


@pytest.fixture
def own_server(
    build: Build, cloud: Aws, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Stage]]:
    """Return a function that starts a server for this test only."""
    with ExitStack() as stack:

        def make(settings: Mapping[str, str] | None = None, tls: Tls | None = None) -> Stage:
            running = stack.enter_context(
                server(build, settings=_SMALL | dict(settings or {}), tls=tls)
            )
            # One connection: another one's session would hold a slot for a moment after its end.
            root = stack.enter_context(running.connect(unix_sock=running.unix_sock))
            prepare(root)
            made = Stage(server=running, root=root, aws=cloud, monkeypatch=monkeypatch)
            return stack.enter_context(made)

        yield make
