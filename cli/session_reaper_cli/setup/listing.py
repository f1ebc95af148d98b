"""Lists resources of an AWS account; a list that IAM denies is recorded, and is not an error."""

from dataclasses import dataclass
from typing import Any, Final

from botocore.config import Config
from botocore.exceptions import ClientError
from session_reaper.aws.clients import explain_error

_CONFIG: Final = Config(connect_timeout=5, read_timeout=15, retries={"total_max_attempts": 2})
_DENIALS: Final = ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation")


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A permission that the user lacks, and AWS's message."""

    permission: str
    cause: str


class Lister:
    """Lists resources with the user's session."""

    def __init__(self, session: Any) -> None:  # noqa: ANN401 -- its stubs accept literal service names only
        self._session = session
        self.refusals: list[Refusal] = []

    def list(self, service: str, operation: str, key: str, **given: Any) -> list[Any] | None:  # noqa: ANN401 -- botocore's
        """Return a list, None if IAM denies it. Raises AWS_ERRORS."""
        client = self._session.client(service, config=_CONFIG)
        try:
            pages = client.get_paginator(operation).paginate(**given)
            return [each for page in pages for each in page[key]]
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") not in _DENIALS:
                raise
            permission = f"{service}:{client.meta.method_to_api_mapping[operation]}"
            self.refusals.append(Refusal(permission=permission, cause=explain_error(error)))
            return None
