"""The second Lambda entry point: what the topic says, to a Slack incoming webhook.

The webhook's URL is a secret, and urllib3's errors and log lines name its path: what is raised here
has a text of its own, and nothing is chained to it.
"""

import html
import json
import re
import ssl
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import urllib3

from session_reaper.aws.clients import AWS_ERRORS, call, explain_error, get_client
from session_reaper.deadline import Deadline
from session_reaper.errors import NoAnswerError, PublishError
from session_reaper.log_levels import silence_libraries
from session_reaper.settings import read_webhook_secret

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

_MOST_TEXT: Final = 3000  # characters
_RESERVE: Final = 2.0  # seconds, to raise in
_TRY: Final = 8.0  # seconds that one may take at most
_SECRET_SECONDS: Final = 10.0  # that reading the secret may take at most
_PASSING: Final = {HTTPStatus.TOO_MANY_REQUESTS, *range(500, 600)}

silence_libraries()


def lambda_handler(event: Mapping[str, Any], context: "LambdaContext") -> None:
    """Post every message of the event.

    Raises ReaperError: Lambda tries it twice again, then the dead-letter queue has it.
    """
    deadline = Deadline(context.get_remaining_time_in_millis() / 1000 - _RESERVE)
    secret = read_webhook_secret()
    url = _read_url(
        secret, deadline.capped_at(_SECRET_SECONDS)
    )  # read each time: a new one is used from the next try on
    with urllib3.PoolManager(ssl_context=ssl.create_default_context()) as http:
        for record in event["Records"]:
            body = json.dumps(_build_payload(record["Sns"])).encode()
            problem = _post(http, url, body, deadline)
            if problem:
                remedy = f"If the webhook is gone, store a new one's URL in secret {secret}"
                raise PublishError(f"the message did not reach Slack: {problem}. {remedy}.")


def _read_url(secret: str, deadline: Deadline) -> str:
    def read() -> str:
        answer = get_client("secretsmanager").get_secret_value(SecretId=secret)
        _ = answer["ARN"]  # without it, it was not Secrets Manager that answered
        return str(answer.get("SecretString", "")).strip()

    try:
        text = call("secretsmanager", read, deadline)
    except AWS_ERRORS as error:
        remedy = "Check WEBHOOK_SECRET, and what the webhook's role may read and decrypt."
        problem = f"secret {secret} cannot be read: {explain_error(error)}"
        raise PublishError(f"{problem.rstrip('.')}. {remedy}") from None
    url = _parse_object(text).get("url", text)
    if not isinstance(url, str) or not re.fullmatch(r"https://[^\s/@]+/\S*", url):
        raise PublishError(f'secret {secret} holds no https URL, as text or as {{"url": "…"}}')
    return url


def _build_payload(notification: Mapping[str, Any]) -> Mapping[str, Any]:
    """What Slack is sent: our own summaries are made for it, all else becomes text."""
    message = notification["Message"]
    document = _parse_object(message)
    if isinstance(document.get("text"), str):
        return document
    lines = [notification.get("Subject"), message]
    if "AlarmName" in document:  # CloudWatch's
        verdict = f"{document.get('NewStateValue')}: {document['AlarmName']}"
        lines = [verdict, document.get("AlarmDescription"), document.get("NewStateReason")]
    text = "\n".join(str(line) for line in lines if line)
    return {"text": html.escape(text[:_MOST_TEXT], quote=False)}


def _parse_object(text: str) -> Mapping[str, Any]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _post(http: urllib3.PoolManager, url: str, body: bytes, deadline: Deadline) -> str:
    """Try until it arrives (it may twice); returns what is wrong, "" if nothing is."""

    def post() -> urllib3.BaseHTTPResponse:
        return http.request(
            "POST",
            url,
            body=body,
            headers={"Content-Type": "application/json"},
            timeout=urllib3.Timeout(total=_TRY),
            retries=False,  # urllib3's log the URL; and no redirect is followed
        )

    for doubled in range(10):
        wait = 0.5 * 2**doubled
        try:
            answer = call("slack", post, deadline.capped_at(_TRY))
        except urllib3.exceptions.HTTPError as error:
            problem = type(error).__name__
        except NoAnswerError as error:
            problem = str(error)
        else:
            if answer.status == HTTPStatus.OK:
                return ""
            said = answer.data.decode(errors="replace")
            # Slack's words look like this; what another server says could repeat the URL.
            shown = said if re.fullmatch(r"[a-z_]{1,60}", said) and said not in url else "no reason"
            problem = f"{answer.status}, {shown}"
            if answer.status not in _PASSING:
                break
            after = answer.headers.get("Retry-After", "")
            wait = max(wait, float(after) if after.isdecimal() else 0)
        if deadline.remaining() < wait + 1:  # Lambda tries again, minutes later
            break
        time.sleep(wait)
    return problem
