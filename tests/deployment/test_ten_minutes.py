"""The commands of the README's "Ten minutes", as a new user types them in an empty account.

`pytest -rP` shows the number of commands and questions, and how long each command took.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import pexpect
import pytest

from tests.deployment.account import REGION, ROOT, Account, run_account
from tests.deployment.conftest import receive_messages, run_server, subscribe_queue
from tests.integration.stage import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from infra.local.postgres import Server, Tls

PASSWORD: Final = "correct horse"  # noqa: S105 -- of a server that lives for minutes
COMMAND_SECONDS: Final = 300
ANSWERS: Final = {
    "Password of ": PASSWORD,
    "Tag of ": "",
    r"is private, in .*\?": "",
    "Security groups ": "",
    "Email ": "team@example.com",
}
"""The answer to each question, by its beginning; an empty one accepts the suggestion."""


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """A new user's shell in a clone, with the commands typed there."""

    account: Account
    clone: Path
    seconds: dict[str, float] = field(default_factory=dict)  # of each command
    questions: list[str] = field(default_factory=list)

    def type(self, command: str, *statuses: int) -> str:
        """Run a command on a terminal, answer its questions, and return its output.

        `statuses`: the exit statuses besides 0 that count as success.
        """
        home = self.account.environment["HOME"]
        uv = ROOT / ".tools" / "uv" / "bin"
        path = f"{home}/.local/bin:{uv}:{self.account.environment['PATH']}"
        settings = os.environ.get("XDG_CONFIG_HOME", f"{os.environ['HOME']}/.config")
        began = monotonic()
        shell: pexpect.spawn[str] = pexpect.spawn(
            "bash",
            ["-c", command],
            cwd=str(self.clone),
            env={
                **_without_aws(os.environ),
                **self.account.environment,
                "PATH": path,
                "XDG_CONFIG_HOME": settings,  # the package index of pip and uv
            },
            dimensions=(50, 300),
            timeout=COMMAND_SECONDS,
            encoding="utf-8",
        )
        output = ""
        while found := shell.expect([pexpect.EOF, *ANSWERS]):
            question = str(shell.after)
            output += f"{shell.before}{question}"
            self.questions.append(question)
            shell.expect("[:?] ")
            shell.sendline(list(ANSWERS.values())[found - 1])
        output += str(shell.before)
        shell.close()
        self.seconds[command] = monotonic() - began
        assert shell.exitstatus in (0, *statuses), f"{command}\n{output}"
        return re.sub(r"\x1b\[[0-9;]*m|\r", "", output)


def _without_aws(environment: os._Environ[str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith("AWS_")}


@pytest.fixture
def user(tls: Tls, tmp_path: Path) -> Iterator[User]:
    """A user with a clone, and an account of its own."""
    (tmp_path / "home").mkdir()
    with run_account(tmp_path / "home", tls) as account:
        yield User(account=account, clone=make_clone(tmp_path / "clone"))


@pytest.fixture
def bare_database(tls: Tls) -> Iterator[Server]:
    """A server without our role."""
    with run_server(tls) as running, contextlib.closing(running.connect()) as admin:
        admin.run(f"CREATE ROLE owner SUPERUSER LOGIN PASSWORD '{PASSWORD}'")
        yield running


def make_clone(folder: Path) -> Path:
    """Copy the files of the repository, with what `make` has installed."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True, text=True).stdout  # noqa: S603 -- git
    for name in names.rstrip("\0").split("\0"):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name, follow_symlinks=False)
    for name in (".tools", ".venv"):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    for requirements in (folder / "requirements").iterdir():
        os.utime(requirements, (0, 0))  # so `make` does not install again
    return folder


def read_commands() -> list[str]:
    """Return the commands of the README's section."""
    _, _, section = (ROOT / "README.md").read_text().partition("\n## Ten minutes\n")
    section, _, _ = section.partition("\n## ")
    return [line.strip() for line in section.splitlines() if line.startswith("    ")]


def make_private_database(account: Account, port: int) -> None:
    """Create a private database of RDS, without a NAT and without an admitted security group."""
    ec2, rds = account.client("ec2"), account.client("rds")
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    subnets = [
        ec2.create_subnet(
            VpcId=vpc, CidrBlock=f"10.0.{n}.0/24", AvailabilityZone=f"{REGION}{zone}"
        )["Subnet"]["SubnetId"]
        for n, zone in enumerate("ab")
    ]
    group = ec2.create_security_group(VpcId=vpc, GroupName="orders", Description="orders")
    rds.create_db_subnet_group(
        DBSubnetGroupName="private", DBSubnetGroupDescription="private", SubnetIds=subnets
    )
    rds.create_db_instance(
        DBInstanceIdentifier="orders",
        Engine="postgres",
        DBInstanceClass="db.t4g.micro",
        AllocatedStorage=20,
        MasterUsername="owner",
        MasterUserPassword=PASSWORD,
        DBSubnetGroupName="private",
        VpcSecurityGroupIds=[group["GroupId"]],
        PubliclyAccessible=False,
        Port=port,
    )


def test_the_commands_of_the_readme_lead_from_a_clone_to_the_first_summary(
    user: User, bare_database: Server
) -> None:
    make_private_database(user.account, bare_database.port)
    options = "sslmode=disable"
    if bare_database.tls:
        options = f"sslrootcert={quote(str(bare_database.tls.authority), safe='')}"
    place = f"{bare_database.host}:{bare_database.port}"
    install, onboard, init, deploy, check = read_commands()
    example = "postgres://OWNER@HOST/DATABASE"
    assert example in onboard
    user.type(install)
    user.type(onboard.replace(example, f"'postgres://owner@{place}/postgres?{options}'"), 1)
    output = user.type(init)
    *network, next_deploy, next_check = output.partition("Next:\n")[2].strip().split("\n")
    assert [next_deploy.strip(), next_check.strip()] == [deploy, check]
    network_command, again = (command.strip() for command in network)
    assert network_command.startswith("make attach ADD=network ")
    assert again == f"{init} --yes"
    user.type(network_command)
    user.type(again)
    user.type(deploy)
    inbox = subscribe_queue(user.account, user.account.read_outputs("session-reaper")["TopicArn"])
    report = user.type(check)
    assert '"verdict":"CHECKED' in report.replace('": "', '":"')
    summaries: list[dict[str, Any]] = []

    def has_arrived() -> bool:
        summaries.extend(receive_messages(user.account, inbox))
        return bool(summaries)

    until(has_arrived, "the first summary arrives", 60)
    assert summaries[0]["Message"].startswith("CHECKED")
    assert "orders" in summaries[0]["Message"]
    assert user.account.read_denials(0) == set()
    assert len(user.questions) == 5
    print(describe(user))  # noqa: T201 -- for `pytest -rP`


def describe(user: User) -> str:
    lines = [f"{seconds:6.1f} s  {command}" for command, seconds in user.seconds.items()]
    total = f"{sum(user.seconds.values()):6.1f} s, {len(lines)} commands"
    return "\n".join((*lines, f"{total}, {len(user.questions)} questions"))
