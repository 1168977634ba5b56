"""Everything the handlers touch outside themselves: AWS clients, the clock and new identifiers.

This is the one seam: tests and the simulator replace what is here (`reset()` forgets the cached clients, `now` and
`new_ulid` are looked up at each call), and no other module calls boto3 or reads the clock.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from ulid import ULID

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.service_resource import Table
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_sagemaker import SageMakerClient
    from mypy_boto3_sesv2 import SESV2Client
    from mypy_boto3_sns import SNSClient
    from mypy_boto3_stepfunctions import SFNClient

S3_THREADS = 32


def _config(connect_timeout_s: float, read_timeout_s: float, tries: int) -> Config:
    return Config(
        connect_timeout=connect_timeout_s,
        read_timeout=read_timeout_s,
        max_pool_connections=S3_THREADS,
        retries={"mode": "standard", "total_max_attempts": tries},
    )


CONFIG = _config(5, 20, tries=3)
# Claiming a message, sending it by mail and to the topic, and marking it must fit into the claim (table/jobs.py), slow
# as the services may be.
TABLE_CONFIG = _config(2, 6, tries=3)
SENDING_CONFIG = _config(2, 12, tries=2)


def now() -> float:
    """Seconds since the epoch."""
    return time.time()


def new_ulid() -> str:
    """26 characters that sort by time and cannot be guessed (80 random bits)."""
    return str(ULID.from_timestamp(now()))


def timestamp(epoch_s: float | None = None) -> str:
    """ISO 8601 in UTC with milliseconds, of fixed width: the order of such texts is the order of time."""
    moment = datetime.fromtimestamp(now() if epoch_s is None else epoch_s, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def epoch_s(iso_time: str) -> float:
    """Seconds since the epoch of an ISO 8601 time; without an offset it is UTC. Raises ValueError for other text."""
    moment = datetime.fromisoformat(iso_time)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


@cache
def s3() -> S3Client:
    return boto3.client("s3", config=CONFIG)


@cache
def signing_s3() -> S3Client:
    """Signs links: by version 4, which encrypted objects demand, and to the region's own address."""
    return boto3.client("s3", config=Config(signature_version="s3v4", s3={"addressing_style": "virtual"}))


@cache
def sagemaker() -> SageMakerClient:
    return boto3.client("sagemaker", config=CONFIG)


@cache
def stepfunctions() -> SFNClient:
    return boto3.client("stepfunctions", config=CONFIG)


@cache
def sns() -> SNSClient:
    return boto3.client("sns", config=SENDING_CONFIG)


@cache
def sesv2() -> SESV2Client:
    return boto3.client("sesv2", config=SENDING_CONFIG)


@cache
def events() -> Any:
    return boto3.client("events", config=CONFIG)


@cache
def table(name: str) -> Table:
    return boto3.resource("dynamodb", config=TABLE_CONFIG).Table(name)


def reset() -> None:
    """Forget the cached clients, so that the next call makes them for the present environment."""
    cached: tuple[Any, ...] = (s3, signing_s3, sagemaker, stepfunctions, sns, sesv2, events, table)
    for maker in cached:
        maker.cache_clear()
