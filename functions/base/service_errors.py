"""Tells transient AWS errors from permanent ones; only transient ones are retried."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from botocore.exceptions import ClientError, HTTPClientError, IncompleteReadError

from base.failures import transient

Parameters = ParamSpec("Parameters")
Answer = TypeVar("Answer")
TRANSIENT_CODES = frozenset(
    {
        "InternalServerError",
        "LimitExceededException",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)


def is_transient(error: Exception) -> bool:
    """True when the same call may succeed a minute later: the service was busy or broken, or could not be reached."""
    if isinstance(error, HTTPClientError | IncompleteReadError):
        return True
    if not isinstance(error, ClientError):
        return False
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return error.response["Error"]["Code"] in TRANSIENT_CODES or status >= 500


def retried(handler: Callable[Parameters, Answer]) -> Callable[Parameters, Answer]:
    """Raise Spaceport.Transient for transient errors that botocore's own tries did not outlive.

    Every handler may be repeated.
    """

    @wraps(handler)
    def guarded(*arguments: Parameters.args, **named: Parameters.kwargs) -> Answer:
        try:
            return handler(*arguments, **named)
        except (ClientError, HTTPClientError, IncompleteReadError) as error:
            if is_transient(error):
                raise transient("SERVICE_BUSY", f"A service of AWS did not answer: {error}") from error
            raise

    return guarded
