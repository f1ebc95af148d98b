"""The yardstick: a reaper as an engineer may write it in an afternoon."""

import json
import os

import boto3
import pg8000.native

secrets = boto3.client("secretsmanager")
sns = boto3.client("sns")


def lambda_handler(event, context):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN201, ARG001 -- an afternoon
    value = secrets.get_secret_value(SecretId=os.environ["TARGET_SECRETS"])["SecretString"]
    secret = json.loads(value)
    con = pg8000.native.Connection(
        secret["username"],
        host=secret["host"],
        port=secret["port"],
        database=secret["dbname"],
        password=secret["password"],
        ssl_context=True,
    )
    rows = con.run(
        "SELECT pid, usename, pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE state = 'idle in transaction' AND pid <> pg_backend_pid()"
        " AND now() - backend_start > :age",
        age=os.environ.get("AGE", "5 minutes"),
    )
    con.close()
    if rows:
        message = f"terminated {len(rows)} sessions: {rows}"
        sns.publish(TopicArn=os.environ["TOPIC_ARN"], Subject="session reaper", Message=message)
    return {"terminated": len(rows)}
