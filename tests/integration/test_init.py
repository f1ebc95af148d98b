"""`session-reaper init` on an account of the AWS stand-in: what it finds, asks and writes."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pexpect
import pytest
from moto.backends import get_backend
from moto.core.models import DEFAULT_ACCOUNT_ID

from infra.local.aws import REGION, Aws
from tests.integration.cli import on_terminal, run

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
NO_CREDENTIALS = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_SESSION_TOKEN": ""}


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A VPC with a private database, which lets one security group in."""

    vpc: str
    subnets: tuple[str, ...]
    group: str


@pytest.fixture
def account(cloud: Aws) -> Iterator[Any]:  # noqa: ARG001 -- the stand-in must run
    session: Any = boto3.Session(region_name=REGION)
    yield session
    for service in ("ec2", "rds"):
        get_backend(service)[DEFAULT_ACCOUNT_ID][REGION].reset()


@pytest.fixture
def scene(account: Any) -> Scene:  # noqa: ANN401 -- there are no types of all services
    return make_scene(account)


def make_scene(account: Any) -> Scene:  # noqa: ANN401 -- as above
    ec2, rds = account.client("ec2"), account.client("rds")
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    subnets = [
        ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.0.{n}.0/24", AvailabilityZone=f"{REGION}{zone}")
        for n, zone in enumerate("aab")
    ]
    public, *private = (each["Subnet"]["SubnetId"] for each in subnets)
    address = ec2.allocate_address(Domain="vpc")["AllocationId"]
    nat = ec2.create_nat_gateway(SubnetId=public, AllocationId=address)["NatGateway"][
        "NatGatewayId"
    ]
    table = ec2.create_route_table(VpcId=vpc)["RouteTable"]["RouteTableId"]
    ec2.create_route(RouteTableId=table, DestinationCidrBlock="0.0.0.0/0", NatGatewayId=nat)
    for each in private:
        ec2.associate_route_table(RouteTableId=table, SubnetId=each)
    names = ("reaper", "database")
    reaper, database = (
        ec2.create_security_group(VpcId=vpc, GroupName=name, Description=name)["GroupId"]
        for name in names
    )
    pair = [{"GroupId": reaper}]
    rule = {"IpProtocol": "tcp", "FromPort": 5432, "ToPort": 5432, "UserIdGroupPairs": pair}
    ec2.authorize_security_group_ingress(GroupId=database, IpPermissions=[rule])
    rds.create_db_subnet_group(
        DBSubnetGroupName="private", DBSubnetGroupDescription="x", SubnetIds=private
    )
    rds.create_db_instance(
        DBInstanceIdentifier="orders",
        Engine="postgres",
        DBInstanceClass="db.t4g.micro",
        AllocatedStorage=20,
        MasterUsername="postgres",
        MasterUserPassword="a-long-password",
        DBSubnetGroupName="private",
        VpcSecurityGroupIds=[database],
        PubliclyAccessible=False,
    )
    return Scene(vpc=vpc, subnets=tuple(private), group=reaper)


def overrides(path: Path, environment: str = "default") -> dict[str, str]:
    parameters = tomllib.loads(path.read_text())[environment]["deploy"]["parameters"]
    assert parameters["confirm_changeset"] is False
    pairs = (each.partition("=") for each in parameters["parameter_overrides"])
    return {key: value for key, _, value in pairs}


def test_the_suggestions_are_what_the_account_has(scene: Scene, tmp_path: Path) -> None:
    path = tmp_path / "samconfig.toml"
    done = run(tmp_path, "init", "--yes", "--file", str(path))
    assert done.status == 0, done.err
    assert overrides(path) == {
        "TargetSecretTag": "session-reaper=prod",
        "SubnetIds": ",".join(scene.subnets),
        "SecurityGroupIds": scene.group,
        "Mode": "observe",
    }
    document = tomllib.loads(path.read_text())["default"]
    general = {"stack_name": "session-reaper", "region": REGION}
    assert document["global"]["parameters"] == general
    assert "session-reaper onboard postgres://OWNER@" in done.err
    assert "--name orders --tag session-reaper=prod" in done.err
    assert "make deploy" in done.err
    assert "no NAT" not in done.err


