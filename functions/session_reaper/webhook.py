"""The Lambda entry point of the webhook: posts messages of the topic to a Slack incoming webhook.

The URL of the webhook is a secret, and errors and log lines of urllib3 contain its path. Errors
raised here therefore have a text of their own and no cause.

Each message is posted once per invocation. Lambda repeats a failed invocation one and two minutes
later, which is longer than Slack usually asks to wait.
"""

import html
import json
import re
import ssl
from collections.abc import Mapping
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import urllib3

from session_reaper.aws.clients import AWS_ERRORS, call, explain_error
from session_reaper.aws.secrets_manager import read_text
from session_reaper.deadline import Deadline
from session_reaper.errors import NoAnswerError, PublishError
from session_reaper.log_levels import silence_libraries
from session_reaper.settings import read_webhook_secret

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

_MAX_TEXT: Final = 3000  # characters
_MARGIN_SECONDS: Final = 2.0  # for raising the error
_POST_SECONDS: Final = 8.0
_SECRET_SECONDS: Final = 10.0

silence_libraries()


def lambda_handler(event: Mapping[str, Any], context: "LambdaContext") -> None:
    """Post each message of the event.

    Raises ReaperError. Lambda then tries twice more, and puts the event into the dead-letter queue.
    """
    deadline = Deadline(context.get_remaining_time_in_millis() / 1000 - _MARGIN_SECONDS)
    secret = read_webhook_secret()
    # Not kept between invocations, so that a changed URL is used at once.
    url = _read_url(secret, deadline.capped_at(_SECRET_SECONDS))
    with urllib3.PoolManager(ssl_context=ssl.create_default_context()) as http:
        for record in event["Records"]:
            post = partial(_post, http, url, _build_message(record["Sns"]))
            try:
                problem = call("slack", post, deadline.capped_at(_POST_SECONDS))
            except urllib3.exceptions.HTTPError as error:
                problem = type(error).__name__
            except NoAnswerError as error:
                problem = str(error)
            if problem:
                hint = f"If the webhook was removed, store the URL of a new one in secret {secret}"
                raise PublishError(f"the message did not reach Slack: {problem}. {hint}.")


def _read_url(secret: str, deadline: Deadline) -> str:
    try:
        text = read_text(secret, deadline).strip()
    except AWS_ERRORS as error:
        hint = "Check WEBHOOK_SECRET, and that the webhook's role may read and decrypt the secret."
        problem = f"secret {secret} cannot be read: {explain_error(error)}"
        raise PublishError(f"{problem.rstrip('.')}. {hint}") from None
    url = _parse_object(text).get("url", text)
    if not isinstance(url, str) or not re.fullmatch(r"https://[^\s/@]+/\S*", url):
        raise PublishError(
            f'secret {secret} must contain an https URL, as text or as {{"url": "…"}}'
        )
    return url


def _build_message(notification: Mapping[str, Any]) -> Mapping[str, Any]:
    """Build the message for Slack: our own summaries unchanged, anything else as text."""
    message = notification["Message"]
    document = _parse_object(message)
    if isinstance(document.get("text"), str):
        return document
    lines = [notification.get("Subject"), message]
    if "AlarmName" in document:
        headline = f"{document.get('NewStateValue')}: {document['AlarmName']}"
        lines = [headline, document.get("AlarmDescription"), document.get("NewStateReason")]
    text = "\n".join(str(line) for line in lines if line)
    return {"text": html.escape(text[:_MAX_TEXT], quote=False)}


def _parse_object(text: str) -> Mapping[str, Any]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _post(http: urllib3.PoolManager, url: str, message: Mapping[str, Any]) -> str:
    """Post a message once; return what went wrong, "" if nothing did."""
    answer = http.request(
        "POST",
        url,
        body=json.dumps(message),
        headers={"Content-Type": "application/json"},
        timeout=urllib3.Timeout(total=_POST_SECONDS),
        retries=False,  # urllib3 would log the URL of a retry and follow redirects
    )
    if answer.status == HTTPStatus.OK:
        return ""
    text = answer.data.decode(errors="replace")
    # Slack's error codes look like this. Any other text could contain the URL.
    is_code = re.fullmatch(r"[a-z_]{1,60}", text) and text not in url
    return f"{answer.status}, {text if is_code else 'no reason'}"
