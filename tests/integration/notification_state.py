"""Reads and changes the notification state."""

from __future__ import annotations

from typing import Any

import boto3

from tests.integration.stage import TABLE


def read_items() -> list[dict[str, Any]]:
    return boto3.client("dynamodb").scan(TableName=TABLE)["Items"]


def read_kinds() -> set[str]:
    return {item["kind"]["S"] for item in read_items()}


def age_items(seconds: float) -> None:
    """Make every item as old as if it had been written so many seconds earlier."""
    dynamodb = boto3.client("dynamodb")
    for item in read_items():
        for key in ("told_at", "since"):
            item[key] = {"N": str(float(item[key]["N"]) - seconds)}
        dynamodb.put_item(TableName=TABLE, Item=item)
