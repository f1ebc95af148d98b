"""Reads the stack's mode, which may be in an SSM parameter."""

from session_reaper.aws.ssm import read_parameter
from session_reaper.deadline import Deadline
from session_reaper.errors import ConfigurationError
from session_reaper.policy.enums import Mode
from session_reaper.policy.values import read_mode
from session_reaper.settings import SSM_PREFIX, ParameterName


def load_mode(source: Mode | ParameterName, deadline: Deadline) -> Mode:
    """Return the mode of the stack; read it anew if it is in a parameter.

    Raises ConfigurationError that names the parameter, without its value: it may be the wrong
    parameter, and hold a secret. There is no default, because the parameter may have been set to
    stop the reaper.
    """
    if isinstance(source, Mode):
        return source
    place = f"MODE {SSM_PREFIX}{source.name}"
    try:
        text = read_parameter(source.name, deadline)
    except ConfigurationError as error:
        problem = f"{str(error).rstrip('.')}; set this parameter to one of off, observe, enforce"
        raise ConfigurationError(place, problem) from None
    try:
        return read_mode(text.strip(), place)
    except ConfigurationError:
        problem = f"holds another value (not shown: it may hold a credential); valid: {', '.join(map(str, Mode))}"
        raise ConfigurationError(place, problem) from None
