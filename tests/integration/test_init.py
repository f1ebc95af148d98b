"""`session-reaper init` on an account of the AWS stand-in: what it finds, asks and writes."""

from __future__ import annotations

import os
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
from tests.integration.aws_faults import Fault, aws_proxy
from tests.integration.cli import finish, on_terminal, press_ctrl_c, run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).parents[2]
NO_CREDENTIALS = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_SESSION_TOKEN": ""}


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A VPC with a private database, which admits one security group."""

    vpc: str
    subnets: tuple[str, ...]
    route_table: str
    database_group: str
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


@pytest.fixture
def closed_scene(account: Any) -> Scene:  # noqa: ANN401 -- as above
    """A VPC without a NAT, whose database admits no security group."""
    return make_scene(account, has_nat=False, is_admitted=False)


def make_scene(account: Any, *, has_nat: bool = True, is_admitted: bool = True) -> Scene:  # noqa: ANN401 -- as above
    ec2 = account.client("ec2")
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    subnets = [
        ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.0.{n}.0/24", AvailabilityZone=f"{REGION}{zone}")
        for n, zone in enumerate("aab")
    ]
    public, *private = (each["Subnet"]["SubnetId"] for each in subnets)
    table = ec2.create_route_table(VpcId=vpc)["RouteTable"]["RouteTableId"]
    if has_nat:
        address = ec2.allocate_address(Domain="vpc")["AllocationId"]
        nat = ec2.create_nat_gateway(SubnetId=public, AllocationId=address)
        way = {"NatGatewayId": nat["NatGateway"]["NatGatewayId"]}
        ec2.create_route(RouteTableId=table, DestinationCidrBlock="0.0.0.0/0", **way)
    else:
        way = {"GatewayId": ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]}
        open_table = ec2.create_route_table(VpcId=vpc)["RouteTable"]["RouteTableId"]
        ec2.attach_internet_gateway(InternetGatewayId=way["GatewayId"], VpcId=vpc)
        ec2.create_route(RouteTableId=open_table, DestinationCidrBlock="0.0.0.0/0", **way)
        ec2.associate_route_table(RouteTableId=open_table, SubnetId=public)
    for each in private:
        ec2.associate_route_table(RouteTableId=table, SubnetId=each)
    reaper, database = (
        ec2.create_security_group(VpcId=vpc, GroupName=name, Description=name)["GroupId"]
        for name in ("reaper", "database")
    )
    if is_admitted:
        admit(ec2, database, reaper)
    make_database(account, "orders", private, database)
    return Scene(
        vpc=vpc,
        subnets=tuple(private),
        route_table=table,
        database_group=database,
        group=reaper,
    )


def make_database(
    account: Any,  # noqa: ANN401 -- as above
    name: str,
    subnets: Sequence[str],
    group: str,
    *,
    is_public: bool = False,
) -> None:
    rds = account.client("rds")
    rds.create_db_subnet_group(
        DBSubnetGroupName=name, DBSubnetGroupDescription="x", SubnetIds=list(subnets)
    )
    rds.create_db_instance(
        DBInstanceIdentifier=name,
        Engine="postgres",
        DBInstanceClass="db.t4g.micro",
        AllocatedStorage=20,
        MasterUsername="postgres",
        MasterUserPassword="a-long-password",
        DBSubnetGroupName=name,
        VpcSecurityGroupIds=[group],
        PubliclyAccessible=is_public,
    )


def admit(ec2: Any, database: str, group: str) -> None:  # noqa: ANN401 -- as above
    pair = [{"GroupId": group}]
    rule = {"IpProtocol": "tcp", "FromPort": 5432, "ToPort": 5432, "UserIdGroupPairs": pair}
    ec2.authorize_security_group_ingress(GroupId=database, IpPermissions=[rule])


def make_network(account: Any, scene: Scene) -> str:  # noqa: ANN401 -- as above
    """Make what infra/network.yaml makes; return the function's security group."""
    ec2 = account.client("ec2")
    about = "The function of session-reaper-network"
    group = ec2.create_security_group(VpcId=scene.vpc, GroupName="x", Description=about)["GroupId"]
    admit(ec2, scene.database_group, group)
    for service in ("secretsmanager", "sns", "rds"):
        ec2.create_vpc_endpoint(
            VpcId=scene.vpc,
            VpcEndpointType="Interface",
            PrivateDnsEnabled=True,
            ServiceName=f"com.amazonaws.{REGION}.{service}",
            SubnetIds=[scene.subnets[0]],
        )
    ec2.create_vpc_endpoint(
        VpcId=scene.vpc,
        VpcEndpointType="Gateway",
        ServiceName=f"com.amazonaws.{REGION}.dynamodb",
        RouteTableIds=[scene.route_table],
    )
    return str(group)


