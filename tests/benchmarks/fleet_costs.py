"""Measures the parts of what a fleet costs, and adds them up for 20 and 200 accounts.

Every account has one stack with 50 quiet targets in one region and runs every five minutes. The hub
runs in a process of its own, so that the processor time of the stand-in for AWS does not count.
"""

import importlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from botocore.client import BaseClient
from rich.console import Console
from rich.table import Table
from session_reaper.aws.fleet_table import to_item
from session_reaper.fleet.message import Spoke
from session_reaper.fleet.state import SpokeState
from session_reaper.report.fleet_document import RunOrigin
from session_reaper.report.model import TargetReport

from infra.local.aws import Aws, aws
from tests.benchmarks.probe import Context
from tests.builders import a_result, a_target_report
from tests.fleet import a_message, an_origin
from tests.integration.stage import TABLE, state_table

ACCOUNTS: Final = (20, 200)
TARGETS: Final = 50
RUNS: Final = 8640  # a month
ROUNDS: Final = 3
SHARE: Final = 512 / 1769  # of a processor that Lambda gives 512 MB
CALL_SECONDS: Final = 0.01  # of a call in the same region, assumed
WAIT_SECONDS: Final = 1.0  # of the last receive call, which finds nothing
# Dollars in us-east-1.
GB_SECOND: Final = 0.0000133334
SNS_PUBLISH: Final = 0.5e-6  # for each 64 KB
SQS_REQUEST: Final = 0.4e-6  # for each 64 KB
KMS_REQUEST: Final = 3e-6
KEY: Final = 1.0
ALARM: Final = 0.1
WRITE: Final = 0.625e-6  # for each KB of an item
READ: Final = 0.125e-6  # for each 4 KB of a query
CHUNK: Final = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class HubRun:
    """The cost of one run of the hub over one report of each stack."""

    processor: float  # seconds
    calls: Mapping[str, int]

    @property
    def seconds(self) -> float:
        """The billed seconds: the processor time at this share, and the time to wait for answers."""
        return self.processor / SHARE + WAIT_SECONDS + CALL_SECONDS * sum(self.calls.values())


def main() -> None:
    """Print the size of a report, the cost of a run of the hub, and the dollars of a month."""
    console = Console(width=100, highlight=False)
    origin = an_origin()
    quiet = [a_target_report(name=f"db-{number}", used_after=10) for number in range(1000)]
    leak = a_target_report(a_result(), used_after=10)
    sizes = {
        "50 quiet targets": len(a_message(origin, *quiet[:TARGETS])),
        "50 targets, each with a leak": len(a_message(origin, *[leak] * TARGETS)),
        "1,000 quiet targets": len(a_message(origin, *quiet)),
    }
    for name, size in sizes.items():
        console.print(f"a report of {name}: {size:,} bytes")
    size = sizes["50 quiet targets"]
    table = Table(title="a month of a fleet", title_justify="left")
    table.add_column("")
    columns: list[Mapping[str, str]] = []
    for accounts in ACCOUNTS:
        table.add_column(f"{accounts} accounts", justify="right")
        columns.append(_add_up(accounts, size, _measure(accounts, origin, quiet[:TARGETS])))
    for name in columns[0]:
        table.add_row(name, *(column[name] for column in columns))
    console.print(table)


