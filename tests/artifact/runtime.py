"""A stand-in for Lambda that runs the output of ``sam build`` under ``awslambdaric``.

``Runtime`` provides the environment and the Runtime API, on a free port of 127.0.0.1, and kills a
process at its timeout. The process has AWS's own runtime client and nothing of the tests: an
interpreter without site-packages that finds the artifact, the library of ``make_runtime_library()``
and the standard library, in this order.

It needs Linux, because the runtime client does.
"""

from __future__ import annotations

import json
import queue
import re
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from types import TracebackType

_API = "/2018-06-01/runtime"
_REGION = "eu-west-1"
_FUNCTION = "session-reaper"
_ARN = f"arn:aws:lambda:{_REGION}:123456789012:function:{_FUNCTION}"
_INIT_SECONDS = 10.0  # as in Lambda
_STOP_SECONDS = 5.0

# -I and -S: without the tests' environment. -B: write no .pyc.
_FLAGS = ("-I", "-S", "-B")
_START = """\
import runpy, sys
sys.path[:0] = sys.argv[1:3]
sys.argv = ["awslambdaric", sys.argv[3]]
runpy.run_module("awslambdaric", run_name="__main__", alter_sys=True)
"""

# A task root is read-only, and Python ignores that its bytecode cannot be written. So the first
# attempt to write there ends the process with a message; one to write bytecode shows that some is
# missing.
_READ_ONLY = """\
import os, sys
def refuse(event, args, root=sys.argv[1] + os.sep, writing=os.O_WRONLY | os.O_RDWR | os.O_CREAT):
    if event == "open" and (isinstance(args[0], int) or not (args[2] or 0) & writing):
        return
    if event in ("open", "os.mkdir", "os.rename", "os.remove"):
        if os.path.abspath(os.fsdecode(args[0])).startswith(root):
            os.write(2, f"a write to the task root: {event} {args[0]}\\n".encode())
            os._exit(30)
sys.dont_write_bytecode = False
sys.addaudithook(refuse)
"""


