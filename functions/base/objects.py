"""Objects in the bucket."""

from __future__ import annotations

from typing import TYPE_CHECKING

from base import aws

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import ObjectTypeDef


def list_keys(bucket: str, prefix: str) -> list[ObjectTypeDef]:
    """Objects under a prefix as list_objects_v2 gives them, sorted by key; folder markers left out."""
    pages = aws.s3().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return [item for page in pages for item in page.get("Contents", []) if not item["Key"].endswith("/")]
