"""Deploys the stacks of an accounts file, in parallel, each under a role of its account.

With --hub, it first deploys the topic of each region, lets the stacks report to it, and registers
each stack with the hub, so that the hub notices one that never reports.
"""

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock
from typing import Final

import yaml
from rich.console import Console
from rich.table import Table
from session_reaper.fleet.message import Spoke
from session_reaper.settings import read_run_interval

from infra.fleet.accounts import AccountsError, Deployment, read_accounts
from infra.fleet.hub import (
    FleetTopic,
    Hub,
    NoTopic,
    deploy_topics,
    expect_report,
    find_hub,
    forget_stack,
    join_fleet,
)
from infra.fleet.stacks import (
    DeployError,
    Options,
    assume_role,
    describe_error,
    read_outputs,
    read_own_parameters,
    run_sam,
)

_MOST_PARALLEL: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The end of one stack's deployment; `problem` is empty if it worked."""

    deployment: Deployment
    seconds: float
    done: str = ""
    problem: str = ""

    @property
    def text(self) -> str:
        """The result in words, or the problem."""
        return f"FAILED: {self.problem}" if self.problem else self.done


def main(arguments: Sequence[str] | None = None) -> int:
    """Deploy; return 1 if a stack failed, 2 if nothing was begun."""
    given = _parse(arguments)
    options = Options(
        template=given.template,
        logs=given.logs,
        preview=given.preview,
        register=given.register,
    )
    try:
        deployments = read_accounts(given.accounts, _list_parameters(given.template))
        hub = find_hub(given.hub) if given.hub else None
        if hub and given.forget:
            return _forget_all(hub, given.forget)
        topics = deploy_topics(deployments, hub, given.organization, options) if hub else {}
    except (AccountsError, DeployError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "interrupted: no stack was begun; CloudFormation may still work on a topic, so wait before"
            " you try again",
            file=sys.stderr,
        )
        return 2
    results = _deploy_all(
        deployments, given.parallel, lambda each: _deploy(each, hub, topics, options)
    )
    _print_table(results, options)
    return int(any(result.problem for result in results))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="deploy-fleet", description=__doc__)
    parser.add_argument("accounts", type=Path, help="CSV: account,region,role,stack,Parameter,...")
    parser.add_argument("--hub", metavar="STACK", help="the hub's stack, in your own account")
    parser.add_argument(
        "--organization", default="", help="admit this organization instead of the file's accounts"
    )
    parser.add_argument(
        "--parallel", type=_read_parallel, default=8, help="the most stacks at the same time"
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--preview", action="store_true", help="create change sets, execute none")
    instead.add_argument(
        "--register",
        action="store_true",
        help="deploy nothing; only register each stack with the hub",
    )
    parser.add_argument("--template", type=Path, default=Path(".aws-sam/build/template.yaml"))
    parser.add_argument("--logs", type=Path, default=Path(".aws-sam/fleet"))
    instead.add_argument(
        "--forget",
        metavar="ACCOUNT/REGION/FUNCTION",
        nargs="+",
        default=[],
        help="deploy nothing; let the hub forget these stacks, which you have removed",
    )
    given = parser.parse_args(arguments)
    if (given.register or given.forget) and not given.hub:
        parser.error("--register and --forget need --hub")
    return given


def _read_parallel(value: str) -> int:
    if not value.isdecimal() or not 1 <= int(value) <= _MOST_PARALLEL:
        raise argparse.ArgumentTypeError(f"invalid number '{value}'; write 1 to {_MOST_PARALLEL}")
    return int(value)


def _forget_all(hub: Hub, labels: Iterable[str]) -> int:
    """Let the hub forget stacks; return 1 if it did not know one of them."""
    failed = 0
    for label in labels:
        try:
            forget_stack(hub, label)
        except DeployError as error:
            failed = 1
            print(error, file=sys.stderr)
        else:
            print(f"{label}: forgotten")
    return failed


def _list_parameters(template: Path) -> Sequence[str]:
    """Return the names of a template's parameters. Raises DeployError."""

    class Loader(yaml.SafeLoader):
        """Reads CloudFormation's short forms as null."""

    Loader.add_multi_constructor("!", lambda *_: None)
    try:
        document = yaml.load(template.read_text("utf-8"), Loader)  # noqa: S506 -- a SafeLoader
    except OSError as error:
        raise DeployError(f"{template} cannot be read; run make build: {error}") from None
    return list(document["Parameters"])


def _deploy_all(
    deployments: Sequence[Deployment], parallel: int, deploy: Callable[[Deployment], str]
) -> Sequence[Result]:
    """Deploy in parallel, and print each end.

    Stacks of the same account and region come one after the other, because each first `sam deploy`
    creates the same bucket. After an interrupt, no further stack is begun.
    """
    groups: dict[tuple[str, str], list[Deployment]] = defaultdict(list)
    for each in deployments:
        groups[each.account, each.region].append(each)
    results: list[Result] = []
    lock = Lock()  # numbers are printed in order
    is_interrupted = Event()

    def deploy_in_turn(group: Iterable[Deployment]) -> None:
        for each in group:
            if is_interrupted.is_set():
                result = Result(deployment=each, seconds=0, problem="interrupted, not begun")
            else:
                result = _deploy_one(each, deploy)
            with lock:
                results.append(result)
                done = f"[{len(results)}/{len(deployments)}]"
                print(f"{done} {each.label}: {result.text} ({result.seconds:.0f} s)", flush=True)

    print(f"{len(deployments)} stacks, up to {parallel} at the same time", flush=True)
    with ThreadPoolExecutor(parallel) as pool:
        pending = [pool.submit(deploy_in_turn, group) for group in groups.values()]
        try:
            wait(pending)
        except KeyboardInterrupt:
            print("interrupted: waiting for the deployments that have begun", flush=True)
            is_interrupted.set()
    for future in pending:
        future.result()
    return sorted(results, key=lambda result: result.deployment.line)


def _deploy_one(deployment: Deployment, deploy: Callable[[Deployment], str]) -> Result:
    """Deploy one stack; a failure is a result, so that it does not stop the others."""
    started = time.monotonic()
    done = problem = ""
    try:
        done = deploy(deployment)
    except Exception as error:  # noqa: BLE001 -- any failure, also a bug, is in the table and the exit status; the other stacks continue
        problem = describe_error(error)
    seconds = time.monotonic() - started
    return Result(deployment=deployment, seconds=seconds, done=done, problem=problem)


def _deploy(
    deployment: Deployment,
    hub: Hub | None,
    topics: Mapping[str, FleetTopic | NoTopic],
    options: Options,
) -> str:
    """Deploy one stack and tell the hub of it; return what was done. Raises DeployError."""
    topic = topics.get(deployment.region)
    if isinstance(topic, NoTopic):
        raise DeployError(topic.problem)
    session = assume_role(deployment)
    before = read_own_parameters(deployment.stack, session)
    if topic is not None:
        deployment = join_fleet(deployment, topic, before)
    if not options.register:
        run_sam(deployment, session, options)
    if options.preview:
        return "previewed"
    if hub is None:
        return "deployed"
    function = read_outputs(deployment.stack, session).get("FunctionName")
    if function is None:
        raise DeployError("the stack has no output FunctionName, so its deployment has failed")
    # The file need not set the schedule.
    after = read_own_parameters(deployment.stack, session)
    interval = read_run_interval(after.get("ScheduleExpression", ""))
    expect_report(hub, Spoke(deployment.account, deployment.region, function), interval)
    return "registered" if options.register else "deployed"


def _print_table(results: Sequence[Result], options: Options) -> None:
    failed = sum(bool(result.problem) for result in results)
    print(f"\n{len(results)} stacks: {len(results) - failed} done, {failed} failed")
    table = Table()
    for heading in ("account", "region", "stack", "result"):
        table.add_column(heading, overflow="fold")
    table.add_column("seconds", justify="right")
    for result in results:
        deployment = result.deployment
        cells = (deployment.account, deployment.region, deployment.stack, result.text)
        table.add_row(*cells, f"{result.seconds:.0f}")
    Console(markup=False, highlight=False).print(table)
    if options.preview:
        print(f"The changes of each stack are in {options.logs}; none was executed.")
    elif failed and not options.register:
        print(f"The complete output of each sam deploy is in {options.logs}.")


if __name__ == "__main__":
    sys.exit(main())