class InitError(RuntimeError):
    """The function did not start: its module did not import, or the process ended.

    ``error``: the runtime client's error object, None if it reported none.
    """

    def __init__(self, message: str, error: Mapping[str, object] | None, log: str) -> None:
        super().__init__(f"{message}\n{log}" if log else message)
        self.error = error
        self.log = log


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The result of one invocation.

    ``error``: Lambda's error object with ``errorType``, ``errorMessage`` and, unless the process
    has ended, ``stackTrace``; None if the function returned. ``log``: the output of the process
    since the answer before, or since its start.
    """

    request_id: str
    payload: object
    error: Mapping[str, object] | None
    log: str
    seconds: float

    @property
    def records(self) -> list[dict[str, object]]:
        """The JSON lines of the log, without other lines."""
        records = []
        for line in self.log.splitlines():
            with suppress(json.JSONDecodeError):
                record = json.loads(line)
                if isinstance(record, dict):
                    records.append(record)
        return records


class Runtime:
    """One execution environment of one function, until the ``with`` block ends.

    The process starts with the first invocation, or with ``start()``, and serves one invocation
    after another; after a timeout or a crash the next invocation starts a new one, as in Lambda.
    Not thread-safe.

    ``environment``: variables besides those that Lambda sets. ``read_only``: end a process that
    tries to write to the artifact. ``launcher``: a command that executes its arguments.
    ``preamble``: code that runs first.
    """

    def __init__(  # noqa: PLR0913 -- three define what runs, the others how
        self,
        artifact: Path,
        handler: str,
        library: Path,
        *,
        environment: Mapping[str, str] | None = None,
        read_only: bool = False,
        launcher: Sequence[str] = (),
        preamble: str = "",
    ) -> None:
        self._artifact = artifact.resolve(strict=True)
        self._handler = handler
        self._library = library.resolve(strict=True)
        self._environment = dict(environment or {})
        self._launcher = launcher
        self._program = (_READ_ONLY if read_only else "") + preamble + _START
        self._process: subprocess.Popen[bytes] | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="runtime-"))
        self._log = self._stack.enter_context((Path(folder) / "log").open("w+b", buffering=0))
        self._log_read = 0
        self._api = _Api()
        thread = Thread(target=self._api.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        # Closed in reverse order: the process ends before the servers that it uses.
        self._stack.callback(self._api.server_close)
        self._stack.callback(thread.join)
        self._stack.callback(self._api.shutdown)
        self._stack.callback(self.stop)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def pid(self) -> int | None:
        """The process id of the function, None while there is none."""
        return None if self._process is None else self._process.pid

    def start(self) -> float:
        """Start the process, if there is none, and wait until it asks for work; return the seconds.

        Raises ``InitError`` if it does not ask.
        """
        began = time.monotonic()
        if self._process is not None:
            return 0.0
        self._api.reset()
        self._process = subprocess.Popen(  # noqa: S603
            (
                *(*self._launcher, sys.executable, *_FLAGS, "-c", self._program),
                *(self._artifact, self._library, self._handler),
            ),
            cwd=self._artifact,
            env=self._make_variables(),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        message = self._wait_for_message(began + _INIT_SECONDS)
        if message is not None and message.kind == "next":
            return message.at - began
        error = None
        if message is not None:
            error = message.read_error()
            text = f"{error.get('errorType')}: {error.get('errorMessage')}"
        elif self._is_running():
            text = f"{self._handler} took too long to start"
        else:
            text = f"{self._handler} ended before it asked for work"
        self.stop()
        raise InitError(text, error, self._read_new_log())

    def invoke(self, event: object, timeout_ms: int = 60_000) -> Answer:
        """Invoke the function with a JSON value and wait for its answer.

        A process that has not answered in ``timeout_ms`` is killed, and the answer has Lambda's
        error. Raises ``InitError`` if the function does not start.
        """
        self.start()
        request_id = str(uuid.uuid4())
        began = time.monotonic()
        self._api.work.put(_Work(request_id, json.dumps(event).encode(), timeout_ms))
        message = self._wait_for_message(began + timeout_ms / 1000, request_id)
        seconds = time.monotonic() - began
        payload: object = None
        error: Mapping[str, object] | None = None
        if message is None:
            error = self._report_lost(request_id, timeout_ms)
        elif message.kind == "response":
            payload = json.loads(message.body)
        else:
            error = message.read_error()
        if message is not None:
            self._await_readiness()
        return Answer(
            request_id=request_id,
            payload=payload,
            error=error,
            log=self._read_new_log(),
            seconds=seconds,
        )

    def stop(self) -> None:
        """End the process, if there is one. The next invocation starts another."""
        if self._process is None:
            return
        self._process.kill()  # as Lambda does
        self._process.wait(_STOP_SECONDS)
        self._process = None
        self._api.release_connection()

    def _is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _report_lost(self, request_id: str, timeout_ms: int) -> Mapping[str, object]:
        """End a process that gave no answer; report it as Lambda does."""
        if self._is_running():
            kind, text = "Sandbox.Timedout", f"Task timed out after {timeout_ms / 1000:.2f} seconds"
        else:
            status = self._process.returncode if self._process else None
            kind, text = "Runtime.ExitError", f"Runtime exited with exit status: {status}"
        self.stop()
        return {"errorType": kind, "errorMessage": f"RequestId: {request_id} Error: {text}"}

    def _await_readiness(self) -> None:
        """Wait until the process asks for more work, so that its log is complete."""
        if self._wait_for_message(time.monotonic() + _STOP_SECONDS) is None:
            self.stop()

    def _wait_for_message(self, deadline: float, request_id: str | None = None) -> _Message | None:
        """Return the next message of the process; None at the deadline, or if it ended without one."""
        while True:
            alive = self._is_running()
            with suppress(queue.Empty):
                message = self._api.messages.get(timeout=0.01 if alive else 0)
                if request_id is None or message.request_id == request_id:
                    return message
                continue
            if not alive or time.monotonic() >= deadline:
                return None

    def _read_new_log(self) -> str:
        self._log.seek(self._log_read)
        new = self._log.read()
        self._log_read += len(new)
        return new.decode(errors="replace")

    def _make_variables(self) -> dict[str, str]:
        """Return the variables of a Python function that logs JSON, and the caller's."""
        host, port = self._api.server_address[:2]
        return {
            "AWS_DEFAULT_REGION": _REGION,
            "AWS_EXECUTION_ENV": f"AWS_Lambda_python3.{sys.version_info.minor}",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512",
            "AWS_LAMBDA_FUNCTION_NAME": _FUNCTION,
            "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
            "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
            "AWS_LAMBDA_LOG_FORMAT": "JSON",
            "AWS_LAMBDA_LOG_GROUP_NAME": _FUNCTION,
            "AWS_LAMBDA_LOG_LEVEL": "INFO",
            "AWS_LAMBDA_LOG_STREAM_NAME": "2026/01/15/[$LATEST]0123456789abcdef0123456789abcdef",
            "AWS_LAMBDA_RUNTIME_API": f"{host!s}:{port}",
            "AWS_REGION": _REGION,
            "LANG": "en_US.UTF-8",
            "LAMBDA_RUNTIME_DIR": str(self._library),
            "LAMBDA_TASK_ROOT": str(self._artifact),
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "TZ": ":UTC",
            "_HANDLER": self._handler,
        } | self._environment


