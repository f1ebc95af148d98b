"""A fleet's hub in the stand-in for AWS, and the messages that stacks send to it."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count, islice
from threading import Event, Thread
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from moto.core.models import DEFAULT_ACCOUNT_ID as ACCOUNT
from moto.sqs import models as queue_models
from session_reaper.hub import lambda_handler
from session_reaper.report.fleet_document import RunOrigin, write_fleet_document
from session_reaper.summary.digest import digest_report
from session_reaper.targets.target import TargetKey

from tests.builders import a_report
from tests.integration.stage import Context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest
    from session_reaper.report.model import TargetReport

    from infra.local.aws import Aws, Email

REGION = "eu-central-1"


def an_origin(account: int | str = 1, **changes: Any) -> RunOrigin:  # noqa: ANN401 -- of any field
    now = float(changes.get("sent_at", time.time()))
    origin = RunOrigin(
        account=f"{account:012}" if isinstance(account, int) else account,
        region=REGION,
        stack="session-reaper",
        sent_at=now,
        next_by=now + 300,
        is_usual=True,
    )
    return origin._replace(**changes)


def a_message(
    origin: RunOrigin, *targets: TargetReport, run: str = "run-1", error: str = ""
) -> str:
    keyed = (replace(target, key=TargetKey(f"arn:secret:{target.name}")) for target in targets)
    report = replace(a_report(*keyed), run_id=run, configuration_error=error)
    return write_fleet_document(report, origin, str(digest_report(report, None).verdict))


@dataclass(frozen=True, slots=True, kw_only=True)
class Hub:
    """The hub's queue and table."""

    aws: Aws
    queue_url: str
    table: str

    def send(self, *bodies: str) -> None:
        for start in range(0, len(bodies), 10):
            batch = bodies[start : start + 10]
            entries = [{"Id": str(n), "MessageBody": body} for n, body in enumerate(batch)]
            self.aws.sqs.send_message_batch(QueueUrl=self.queue_url, Entries=entries)  # type: ignore[arg-type]

    def put(self, *bodies: str, age: float = 0) -> None:
        """Put messages into the queue that arrived so many seconds ago, without a request."""
        queue = self._queue
        for body in bodies:
            message = queue_models.Message(str(uuid4()), body)
            message.mark_sent()
            message.sent_timestamp -= int(1000 * age)  # type: ignore[assignment,operator] # an integer now
            queue.add_message(message)

    @contextmanager
    def stream(self, make_body: Callable[[int], str], per_second: int = 20) -> Iterator[None]:
        """Put messages into the queue without a pause."""
        is_over = Event()

        def put_until_over() -> None:
            for number in count():
                if is_over.wait(1 / per_second):
                    return
                self.put(make_body(number))

        thread = Thread(target=put_until_over)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()

    def take(self) -> list[str]:
        """Remove all messages; return their bodies."""
        messages = list(self._queue._messages)  # noqa: SLF001 -- moto's own
        self._queue._messages.clear()  # noqa: SLF001 -- moto's own
        return [message.body for message in messages]

    @property
    def _queue(self) -> queue_models.Queue:
        queues: dict[str, queue_models.Queue] = queue_models.sqs_backends[ACCOUNT][REGION].queues
        return queues["fleet"]

    def run(self, seconds: float = 60.0) -> tuple[dict[str, Any], list[Email]]:
        answer = lambda_handler({}, Context(seconds))  # type: ignore[arg-type]
        return json.loads(json.dumps(answer)), self.aws.delivered()

    def waiting(self) -> int:
        """The number of messages in the queue, hidden or not."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        answer = self.aws.sqs.get_queue_attributes(
            QueueUrl=self.queue_url,
            AttributeNames=names,  # type: ignore[arg-type]
        )
        return sum(map(int, answer["Attributes"].values()))

    def run_until_empty(self) -> list[Email]:
        """Run again until no message is left: on a slow machine, a call that deletes may fail."""
        emails: list[Email] = []
        for _ in range(5):
            if not self.waiting():
                return emails
            self.show_hidden()
            emails += self.run()[1]
        raise AssertionError(f"{self.waiting()} messages are not deleted")

    def show_hidden(self) -> None:
        """Make every received message visible again."""
        queue = self._queue
        for message in list(queue._messages):  # noqa: SLF001 -- moto's own
            message.change_visibility(0)
            message.visible_at = 0
        queue.pending_messages.clear()

    def change_item(self, account: int, key: str, value: dict[str, str]) -> None:
        """Change an attribute of the only stack of an account."""
        dynamodb = self.aws.dynamodb
        for item in dynamodb.scan(TableName=self.table)["Items"]:
            if json.loads(item["kind"]["S"])[0] == f"{account:012}":
                dynamodb.put_item(TableName=self.table, Item=item | {key: value})

    def age(self, seconds: float) -> None:
        """Make the state of every stack older by so many seconds."""
        dynamodb = self.aws.dynamodb
        for item in dynamodb.scan(TableName=self.table)["Items"]:
            for key in ("sent_at", "arrived_at", "expected_by"):
                item[key] = {"N": str(float(item[key]["N"]) - seconds)}
            known = json.loads(item["known"]["S"])
            for issue in known:
                issue[2] -= seconds
                issue[3] -= seconds
            item["known"] = {"S": json.dumps(known)}
            dynamodb.put_item(TableName=self.table, Item=item)


def skip_long_polling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the stand-in's queue say at once that it is empty, not after a second as long polling does."""
    receive = queue_models.SQSBackend.receive_message

    def receive_at_once(  # noqa: PLR0913, PLR0917 -- moto's own
        backend: queue_models.SQSBackend,
        queue_name: str,
        count: int,
        wait_seconds_timeout: int,  # noqa: ARG001 -- moto's own
        visibility_timeout: int,
        names: list[str] | None = None,
    ) -> list[queue_models.Message]:
        return receive(backend, queue_name, count, 0, visibility_timeout, names)

    monkeypatch.setattr(queue_models.SQSBackend, "receive_message", receive_at_once)


def use_fast_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the stand-in's queue fast enough for ten thousand messages; its own reads the clock for each in each call."""

    def list_visible(queue: queue_models.Queue) -> list[queue_models.Message]:
        now = 1000 * time.time()
        return list(islice((one for one in queue._messages if one.visible_at <= now), 10))  # noqa: SLF001 -- moto's own

    def delete_message(queue: queue_models.Queue, receipt_handle: str) -> None:
        for number, message in enumerate(queue._messages):  # noqa: SLF001 -- moto's own
            if message.had_receipt_handle(receipt_handle):
                queue.pending_messages.discard(message)
                del queue._messages[number]  # noqa: SLF001 -- moto's own
                return

    monkeypatch.setattr(queue_models.Queue, "messages", property(list_visible))
    monkeypatch.setattr(queue_models.Queue, "delete_message", delete_message)
    backend = queue_models.SQSBackend
    monkeypatch.setattr(
        backend, "is_message_valid_based_on_retention_period", lambda *_, **__: True
    )
