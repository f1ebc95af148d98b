"""The stage of a test: a server with sessions, the AWS stand-in, and the real handler."""

from __future__ import annotations

import json
import os
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, Final, Self

import pg8000.native
from pg8000.native import Connection, identifier, literal
from session_reaper.handler import MAX_ANSWER_BYTES, lambda_handler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import pytest

    from infra.local.aws import Aws, Email
    from infra.local.postgres import Server as PostgresServer

ROLE_FILE = Path(__file__).parents[2] / "infra" / "database" / "reaper_role.sql"
REAPER = "session_reaper"
TABLE = "session-reaper-Memory"  # of the notification state
PASSWORD = "sw0rdfish"  # noqa: S105 -- of every role here that needs one

SCHEDULED = {"source": "aws.scheduler", "detail-type": "Scheduled Event"}

IDLE = "idle"
LEAK = "idle in transaction"
ABORTED = "idle in transaction (aborted)"
ACTIVE = "active"

HOSTILE_NAMES = ['o"brien', "back\\slash", "naïve 名", "semi; DROP ROLE app; --", ":name", "App"]
"""Names of roles that must be quoted in SQL."""

PATIENCE: Final = 20.0
"""Seconds by which a run may miss a deadline.

A slow machine needs less; a wait that ignores the deadline takes longer: `wire.ENDLESS_SECONDS`.
"""


def until(condition: Callable[[], object], message: str, seconds: float = 30.0) -> None:
    """Poll until the condition holds, less and less often; fail with the message if it is late."""
    over = time.monotonic() + seconds
    pause = 0.002
    while not condition():
        if time.monotonic() > over:
            raise AssertionError(f"not within {seconds:g}s: {message}")
        time.sleep(pause)
        pause = min(1.5 * pause, 0.05)


@contextmanager
def state_table(aws: Aws, name: str) -> Iterator[None]:
    """Create the table of the notification state, as the templates have it, and delete it."""
    aws.dynamodb.create_table(
        TableName=name,
        BillingMode="PAY_PER_REQUEST",
        AttributeDefinitions=[
            {"AttributeName": "target", "AttributeType": "S"},
            {"AttributeName": "kind", "AttributeType": "S"},
        ],
        KeySchema=[
            {"AttributeName": "target", "KeyType": "HASH"},
            {"AttributeName": "kind", "KeyType": "RANGE"},
        ],
    )
    yield
    aws.dynamodb.delete_table(TableName=name)


def rule(name: str = "leak", *, action: object = None, **match: object) -> dict[str, object]:
    conditions = {"state": [LEAK, ABORTED]} | match
    if not any(key.endswith("_for") for key in conditions):
        conditions["idle_for"] = "1ms"
    return {"name": name, "match": conditions} | ({"action": action} if action else {})


def policy(*rules: Mapping[str, object], **others: object) -> dict[str, object]:
    return {"version": 1, "rules": list(rules) or [rule()], **others}


def use_typo(stage: Stage, name: str) -> None:
    """Use a policy with an unknown key; an error that no other test has."""
    stage.use_policy({"version": 1, "rules": [rule() | {name: 1}]})


class Client(Connection):  # type: ignore[misc] # untyped
    """A connection that closes completely, without an error that would hide an earlier one."""

    def close(self) -> None:
        stream = self._sock
        try:
            with suppress(pg8000.native.Error, OSError):
                super().close()
        finally:
            if stream is not None:
                with suppress(OSError, ValueError):
                    stream.close()


class Context:
    """The Lambda context."""

    function_name = "session-reaper"
    memory_limit_in_mb = 256
    invoked_function_arn = "arn:aws:lambda:eu-central-1:123456789012:function:session-reaper"
    aws_request_id = "5f1c0c1e-7a0e-4d7e-9c47-0a3b1d2c4e5f"

    def __init__(self, seconds: float = 60.0) -> None:
        self._over = time.monotonic() + seconds

    def get_remaining_time_in_millis(self) -> int:
        return max(0, int(self.remaining() * 1000))

    def remaining(self) -> float:
        """The seconds until the function's time is over; less than 0 afterwards."""
        return self._over - time.monotonic()


