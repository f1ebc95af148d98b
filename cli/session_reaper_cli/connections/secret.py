"""Finds a target by its secret, with the AWS credentials of the user."""

from dataclasses import replace
from functools import partial

from session_reaper.aws.clients import AWS_ERRORS, explain_error
from session_reaper.aws.rds import list_instances
from session_reaper.aws.secrets_manager import SecretCache, Secrets
from session_reaper.deadline import Deadline
from session_reaper.errors import ConfigurationError
from session_reaper.log_levels import silence_libraries
from session_reaper.targets.fallback import use_fallback
from session_reaper.targets.secret_document import SecretError, parse_secret, resolve_targets
from session_reaper.targets.target import RdsListing, Secret, Target, is_secret_id

silence_libraries()  # botocore would log the secrets that it reads

_CREDENTIALS = (
    "check the name, AWS_PROFILE and AWS_REGION; `aws sts get-caller-identity` shows the identity"
    " that needs secretsmanager:GetSecretValue"
)


def find_secret_target(secret_id: str, deadline: Deadline) -> Target:
    """Return the target of a secret. Raises ConfigurationError, TargetError."""
    parsed = parse_secret(_read_secret(secret_id, "--secret", deadline), whole_clusters=False)
    listing = list_instances(deadline) if parsed.needs_rds else RdsListing()
    return resolve_targets(parsed, listing)[0]


def find_fallback_target(target: Target, deadline: Deadline) -> Target:
    """Return the target with the credentials of its fallback secret, through the same tunnel.

    Raises ConfigurationError, TargetError.
    """
    secret = _read_secret(target.fallback_secret or "", "fallback_secret", deadline)
    fallback = use_fallback(target, secret, partial(list_instances, deadline))
    return replace(fallback, via=target.via)


def _read_secret(secret_id: str, place: str, deadline: Deadline) -> Secret:
    if not is_secret_id(secret_id):
        problem = "must be the name or the ARN of a secret (not shown: it may hold a credential)"
        raise ConfigurationError(place, problem)
    try:
        return Secrets("", SecretCache(), bypass_cache=True).reread(secret_id, deadline)
    except SecretError as error:
        raise ConfigurationError(place, f"{error.message}; {_CREDENTIALS}") from None
    except AWS_ERRORS as error:  # no region, an unknown profile
        raise ConfigurationError(place, f"{explain_error(error)}; {_CREDENTIALS}") from None
