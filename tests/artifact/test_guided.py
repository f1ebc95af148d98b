"""`sam deploy --guided` of the built artifact, with moto as the account: its questions, uploads and settings."""

from __future__ import annotations

import copy
import json
import os
import pty
import re
import shlex
import shutil
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from moto.server import ThreadedMotoServer
from samtranslator.yaml_helper import yaml_parse

from tests.template.rendering import TEMPLATES, refusals, render, source

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "samconfig.toml"
SAM = ROOT / ".tools" / "sam" / "bin" / "sam"
REGION = "eu-west-1"
# sam's own questions, before and after those for the template's parameters.
FIRST = ["Stack Name", "AWS Region"]
LAST = [
    "Confirm changes before deploy",
    "Allow SAM CLI IAM role creation",
    "Disable rollback",
    "Save arguments to configuration file",
    "SAM configuration file",
    "SAM configuration environment",
    "Deploy this changeset?",
]
ANSWERS = {"TargetSecrets": "orders", "Email": "team@example.com", "Mode": "observe"}
TYPED = {"AWS Region": REGION, **ANSWERS, LAST[-1]: "n"}


def test_the_template_that_is_deployed_is_the_one_that_was_checked(artifact: Path) -> None:
    """`sam build` resolves references, for example in Metadata."""

    def without_places(template: Mapping[str, Any]) -> Mapping[str, Any]:
        """Remove the keys that `sam build` writes."""
        template = copy.deepcopy(template)
        for resource in template["Resources"].values():
            metadata = resource.pop("Metadata", {})
            resource["Metadata"] = {k: v for k, v in metadata.items() if k != "SamResourceId"}
            resource["Properties"] |= dict.fromkeys(("CodeUri", "TemplateURL"))
        return template

    built = yaml_parse((artifact.parent / "template.yaml").read_text())
    assert without_places(built) == without_places(source("template.yaml"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Guided:
    """A guided deployment up to its change set."""

    said: str
    config: Mapping[str, Any]  # samconfig.toml afterwards
    uploads: Mapping[str, int]  # bytes by name

    def asked(self) -> list[str]:
        """The questions in order, each with its default in brackets."""
        plain = re.sub(r"\x1b\[[0-9;]*m", "", self.said)
        return [
            one.removeprefix("Parameter ") for one in re.findall(r"([\w ?]+) \[[^\]\n]*\]: ", plain)
        ]


@pytest.fixture(scope="module")
def guided(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Guided:
    """Answer three questions, press Enter for the others, and refuse the changes."""
    folder = tmp_path_factory.mktemp("guided")
    shutil.copytree(ROOT / "infra", folder / "infra")
    shutil.copytree(artifact.parent, folder / ".aws-sam" / "build")
    shutil.copy(ROOT / "template.yaml", folder)
    # As in the repository: without settings of earlier guided deployments.
    kept = r"(?ms)^(stack_name|region|parameter_overrides|image_repositories) = (\[.*?\]|[^\n]*)\n"
    before, deploy, after = re.split(
        r"(?ms)(^\[default\.deploy\.parameters\].*?)(?=^\[|\Z)", CONFIG.read_text()
    )
    (folder / CONFIG.name).write_text(f"{before}{re.sub(kept, '', deploy)}{after}")
    questions = [*FIRST, *source("template.yaml")["Parameters"], *LAST]
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        _, port = server.get_host_and_port()
        # moto reads the bucket from the host name unless the host is localhost.
        account = {
            "AWS_ENDPOINT_URL": f"http://localhost:{port}",
            "AWS_ACCESS_KEY_ID": "none",
            "AWS_SECRET_ACCESS_KEY": "none",
            "AWS_DEFAULT_REGION": REGION,
        }
        clients = {
            name: boto3.client(
                name,
                endpoint_url=account["AWS_ENDPOINT_URL"],
                region_name=REGION,
                aws_access_key_id="none",
                aws_secret_access_key="none",  # noqa: S106 -- moto asks for some
            )
            for name in ("cloudformation", "s3")
        }
        bucket = _bucket_of_sam(clients["cloudformation"])
        said = _typed(
            [str(SAM), "deploy", "--guided"],
            [TYPED.get(question, "") for question in questions],
            folder=folder,
            environment={
                **account,
                "SAM_CLI_TELEMETRY": "0",
                "HOME": str(folder),
                "PATH": os.environ["PATH"],
            },
        )
        files = clients["s3"].list_objects_v2(Bucket=bucket)["Contents"]
    finally:
        server.stop()
    return Guided(
        said=said,
        config=tomllib.loads((folder / CONFIG.name).read_text()),
        uploads={one["Key"]: one["Size"] for one in files},
    )


def _bucket_of_sam(cloudformation: Any) -> str:  # noqa: ANN401 -- boto3's
    """Create the stack that sam creates once per account: moto's would have no outputs."""
    template = {
        "Resources": {"Bucket": {"Type": "AWS::S3::Bucket"}},
        "Outputs": {"SourceBucket": {"Value": {"Ref": "Bucket"}}},
    }
    name = "aws-sam-cli-managed-default"
    cloudformation.create_stack(
        StackName=name,
        TemplateBody=json.dumps(template),
        Tags=[{"Key": "ManagedStackSource", "Value": "AwsSamCli"}],
    )
    (made,) = cloudformation.describe_stacks(StackName=name)["Stacks"]
    bucket: str = made["Outputs"][0]["OutputValue"]
    return bucket


def _typed(
    command: list[str], lines: list[str], *, folder: Path, environment: Mapping[str, str]
) -> str:
    """Return the output of a command in a terminal, with these lines typed."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(  # noqa: S603 -- sam
        command, cwd=folder, env=dict(environment), stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        os.write(ours, "".join(f"{line}\n" for line in lines).encode())
        said = b""
        try:
            while read := os.read(ours, 65536):
                said += read
        except OSError:  # the last one to hold the terminal has gone
            pass
    os.close(ours)
    text = said.decode(errors="replace").replace("\r", "")
    assert process.returncode == 0, text
    return text


def test_guided_deployment_asks_three_questions_and_has_defaults_for_the_rest(
    guided: Guided,
) -> None:
    parameters = list(source("template.yaml")["Parameters"])
    assert guided.asked() == [*FIRST, *parameters, *LAST]
    # The three questions: secrets by name or by tag, the email address, the mode.
    assert parameters[:4] == ["TargetSecrets", "TargetSecretTag", "Email", "Mode"]
    assert "Changeset created successfully" in guided.said


def test_guided_answers_are_saved_and_can_be_deployed_again(guided: Guided) -> None:
    kept = guided.config["default"]["deploy"]["parameters"]["parameter_overrides"]
    answers = dict(one.split("=", 1) for one in shlex.split(kept))
    assert {name: value for name, value in answers.items() if name in ANSWERS} == ANSWERS
    assert answers.keys() == source("template.yaml")["Parameters"].keys()
    assert refusals(answers) == []
    [made, meant] = [render(one).one("SessionReaper") for one in (answers, ANSWERS)]
    assert made == meant
    assert guided.config["staging"] == tomllib.loads(CONFIG.read_text())["staging"]


def test_functions_and_nested_stacks_are_uploaded(guided: Guided) -> None:
    templates = [one for one in guided.uploads if one.endswith(".template")]
    assert len(templates) == len(TEMPLATES)
    functions = sorted(size for name, size in guided.uploads.items() if name not in templates)
    assert len(functions) == 2
    # The reaper's function, and the webhook's, which has no library.
    assert functions[0] < 1_000_000 < functions[1] < 2_500_000
