"""Task tokens: which execution a token belongs to can be read from it."""

from __future__ import annotations

import base64

TOKEN_PREFIX = "AQCSpaceport"
MAX_TOKEN_CHARACTERS = 2048


def task_token(execution_arn: str, unique: str) -> str:
    """A task token, opaque to everyone but ``execution_of_token``."""
    return f"{TOKEN_PREFIX}{base64.urlsafe_b64encode(execution_arn.encode()).decode()}.{unique}"


def execution_of_token(token: str) -> str | None:
    """The ARN of the execution a token belongs to, or None when the text is no token."""
    head, _, unique = token.partition(".")
    if not unique or not head.startswith(TOKEN_PREFIX) or len(token) > MAX_TOKEN_CHARACTERS:
        return None
    try:
        return base64.urlsafe_b64decode(head.removeprefix(TOKEN_PREFIX)).decode()
    except ValueError:
        return None
