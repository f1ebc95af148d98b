"""AWS Secrets Manager: which secrets are targets, and what each holds."""

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import ClientError

from session_reaper.aws.clients import AWS_ERRORS, call, describe_error, get_client, iterate_pages
from session_reaper.deadline import Deadline
from session_reaper.settings import Tag
from session_reaper.targets.secret_document import SecretError
from session_reaper.targets.target import Secret, name_of_secret

if TYPE_CHECKING:
    from mypy_boto3_secretsmanager import SecretsManagerClient
    from mypy_boto3_secretsmanager.type_defs import FilterTypeDef

BATCH: Final = 20  # secrets that one call gives at most
_READ_SECONDS: Final = 10.0  # that one secret may take while its target waits for it
KEEP_SECONDS: Final = 900.0  # how long a scheduled run may use what another has read

_HINTS: Final = {
    "ResourceNotFoundException": "Check the name in TARGET_SECRETS and the region.",
    "AccessDeniedException": "Allow the function's role secretsmanager:GetSecretValue on it"
    " (and kms:Decrypt on its key).",
    "DecryptionFailure": "Allow the function's role kms:Decrypt on the secret's key.",
    "InvalidRequestException": "The secret is marked for deletion: restore it, or take it off the"
    " targets.",
}
_OTHER_HINT: Final = (
    "Check that the function reaches Secrets Manager (in a VPC: an endpoint or a NAT)."
)

# Of this process, for warm runs: endpoint and id -> when it was read (wall clock: a frozen Lambda's
# monotonic one may stand still), what was read.
_kept: Final[dict[tuple[str, str], tuple[float, Secret]]] = {}


class Secrets:
    """The secrets that this run reads. Safe to use from several threads."""

    def __init__(self, account: str, *, fresh: bool) -> None:
        """`account`: our own. `fresh`: pass over what an earlier run of this process has read."""
        self._client: SecretsManagerClient = get_client("secretsmanager")
        self._account = account
        self._fresh = fresh

    def tagged(self, tag: Tag, deadline: Deadline) -> tuple[str, ...]:
        """The ARNs of the secrets with this tag. Raises SecretError."""
        filters: list[FilterTypeDef] = [
            {"Key": "tag-key", "Values": [tag.key]},
            {"Key": "tag-value", "Values": [tag.value]},
        ]
        # The filters match prefixes, and do not have to match the same tag: look again.
        wanted = {"Key": tag.key, "Value": tag.value}

        def listed() -> tuple[str, ...]:
            found = self._client.get_paginator("list_secrets").paginate(Filters=filters)
            return tuple(
                secret["ARN"]
                for page in iterate_pages(found, "NextToken", deadline)
                for secret in page["SecretList"]
                if wanted in secret.get("Tags", [])
            )

        try:
            return call("secretsmanager", listed, deadline)
        except AWS_ERRORS as error:
            problem = f"the secrets cannot be listed: {' '.join(str(error).split())}"
            hint = "Allow the function's role secretsmanager:ListSecrets, and check that it reaches it."
            raise SecretError(f"tag {tag.key}={tag.value}", problem, hint) from None

    def read(self, ids: Sequence[str], deadline: Deadline) -> Sequence[Secret | SecretError]:
        """What these secrets (names or ARNs) hold, in this order: BATCH of them at most."""
        found: dict[str, Secret | SecretError] = {}
        for each in ids:
            when, secret = _kept.get(self._key(each), (0.0, None))
            if secret is not None and not self._fresh and time.time() - when < KEEP_SECONDS:
                found[each] = secret
        missing = [each for each in ids if each not in found]
        if len(missing) > 1:
            found |= self._batch(missing, deadline)
        return [found[each] if each in found else self._one(each, deadline) for each in ids]

    def again(self, secret_id: str, deadline: Deadline) -> Secret:
        """What it holds now. Raises SecretError."""
        secret = self._one(secret_id, deadline.capped_at(_READ_SECONDS))
        if isinstance(secret, SecretError):
            raise secret
        return secret

    def _batch(self, ids: Sequence[str], deadline: Deadline) -> Mapping[str, Secret | SecretError]:
        """As far as one call can say; of those left out each has to be asked for by itself."""
        read = partial(self._client.batch_get_secret_value, SecretIdList=ids)
        try:
            answer = call("secretsmanager", read, deadline)
            values = {
                known: value
                for value in answer.get("SecretValues", [])
                for known in (value["ARN"], value["Name"])
            }
            found = {each: self._keep(each, values[each]) for each in ids if each in values}
            return dict(self._errors(answer.get("Errors", []))) | found
        except ClientError:  # without secretsmanager:BatchGetSecretValue it takes more calls
            return {}
        except AWS_ERRORS as error:
            return {each: _unreadable(each, describe_error(error), _OTHER_HINT) for each in ids}

    def _errors(self, errors: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, SecretError]]:
        for error in errors:
            secret_id, code = error["SecretId"], error["ErrorCode"]
            # This call does not reach into other accounts; the one for a single secret does.
            if not secret_id.startswith("arn:") or f":{self._account}:" in secret_id:
                yield secret_id, _unreadable(secret_id, code, _HINTS.get(code, _OTHER_HINT))

    def _one(self, secret_id: str, deadline: Deadline) -> Secret | SecretError:
        read = partial(self._client.get_secret_value, SecretId=secret_id)
        try:
            return self._keep(secret_id, call("secretsmanager", read, deadline))
        except AWS_ERRORS as error:
            why = describe_error(error)
            return _unreadable(secret_id, why, _HINTS.get(why, _OTHER_HINT))

    def _keep(self, secret_id: str, value: Mapping[str, Any]) -> Secret | SecretError:
        if "SecretString" not in value:
            problem = f"secret {secret_id} is binary"
            return SecretError(value["Name"], problem, "Store it as text (SecretString).")
        secret = Secret(name=value["Name"], arn=value["ARN"], text=value["SecretString"])
        # By whatever else it was asked for, too: else that would go on meaning what it held before.
        endpoint, _ = ours = self._key(secret_id)
        for key in [*_kept]:
            if key[0] == endpoint and _kept[key][1].arn == secret.arn:
                _kept[key] = (time.time(), secret)
        _kept[ours] = (time.time(), secret)
        return secret

    def _key(self, secret_id: str) -> tuple[str, str]:
        return (self._client.meta.endpoint_url, secret_id)


def _unreadable(secret_id: str, why: str, hint: str) -> SecretError:
    return SecretError(name_of_secret(secret_id), f"secret {secret_id} cannot be read: {why}", hint)