def _add_up(accounts: int, size: int, run: HubRun) -> Mapping[str, str]:
    messages = accounts * RUNS
    item = _measure_item()
    chunks = -(-size // CHUNK)
    requests = messages * chunks + RUNS * sum(
        number for name, number in run.calls.items() if name in _OF_SQS
    )
    dollars = {
        "SNS, publishing": messages * chunks * SNS_PUBLISH,
        "SQS, sending, receiving and deleting": requests * SQS_REQUEST,
        "KMS, at most two calls a message": 2 * messages * KMS_REQUEST,
        "DynamoDB": RUNS * accounts * (-(-item // 1024) * WRITE + item / 4096 * READ),
        "Lambda, the hub": RUNS * run.seconds * 0.5 * GB_SECOND,
        "keys of a region's topic and the hub's, four alarms": 2 * KEY + 4 * ALARM,
    }
    return {
        "messages": f"{messages:,}",
        "bytes of reports": f"{messages * size / 1e9:.1f} GB",
        "processor time of a run of the hub": f"{run.processor:.2f} s",
        "calls of a run of the hub": f"{sum(run.calls.values()):,}",
        "time of a run of the hub at 512 MB": f"{run.seconds:.1f} s",
        "bytes of a stack's item": f"{item:,}",
        **{name: f"${value:.2f}" for name, value in dollars.items()},
        "together": f"${sum(dollars.values()):.2f}",
    }


_OF_SQS: Final = ("ReceiveMessage", "DeleteMessageBatch", "GetQueueAttributes")


def _measure_item() -> int:
    spoke = Spoke("123456789012", "eu-central-1", "session-reaper-SessionReaper-AbCdEfGhIjKl")
    state = SpokeState(spoke=spoke, sent_at=time.time(), runs=("0" * 12,) * 100, targets=TARGETS)
    return len(json.dumps(to_item(state)))


def _measure(accounts: int, origin: RunOrigin, targets: Sequence[TargetReport]) -> HubRun:
    """Measure warm runs of the hub, each over one new report of each stack."""
    with ExitStack() as stack:
        cloud = stack.enter_context(aws())
        url = cloud.sqs.create_queue(QueueName="fleet")["QueueUrl"]
        os.environ |= {"FLEET_QUEUE_URL": url, "TOPIC_ARN": cloud.topic_arn, "MEMORY_TABLE": TABLE}
        stack.enter_context(state_table(cloud, TABLE))
        process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", "from tests.benchmarks.fleet_costs import serve; serve()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        assert process.stdin
        assert process.stdout
        measured = []
        for number in range(ROUNDS + 1):
            names = (f"{number:012}-{account}" for account in range(accounts))
            bodies = [
                a_message(origin._replace(account=f"{account:012}"), *targets, run=name)
                for account, name in enumerate(names, start=1)
            ]
            _send(cloud, url, bodies)
            print("run", file=process.stdin, flush=True)
            processor, calls, count = json.loads(process.stdout.readline())
            if count != accounts:
                raise SystemExit(f"{count} of {accounts} messages were received")
            measured.append((processor, calls))
    processor, calls = sorted(measured[1:], key=str)[ROUNDS // 2]  # the first run is cold
    return HubRun(processor=processor, calls=calls)


def _send(cloud: Aws, url: str, bodies: Sequence[str]) -> None:
    for start in range(0, len(bodies), 10):
        entries = [
            {"Id": str(number), "MessageBody": body}
            for number, body in enumerate(bodies[start : start + 10])
        ]
        cloud.sqs.send_message_batch(QueueUrl=url, Entries=entries)  # type: ignore[arg-type] # a dict of text


def serve() -> None:
    """Run the hub for each line; answer with its processor time, its calls and its messages."""
    calls: Counter[str] = Counter()
    call = BaseClient._make_api_call  # type: ignore[attr-defined] # noqa: SLF001 -- every call passes through it

    def count(client: BaseClient, name: str, parameters: object) -> object:
        calls[name] += 1
        return call(client, name, parameters)

    BaseClient._make_api_call = count  # type: ignore[attr-defined] # noqa: SLF001 -- as above
    handler = importlib.import_module("session_reaper.hub").lambda_handler
    out = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for _ in sys.stdin:
        calls.clear()
        processor = time.process_time()
        answer = handler({}, Context())
        took = time.process_time() - processor
        print(json.dumps([took, calls, answer["messages"]]), file=out, flush=True)


if __name__ == "__main__":
    main()
