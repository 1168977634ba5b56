"""Which photos are compared with which."""

from __future__ import annotations

from typing import Any

import numpy as np

from sfm.options import Matcher

Array = np.ndarray[Any, Any]

EXHAUSTIVE_UP_TO = 60  # photos; beyond, positions and looks choose the pairs, so that pairs a photo stay bounded
SPATIAL_NEIGHBOURS = 12
SEQUENTIAL_OVERLAP = 10
MOST = 0.6  # share of photos that need a position
MIN_SPREAD_M = 3.0  # below, positions say nothing
# Ranks by likeness that are compared. The first ones overlap most; the later ones see the same from further away,
# which holds the scene together: with the nearest alone errors add up along the way round.
RANKS = (1, 2, 3, 4, 5, 6, 8, 10, 13, 17, 22, 29, 38, 50)
RANKS_BESIDE_POSITIONS = (1, 2, 3, 5, 8, 13, 22, 38)
NEIGHBOURS_BESIDE_RANKS = 8
STEPS_BESIDE_RANKS = 2
SECOND_LOOK = 20  # more partners for a photo that was left out by the first


def choose_matcher(wanted: Matcher, positions_m: Array) -> Matcher:
    """The matcher to use for ``positions_m`` [n, 2] (east, north; NaN where a photo has none)."""
    if wanted is Matcher.SPATIAL and not can_match_spatially(positions_m):
        return Matcher.EXHAUSTIVE if len(positions_m) <= EXHAUSTIVE_UP_TO else Matcher.RETRIEVAL
    if wanted is not Matcher.AUTO:
        return wanted
    return Matcher.EXHAUSTIVE if len(positions_m) <= EXHAUSTIVE_UP_TO else Matcher.RETRIEVAL


def can_match_spatially(positions_m: Array) -> bool:
    known = positions_m[~np.isnan(positions_m).any(1)]
    if len(known) < max(3, MOST * len(positions_m)):
        return False
    return bool(np.median(np.linalg.norm(known - np.median(known, 0), axis=1)) > MIN_SPREAD_M)


def choose_pairs(
    matcher: Matcher, positions_m: Array, order: list[int], similarity: Array | None = None, generous: bool = False
) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, in an order that visits near indices together.

    ``order`` lists the photos as they were taken; ``similarity`` [n, n] is what retrieval goes by. ``generous``
    doubles the neighbours. Beyond exhaustive matching each photo adds a bounded number of pairs, and all photos are
    connected: photos taken one after another are always compared.
    """
    n = len(order)
    reach = 2 if generous else 1
    if matcher is Matcher.EXHAUSTIVE:
        return blocked([(i, j) for i in range(n) for j in range(i + 1, n)])
    if matcher is Matcher.RETRIEVAL:
        assert similarity is not None
        return blocked(sorted(retrieved_pairs(similarity, positions_m, order, reach)))
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
        pairs |= {pair(order[k], order[k + step]) for step in steps if k + step < n}
        pairs |= {pair(order[k], order[k - step]) for step in steps if k - step >= 0}
    return blocked(sorted(pairs))


def retrieved_pairs(similarity: Array, positions_m: Array, order: list[int], reach: int) -> set[tuple[int, int]]:
    """Pairs by likeness, position and order, and the links that join groups of photos that look alike."""
    spatial = can_match_spatially(positions_m)
    pairs = nearest_pairs(positions_m, NEIGHBOURS_BESIDE_RANKS * reach) if spatial else set()
    ranks: tuple[int, ...] = RANKS_BESIDE_POSITIONS if spatial else RANKS
    if reach > 1:
        ranks = tuple(range(1, reach * len(ranks) + 1)) + ranks
    for k, ranked in enumerate(most_similar(similarity)):
        pairs |= {pair(k, int(ranked[rank - 1])) for rank in ranks if rank <= len(ranked)}
    for step in range(1, STEPS_BESIDE_RANKS * reach + 1):
        pairs |= {pair(i, j) for i, j in zip(order, order[step:], strict=False)}
    return pairs | spanning_tree(similarity)


def more_pairs(similarity: Array, tried: set[tuple[int, int]], lost: list[int]) -> list[tuple[int, int]]:
    """For each of the ``lost`` photos its most similar ones that have not been tried."""
    ranked = most_similar(similarity)
    pairs: set[tuple[int, int]] = set()
    for k in lost:
        pairs |= set([p for p in (pair(k, int(j)) for j in ranked[k]) if p not in tried][:SECOND_LOOK])
    return blocked(sorted(pairs))


def most_similar(similarity: Array) -> Array:
    """[n, n - 1]: the other photos, most similar first."""
    ranked = similarity.copy()
    np.fill_diagonal(ranked, -np.inf)
    order: Array = np.argsort(-ranked, axis=1, kind="stable")[:, :-1]
    return order


def spanning_tree(similarity: Array) -> set[tuple[int, int]]:
    """The n - 1 pairs that connect all photos with the greatest similarity (Prim 1957)."""
    n = len(similarity)
    best, link = similarity[0].astype(float), np.zeros(n, int)
    outside = np.ones(n, bool)
    outside[0] = False
    pairs = set()
    while outside.any():
        k = int(np.argmax(np.where(outside, best, -np.inf)))
        pairs.add(pair(k, int(link[k])))
        outside[k] = False
        closer = outside & (similarity[k] > best)
        best[closer], link[closer] = similarity[k][closer], k
    return pairs


def left_out(n: int, verified: list[tuple[int, int]], few: int) -> list[int]:
    """Photos with fewer than ``few`` verified partners, and those outside the largest connected group."""
    partners: list[set[int]] = [set() for _ in range(n)]
    for i, j in verified:
        partners[i].add(j)
        partners[j].add(i)
    seen: set[int] = set()
    largest: set[int] = set()
    for start in range(n):
        group, border = set(), [start] if start not in seen else []
        while border:
            k = border.pop()
            if k not in group:
                group.add(k)
                border.extend(partners[k] - group)
        seen |= group
        largest = max(largest, group, key=len)
    return [k for k in range(n) if k not in largest or len(partners[k]) < few]


def pair(i: int, j: int) -> tuple[int, int]:
    return (i, j) if i < j else (j, i)


def nearest_pairs(positions_m: Array, neighbours: int) -> set[tuple[int, int]]:
    """Each photo with a position and its nearest ones; height is left out, it is the worst part of a GPS fix."""
    known = np.flatnonzero(~np.isnan(positions_m).any(1))
    pairs = set()
    for i in known:
        distance = np.linalg.norm(positions_m[known] - positions_m[i], axis=1)
        for j in known[np.argsort(distance, kind="stable")[: neighbours + 1]]:
            if i != j:
                pairs.add(pair(int(i), int(j)))
    return pairs


def blocked(pairs: list[tuple[int, int]], size: int = 40) -> list[tuple[int, int]]:
    """Sort pairs by blocks of photos, so that the matcher finds features in its cache."""
    return sorted(pairs, key=lambda p: (p[0] // size, p[1] // size, p))