@dataclass(frozen=True, kw_only=True)
class Run:
    """The results of one invocation: its document, its emails and its duration."""

    document: dict[str, Any]
    emails: Sequence[Email]
    seconds: float

    def target(self, name: str = "orders") -> dict[str, Any]:
        found = [target for target in self.document["targets"] if target["name"] == name]
        assert len(found) == 1, f"{name} is reported {len(found)} times"
        return found[0]  # type: ignore[no-any-return]

    def sql_by_code(self, name: str = "orders") -> dict[str, str | None]:
        """Each advice's statement by the advice's code; each code is there once."""
        advice = self.target(name)["advice"]
        statements = {each["code"]: each["sql"] for each in advice}
        assert len(statements) == len(advice), "a code is there twice"
        return statements

    def error(self, name: str = "orders") -> dict[str, str]:
        error = self.target(name)["error"]
        assert error is not None, f"{name} has no error"
        return error  # type: ignore[no-any-return]

    def outcomes(self, name: str = "orders") -> dict[int, str]:
        """The outcome of each session, by pid; each session is reported once."""
        sessions = self.target(name)["sessions"]
        outcomes = {session["pid"]: session["outcome"] for session in sessions}
        assert len(outcomes) == len(sessions), "a session is reported twice"
        return outcomes

    def session(self, victim: Victim, name: str = "orders") -> dict[str, Any]:
        found = [s for s in self.target(name)["sessions"] if s["pid"] == victim.pid]
        assert len(found) == 1, f"pid {victim.pid} is reported {len(found)} times"
        return found[0]  # type: ignore[no-any-return]

    @property
    def email(self) -> Email:
        assert len(self.emails) == 1
        return self.emails[0]

    @property
    def said(self) -> str:
        """The email's text without its line breaks."""
        return " ".join(self.email.body.split())


class Victim:
    """A client's session: its connection, and its row in pg_stat_activity as a superuser sees it.

    The rows come from the view's function: a new session takes a millisecond to plan the view.
    """

    def __init__(self, root: Connection, connection: Connection) -> None:
        self._root = root
        self.connection = connection
        ((self.pid, self._start),) = connection.run(
            "SELECT pid, backend_start::text FROM pg_stat_get_activity(pg_backend_pid())"
        )
        self._thread: Thread | None = None

    def read_column(self, column: str) -> Any:  # noqa: ANN401 -- whatever type the column has
        rows = self._root.run(
            f"SELECT {column} FROM pg_stat_get_activity(:pid)"  # noqa: S608 -- a column's name
            " WHERE backend_start = CAST(:start AS timestamptz)",
            pid=self.pid,
            start=self._start,
        )
        return rows[0][0] if rows else None

    @property
    def is_there(self) -> bool:
        return self.read_column("pid") is not None

    @property
    def state(self) -> str | None:
        return self.read_column("state")  # type: ignore[no-any-return]

    def start(self, sql: str) -> Self:
        """Start a statement in a thread; return once the session is active."""

        def run() -> None:
            with suppress(pg8000.native.Error, OSError, ValueError):
                self.connection.run(sql)

        self._thread = Thread(target=run, daemon=True)
        self._thread.start()
        until(lambda: self.state == ACTIVE, f"{sql} is active")
        return self

    def close(self) -> None:
        if self._thread and self.is_there:
            self._root.run("SELECT pg_terminate_backend(:pid)", pid=self.pid)
        if self._thread:
            self._thread.join(10)
        with suppress(pg8000.native.Error, OSError, ValueError):
            self.connection.close()


