"""Where Gaussians go: dead ones are moved to places that need them, and the model grows up to a hard cap.

3D Gaussian Splatting as Markov Chain Monte Carlo (Kheradmand et al. 2024): a Gaussian with opacity o that becomes N
equal ones gets opacity 1 - (1 - o)^(1/N) and a smaller scale, so that the image hardly changes. Independent of the
engine.
"""

from __future__ import annotations

from math import comb

import numpy as np
from numpy.typing import NDArray

from train.engine import Engine, Moves

DEAD_OPACITY = 0.005
MOST_COPIES = 51


def split_values(opacity: NDArray, copies: NDArray) -> tuple[NDArray, NDArray]:
    """Opacity of each of ``copies`` equal Gaussians (``copies`` counts the original), and the factor of their scales.

    Kheradmand et al. 2024, eq. 9:
    sigma_new = o sigma / sum_{i=1..N} sum_{k=0..i-1} C(i-1, k) (-1)^k o_new^(k+1) / sqrt(k+1).
    """
    copies = np.minimum(copies, MOST_COPIES)
    new = 1 - (1 - opacity) ** (1 / copies)
    factor = np.empty_like(new)
    for n in np.unique(copies):
        # sum over i of C(i-1, k) is C(n, k+1): the double sum becomes a single one.
        rows = copies == n
        k = np.arange(n)
        terms = np.array([comb(int(n), int(i) + 1) * (-1.0) ** i / np.sqrt(i + 1.0) for i in k])
        factor[rows] = opacity[rows] / (new[rows, None] ** (k + 1) @ terms)
    return new, factor


def refine(
    engine: Engine,
    rng: np.random.Generator,
    growth: float,
    weights: NDArray | None = None,
    most: int | None = None,
) -> tuple[int, int]:
    """Densify and prune: relocate the dead, then grow by the fraction ``growth``; returns both numbers.

    There are never more Gaussians than the engine's ``max_gaussians``, nor new ones where there are ``most`` already.
    ``weights`` [N]: how likely a Gaussian is to be split; its opacity when they are missing or all zero.
    """
    opacity = engine.opacities().astype(np.float64)
    dead = np.flatnonzero(opacity <= DEAD_OPACITY)
    alive = np.flatnonzero(opacity > DEAD_OPACITY)
    if len(alive) == 0:
        return 0, 0
    if len(dead):
        _split(engine, _draw(rng, alive, opacity, weights, len(dead)), dead, opacity, reset_sources=True)
    n = engine.count()
    cap = engine.setup.max_gaussians
    most = cap if most is None else min(most, cap)
    added = min(most, int(n * (1 + growth))) - n
    if added > 0:
        opacity = engine.opacities().astype(np.float64)
        _split(
            engine,
            _draw(rng, np.arange(n), opacity, weights, added),
            np.arange(n, n + added),
            opacity,
            reset_sources=False,
        )
    return len(dead), max(added, 0)


def _draw(
    rng: np.random.Generator, candidates: NDArray, opacity: NDArray, weights: NDArray | None, count: int
) -> NDArray[np.int64]:
    chances = opacity if weights is None or not weights[candidates].any() else weights
    total = np.cumsum(chances[candidates], dtype=np.float64)
    return candidates[np.searchsorted(total, rng.random(count) * total[-1], side="right").clip(max=len(total) - 1)]


def _split(engine: Engine, sources: NDArray, targets: NDArray, opacity: NDArray, reset_sources: bool) -> None:
    copies = np.bincount(sources, minlength=len(opacity))[sources] + 1
    new, factor = split_values(opacity[sources], copies)
    new = np.clip(new, DEAD_OPACITY, 1 - 1e-6)
    log_scales = engine.log_scales()[sources] + np.log(factor)[:, None]
    logits = np.log(new / (1 - new))
    moves = Moves(sources, targets, logits.astype(np.float32), log_scales.astype(np.float32), reset_sources)
    engine.relocate(moves)