def next_commands(text: str) -> list[str]:
    """Return the commands that `init` says."""
    _, _, commands = text.partition("Next:\n")
    return [line.strip() for line in commands.splitlines()]


def in_folder(path: Path) -> tuple[str, ...]:
    return ("init", "--yes", "--file", str(path))


def overrides(path: Path, environment: str = "default") -> dict[str, str]:
    parameters = tomllib.loads(path.read_text())[environment]["deploy"]["parameters"]
    assert parameters["confirm_changeset"] is False
    pairs = (each.partition("=") for each in parameters["parameter_overrides"])
    return {key: value for key, _, value in pairs}


def read_tables(path: Path) -> dict[str, dict[str, Any]]:
    tables: dict[str, dict[str, Any]] = tomllib.loads(path.read_text())["default"]
    return tables


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
    assert next_commands(done.err)[1:] == ["make deploy", "make check-remote"]


def test_at_most_five_questions_are_asked(scene: Scene, tmp_path: Path) -> None:
    path = tmp_path / "samconfig.toml"
    terminal = on_terminal(tmp_path, "init", "--file", str(path), columns=300)
    terminal.expect_exact("Tag of the databases' secrets [session-reaper=prod]: ")
    for answer in ("a tag", "größe=1"):
        terminal.sendline(answer)
        terminal.expect_exact("write key=value")
    terminal.sendline("")
    terminal.expect_exact(f"orders is private, in {scene.vpc}: run in subnets")
    terminal.sendline("n")
    terminal.expect_exact("Subnets of the function")
    terminal.sendline("subnet-0a,subnet-0b")
    terminal.expect_exact("Security groups of the function, which the databases admit: ")
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
    again = on_terminal(tmp_path, "init", "--file", str(path), columns=300)
    again.expect_exact("Tag of the databases' secrets [session-reaper=prod]: ")
    again.sendline("")
    again.expect_exact("Run in subnet-0a,subnet-0b with sg-0c, as before?")
    again.sendline("n")
    again.expect_exact("Subnets of the function")
    again.sendline("subnet-0d")
    again.expect_exact("Security groups of the function")
    again.sendline("sg-0e")
    again.expect_exact("Email address for the summaries (empty: none) [dba@example.com]: ")
    again.sendline("")
    again.expect(pexpect.EOF)
    again.close()
    assert again.exitstatus == 0
    given = {"SubnetIds": "subnet-0d", "SecurityGroupIds": "sg-0e", "Email": "dba@example.com"}
    assert overrides(path).items() >= given.items()


@pytest.mark.usefixtures("cloud")
def test_an_emptied_answer_replaces_the_deployed_one(tmp_path: Path) -> None:
    path = tmp_path / "samconfig.toml"
    before = '["SubnetIds=subnet-0a", "SecurityGroupIds=sg-0c", "Email=dba@example.com"]'
    path.write_text(f"[default.deploy.parameters]\nparameter_overrides = {before}\n")
    terminal = on_terminal(tmp_path, "init", "--no-aws", "--file", str(path), columns=300)
    for question, answer in (
        ("Tag of the databases' secrets", ""),
        ("Run in subnet-0a with sg-0c, as before?", "n"),
        ("Subnets of the function (empty: outside of any VPC): ", ""),
        ("Email address", ""),
    ):
        terminal.expect_exact(question)
        terminal.sendline(answer)
    assert finish(terminal)[1] == 0
    written = overrides(path)
    # sam deploys the former value of a parameter that is missing.
    assert (written["SubnetIds"], written["SecurityGroupIds"]) == ('""', '""')
    assert written["Email"] == "dba@example.com"
    assert run(tmp_path, *in_folder(path), "--no-aws").status == 0
    assert overrides(path) == written


