"""An error that the played AWS services answer with."""

from __future__ import annotations


class ServiceError(Exception):
    """A call that AWS would refuse: ``code`` is AWS's error code."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.status = status