def make_runtime_library(folder: Path, *names: str) -> Path:
    """Make a folder of the runtime's packages, by default its client and boto3; return it.

    It links the distributions that are installed here, with all that they require and nothing else,
    so the versions are those of the lock file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in _list_requirements(names or ("awslambdaric", "boto3")):
        installed = distribution(name)
        entries = {file.parts[0] for file in installed.files or () if file.parts[0] != ".."}
        for entry in sorted(entries - {"__pycache__"}):
            with suppress(FileExistsError):
                (folder / entry).symlink_to(Path(str(installed.locate_file(entry))).resolve())
    return folder


def _list_requirements(names: Iterable[str]) -> list[str]:
    """Return the names and those of all their requirements, without extras."""
    found: list[str] = []
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.append(name)
        for requirement in distribution(name).requires or ():
            required = re.match(r"[\w.-]+", requirement)
            if required is None or re.search(r";.*\bextra\b", requirement):
                continue
            with suppress(PackageNotFoundError):  # required on other platforms
                waiting.append(distribution(required[0]).name)
    return found


@dataclass(frozen=True, slots=True)
class _Work:
    """An invocation for the process."""

    request_id: str
    body: bytes
    timeout_ms: int


@dataclass(frozen=True, slots=True)
class _Message:
    """A message of the process: a request for work (``next``), ``response``, ``error`` or ``init``."""

    kind: str
    request_id: str | None
    body: bytes
    at: float

    def read_error(self) -> dict[str, object]:
        error = json.loads(self.body)
        if not isinstance(error, dict):
            message = f"not an error object: {error!r}"
            raise TypeError(message)
        return error


class _Api(ThreadingHTTPServer):
    """The Runtime API: ``work`` for the process, and the ``messages`` of the process."""

    # server_close() then waits for the threads of all connections.
    daemon_threads = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Endpoints)
        self.reset()

    def reset(self) -> None:
        """Drop the messages and the work of a process that has ended."""
        self.work: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self.messages: queue.SimpleQueue[_Message] = queue.SimpleQueue()

    def release_connection(self) -> None:
        """Drop the connection on which an ended process waited for work."""
        self.work.put(None)

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore connections broken by a killed process; show other errors."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Endpoints(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for an acknowledgement
    server: _Api

    def do_GET(self) -> None:
        if self.path != f"{_API}/invocation/next":
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        # Read first, so that the thread of an ended process takes no work from the next process.
        waiting = self.server.work
        self._put("next", None, b"")
        work = waiting.get()
        if work is None:
            self.close_connection = True
            return
        deadline = time.time() * 1000 + work.timeout_ms
        trace = f"Root=1-{int(time.time()):08x}-{work.request_id.replace('-', '')[:24]}"
        self._send_reply(
            HTTPStatus.OK,
            work.body,
            {
                "Content-Type": "application/json",
                "Lambda-Runtime-Aws-Request-Id": work.request_id,
                "Lambda-Runtime-Deadline-Ms": str(int(deadline)),
                "Lambda-Runtime-Invoked-Function-Arn": _ARN,
                "Lambda-Runtime-Trace-Id": f"{trace};Parent=0123456789abcdef;Sampled=0",
            },
        )

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        match self.path.removeprefix(_API).strip("/").split("/"):
            case ["init", "error"]:
                self._put("init", None, body)
            case ["invocation", request_id, ("response" | "error") as kind]:
                self._put(kind, request_id, body)
            case _:
                self.send_error(HTTPStatus.NOT_FOUND)
                return
        self._send_reply(HTTPStatus.ACCEPTED, b"", {})

    def log_message(self, *_: object) -> None:
        """Log nothing: only the process's own log counts."""

    def _put(self, kind: str, request_id: str | None, body: bytes) -> None:
        self.server.messages.put(_Message(kind, request_id, body, time.monotonic()))

    def _send_reply(self, status: HTTPStatus, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
