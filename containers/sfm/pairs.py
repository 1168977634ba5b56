"""Which photos are compared with which."""

from __future__ import annotations

from typing import Any

import numpy as np

from sfm.options import Matcher

Array = np.ndarray[Any, Any]

EXHAUSTIVE_UP_TO = 60  # photos; beyond, positions choose the pairs
EXHAUSTIVE_UP_TO_WITHOUT_GPS = 120
SPATIAL_NEIGHBOURS = 12
SEQUENTIAL_OVERLAP = 10
MOST = 0.6  # share of photos that need a position
MIN_SPREAD_M = 3.0  # below, positions say nothing


def choose_matcher(wanted: Matcher, positions_m: Array) -> Matcher:
    """The matcher to use for ``positions_m`` [n, 2] (east, north; NaN where a photo has none)."""
    spatial = can_match_spatially(positions_m)
    if wanted is Matcher.SPATIAL and not spatial:
        return Matcher.EXHAUSTIVE
    if wanted is not Matcher.AUTO:
        return wanted
    if len(positions_m) <= EXHAUSTIVE_UP_TO:
        return Matcher.EXHAUSTIVE
    if spatial:
        return Matcher.SPATIAL
    return Matcher.EXHAUSTIVE if len(positions_m) <= EXHAUSTIVE_UP_TO_WITHOUT_GPS else Matcher.SEQUENTIAL


def can_match_spatially(positions_m: Array) -> bool:
    known = positions_m[~np.isnan(positions_m).any(1)]
    if len(known) < max(3, MOST * len(positions_m)):
        return False
    return bool(np.median(np.linalg.norm(known - np.median(known, 0), axis=1)) > MIN_SPREAD_M)


def choose_pairs(
    matcher: Matcher, positions_m: Array, order: list[int], generous: bool = False
) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, in an order that visits near indices together.

    ``order`` lists the photos as they were taken. Spatial matching adds the next two in that order, so that one photo
    without a position, or with a wrong one, is not cut off. ``generous`` doubles the neighbours.
    """
    n = len(order)
    reach = 2 if generous else 1
    if matcher is Matcher.EXHAUSTIVE:
        return blocked([(i, j) for i in range(n) for j in range(i + 1, n)])
    pairs: set[tuple[int, int]] = set()
    if matcher is Matcher.SPATIAL:
        pairs |= nearest_pairs(positions_m, SPATIAL_NEIGHBOURS * reach)
    missing = set(np.flatnonzero(np.isnan(positions_m).any(axis=1)).tolist())
    for k in range(n):
        near = SEQUENTIAL_OVERLAP * reach if matcher is Matcher.SEQUENTIAL or order[k] in missing else 2
        steps = set(range(1, near + 1))
        if near > 2:
            steps |= {
                2**power for power in range(4, 10)
            }  # links to photos further back, as in COLMAP's quadratic overlap
        for step in steps:
            for other in (k + step, k - step):
                if 0 <= other < n:
                    pairs.add((min(order[k], order[other]), max(order[k], order[other])))
    return blocked(sorted(pairs))


def nearest_pairs(positions_m: Array, neighbours: int) -> set[tuple[int, int]]:
    """Each photo with a position and its nearest ones; height is left out, it is the worst part of a GPS fix."""
    known = np.flatnonzero(~np.isnan(positions_m).any(1))
    pairs = set()
    for i in known:
        distance = np.linalg.norm(positions_m[known] - positions_m[i], axis=1)
        for j in known[np.argsort(distance, kind="stable")[: neighbours + 1]]:
            if i != j:
                pairs.add((int(min(i, j)), int(max(i, j))))
    return pairs


def blocked(pairs: list[tuple[int, int]], size: int = 40) -> list[tuple[int, int]]:
    """Sort pairs by blocks of photos, so that the matcher finds features in its cache."""
    return sorted(pairs, key=lambda pair: (pair[0] // size, pair[1] // size, pair))