def test_tagged_secrets_are_found(account: Any, cloud: Aws, tmp_path: Path) -> None:  # noqa: ANN401, ARG001
    tags = [{"Key": "session-reaper", "Value": "blue"}]
    cloud.secrets.create_secret(Name="orders", SecretString="{}", Tags=tags)  # type: ignore[arg-type] # literal keys
    path = tmp_path / "samconfig.toml"
    done = run(tmp_path, "init", "--yes", "--file", str(path))
    assert overrides(path)["TargetSecretTag"] == "session-reaper=blue"
    assert "onboard" not in done.err
    assert f"Region {REGION}, PostgreSQL databases on RDS and Aurora: 0 (AWS_PROFILE" in done.err


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


@pytest.mark.usefixtures("scene")
@pytest.mark.parametrize("table", ["global", "deploy"])
def test_it_looks_in_the_region_of_the_file_and_keeps_region_and_stack(
    tmp_path: Path, table: str
) -> None:
    path = tmp_path / "samconfig.toml"
    path.write_text(f'[default.{table}.parameters]\nregion = "{REGION}"\nstack_name = "mine"\n')
    shell = {"AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1"}
    done = run(tmp_path, *in_folder(path), **shell)
    assert done.status == 0, done.err
    assert f"Region {REGION}, PostgreSQL databases on RDS and Aurora: 1" in done.err
    for key, value in (("region", REGION), ("stack_name", "mine")):
        assert {each["parameters"].get(key, value) for each in read_tables(path).values()} == {
            value
        }
    # The secret must be in the stack's region.
    assert next_commands(done.err)[0].startswith(f"AWS_REGION={REGION} session-reaper onboard ")


@pytest.mark.usefixtures("cloud")
def test_a_file_that_is_not_toml_stays(tmp_path: Path) -> None:
    path = tmp_path / "samconfig.toml"
    path.write_text("no = ")
    done = run(tmp_path, "init", "--yes", "--no-aws", "--file", str(path))
    assert done.status == 2
    assert "samconfig.toml: cannot be read" in done.err
    assert path.read_text() == "no = "


# -- the network stack -----------------------------------------------------------------------------


def test_the_command_of_the_network_stack_has_all_that_the_network_lacks(
    closed_scene: Scene, tmp_path: Path
) -> None:
    scene = closed_scene
    path = tmp_path / "samconfig.toml"
    done = run(tmp_path, *in_folder(path))
    assert done.status == 0, done.err
    parameters = (
        f"VpcId={scene.vpc} VpcCidr=10.0.0.0/16 DatabaseSecurityGroupIds={scene.database_group}"
        f" SubnetIds={','.join(scene.subnets)} Endpoints=secretsmanager,sns,rds"
        f" RouteTableIds={scene.route_table}"
    )
    assert next_commands(done.err)[1:] == [
        f'make attach ADD=network PARAMETERS="{parameters}"',
        f"session-reaper init --file {path} --yes",
        "make deploy",
        "make check-remote",
    ]
    # Until then the template refuses a deployment: subnets need a security group.
    assert "SecurityGroupIds" not in overrides(path)


def test_the_next_run_takes_the_group_of_the_network_stack_and_keeps_earlier_answers(
    account: Any,  # noqa: ANN401 -- as above
    closed_scene: Scene,
    tmp_path: Path,
) -> None:
    path = tmp_path / "samconfig.toml"
    path.write_text(
        '[default.deploy.parameters]\nparameter_overrides = ["Email=dba@example.com",'
        ' "Mode=ssm:/mode", "TargetSecretTag=team=shop", "Alarms=no",'
        " 'ScheduleExpression=\"rate(1 minute)\"']\n"
    )
    assert "ssm" in run(tmp_path, *in_folder(path)).err
    group = make_network(account, closed_scene)
    done = run(tmp_path, *in_folder(path))
    assert "session-reaper-network exists" in done.err
    assert "Endpoints=ssm" in done.err
    assert overrides(path) == {
        "TargetSecretTag": "team=shop",
        "SubnetIds": ",".join(closed_scene.subnets),
        "SecurityGroupIds": group,
        "Email": "dba@example.com",
        "Mode": "ssm:/mode",
        "Alarms": "no",
        "ScheduleExpression": '"rate(1 minute)"',  # without the quotes sam would cut it
    }


