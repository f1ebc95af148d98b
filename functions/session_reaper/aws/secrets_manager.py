"""AWS Secrets Manager: lists secrets by tag, and reads them."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import ClientError

from session_reaper.aws.clients import (
    AWS_ERRORS,
    call,
    describe_error,
    explain_error,
    get_client,
    iterate_pages,
)
from session_reaper.deadline import Deadline
from session_reaper.settings import Tag
from session_reaper.targets.secret_document import SecretError
from session_reaper.targets.target import Secret, name_of_secret

if TYPE_CHECKING:
    from mypy_boto3_secretsmanager import SecretsManagerClient
    from mypy_boto3_secretsmanager.type_defs import FilterTypeDef

BATCH: Final = 20
"""The most secrets per call of BatchGetSecretValue."""

KEEP_SECONDS: Final = 900.0
_REREAD_SECONDS: Final = 10.0  # for one secret, while its target waits

_HINTS: Final = {
    "ResourceNotFoundException": "Check the name in TARGET_SECRETS and the region.",
    "AccessDeniedException": "Allow the function's role secretsmanager:GetSecretValue on it"
    " (and kms:Decrypt on its key).",
    "DecryptionFailure": "Allow the function's role kms:Decrypt on the secret's key.",
    "InvalidRequestException": "The secret is marked for deletion: restore it, or remove it from the"
    " targets.",
}
_STALE_ARN_HINT: Final = (
    "Check the ARN in TARGET_SECRETS. A secret that was deleted and created again has a new ARN."
)
_OTHER_HINT: Final = (
    "Check that the function can reach Secrets Manager (in a VPC: through an endpoint or a NAT)."
)


class SecretCache:
    """The secrets that this process has read in the last KEEP_SECONDS. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """`clock`: a wall clock; a monotonic one may stop while Lambda freezes the process."""
        self._clock = clock
        self._arns: dict[tuple[str, str], str] = {}  # by endpoint and id: a name or an ARN
        self._kept: dict[tuple[str, str], tuple[float, Secret]] = {}  # by endpoint and ARN

    def find(self, endpoint: str, secret_id: str) -> Secret | None:
        """Return the secret that was read by this name or ARN, unless that was too long ago."""
        arn = self._arns.get((endpoint, secret_id), "")
        read_at, secret = self._kept.get((endpoint, arn), (0.0, None))
        return secret if self._clock() - read_at < KEEP_SECONDS else None

    def keep(self, endpoint: str, secret_id: str, secret: Secret) -> None:
        """Keep a secret for this id, and for every id by which it was read before."""
        # A secret that was deleted and created again has another ARN.
        self._arns[endpoint, secret_id] = secret.arn
        self._kept[endpoint, secret.arn] = (self._clock(), secret)

    def clear(self) -> None:
        """Forget every secret."""
        self._arns.clear()
        self._kept.clear()


PROCESS_CACHE: Final = SecretCache()
"""The cache that warm runs share."""


def read_text(secret_id: str, deadline: Deadline) -> str:
    """Read a secret as text, "" if it is binary. Raises one of AWS_ERRORS."""

    def read() -> str:
        client: SecretsManagerClient = get_client("secretsmanager")
        answer = client.get_secret_value(SecretId=secret_id)
        _ = answer["ARN"]  # an answer without it is not from Secrets Manager
        return answer.get("SecretString", "")

    return call("secretsmanager", read, deadline)


