"""An emulated AWS account on this machine, and the commands that people deploy with."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from ssl import create_default_context
from typing import TYPE_CHECKING, Any, Final

import boto3
import pytest

from tests.integration.stage import until
from tests.integration.wire import unused_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from infra.local.postgres import Tls

ROOT: Final = Path(__file__).parents[2]
SAM: Final = ROOT / ".tools" / "sam" / "bin" / "sam"
ACCOUNT: Final = "123456789012"
REGION: Final = "eu-west-1"
_PYTHON: Final = ROOT / ".tools" / "deployment" / "bin" / "python"
_COMMAND_SECONDS: Final = 300.0
_START_SECONDS: Final = 120.0
_STOP_SECONDS: Final = 2.0  # it has nothing to save


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The account's address and administrator, as environment variables."""

    environment: Mapping[str, str]
    log: Path

    def client(self, service: str) -> Any:  # noqa: ANN401 -- each service has a type of its own
        """Return a client with the administrator's rights."""
        connect: Any = boto3.client
        return connect(
            service,
            endpoint_url=self.environment["AWS_ENDPOINT_URL"],
            verify=self.environment["AWS_CA_BUNDLE"],
            region_name=REGION,
            aws_access_key_id=self.environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.environment["AWS_SECRET_ACCESS_KEY"],
        )

    def run(self, *command: str | Path) -> str:
        """Run a command of ours with the account's environment; return its standard output."""
        done = subprocess.run(  # noqa: S603 -- sam and make
            command,
            cwd=ROOT,
            env=dict(self.environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_COMMAND_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def deploy(self, stack: str, parameters: Mapping[str, str]) -> None:
        """Run `sam deploy` on the output of `sam build`."""
        self.run(
            *(SAM, "deploy", "--stack-name", stack, "--no-confirm-changeset"),
            "--parameter-overrides",
            # A value may contain a space, so sam needs quotes of its own.
            *(f'{name}="{value}"' for name, value in parameters.items()),
        )

    def attach(self, name: str, stack: str, **parameters: str) -> None:
        """Run `make attach` without installing anything."""
        given = " ".join(f"{name}={value}" for name, value in parameters.items())
        self.run(
            *("make", "-o", ".tools/sam/installed", "attach", f"ADD={name}", f"STACK={stack}"),
            *(f"PARAMETERS={given}", "ARGS=--no-confirm-changeset"),
        )

    def delete(self, stack: str) -> None:
        """Run `sam delete`."""
        self.run(SAM, "delete", "--stack-name", stack, "--no-prompts")

    def read_outputs(self, stack: str) -> dict[str, str]:
        """Return the outputs of a stack."""
        [found] = self.client("cloudformation").describe_stacks(StackName=stack)["Stacks"]
        return {one["OutputKey"]: one["OutputValue"] for one in found["Outputs"]}

    def invoke(self, function: str, event: object) -> dict[str, Any]:
        """Invoke a function; return its answer, or its error object."""
        answer = self.client("lambda").invoke(
            FunctionName=function, Payload=json.dumps(event).encode()
        )
        document: dict[str, Any] = json.loads(answer["Payload"].read())
        return document

    def read_denials(self, begin: int) -> set[str]:
        """Return the calls that IAM denied since the log had this length, with their resources."""
        lines = self.log.read_text()[begin:].splitlines()
        return {one.removeprefix("DENIED ") for one in lines if one.startswith("DENIED ")}


@contextmanager
def run_account(folder: Path, tls: Tls) -> Iterator[Account]:
    """Run the emulator on a free port of 127.0.0.1 until the block ends; it enforces IAM policies."""
    if not _PYTHON.exists():
        pytest.fail("The emulator is not installed: run `make deployment`.")
    port = unused_port()
    environment = {
        "PATH": f"{SAM.parent}:{os.environ['PATH']}",
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "AWS_ENDPOINT_URL": f"https://127.0.0.1:{port}",
        "AWS_CA_BUNDLE": str(tls.authority),
        "AWS_ACCESS_KEY_ID": "test",  # the emulator's administrator
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": REGION,
        "SAM_CLI_TELEMETRY": "0",
    }
    emulator = {
        "AUTH": "true",
        "USE_SSL": "1",
        "BIND_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
        "MINISTACK_ACCOUNT_ID": ACCOUNT,
        "MINISTACK_REGION": REGION,
        "MINISTACK_SSL_CERT": str(tls.certificate),
        "MINISTACK_SSL_KEY": str(tls.key),
        "IOT_MTLS_ENABLED": "0",
        "DOCKER_HOST": "unix:///nonexistent",  # it needs no container, and must touch none
        "SSL_CERT_FILE": str(tls.authority),  # the functions inherit it, for the webhook's Slack
    }
    log = folder / "emulator.log"
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 -- the emulator
            [_PYTHON, Path(__file__).with_name("emulator.py")],
            cwd=folder,
            env=environment | emulator,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        url = f"{environment['AWS_ENDPOINT_URL']}/_ministack/health"
        context = create_default_context(cafile=tls.authority)

        def is_ready() -> bool:
            assert process.poll() is None, log.read_text()
            try:
                with urllib.request.urlopen(url, context=context) as answer:  # noqa: S310 -- ours
                    return bool(answer.status == 200)
            except urllib.error.URLError:
                return False

        until(is_ready, "the emulator answers", _START_SECONDS)
        yield Account(environment=environment, log=log)
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