def test_a_complete_network_needs_no_stack_and_its_group_is_preferred(
    account: Any,  # noqa: ANN401 -- as above
    closed_scene: Scene,
    tmp_path: Path,
) -> None:
    ec2 = account.client("ec2")
    for name in map(str, range(9)):  # of applications
        group = ec2.create_security_group(VpcId=closed_scene.vpc, GroupName=name, Description=name)
        admit(ec2, closed_scene.database_group, group["GroupId"])
    group = make_network(account, closed_scene)
    path = tmp_path / "samconfig.toml"
    done = run(tmp_path, *in_folder(path))
    assert next_commands(done.err)[1:] == ["make deploy", "make check-remote"]
    assert overrides(path)["SecurityGroupIds"] == group


def test_databases_that_the_function_does_not_reach_are_named(
    account: Any,  # noqa: ANN401 -- as above
    scene: Scene,
    tmp_path: Path,
) -> None:
    ec2 = account.client("ec2")

    def make_group(name: str, vpc: str = scene.vpc) -> str:
        made = ec2.create_security_group(VpcId=vpc, GroupName=name, Description=name)
        return str(made["GroupId"])

    make_database(account, "closed", scene.subnets, make_group("closed"))
    by_address = make_group("by-address")
    everyone = {"IpProtocol": "-1", "IpRanges": [{"CidrIp": "10.0.0.0/16"}]}
    ec2.authorize_security_group_ingress(GroupId=by_address, IpPermissions=[everyone])
    make_database(account, "by-address", scene.subnets, by_address)
    vpc = ec2.create_vpc(CidrBlock="10.1.0.0/16")["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.1.0.0/24")["Subnet"]["SubnetId"]
    make_database(account, "distant", [subnet], make_group("distant", vpc))
    make_database(account, "public", [subnet], make_group("public", vpc), is_public=True)
    said = run(tmp_path, *in_folder(tmp_path / "samconfig.toml")).err
    assert "Admit the function to these databases yourself: closed.\n" in said
    assert f"Outside of {scene.vpc}: distant. " in said  # the NAT leads to the public one


def test_without_a_nat_public_databases_of_another_vpc_are_out_of_reach(
    account: Any,  # noqa: ANN401 -- as above
    closed_scene: Scene,
    tmp_path: Path,
) -> None:
    ec2 = account.client("ec2")
    vpc = ec2.create_vpc(CidrBlock="10.1.0.0/16")["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.1.0.0/24")["Subnet"]["SubnetId"]
    group = ec2.create_security_group(VpcId=vpc, GroupName="p", Description="p")["GroupId"]
    make_database(account, "public", [subnet], group, is_public=True)
    said = run(tmp_path, *in_folder(tmp_path / "samconfig.toml")).err
    assert f"Outside of {closed_scene.vpc}: public. " in said


# -- without some rights ---------------------------------------------------------------------------

LISTS = {
    "DescribeDBClusters": "rds",
    "DescribeDBInstances": "rds",
    "ListSecrets": "secretsmanager",
    "DescribeSubnets": "ec2",
    "DescribeRouteTables": "ec2",
    "DescribeSecurityGroups": "ec2",
    "DescribeVpcEndpoints": "ec2",
    "DescribeVpcs": "ec2",
}
ASKS_FOR_SUBNETS = {"DescribeDBInstances", "DescribeSubnets", "DescribeRouteTables"}


