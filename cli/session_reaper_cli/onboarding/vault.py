"""AWS Secrets Manager as the owner uses it: creates, changes, tags and deletes one secret."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from botocore.exceptions import ClientError
from session_reaper.aws.clients import AWS_ERRORS, call, explain_error, get_client
from session_reaper.aws.secrets_manager import BATCH, SecretCache, Secrets
from session_reaper.deadline import Deadline
from session_reaper.errors import ConfigurationError
from session_reaper.log_levels import silence_libraries
from session_reaper.settings import Tag
from session_reaper.targets.target import Secret

if TYPE_CHECKING:
    from mypy_boto3_secretsmanager import SecretsManagerClient
    from mypy_boto3_secretsmanager.type_defs import TagTypeDef

silence_libraries()  # botocore would log the secrets

_T = TypeVar("_T")
_SECONDS: Final = 20.0  # for one call
_TRY_SECONDS: Final = 8.0
RECOVERY_DAYS: Final = 30
_NO_CREDENTIALS: Final = (
    "check AWS_PROFILE and AWS_REGION; `aws sts get-caller-identity` shows the identity that needs"
    " secretsmanager:{action}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSecret:
    """An existing secret. `version`: the one that the function reads. Deleted: it has no text."""

    secret: Secret
    version: str
    tags: frozenset[Tag]
    is_deleted: bool


class Vault:
    """One secret, by its name. Each method raises ConfigurationError if AWS refuses."""

    def __init__(self, name: str) -> None:
        self.name = name
        try:
            self._client: SecretsManagerClient = get_client(
                "secretsmanager", seconds=_TRY_SECONDS, tries=2
            )
        except AWS_ERRORS as error:  # no region, an unknown profile
            raise self._explain(error, "DescribeSecret", "cannot be read") from None

    @property
    def region(self) -> str:
        """The region of the secret."""
        return self._client.meta.region_name

    def find(self) -> StoredSecret | None:
        """Return the secret, None if there is none of this name."""
        with self._explain_errors("DescribeSecret", "cannot be read"):
            try:
                found = self._call(lambda: self._client.describe_secret(SecretId=self.name))
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") == "ResourceNotFoundException":
                    return None
                raise
            is_deleted = "DeletedDate" in found
            arn = found["ARN"]
            tags = frozenset(Tag(key=t["Key"], value=t["Value"]) for t in found.get("Tags", []))
        text, version = ("", "") if is_deleted else self._read()
        secret = Secret(name=self.name, arn=arn, text=text)
        return StoredSecret(secret=secret, version=version, tags=tags, is_deleted=is_deleted)

    def _read(self) -> tuple[str, str]:
        with self._explain_errors("GetSecretValue", "cannot be read"):
            value = self._call(lambda: self._client.get_secret_value(SecretId=self.name))
            return value.get("SecretString", ""), value["VersionId"]

    def create(self, text: str) -> None:
        """Create the secret, without a tag."""
        about = "The login of session-reaper; session-reaper onboard wrote it"
        create = partial(self._client.create_secret, Name=self.name, Description=about)
        self._change("CreateSecret", "created", partial(create, SecretString=text))

    def put(self, text: str) -> None:
        """Make a text the current version of the secret."""
        put = partial(self._client.put_secret_value, SecretId=self.name, SecretString=text)
        self._change("PutSecretValue", "changed", put)

    def tag(self, tag: Tag) -> None:
        """Set a tag of the secret."""
        tags: list[TagTypeDef] = [{"Key": tag.key, "Value": tag.value}]
        self._change(
            "TagResource",
            "tagged",
            partial(self._client.tag_resource, SecretId=self.name, Tags=tags),
        )

    def delete(self) -> None:
        """Delete the secret; it can be restored for RECOVERY_DAYS."""
        delete = partial(self._client.delete_secret, RecoveryWindowInDays=RECOVERY_DAYS)
        self._change("DeleteSecret", "deleted", partial(delete, SecretId=self.name))

    def restore(self) -> None:
        """Take the deletion back."""
        restore = partial(self._client.restore_secret, SecretId=self.name)
        self._change("RestoreSecret", "restored", restore)

    def _change(self, action: str, done: str, operation: Callable[[], object]) -> None:
        with self._explain_errors(action, f"cannot be {done}"):
            self._call(operation)

    def _call(self, operation: Callable[[], _T]) -> _T:
        return call("secretsmanager", operation, Deadline(_SECONDS))

    @contextmanager
    def _explain_errors(self, action: str, problem: str) -> Iterator[None]:
        try:
            yield
        except AWS_ERRORS as error:
            raise self._explain(error, action, problem) from None

    def _explain(self, error: Exception, action: str, problem: str) -> ConfigurationError:
        how = _NO_CREDENTIALS.format(action=action)
        return ConfigurationError(
            f"secret {self.name}", f"{problem}: {explain_error(error)}; {how}"
        )


def read_tagged(tag: Tag) -> Iterator[Secret]:
    """Yield the readable secrets with a tag. Raises SecretError if they cannot be listed."""
    deadline = Deadline(_SECONDS)
    reader = Secrets("", SecretCache(), bypass_cache=True)
    ids = reader.list_tagged(tag, deadline)
    for start in range(0, len(ids), BATCH):
        for found in reader.read(ids[start : start + BATCH], deadline):
            if isinstance(found, Secret):
                yield found