class Secrets:
    """Reads the secrets of one run. Thread-safe."""

    def __init__(
        self,
        account: str,
        cache: SecretCache,
        *,
        bypass_cache: bool,
        client: "SecretsManagerClient | None" = None,
    ) -> None:
        """`account`: the function's own. `bypass_cache`: read each secret from AWS."""
        self._client: SecretsManagerClient = client or get_client("secretsmanager")
        self._account = account
        self._bypass_cache = bypass_cache
        self._cache = cache

    def list_tagged(self, tag: Tag, deadline: Deadline) -> tuple[str, ...]:
        """Return the ARNs of the secrets with this tag. Raises SecretError."""
        filters: list[FilterTypeDef] = [
            {"Key": "tag-key", "Values": [tag.key]},
            {"Key": "tag-value", "Values": [tag.value]},
        ]
        # The filters match prefixes, and the key of one tag with the value of another.
        wanted = {"Key": tag.key, "Value": tag.value}

        def read_pages() -> tuple[str, ...]:
            pages = self._client.get_paginator("list_secrets").paginate(Filters=filters)
            return tuple(
                secret["ARN"]
                for page in iterate_pages(pages, "NextToken", deadline)
                for secret in page["SecretList"]
                if wanted in secret.get("Tags", [])
            )

        try:
            return call("secretsmanager", read_pages, deadline)
        except AWS_ERRORS as error:
            problem = f"secrets cannot be listed: {explain_error(error)}"
            hint = f"Allow the function's role secretsmanager:ListSecrets. {_OTHER_HINT}"
            raise SecretError(f"tag {tag.key}={tag.value}", problem, hint) from None

    def read(self, ids: Sequence[str], deadline: Deadline) -> Sequence[Secret | SecretError]:
        """Read up to BATCH secrets by their names or ARNs; return them in the same order."""
        found: dict[str, Secret | SecretError] = {}
        for each in () if self._bypass_cache else ids:
            secret = self._cache.find(self._client.meta.endpoint_url, each)
            if secret is not None:
                found[each] = secret
        missing = [each for each in ids if each not in found]
        if len(missing) > 1:
            found |= self._read_batch(missing, deadline)
        return [found[each] if each in found else self._read_one(each, deadline) for each in ids]

    def reread(self, secret_id: str, deadline: Deadline) -> Secret:
        """Read a secret from AWS. Raises SecretError."""
        secret = self._read_one(secret_id, deadline.capped_at(_REREAD_SECONDS))
        if isinstance(secret, SecretError):
            raise secret
        return secret

    def _read_batch(
        self, ids: Sequence[str], deadline: Deadline
    ) -> Mapping[str, Secret | SecretError]:
        """Read secrets with one call; read those that the result lacks one by one."""
        read = partial(self._client.batch_get_secret_value, SecretIdList=ids)
        try:
            answer = call("secretsmanager", read, deadline)
            values = {
                known: value
                for value in answer.get("SecretValues", [])
                for known in (value["ARN"], value["Name"])
            }
            found = {each: self._keep(each, values[each]) for each in ids if each in values}
            errors = {error["SecretId"]: error["ErrorCode"] for error in answer.get("Errors", [])}
            own = (each for each in errors if self._may_be_own(each))
            return {each: _explain_unreadable(each, errors[each]) for each in own} | found
        except ClientError:  # such as a role without secretsmanager:BatchGetSecretValue
            return {}
        except AWS_ERRORS as error:
            return {each: _explain_unreadable(each, describe_error(error)) for each in ids}

    def _may_be_own(self, secret_id: str) -> bool:
        """Return whether our account may own a secret; only GetSecretValue can read the others."""
        return not secret_id.startswith("arn:") or f":{self._account}:" in secret_id

    def _read_one(self, secret_id: str, deadline: Deadline) -> Secret | SecretError:
        read = partial(self._client.get_secret_value, SecretId=secret_id)
        try:
            return self._keep(secret_id, call("secretsmanager", read, deadline))
        except AWS_ERRORS as error:
            return _explain_unreadable(secret_id, describe_error(error))

    def _keep(self, secret_id: str, value: Mapping[str, Any]) -> Secret | SecretError:
        if "SecretString" not in value:
            problem = f"secret {secret_id} is binary"
            return SecretError(value["Name"], problem, "Store it as text (SecretString).")
        secret = Secret(name=value["Name"], arn=value["ARN"], text=value["SecretString"])
        self._cache.keep(self._client.meta.endpoint_url, secret_id, secret)
        return secret


def _explain_unreadable(secret_id: str, reason: str) -> SecretError:
    hint = _HINTS.get(reason, _OTHER_HINT)
    if reason == "ResourceNotFoundException" and secret_id.startswith("arn:"):
        hint = _STALE_ARN_HINT
    problem = f"secret {secret_id} cannot be read: {reason}"
    return SecretError(name_of_secret(secret_id), problem, hint)