@pytest.mark.parametrize(
    "call",
    [
        call
        if call in {"DescribeDBInstances", "DescribeSubnets"}
        else pytest.param(call, marks=pytest.mark.thorough)
        for call in LISTS
    ],
)
def test_without_one_right_it_asks_for_what_it_cannot_see(
    scene: Scene, tmp_path: Path, call: str
) -> None:
    path = tmp_path / "samconfig.toml"
    with aws_proxy() as proxy:
        proxy.faults[call] = [Fault()]
        arguments = ("init", "--file", str(path))
        terminal = on_terminal(tmp_path, *arguments, columns=300, AWS_ENDPOINT_URL=proxy.url)
        terminal.expect_exact(f"without {LISTS[call]}:{call}, init cannot look there (")
        terminal.expect_exact("not allowed here")
        terminal.expect_exact("Tag of the databases' secrets [session-reaper=prod]: ")
        terminal.sendline("")
        if call in ASKS_FOR_SUBNETS:
            terminal.expect_exact("Subnets of the function")
            terminal.sendline(",".join(scene.subnets))
        else:
            terminal.expect_exact(f"orders is private, in {scene.vpc}: run in subnets")
            terminal.sendline("")
        if call in {*ASKS_FOR_SUBNETS, "DescribeSecurityGroups"}:
            terminal.expect_exact("Security groups of the function")
            terminal.sendline(scene.group)
        terminal.expect_exact("Email address")
        terminal.sendline("")
        terminal.expect_exact("make deploy")
        terminal.expect(pexpect.EOF)
        terminal.close()
    assert terminal.exitstatus == 0
    given = {"SubnetIds": ",".join(scene.subnets), "SecurityGroupIds": scene.group}
    assert overrides(path).items() >= given.items()


@pytest.mark.usefixtures("cloud")
def test_without_a_terminal_it_says_how_to_go_on(tmp_path: Path) -> None:
    path = tmp_path / "samconfig.toml"
    done = run(tmp_path, "init", "--file", str(path))
    assert done.status == 2
    assert "write --yes" in done.err
    assert not path.exists()


QUESTIONS = ["Tag of", "orders is private", "Email address"]


@pytest.mark.parametrize("last", QUESTIONS)
def test_ctrl_c_at_any_question_writes_nothing(scene: Scene, tmp_path: Path, last: str) -> None:  # noqa: ARG001 -- the account has it
    path = tmp_path / "samconfig.toml"
    terminal = on_terminal(tmp_path, "init", "--file", str(path), columns=300)
    for question in QUESTIONS[: QUESTIONS.index(last)]:
        terminal.expect_exact(question)
        terminal.sendline("")
    terminal.expect_exact(last)
    press_ctrl_c(terminal)
    assert (terminal.before or "").rstrip().endswith("Stopped. Nothing was written.")
    assert terminal.exitstatus == 130
    assert list(tmp_path.glob("samconfig*")) == []


def test_ctrl_c_while_the_file_is_written_does_not_stop_it(tmp_path: Path) -> None:
    path = tmp_path / "samconfig.toml"
    path.write_text(f"# {100_000 * 'x'}\n")  # more than a pipe holds
    os.mkfifo(tmp_path / "samconfig.toml.new")
    terminal = on_terminal(tmp_path, "init", "--no-aws", "--yes", "--file", str(path), columns=300)
    with (tmp_path / "samconfig.toml.new").open() as written:  # the command has begun to write
        terminal.sendintr()
        terminal.expect_exact("^C")
        assert 'stack_name = "session-reaper"' in written.read()
    printed, status = finish(terminal)
    assert "make deploy" in printed
    assert status == 0


@pytest.mark.usefixtures("scene")
def test_a_failure_to_write_leaves_the_old_file_and_the_next_run_repairs(tmp_path: Path) -> None:
    path = tmp_path / "samconfig.toml"
    path.write_text("# mine\n")
    blocker = tmp_path / "samconfig.toml.new"
    blocker.mkdir()
    done = run(tmp_path, *in_folder(path))
    assert done.status == 2
    assert f"{path}: cannot be written" in done.err
    assert path.read_text() == "# mine\n"
    blocker.rmdir()
    assert run(tmp_path, *in_folder(path)).status == 0
    assert path.read_text().startswith("# mine\n")
    assert overrides(path)["Mode"] == "observe"
