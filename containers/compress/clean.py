"""Which Gaussians are worth a place in the published files, and how much each of them is seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from job import StageError
from splat.model import Gaussians

MIN_OPACITY = 1 / 255  # below it every viewer and rasterizer skips the Gaussian, and 8 bits cannot hold it
OUTLIER_VISIBILITY = 1e-6  # share of all that is seen which may be lost to far outliers, per axis and side
OUTLIER_MIN_GAIN = 0.1  # outliers only go when that makes the position range at least this much smaller


@dataclass(frozen=True)
class CleanScene:
    """``gaussians`` are the rows ``index`` of the original; ``dropped`` counts the others by cause."""

    gaussians: Gaussians
    index: NDArray[np.int64]  # [N]
    visibility: NDArray[np.float64]  # [N], sums to 1
    dropped: dict[str, int]


def sigmoid(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """1 / (1 + exp(-x)) without overflow, in float64."""
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(logits, dtype=np.float64)))


def log_position(xyz: NDArray[np.floating]) -> NDArray[np.float64]:
    """sign(x) ln(1 + |x|), the domain in which SOG keeps positions."""
    wide = np.asarray(xyz, dtype=np.float64)
    return np.sign(wide) * np.log1p(np.abs(wide))


def clean(gaussians: Gaussians) -> CleanScene:
    """Drop Gaussians that are not finite, transparent, or far outliers nobody sees.

    Raises StageError EMPTY_SCENE when nothing is left.
    """
    finite = finite_rows(gaussians)
    opaque = finite & (sigmoid(np.nan_to_num(gaussians.opacity_logits)) >= MIN_OPACITY)
    index = np.flatnonzero(opaque)
    if len(index) == 0:
        raise StageError(
            "EMPTY_SCENE",
            f"None of the {len(finite)} Gaussians of the trained scene can be seen. Train again with more iterations.",
        )
    visible = gaussians.select(index)
    near = ~outliers(visible.means, visibility(visible))
    index = index[near]
    kept = visible.select(near)
    dropped = {
        "not_finite": int((~finite).sum()),
        "transparent": int((finite & ~opaque).sum()),
        "outlier": int((~near).sum()),
    }
    return CleanScene(kept, index, visibility(kept), dropped)


def finite_rows(gaussians: Gaussians) -> NDArray[np.bool_]:
    """[N] true where every parameter is a number and the rotation has a length."""
    rows = len(gaussians.means)
    parts = (gaussians.means, gaussians.log_scales, gaussians.quats, gaussians.opacity_logits, gaussians.sh)
    finite = np.ones(rows, dtype=bool)
    for part in parts:
        finite &= np.isfinite(part).reshape(rows, -1).all(axis=1)
    return finite & (np.abs(np.nan_to_num(gaussians.quats)).max(axis=1, initial=0) > 1e-12)


def visibility(gaussians: Gaussians) -> NDArray[np.float64]:
    """[N] the share of each Gaussian in what is seen from among the scene: opacity times solid angle.

    The area is that of the two longest axes; the distance is taken from the median position and never below the median
    distance, about where the cameras stood.
    """
    scales = np.sort(gaussians.log_scales.astype(np.float64), axis=1)
    log_area = scales[:, 1] + scales[:, 2]
    distance = np.linalg.norm(gaussians.means - np.median(gaussians.means, axis=0), axis=1).astype(np.float64)
    distance = np.maximum(distance, max(float(np.median(distance)), 1e-9))
    log_weight = np.log(np.maximum(sigmoid(gaussians.opacity_logits), 1e-9)) + log_area - 2 * np.log(distance)
    solid_angle = np.exp(np.clip(log_weight - log_weight.max(), -60, 0))
    return solid_angle / solid_angle.sum()


def outliers(means: NDArray[np.floating], weight: NDArray[np.float64]) -> NDArray[np.bool_]:
    """[N] true for positions that would stretch the 16-bit grid of everybody else and carry nothing that is seen."""
    values = log_position(means)
    found = np.zeros(len(means), dtype=bool)
    for axis in range(3):
        order = np.argsort(values[:, axis], kind="stable")
        from_below = np.cumsum(weight[order])
        from_above = np.cumsum(weight[order][::-1])
        first = int(np.searchsorted(from_below, OUTLIER_VISIBILITY))
        last = len(order) - 1 - int(np.searchsorted(from_above, OUTLIER_VISIBILITY))
        if first > last:
            continue
        low, high = values[order[first], axis], values[order[last], axis]
        full = values[order[-1], axis] - values[order[0], axis]
        if high - low < (1 - OUTLIER_MIN_GAIN) * full:
            found |= (values[:, axis] < low) | (values[:, axis] > high)
    return found
