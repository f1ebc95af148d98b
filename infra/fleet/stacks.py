"""Deploys one stack by a `sam deploy` of its own, with the credentials of one role."""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from infra.fleet.accounts import Deployment

_STACK_SECONDS: Final = 1800.0
_OWN_PARAMETER: Final = "TargetSecretTag"  # every release of template.yaml has it
_SESSION_NAME: Final = "session-reaper-deploy-fleet"


class DeployError(Exception):
    """Why a stack was not deployed, in one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options for every stack. `preview`: create change sets and execute none."""

    template: Path
    logs: Path
    preview: bool = False
    register: bool = False  # deploy nothing


def describe_error(error: Exception) -> str:
    """Return the error's text in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def assume_role(deployment: Deployment) -> boto3.Session:
    """Return a session with the role's credentials, or the caller's own. Raises DeployError."""
    sts = boto3.client("sts", region_name=deployment.region)
    try:
        caller = sts.get_caller_identity()
        if not deployment.role:
            if caller["Account"] != deployment.account:
                problem = f"no role is given, and your own credentials are for account {caller['Account']}"
                raise DeployError(problem)
            return boto3.Session(region_name=deployment.region)
        partition = caller["Arn"].split(":")[1]
        arn = f"arn:{partition}:iam::{deployment.account}:role/{deployment.role}"
        arn = deployment.role if deployment.role.startswith("arn:") else arn
        found = sts.assume_role(RoleArn=arn, RoleSessionName=_SESSION_NAME)["Credentials"]
    except (BotoCoreError, ClientError) as error:
        raise DeployError(f"the role cannot be assumed: {describe_error(error)}") from None
    return boto3.Session(
        aws_access_key_id=found["AccessKeyId"],
        aws_secret_access_key=found["SecretAccessKey"],
        aws_session_token=found["SessionToken"],
        region_name=deployment.region,
    )


def _make_environment(session: boto3.Session) -> Mapping[str, str]:
    """Return the environment of a process with these credentials and no other source of them."""
    credentials = session.get_credentials()
    if credentials is None:
        raise DeployError("no credentials were found")
    key, secret, token = credentials.get_frozen_credentials()[:3]
    values = {
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_SESSION_TOKEN": token,
        "AWS_DEFAULT_REGION": session.region_name,
    }
    others = ("AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_REGION", "AWS_SECURITY_TOKEN")
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in values and name not in others
    }
    return kept | {name: value for name, value in values.items() if value}


def run_sam(deployment: Deployment, session: boto3.Session, options: Options) -> None:
    """Run `sam deploy`, with its output in a log file. Raises DeployError."""
    command = [
        *("sam", "deploy", "--stack-name", deployment.stack, "--region", deployment.region),
        *("--template-file", str(options.template), "--capabilities", "CAPABILITY_IAM"),
        *("--resolve-s3", "--s3-prefix", deployment.stack, "--no-progressbar"),
        *("--no-confirm-changeset", "--no-fail-on-empty-changeset"),
        *("--tags", "application=session-reaper"),
        *(("--no-execute-changeset",) if options.preview else ()),
    ]
    if deployment.parameters:
        # Quotes inside the argument, because a value may contain a space.
        given = (f'{name}="{value}"' for name, value in deployment.parameters.items())
        command += ["--parameter-overrides", *given]
    options.logs.mkdir(parents=True, exist_ok=True)
    log = options.logs / f"{deployment.account}-{deployment.region}-{deployment.stack}.log"
    try:
        with log.open("wb") as output:
            done = subprocess.run(  # noqa: S603 -- sam
                command,
                env=dict(_make_environment(session)),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=_STACK_SECONDS,
                check=False,
                start_new_session=True,  # a terminal sends Ctrl-C to its whole session
            )
    except subprocess.TimeoutExpired:
        raise DeployError(
            f"sam deploy has not finished after {_STACK_SECONDS / 60:.0f} minutes"
        ) from None
    except OSError as error:
        raise DeployError(f"sam cannot be started: {describe_error(error)}") from None
    if done.returncode:
        raise DeployError(_find_error(log.read_text("utf-8", "replace")))


def _find_error(output: str) -> str:
    """Return the line of sam's output with the error."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("Error")]
    return (errors or lines or ["sam failed and printed nothing"])[-1]


def _describe_stack(stack: str, session: boto3.Session) -> Any:  # noqa: ANN401 -- boto3's own form
    return session.client("cloudformation").describe_stacks(StackName=stack)["Stacks"][0]


def read_outputs(stack: str, session: boto3.Session) -> Mapping[str, str]:
    """Return the outputs of a stack by their names. Raises ClientError if there is no stack."""
    outputs = _describe_stack(stack, session).get("Outputs", [])
    return {each["OutputKey"]: each["OutputValue"] for each in outputs}


def read_own_parameters(stack: str, session: boto3.Session) -> Mapping[str, str]:
    """Return the parameters of a stack of session-reaper; none if it does not exist yet.

    Raises DeployError if the name belongs to another stack, which `sam deploy` would replace.
    """
    parameters = read_parameters(stack, session)
    if parameters is None:
        return {}
    if _OWN_PARAMETER not in parameters:
        raise DeployError(f"stack {stack} exists and is not session-reaper's; choose another name")
    return parameters


def read_parameters(stack: str, session: boto3.Session) -> Mapping[str, str] | None:
    """Return the parameters of a stack by their names; None if there is no such stack."""
    try:
        found = _describe_stack(stack, session)
    except ClientError as error:
        if "does not exist" not in str(error):
            raise
        return None
    if found["StackStatus"] == "REVIEW_IN_PROGRESS":  # a preview of its creation
        return None
    return {each["ParameterKey"]: each["ParameterValue"] for each in found.get("Parameters", [])}
