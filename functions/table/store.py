"""One table, one item per row, key `pk` (DynamoDB). Rows are read consistently, and changed under a condition."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from boto3.dynamodb.conditions import Key
from botocore.exceptions import ClientError

from base import aws
from base.settings import settings

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.service_resource import Table
    from mypy_boto3_dynamodb.type_defs import QueryInputTableQueryTypeDef, UpdateItemInputTableUpdateItemTypeDef

OPEN_ROWS_INDEX = "open-tasks"


def table() -> Table:
    return aws.table(settings().table_name)


def get(key: dict[str, str]) -> Any:
    """The row, as the type in rows.py that the caller names; None when there is none."""
    item = table().get_item(Key=key, ConsistentRead=True).get("Item")
    return None if item is None else from_dynamo(item)


def put(row: Mapping[str, Any], condition: str) -> bool:
    """Write a row; False when the condition does not hold."""
    try:
        table().put_item(Item=row, ConditionExpression=condition)
    except ClientError as error:
        return condition_failed(error)
    return True


def update(
    key: dict[str, str],
    expression: str,
    values: Mapping[str, Any] | None = None,
    condition: str | None = None,
    names: Mapping[str, str] | None = None,
) -> bool:
    """Update one row; False when the condition does not hold."""
    arguments: UpdateItemInputTableUpdateItemTypeDef = {"Key": key, "UpdateExpression": expression}
    if values:
        arguments["ExpressionAttributeValues"] = values
    if condition:
        arguments["ConditionExpression"] = condition
    if names:
        arguments["ExpressionAttributeNames"] = names
    try:
        table().update_item(**arguments)
    except ClientError as error:
        return condition_failed(error)
    return True


def condition_failed(error: ClientError) -> bool:
    """False for a condition that does not hold; raises every other error."""
    if error.response["Error"]["Code"] != "ConditionalCheckFailedException":
        raise error
    return False


def open_names(kind: str) -> list[str]:
    """Keys in the sparse index without what stands before #, page by page."""
    names: list[str] = []
    query: QueryInputTableQueryTypeDef = {
        "IndexName": OPEN_ROWS_INDEX,
        "KeyConditionExpression": Key("open").eq(kind),
    }
    while True:
        page = table().query(**query)
        names += [str(item["pk"]).partition("#")[2] for item in page["Items"]]
        if "LastEvaluatedKey" not in page:
            return names
        query["ExclusiveStartKey"] = page["LastEvaluatedKey"]


def to_dynamo(value: Any) -> Any:
    """JSON values as DynamoDB takes them: numbers are Decimal there."""
    return json.loads(json.dumps(value), parse_float=Decimal)


def from_dynamo(value: Any) -> Any:
    """The JSON values that `to_dynamo` was given."""
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, dict):
        return {key: from_dynamo(item) for key, item in value.items()}
    return [from_dynamo(item) for item in value] if isinstance(value, list) else value


def expires_at(days: int) -> int:
    """Seconds since 1970 of the moment from which DynamoDB may delete a row that is written now."""
    return int(aws.now()) + days * 86_400
