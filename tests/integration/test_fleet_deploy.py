"""Rolling out a fleet: AssumeRole and stacks in the stand-in for AWS, with a program in place of sam."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from moto.backends import get_backend
from session_reaper.aws.fleet_table import load_spoke_states
from session_reaper.deadline import Deadline
from session_reaper.fleet.message import Spoke

from infra.fleet.deploy import main
from tests.integration.cli import restore_signals
from tests.integration.stage import TABLE, state_table, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from infra.local.aws import Aws

OWN = "123456789012"
# Creates the stack with the credentials of its environment, as sam does, and writes down its
# arguments. Without boto3, because a process needs longer to load it than for all the rest.
SAM = """\
import json, os, re, sys
from http.client import HTTPConnection
from urllib.parse import urlencode, urlsplit

arguments = sys.argv[1:]
stack = arguments[arguments.index("--stack-name") + 1]
region = arguments[arguments.index("--region") + 1]


def call(service, action, **parameters):
    scope = "/".join([os.environ["AWS_ACCESS_KEY_ID"], "20300101", region, service, "aws4_request"])
    headers = {
        "Authorization": f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=0",
        "Content-Type": "application/x-www-form-urlencoded",
    }
    connection = HTTPConnection(urlsplit(os.environ["AWS_ENDPOINT_URL"]).netloc)
    connection.request("POST", "/", urlencode({"Action": action, **parameters}), headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


account = re.search("<Account>([0-9]+)<", call("sts", "GetCallerIdentity")[1])[1]
secret = os.environ["AWS_SECRET_ACCESS_KEY"]
with open(os.path.join(os.path.dirname(__file__), "calls"), "a") as calls:
    print(json.dumps([account, arguments, secret, os.environ.get("AWS_PROFILE")]), file=calls)
print("Deploying with following values")
if "fail" in stack:
    print("Error: Failed to create the stack: no permission")
    print("see above")
    sys.exit(1)
given = dict(each.split("=", 1) for each in arguments if "=" in each and each[0].isupper())
outputs = {
    "FunctionName": f"{stack}-SessionReaper-x",
    "FleetTopicArn": f"arn:aws:sns:{region}:{account}:fleet",
    "KmsKeyArn": f"arn:aws:kms:{region}:{account}:key/1",
}
own = {} if "region.yaml" in " ".join(arguments) else {"TargetSecretTag": ""}
template = {
    "Parameters": {name: {"Type": "String", "Default": ""} for name in own | given},
    "Resources": {"Topic": {"Type": "AWS::SNS::Topic"}},
    "Outputs": {name: {"Value": value} for name, value in outputs.items()},
}
parameters = {"StackName": stack, "TemplateBody": json.dumps(template)}
for number, (key, value) in enumerate(given.items(), 1):
    parameters[f"Parameters.member.{number}.ParameterKey"] = key
    parameters[f"Parameters.member.{number}.ParameterValue"] = value.strip('"')
status, text = call("cloudformation", "DescribeStacks", StackName=stack)
state = re.search("<StackStatus>(.*?)<", text)[1] if status == 200 else None
if "--no-execute-changeset" in arguments:
    if state is not None:
        sys.exit(0)
    action = "CreateChangeSet"
    parameters |= {"ChangeSetName": "preview", "ChangeSetType": "CREATE"}
elif state in (None, "REVIEW_IN_PROGRESS"):
    call("cloudformation", "DeleteStack", StackName=stack)  # the stand-in executes no change set of such a stack
    action = "CreateStack"
else:
    action = "UpdateStack"
status, text = call("cloudformation", action, **parameters)
if status != 200:
    sys.exit(text)
"""


@dataclass(frozen=True, kw_only=True)
class RollOut:
    """A folder with a program `sam`, and what it was asked."""

    folder: Path

    def run(self, lines: str, *options: str) -> int:
        file = self.folder / "accounts.csv"
        file.write_text(lines)
        template = ("--template", "template.yaml", "--logs", str(self.folder / "logs"))
        return main([str(file), *template, *options])

    def start(self, lines: str, *options: str) -> subprocess.Popen[str]:
        """Start the command as a process of its own, which an interrupt can reach."""
        file = self.folder / "accounts.csv"
        file.write_text(lines)
        return subprocess.Popen(  # noqa: S603 -- the command
            [
                *(sys.executable, "-m", "infra.fleet.deploy", str(file), *options),
                *("--template", "template.yaml", "--logs", str(self.folder)),
            ],
            env={**os.environ, "PYTHONPATH": "functions:."},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=restore_signals,  # noqa: PLW1509 -- it takes no lock
        )

    def calls(self) -> dict[str, Any]:
        """Each call since the last time by its account, region and stack."""
        text = self.folder / "calls"
        lines = text.read_text().splitlines() if text.exists() else []
        text.unlink(missing_ok=True)
        found = {}
        for account, arguments, secret, profile in map(json.loads, lines):
            named = [arguments[arguments.index(x) + 1] for x in ("--region", "--stack-name")]
            found["/".join([account, *named])] = (arguments, secret, profile)
        assert len(found) == len(lines)
        return found


@pytest.fixture
def roll_out(
    cloud: Aws,  # noqa: ARG001 -- boto3's clients go there
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[RollOut]:
    program = tmp_path / "sam"
    program.write_text(f"#!{sys.executable} -IS\n{SAM}")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("AWS_SESSION_TOKEN")
    yield RollOut(folder=tmp_path)
    for regions in get_backend("cloudformation").values():  # of every account
        regions.reset()


@pytest.fixture
def hub(roll_out: RollOut, cloud: Aws) -> Iterator[str]:  # noqa: ARG001 -- the first deletes the stack
    """The stack of a hub with a table."""
    with state_table(cloud, TABLE):
        outputs = {"QueueArn": "arn:aws:sqs:eu-central-1:1:q", "MemoryTable": TABLE}
        template = {
            "Resources": {"Topic": {"Type": "AWS::SNS::Topic"}},
            "Outputs": {name: {"Value": value} for name, value in outputs.items()},
        }
        boto3.client("cloudformation").create_stack(
            StackName="the-hub", TemplateBody=json.dumps(template)
        )
        yield "the-hub"


def test_each_stack_is_deployed_with_the_credentials_of_its_own_account(roll_out: RollOut) -> None:
    lines = (
        "account,region,role,stack,Mode,ScheduleExpression\n"
        "111111111111,eu-central-1,deployer,,observe,\n"
        "111111111111,eu-central-1,deployer,vpc-b,observe,\n"
        "222222222222,us-east-1,arn:aws:iam::222222222222:role/x,,enforce,rate(1 minute)\n"
    )
    assert roll_out.run(lines) == 0
    calls = roll_out.calls()
    assert set(calls) == {
        "111111111111/eu-central-1/session-reaper",
        "111111111111/eu-central-1/vpc-b",
        "222222222222/us-east-1/session-reaper",
    }
    arguments, secret, _ = calls["222222222222/us-east-1/session-reaper"]
    assert arguments[-3:] == [
        "--parameter-overrides",
        'Mode="enforce"',
        'ScheduleExpression="rate(1 minute)"',
    ]
    assert secret != os.environ["AWS_SECRET_ACCESS_KEY"]
    assert secret not in " ".join(arguments)
    assert secret not in "".join(each.read_text() for each in roll_out.folder.glob("logs/*"))


def test_the_failure_of_one_account_does_not_stop_the_others(
    roll_out: RollOut, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (
        "account,region,role,stack\n"
        "111111111111,eu-central-1,deployer,fails\n"
        "111111111111,eu-central-1,deployer,works\n"
        "222222222222,eu-central-1,,\n"
        "333333333333,eu-central-1,deployer,\n"
    )
    assert roll_out.run(lines, "--parallel", "2") == 1
    calls = roll_out.calls()
    assert {"333333333333/eu-central-1/session-reaper", "111111111111/eu-central-1/works"} < set(
        calls
    )
    printed = capsys.readouterr().out
    assert "[4/4] " in printed
    progress, table = printed.split("4 stacks: 2 done, 2 failed")
    failure = "fails: FAILED: Error: Failed to create the stack: no permission ("
    assert f"111111111111/eu-central-1/{failure}" in progress
    assert f"no role is given, and your own credentials are for account {OWN}" in progress
    assert table.count("FAILED") == 2
    accounts = re.findall(r"\d{12}", table.split("region")[1])
    assert accounts[:3] == ["111111111111", "111111111111", "222222222222"]
    assert "Deploying with" in (
        roll_out.folder / "logs" / "111111111111-eu-central-1-fails.log"
    ).read_text("utf-8")


def test_after_an_interrupt_no_further_stack_is_begun(roll_out: RollOut) -> None:
    begun, end = roll_out.folder / "begun", roll_out.folder / "end"
    (roll_out.folder / "sam").write_text(
        f"#!/bin/sh\ntouch {begun}\nwhile [ ! -e {end} ]; do sleep 0.05; done\n"
    )
    accounts = f"account,region\n{OWN},eu-central-1\n{OWN},us-east-1\n"
    with roll_out.start(accounts, "--parallel", "1") as process:
        try:
            until(begun.exists, "the first stack is begun", 60)
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
            assert process.stdout
            lines = iter(process.stdout.readline, "")
            assert any(line.startswith("interrupted: waiting") for line in lines)
        finally:
            end.touch()
        printed = "".join(lines)
    assert process.returncode == 1
    assert f"[1/2] {OWN}/eu-central-1/session-reaper: deployed" in printed
    assert f"[2/2] {OWN}/us-east-1/session-reaper: FAILED: interrupted, not begun" in printed


def test_an_interrupt_before_the_first_stack_says_what_may_still_happen(
    roll_out: RollOut, hub: str
) -> None:
    begun = roll_out.folder / "begun"
    (roll_out.folder / "sam").write_text(
        f"#!/bin/sh\ntouch {begun}\nwhile true; do sleep 0.05; done\n"
    )
    lines = f"account,region\n{OWN},eu-central-1\n"
    with roll_out.start(lines, "--hub", hub) as process:
        try:
            until(begun.exists, "the topic is begun", 60)
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
            _, problem = process.communicate(timeout=60)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # or leaving the block would wait without end
            raise
    assert process.returncode == 2
    assert problem.startswith("interrupted: no stack was begun")
    assert len(problem.splitlines()) == 1


def test_the_own_account_needs_no_role(roll_out: RollOut) -> None:
    assert roll_out.run(f"account,region\n{OWN},eu-central-1\n") == 0
    assert set(roll_out.calls()) == {f"{OWN}/eu-central-1/session-reaper"}


def test_a_preview_executes_no_change(roll_out: RollOut) -> None:
    assert roll_out.run(f"account,region\n{OWN},eu-central-1\n", "--preview") == 0
    ((arguments, *_),) = roll_out.calls().values()
    assert "--no-execute-changeset" in arguments


def test_a_preview_of_the_first_roll_out_shows_topics_and_stacks_and_changes_nothing(
    roll_out: RollOut, hub: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = f"account,region,role\n{OWN},eu-central-1,\n222222222222,us-east-1,deployer\n"
    for _ in range(2):  # the second one finds the stacks that the first one began
        assert roll_out.run(lines, "--hub", hub, "--preview") == 0
        calls = roll_out.calls()
        assert set(calls) == {
            f"{OWN}/eu-central-1/session-reaper-fleet",
            f"{OWN}/eu-central-1/session-reaper",
            f"{OWN}/us-east-1/session-reaper-fleet",
            "222222222222/us-east-1/session-reaper",
        }
        assert all("--no-execute-changeset" in arguments for arguments, *_ in calls.values())
        arguments, *_ = calls["222222222222/us-east-1/session-reaper"]
        topic = f"arn:aws:sns:us-east-1:{OWN}:not-deployed-yet"
        assert f'FleetTopicArn="{topic}"' in arguments
        key = f"arn:aws:kms:us-east-1:{OWN}:key/not-deployed-yet"
        assert f'KmsKeyArns="{key}"' in arguments
        assert "The changes of each stack are in" in capsys.readouterr().out
    for region in ("eu-central-1", "us-east-1"):
        stacks = boto3.client("cloudformation", region_name=region).describe_stacks()["Stacks"]
        states = {each["StackName"]: each["StackStatus"] for each in stacks}
        assert states.pop(hub, "CREATE_COMPLETE") == "CREATE_COMPLETE"
        assert set(states.values()) == {"REVIEW_IN_PROGRESS"}
    assert load_spoke_states(TABLE, Deadline(10)) == {}
    assert roll_out.run(lines, "--hub", hub) == 0
    arguments, *_ = roll_out.calls()["222222222222/us-east-1/session-reaper"]
    assert f'FleetTopicArn="arn:aws:sns:us-east-1:{OWN}:fleet"' in arguments


def test_a_preview_shows_which_accounts_a_topic_would_admit(roll_out: RollOut, hub: str) -> None:
    assert roll_out.run(f"account,region\n{OWN},eu-central-1\n", "--hub", hub) == 0
    roll_out.calls()
    lines = "account,region,role\n222222222222,eu-central-1,deployer\n"
    assert roll_out.run(lines, "--hub", hub, "--preview") == 0
    arguments, *_ = roll_out.calls()[f"{OWN}/eu-central-1/session-reaper-fleet"]
    assert f'Accounts="{OWN},222222222222"' in arguments


def test_nothing_is_begun_with_an_invalid_file_or_an_unknown_hub(
    roll_out: RollOut, capsys: pytest.CaptureFixture[str]
) -> None:
    assert roll_out.run("account,region,Mod\n") == 2
    assert "accounts.csv:1: unknown column 'Mod'" in capsys.readouterr().err
    assert roll_out.run(f"account,region\n{OWN},eu-central-1\n", "--hub", "none") == 2
    assert "the hub's stack none cannot be read" in capsys.readouterr().err
    assert roll_out.calls() == {}


def test_stacks_are_registered_with_a_hub_only(roll_out: RollOut) -> None:
    for options in (
        ("--register",),
        ("--forget", "x"),
        ("--register", "--preview", "--hub", "the-hub"),
    ):
        with pytest.raises(SystemExit):
            roll_out.run(f"account,region\n{OWN},eu-central-1\n", *options)
    assert roll_out.calls() == {}


@pytest.mark.thorough
def test_with_a_hub_each_region_has_a_topic_and_each_stack_is_expected(
    roll_out: RollOut, hub: str
) -> None:
    lines = (
        "account,region,role,stack,KmsKeyArns\n"
        "111111111111,eu-central-1,deployer,,arn:aws:kms:eu-central-1:111111111111:key/own\n"
        "222222222222,us-east-1,deployer,,\n"
        "222222222222,us-east-1,deployer,fails,\n"
    )
    assert roll_out.run(lines, "--hub", hub) == 1
    calls = roll_out.calls()
    for region in ("eu-central-1", "us-east-1"):
        arguments, *_ = calls[f"{OWN}/{region}/session-reaper-fleet"]
        assert arguments[arguments.index("--template-file") + 1].endswith("infra/fleet/region.yaml")
        assert arguments[-2:] == [
            'QueueArn="arn:aws:sqs:eu-central-1:1:q"',
            'Accounts="111111111111,222222222222"',
        ]
    arguments, *_ = calls["111111111111/eu-central-1/session-reaper"]
    assert f'FleetTopicArn="arn:aws:sns:eu-central-1:{OWN}:fleet"' in arguments
    keys = f"arn:aws:kms:eu-central-1:111111111111:key/own,arn:aws:kms:eu-central-1:{OWN}:key/1"
    assert f'KmsKeyArns="{keys}"' in arguments
    states = load_spoke_states(TABLE, Deadline(10))
    function = "session-reaper-SessionReaper-x"
    assert set(states) == {
        Spoke("111111111111", "eu-central-1", function),
        Spoke("222222222222", "us-east-1", function),
    }


@pytest.mark.thorough
def test_a_stack_that_joins_a_fleet_keeps_the_keys_that_it_has(roll_out: RollOut, hub: str) -> None:
    key = "arn:aws:kms:eu-central-1:123456789012:key/own"
    assert roll_out.run(f"account,region,KmsKeyArns\n{OWN},eu-central-1,{key}\n") == 0
    roll_out.calls()
    assert roll_out.run(f"account,region\n{OWN},eu-central-1\n", "--hub", hub) == 0
    arguments, *_ = roll_out.calls()[f"{OWN}/eu-central-1/session-reaper"]
    keys = [each for each in arguments if each.startswith("KmsKeyArns=")]
    assert keys == [f'KmsKeyArns="{key},arn:aws:kms:eu-central-1:{OWN}:key/1"']


@pytest.mark.thorough
def test_a_stack_that_joins_a_fleet_is_expected_by_the_schedule_that_it_has(
    roll_out: RollOut, hub: str
) -> None:
    first = f"account,region,stack\n{OWN},eu-central-1,first\n"
    assert roll_out.run(first, "--hub", hub) == 0  # creates the topic
    lines = f"account,region,ScheduleExpression\n{OWN},eu-central-1,rate(1 hour)\n"
    assert roll_out.run(lines) == 0
    began = time.time()
    assert roll_out.run(f"account,region\n{OWN},eu-central-1\n", "--hub", hub, "--register") == 0
    joined = Spoke(OWN, "eu-central-1", "session-reaper-SessionReaper-x")
    assert load_spoke_states(TABLE, Deadline(10))[joined].expected_by >= began + 3600


def test_a_stack_that_was_removed_is_forgotten_by_the_name_in_a_digest(
    roll_out: RollOut, hub: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = f"account,region,stack\n{OWN},eu-central-1,first\n{OWN},eu-central-1,second\n"
    assert roll_out.run(lines, "--hub", hub) == 0
    roll_out.calls()
    first, second = sorted(load_spoke_states(TABLE, Deadline(10)))
    assert roll_out.run(lines, "--hub", hub, "--forget", first.label, "x/y") == 1
    printed = capsys.readouterr()
    assert f"{first.label}: forgotten" in printed.out
    assert "x/y: the hub does not know this stack" in printed.err
    assert set(load_spoke_states(TABLE, Deadline(10))) == {second}
    assert roll_out.calls() == {}


def test_a_schedule_that_cannot_be_read_is_the_stacks_failure(
    roll_out: RollOut, hub: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = f"account,region,ScheduleExpression\n{OWN},eu-central-1,rate(5 fortnights)\n"
    assert roll_out.run(lines, "--hub", hub) == 1
    assert "invalid interval rate(5 fortnights)" in capsys.readouterr().out
    assert load_spoke_states(TABLE, Deadline(10)) == {}


@pytest.mark.thorough
def test_a_stack_that_the_hub_knows_is_not_changed_by_another_roll_out(
    roll_out: RollOut, hub: str
) -> None:
    lines = "account,region,role\n111111111111,eu-central-1,deployer\n"
    assert roll_out.run(lines, "--hub", hub) == 0
    before = load_spoke_states(TABLE, Deadline(10))
    assert roll_out.run(lines, "--hub", hub, "--register") == 0
    assert load_spoke_states(TABLE, Deadline(10)) == before


@pytest.mark.thorough
def test_the_first_report_is_expected_by_the_schedule_that_the_stack_has_already(
    roll_out: RollOut, hub: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = f"account,region,ScheduleExpression\n{OWN},eu-central-1,rate(2 hours)\n"
    assert roll_out.run(lines) == 0
    options = ("--hub", hub, "--register")
    assert roll_out.run(f"account,region\n{OWN},eu-central-1\n", *options) == 1
    assert "does not exist" in capsys.readouterr().out  # the topic of the region
    roll_out.run(f"account,region,stack\n{OWN},eu-central-1,fails\n", "--hub", hub)
    before = time.time()
    assert roll_out.run(f"account,region\n{OWN},eu-central-1\n", *options) == 0
    (state,) = load_spoke_states(TABLE, Deadline(10)).values()
    assert before + 7200 <= state.expected_by <= time.time() + 7200


@pytest.mark.parametrize(
    "options",
    [
        (),
        pytest.param(("--preview",), marks=pytest.mark.thorough),
        pytest.param(("--hub", "the-hub", "--register"), marks=pytest.mark.thorough),
    ],
)
def test_a_stack_of_another_kind_is_not_replaced(
    roll_out: RollOut,
    hub: str,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
) -> None:
    lines = (
        f"account,region,stack\n{OWN},eu-central-1,{hub}\n{OWN},eu-central-1,session-reaper-fleet\n"
    )
    roll_out.run(f"account,region,stack\n{OWN},eu-central-1,fails\n", "--hub", hub)
    roll_out.calls()
    assert roll_out.run(lines, *options) == 1
    printed = capsys.readouterr().out
    for name in (hub, "session-reaper-fleet"):
        assert f"FAILED: stack {name} exists and is not session-reaper's" in printed
    assert roll_out.calls() == {}


@pytest.mark.thorough
def test_a_region_without_a_topic_does_not_stop_the_others(
    roll_out: RollOut, hub: str, capsys: pytest.CaptureFixture[str]
) -> None:
    template = {"Resources": {"Topic": {"Type": "AWS::SNS::Topic"}}}
    boto3.client("cloudformation").create_stack(  # as after a first deployment that failed
        StackName="session-reaper-fleet", TemplateBody=json.dumps(template)
    )
    roll_out.run(f"account,region,stack\n{OWN},us-east-1,fails\n", "--hub", hub)
    roll_out.calls()
    lines = f"account,region\n{OWN},eu-central-1\n{OWN},us-east-1\n"
    assert roll_out.run(lines, "--hub", hub, "--preview") == 1
    printed = capsys.readouterr().out
    assert f"FAILED: the topic of eu-central-1, stack session-reaper-fleet in {OWN}: has" in printed
    assert f"{OWN}/us-east-1/session-reaper: previewed" in printed
    assert f"{OWN}/eu-central-1/session-reaper" not in roll_out.calls()


@pytest.mark.parametrize("number", ["0", "-1", "65", "many"])
def test_an_invalid_number_of_parallel_stacks_is_refused(roll_out: RollOut, number: str) -> None:
    with pytest.raises(SystemExit):
        roll_out.run(f"account,region\n{OWN},eu-central-1\n", "--parallel", number)
    assert roll_out.calls() == {}
