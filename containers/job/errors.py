"""What ends a stage early: a failure that the user can act on, or a request to stop."""

from __future__ import annotations


class StageError(Exception):
    """A failure that the user can act on.

    ``code`` is stable and upper case (``TOO_FEW_PHOTOS``); ``reason`` says what was wrong, where, and what to do.
    """

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason


class StopRequested(Exception):
    """SIGTERM came and the stage has saved what it can; it ends without a result."""