@dataclass(kw_only=True)
class Stage:
    """A server for one test; everything that the test creates on it is removed at its end."""

    server: PostgresServer
    root: Connection = field(repr=False)
    aws: Aws
    monkeypatch: pytest.MonkeyPatch
    _closing: ExitStack = field(default_factory=ExitStack)
    _connections: ExitStack = field(default_factory=ExitStack)
    _roles: list[str] = field(default_factory=list)
    _databases: list[str] = field(default_factory=list)
    _targets: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        self.monkeypatch.setenv("TOPIC_ARN", self.aws.topic_arn)
        self.monkeypatch.setenv("MODE", "enforce")
        for name in ("TARGET_SECRETS", "TARGET_SECRET_TAG", "POLICY", "NOTIFY"):
            self.monkeypatch.delenv(name, raising=False)
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()
        self.root.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_get_activity(NULL)"
            " WHERE backend_type IN ('client backend', 'walsender') AND pid <> pg_backend_pid()"
        )
        until(lambda: self.clients == 1, "all sessions of the test are gone")
        for name in self._databases:
            self.root.run(f"DROP DATABASE {identifier(name)}")
        for name in self._roles:
            self.root.run(f"DROP OWNED BY {identifier(name)}")
            self.root.run(f"DROP ROLE {identifier(name)}")
        self._connections.close()

    def reconnect(self) -> None:
        """Reconnect the superuser after the server has ended every session."""
        connection = self.server.connect(unix_sock=self.server.unix_sock)
        self.root = self._connections.enter_context(connection)

    @property
    def clients(self) -> int:
        """The number of client backends, including the superuser's own."""
        ((number,),) = self.root.run(
            "SELECT count(*) FROM pg_stat_get_activity(NULL) WHERE backend_type = 'client backend'"
        )
        return int(number)

    # -- scenes ------------------------------------------------------------------------------------

    def cleanup(self, callback: Callable[..., object], *arguments: object) -> None:
        self._closing.callback(callback, *arguments)

    def role(self, name: str = "app", options: str = "") -> str:
        if name not in self._roles:
            self.root.run(f"CREATE ROLE {identifier(name)} LOGIN {options}")
            self.root.run(f"ALTER ROLE {identifier(name)} PASSWORD {literal(PASSWORD)}")
            self._roles.append(name)
        return name

    def database(self, name: str, options: str = "") -> str:
        self.root.run(f"CREATE DATABASE {identifier(name)} {options}")
        self._databases.append(name)
        return name

    def connect(self, role: str = "app", **options: object) -> Connection:
        """Connect over the Unix socket, or with `tcp=True` over TCP."""
        if role != REAPER:
            self.role(role)
        tcp = options.pop("tcp", False)
        where = {"host": self.server.host, "port": self.server.port}
        return Client(
            role,
            password=PASSWORD,
            ssl_context=False,
            **({"database": "postgres"} | options),
            **(where if tcp else {"unix_sock": self.server.unix_sock}),
        )

    def session(
        self,
        state: str = LEAK,
        role: str = "app",
        *,
        query: str = "SELECT 1",
        **options: object,
    ) -> Victim:
        """Open a client's session and bring it into one of the four states that rules can name."""
        victim = Victim(self.root, self.connect(role, **options))
        self._closing.callback(victim.close)
        if state == ACTIVE:
            return victim.start("SELECT pg_sleep(60)" if query == "SELECT 1" else query)
        if state in (LEAK, ABORTED):
            victim.connection.run("BEGIN")
        if state == ABORTED:
            with suppress(pg8000.native.DatabaseError):
                victim.connection.run("SELECT 1/0")
        else:
            victim.connection.run(query)
        until(lambda: victim.state == state, f"the session is {state}")
        return victim

    def sessions(self, number: int, state: str = LEAK, **options: Any) -> list[Victim]:  # noqa: ANN401
        return [self.session(state, **options) for _ in range(number)]

    def fill(self, role: str = "app", state: str = LEAK, *, free: int = 0) -> list[Victim]:
        """Open sessions of that role until the server is full, and close so many of them again."""
        others = self.clients
        opened: list[Victim] = []
        refusal: dict[str, str] = {}
        while not refusal:
            try:
                opened.append(self.session(state, role))
            except pg8000.native.DatabaseError as error:
                refusal = error.args[0]
        assert refusal["C"] == "53300", refusal
        for _ in range(free):
            opened.pop().close()
        until(lambda: self.clients <= others + len(opened), "the closed sessions have ended")
        return opened

    def survivors(self, victims: Iterable[Victim]) -> list[Victim]:
        return [victim for victim in victims if victim.is_there]

    # -- settings ----------------------------------------------------------------------------------

    def use_policy(self, document: Mapping[str, object]) -> None:
        """Make this the stack's policy; a run with a policy of its own does not use the notification state."""
        self.aws.ssm.put_parameter(
            Name="policy", Value=json.dumps(document), Type="String", Overwrite=True
        )
        self.monkeypatch.setenv("POLICY", "ssm:policy")

    def subscribe_queue(self, topic_name: str) -> tuple[str, str]:
        """Create a topic and a queue that subscribes to it; return the topic's ARN, the queue's URL."""
        topic = self.aws.sns.create_topic(Name=topic_name)["TopicArn"]
        url = self.aws.sqs.create_queue(QueueName=topic_name)["QueueUrl"]
        queue = self.aws.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])
        self.aws.sns.subscribe(
            TopicArn=topic, Protocol="sqs", Endpoint=queue["Attributes"]["QueueArn"]
        )
        self.cleanup(lambda: self.aws.sns.delete_topic(TopicArn=topic))
        self.cleanup(lambda: self.aws.sqs.delete_queue(QueueUrl=url))
        return topic, url

    def read_subjects(self, queue_url: str) -> list[str]:
        answer = self.aws.sqs.receive_message(QueueUrl=queue_url, MaxNumberOfMessages=10)
        return [json.loads(each["Body"])["Subject"] for each in answer.get("Messages", [])]

    # -- the reaper --------------------------------------------------------------------------------

    def secret(self, **keys: object) -> dict[str, object]:
        """Return a secret's document for this server; `None` removes a key."""
        document = {
            "engine": "postgres",
            "host": self.server.host,
            "port": self.server.port,
            "username": REAPER,
            "password": PASSWORD,
            "dbname": "postgres",
            "sslmode": "disable",
        } | keys
        return {key: value for key, value in document.items() if value is not None}

    def target(self, secret_name: str = "orders", **keys: object) -> str:  # noqa: S107 -- a name
        """Store a secret and make it a target of the stack."""
        self.aws.put_secret(secret_name, self.secret(**keys))
        return self.listed(secret_name)

    def only_target(self, **keys: object) -> None:
        """Make this secret the stack's only target, in place of an earlier one."""
        if not self._targets:
            self.target("orders", **keys)
            return
        text = json.dumps(self.secret(**keys))
        self.aws.secrets.put_secret_value(SecretId="orders", SecretString=text)

    def listed(self, secret_name: str) -> str:
        self._targets.append(secret_name)
        self.monkeypatch.setenv("TARGET_SECRETS", ",".join(self._targets))
        return secret_name

    def run(
        self,
        event: object = None,
        *,
        seconds: float = 60.0,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
    ) -> Run:
        """Invoke the handler with an event."""
        if not self._targets and not os.environ.get("TARGET_SECRET_TAG"):
            self.target()
        started = time.monotonic()
        answer = lambda_handler(
            {} if event is None else event,
            Context(seconds),  # type: ignore[arg-type]
            max_answer_bytes=max_answer_bytes,
        )
        took = time.monotonic() - started
        document = json.loads(json.dumps(answer))  # what Lambda itself does with it
        return Run(document=document, emails=self.aws.delivered(), seconds=took)

    def reap(self, *rules: Mapping[str, object], seconds: float = 60.0, **others: object) -> Run:
        """Invoke the handler with these rules; by default one for sessions idle in a transaction."""
        return self.run({"policy": policy(*rules, **others)}, seconds=seconds)


def assert_true_to(run: Run, victims: Iterable[Victim], name: str = "orders") -> None:
    """Assert that exactly the sessions reported as terminated or lingering may be gone."""
    outcomes = run.outcomes(name)
    for victim in victims:
        outcome = outcomes.get(victim.pid)
        if victim.is_there:
            assert outcome != "terminated", f"pid {victim.pid} is reported terminated, and is there"
        else:
            # Lingering: it was signalled, and its end was not verified.
            assert outcome in {"terminated", "lingering"}, f"pid {victim.pid} is gone: {outcome}"


def identity_of(stage: Stage) -> dict[str, int]:
    """Return what the server says about itself in a snapshot."""
    ((started, pid, checkpointer),) = stage.root.run(
        "SELECT round(extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint, pid,"
        " round(extract(epoch FROM backend_start) * 1000000)::bigint"
        " FROM pg_stat_activity WHERE backend_type = 'checkpointer'"
    )
    return {"started": started, "checkpointer": pid, "checkpointer_started": checkpointer}
