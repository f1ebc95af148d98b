"""The accounts file of a fleet: what it may hold, and errors that name the line."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from infra.fleet.accounts import AccountsError, Deployment, read_accounts
from infra.fleet.hub import FleetTopic, choose_publishers, join_fleet

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PARAMETERS = ("Mode", "SubnetIds", "KmsKeyArns", "FleetTopicArn")
GOOD = "111111111111,eu-central-1,deployer"


def read(folder: Path, text: str) -> Sequence[Deployment]:
    file = folder / "accounts.csv"
    file.write_text(text)
    return read_accounts(file, PARAMETERS)


def problems(folder: Path, text: str) -> Sequence[str]:
    with pytest.raises(AccountsError) as raised:
        read(folder, text)
    return [line.removeprefix(f"{folder}/accounts.csv") for line in str(raised.value).splitlines()]


def test_each_line_is_a_stack_and_other_columns_are_parameters(tmp_path: Path) -> None:
    stacks = read(
        tmp_path,
        "\ufeffaccount,region,role,stack,SubnetIds,Mode\n"
        "# the shop\n"
        '"# orders, billing",,,,,\n'
        '111111111111,eu-central-1,deployer,,"subnet-1,subnet-2",enforce\n'
        "\n"
        "012345678901, us-gov-west-1 ,arn:aws-us-gov:iam::012345678901:role/a/b,vpc-b,,\n"
        "222222222222,eusc-de-east-1,,,,\n",
    )
    assert stacks == [
        Deployment(
            line=4,
            account="111111111111",
            region="eu-central-1",
            role="deployer",
            parameters={"SubnetIds": "subnet-1,subnet-2", "Mode": "enforce"},
        ),
        Deployment(
            line=6,
            account="012345678901",
            region="us-gov-west-1",
            role="arn:aws-us-gov:iam::012345678901:role/a/b",
            stack="vpc-b",
        ),
        Deployment(line=7, account="222222222222", region="eusc-de-east-1"),
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("11111111111,eu-central-1,deployer", "account: '11111111111' must have 12 digits"),
        ("1.1E+11,eu-central-1,deployer", "account: '1.1E+11' must have 12 digits"),
        ("111111111111,Frankfurt,deployer", "region: invalid region 'Frankfurt'"),
        ("111111111111,eu-central-1,a b", "role: 'a b' must be the name or the ARN"),
        (
            "111111111111,eu-central-1,arn:aws:iam::222222222222:role/x",
            "role: 'arn:aws:iam::222222222222:role/x' belongs to another account",
        ),
        ("111111111111,eu-central-1", "has 2 cells for 3 columns"),
        ("111111111111,eu-central-1,deployer,,", "has 5 cells for 3 columns"),
    ],
)
def test_an_invalid_line_is_named_with_what_it_holds(
    tmp_path: Path, line: str, problem: str
) -> None:
    (found,) = problems(tmp_path, f"account,region,role\n\n{GOOD}\n# x\n{line}\n")
    assert found.startswith(f":5: {problem}")


def test_a_column_without_a_name_is_refused(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, f"account,region,role,,\n{GOOD},,\n")
    assert found == ":1: a column has no name; delete it, even if it is empty"


def test_all_invalid_lines_are_named_at_once(tmp_path: Path) -> None:
    text = f"account,region,role\n1,eu-central-1,x\n{GOOD}\n2,moon,x\n{GOOD}\n"
    found = [line.split(" ")[0] for line in problems(tmp_path, text)]
    assert found == [":2:", ":4:", ":4:", ":5:"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", ": is empty"),
        ("account,region\n", ":1: has no line below the columns"),
        ("account,role\nx,y\n", ":1: region: this column is required"),
        ("account,region,Mod\n", ":1: unknown column 'Mod'; known: account, region, role, stack, "),
        ("account,region,Mode,Mode\n", ":1: Mode: 2 columns have this name"),
        ("account,region,stack\n111111111111,eu-west-1,9x\n", ":2: stack: '9x' must begin"),
        (
            'account,region,Mode\n111111111111,eu-west-1,"a""b"\n',
            ":2: Mode: must not contain a quote",
        ),
        (
            'account,region,Mode\n111111111111,eu-west-1,"a\n"\n',
            ":2: a quote is missing or misplaced",
        ),
    ],
)
def test_an_invalid_file_is_an_error_that_says_what_to_write(
    tmp_path: Path, text: str, problem: str
) -> None:
    assert problems(tmp_path, text)[0].startswith(problem)


def test_a_file_that_is_missing_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(AccountsError, match=r"accounts\.csv: cannot be read"):
        read_accounts(tmp_path / "accounts.csv", PARAMETERS)


def test_accounts_of_an_earlier_file_stay_admitted() -> None:
    assert choose_publishers(["2", "1"], {"Accounts": "3,1"}, "") == {"Accounts": "1,2,3"}
    by_organization = {"OrganizationId": "o-x", "Accounts": ""}
    assert choose_publishers(["1"], {"Accounts": "3"}, "o-x") == by_organization
    assert choose_publishers(["1"], {"OrganizationId": "o-x"}, "") == by_organization


def test_a_stack_keeps_its_own_keys_beside_the_key_of_the_fleet() -> None:
    topic = FleetTopic(arn="topic", key_arn="key")
    deployment = Deployment(line=2, account="1", region="r", parameters={"KmsKeyArns": "a,b"})
    before = {"KmsKeyArns": "c,key", "Mode": "enforce"}
    fleet = {"FleetTopicArn": "topic", "KmsKeyArns": "a,b,key"}
    assert join_fleet(deployment, topic, before).parameters == fleet
    without = replace(deployment, parameters={})
    assert join_fleet(without, topic, before).parameters["KmsKeyArns"] == "c,key"
