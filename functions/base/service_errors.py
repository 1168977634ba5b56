"""Errors of AWS services that may not happen again, told apart from those that will: the state machine retries them."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from botocore.exceptions import ClientError, HTTPClientError, IncompleteReadError

from base.failures import transient

Handler = Callable[..., dict[str, Any]]
PASSING = frozenset(
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


def is_passing(error: Exception) -> bool:
    """Whether the same call may succeed a minute later: the service was busy or broken, or could not be reached."""
    if isinstance(error, HTTPClientError | IncompleteReadError):
        return True
    if not isinstance(error, ClientError):
        return False
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return error.response["Error"]["Code"] in PASSING or status >= 500


def retried(handler: Handler) -> Handler:
    """Raise Spaceport.Transient for passing errors that botocore's own tries did not outlive; every handler is
    repeatable."""

    @wraps(handler)
    def guarded(*arguments: Any, **named: Any) -> dict[str, Any]:
        try:
            return handler(*arguments, **named)
        except (ClientError, HTTPClientError, IncompleteReadError) as error:
            if is_passing(error):
                raise transient("SERVICE_BUSY", f"A service of AWS did not answer: {error}") from error
            raise

    return guarded
