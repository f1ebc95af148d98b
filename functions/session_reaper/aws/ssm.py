"""AWS Systems Manager: reads a parameter."""

from typing import TYPE_CHECKING

from session_reaper.aws.clients import AWS_ERRORS, call, explain_error, get_client
from session_reaper.deadline import Deadline
from session_reaper.errors import ConfigurationError

if TYPE_CHECKING:
    from mypy_boto3_ssm import SSMClient


def read_parameter(name: str, deadline: Deadline) -> str:
    """Read a parameter, decrypted. Raises ConfigurationError."""

    def read() -> str:
        ssm: SSMClient = get_client("ssm")
        value = ssm.get_parameter(Name=name, WithDecryption=True)["Parameter"]["Value"]
        if not isinstance(value, str):
            raise TypeError
        return value

    try:
        return call("ssm", read, deadline)
    except AWS_ERRORS as error:
        problem = f"cannot be read: {explain_error(error)}"
        raise ConfigurationError("parameter", problem) from None
