"""AWS Secrets Manager: which secrets are targets, and what each holds."""

import re
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from session_reaper.aws import client
from session_reaper.settings import Tag
from session_reaper.targets import SecretError, Target, read_target

if TYPE_CHECKING:
    from mypy_boto3_secretsmanager import SecretsManagerClient
    from mypy_boto3_secretsmanager.type_defs import FilterTypeDef

_HINTS = {
    "ResourceNotFoundException": "Check the name in TARGET_SECRETS and the region.",
    "AccessDeniedException": "Allow the function's role secretsmanager:GetSecretValue on it"
    " (and kms:Decrypt on its key).",
    "DecryptionFailure": "Allow the function's role kms:Decrypt on the secret's key.",
    "InvalidRequestException": "The secret is marked for deletion: restore it, or take it off the"
    " targets.",
}
_OTHER_HINT = "Check that the function reaches Secrets Manager (in a VPC: an endpoint or a NAT)."


class Secrets:
    """The secrets that this run reads. Safe to use from several threads."""

    def __init__(self) -> None:
        self._client: SecretsManagerClient = client("secretsmanager")

    def tagged(self, tag: Tag) -> tuple[str, ...]:
        """The ARNs of the secrets with this tag. Raises SecretError."""
        filters: list[FilterTypeDef] = [
            {"Key": "tag-key", "Values": [tag.key]},
            {"Key": "tag-value", "Values": [tag.value]},
        ]
        # The filters match prefixes, and do not have to match the same tag: look again.
        wanted = {"Key": tag.key, "Value": tag.value}
        try:
            pages = self._client.get_paginator("list_secrets").paginate(Filters=filters)
            secrets = [secret for page in pages for secret in page["SecretList"]]
        except (ClientError, BotoCoreError) as error:
            problem = f"the secrets cannot be listed: {' '.join(str(error).split())}"
            hint = "Allow the function's role secretsmanager:ListSecrets, and check that it reaches it."
            raise SecretError(f"tag {tag.key}={tag.value}", problem, hint) from None
        return tuple(secret["ARN"] for secret in secrets if wanted in secret.get("Tags", []))

    def target(self, secret_id: str) -> Target:
        """The target that a secret (name or ARN) describes. Raises SecretError."""
        try:
            answer = self._client.get_secret_value(SecretId=secret_id)
        except ClientError as error:
            code = error.response["Error"]["Code"]
            hint = _HINTS.get(code, _OTHER_HINT)
            problem = f"secret {secret_id} cannot be read: {code}"
            raise SecretError(_name(secret_id), problem, hint) from None
        except BotoCoreError as error:
            problem = f"secret {secret_id} cannot be read: {type(error).__name__}"
            raise SecretError(_name(secret_id), problem, _OTHER_HINT) from None
        if "SecretString" not in answer:
            raise SecretError(
                answer["Name"],
                f"secret {secret_id} is binary",
                "Store its JSON as the secret's text (SecretString).",
            )
        return read_target(answer["Name"], answer["ARN"], answer["SecretString"])


def _name(secret_id: str) -> str:
    """The name of a secret that is given by its name or its ARN, which adds six characters."""
    return re.sub(r"^arn:.*:secret:(.+)-\w{6}$", r"\1", secret_id)