def test_at_most_five_questions_are_asked(scene: Scene, tmp_path: Path) -> None:
    path = tmp_path / "samconfig.toml"
    terminal = on_terminal(tmp_path, "init", "--file", str(path), columns=300)
    terminal.expect_exact("Tag of the databases' secrets [session-reaper=prod]: ")
    terminal.sendline("a tag")
    terminal.expect_exact("write key=value")
    terminal.sendline("")
    terminal.expect_exact(f"orders is private, in {scene.vpc}: run in subnets")
    terminal.sendline("n")
    terminal.expect_exact("Subnets of the function")
    terminal.sendline("subnet-0a,subnet-0b")
    terminal.expect_exact("Security groups of the function: ")
    terminal.sendline("sg-0c")
    terminal.expect_exact("Email address")
    terminal.sendline("dba@example.com")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0
    assert overrides(path) == {
        "TargetSecretTag": "session-reaper=prod",
        "SubnetIds": "subnet-0a,subnet-0b",
        "SecurityGroupIds": "sg-0c",
        "Email": "dba@example.com",
        "Mode": "observe",
    }


def test_tagged_secrets_are_found(account: Any, cloud: Aws, tmp_path: Path) -> None:  # noqa: ANN401, ARG001
    tags = [{"Key": "session-reaper", "Value": "blue"}]
    cloud.secrets.create_secret(Name="orders", SecretString="{}", Tags=tags)  # type: ignore[arg-type] # literal keys
    path = tmp_path / "samconfig.toml"
    done = run(tmp_path, "init", "--yes", "--file", str(path))
    assert overrides(path)["TargetSecretTag"] == "session-reaper=blue"
    assert "onboard" not in done.err


@pytest.mark.usefixtures("cloud")
@pytest.mark.parametrize("arguments", [("--no-aws",), ()])
def test_without_aws_it_asks_instead(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    path = tmp_path / "samconfig.toml"
    command = ("init", "--yes", "--file", str(path), *arguments)
    done = run(tmp_path, *command, **NO_CREDENTIALS)
    assert done.status == 0, done.err
    assert "Cannot look at the AWS account" in done.err
    assert overrides(path) == {"TargetSecretTag": "session-reaper=prod", "Mode": "observe"}


def test_the_projects_own_file_keeps_its_comments_and_tables(scene: Scene, tmp_path: Path) -> None:
    path = tmp_path / "samconfig.toml"
    before = (ROOT / "samconfig.toml").read_text()
    path.write_text(before)
    for _ in range(2):
        assert run(tmp_path, "init", "--yes", "--env", "prod", "--file", str(path)).status == 0
    after = path.read_text()
    assert overrides(path, "prod")["SecurityGroupIds"] == scene.group
    kept = tomllib.loads(before)["prod"]["deploy"]["parameters"]["parameter_overrides"]
    assert set(kept) <= {f"{key}={value}" for key, value in overrides(path, "prod").items()}
    for line in before.splitlines():
        assert line in after or "confirm_changeset" in line
    assert tomllib.loads(before)["staging"] == tomllib.loads(after)["staging"]
    assert after.count('"SubnetIds=') == 1


@pytest.mark.usefixtures("cloud")
def test_a_file_that_is_not_toml_stays(tmp_path: Path) -> None:
    path = tmp_path / "samconfig.toml"
    path.write_text("no = ")
    done = run(tmp_path, "init", "--yes", "--no-aws", "--file", str(path))
    assert done.status == 2
    assert "samconfig.toml: cannot be read" in done.err
    assert path.read_text() == "no = "
