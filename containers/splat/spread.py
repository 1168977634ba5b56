"""A few of many, evenly spread."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

Item = TypeVar("Item")


def spread(items: list[Item], most: int) -> list[Item]:
    """At most ``most`` of ``items``, evenly spread in their order."""
    if len(items) <= most:
        return items
    return [items[i] for i in np.linspace(0, len(items) - 1, most).round().astype(int)]
