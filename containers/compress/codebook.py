"""Small tables that stand for many numbers: one-dimensional codebooks and the palette of spherical harmonics."""

from __future__ import annotations

import faiss
import numpy as np
from numba import njit
from numpy.typing import NDArray

from splat import processor

processor.prepare()  # a kernel that is declared fixes for which processor all others are compiled

CODEBOOK_ENTRIES = 256
QUANTILE_BINS = 3072
UNIFORM_BINS = 1024
PALETTE_MIN = 1024
PALETTE_MAX_CPU = 16_384  # the format allows 65,536; beyond this the search costs a CPU more than it gains
PALETTE_ITERATIONS = 8
POINTS_PER_ENTRY = 64  # k-means samples per palette entry


def fit_codebook(values: NDArray[np.floating], weights: NDArray[np.float64]) -> NDArray[np.float32]:
    """The 256 numbers, ascending, with the least weighted squared error; exact on about 4,096 bins.

    Bin edges are half quantiles (dense where the values are) and half uniform (the tails keep their own bins). Dynamic
    programming with divide and conquer: Wang and Song, "Ckmeans.1d.dp", R Journal 3/2 (2011), and its later versions.
    """
    flat = np.asarray(values, dtype=np.float64).ravel()
    order = np.argsort(flat, kind="stable")
    flat, weight = flat[order], np.asarray(weights, dtype=np.float64).ravel()[order]
    weight = weight / weight.mean()
    centers, mass = bin_values(flat, weight)
    entries = min(CODEBOOK_ENTRIES, len(centers))
    starts = optimal_starts(centers - centers.mean(), mass, entries)
    ends = np.append(starts[1:], len(centers))
    total, first = prefix_sums(mass), prefix_sums(mass * centers)
    table = (first[ends] - first[starts]) / (total[ends] - total[starts])
    padded = np.concatenate([table, np.full(CODEBOOK_ENTRIES - entries, table[-1])])
    return padded.astype(np.float32)


def bin_values(sorted_values: NDArray[np.float64], weight: NDArray[np.float64]) -> tuple[NDArray, NDArray]:
    """Weighted mean and weight of each non-empty bin, ascending."""
    quantiles = sorted_values[np.linspace(0, len(sorted_values) - 1, QUANTILE_BINS).astype(np.int64)]
    uniform = np.linspace(sorted_values[0], sorted_values[-1], UNIFORM_BINS)
    edges = np.unique(np.concatenate([quantiles, uniform]))
    bins = np.searchsorted(edges, sorted_values, side="right") - 1
    mass = np.bincount(bins, weight, len(edges))
    moment = np.bincount(bins, weight * sorted_values, len(edges))
    used = mass > 0
    return moment[used] / mass[used], mass[used]


def prefix_sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([[0.0], np.cumsum(values)])


def optimal_starts(centers: NDArray[np.float64], mass: NDArray[np.float64], entries: int) -> NDArray[np.int64]:
    """[entries] the first bin of every cluster of the optimal partition of sorted ``centers``."""
    return _optimal_starts(prefix_sums(mass), prefix_sums(mass * centers), entries)


@njit(cache=True)  # type: ignore[misc, unused-ignore]
def _optimal_starts(total: NDArray, first: NDArray, entries: int) -> NDArray:  # pragma: no cover - compiled
    """Minimise the sum of -(sum w x)^2 / (sum w); the best split only moves one way, so halves are searched."""
    n = len(total) - 1
    cost = np.empty(n + 1)
    cost[0] = 0.0
    for j in range(1, n + 1):
        cost[j] = -(first[j] ** 2) / total[j]
    split = np.zeros((entries, n + 1), dtype=np.int32)
    following = np.empty(n + 1)
    stack = np.empty((128, 4), dtype=np.int64)
    for k in range(1, entries):
        top = 0
        stack[0] = (k + 1, n, k, n - 1)
        following[: k + 1] = np.inf
        while top >= 0:
            low, high, best_low, best_high = stack[top]
            top -= 1
            if low > high:
                continue
            j = (low + high) // 2
            best, best_at = np.inf, best_low
            for i in range(best_low, min(best_high, j - 1) + 1):
                moment = first[j] - first[i]
                candidate = cost[i] - moment * moment / (total[j] - total[i])
                if candidate < best:
                    best, best_at = candidate, i
            following[j] = best
            split[k, j] = best_at
            top += 1
            stack[top] = (low, j - 1, best_low, best_at)
            top += 1
            stack[top] = (j + 1, high, best_at, best_high)
        cost, following = following.copy(), cost
    starts = np.empty(entries, dtype=np.int64)
    end = n
    for k in range(entries - 1, -1, -1):
        starts[k] = split[k, end]
        end = starts[k]
    return starts


def nearest(codebook: NDArray[np.floating], values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Index of the nearest entry of an ascending codebook, in the shape of ``values``."""
    table = codebook.astype(np.float64)
    return np.searchsorted((table[1:] + table[:-1]) / 2, values).astype(np.uint8)


def palette_size(count: int) -> int:
    """Entries for ``count`` Gaussians, a power of two: one for sixteen, more in small scenes, fewer in huge ones.

    At least 1,024 but never more than one for four, or the palette itself would be most of the file.
    """
    by_count = 2 ** round(float(np.log2(max(count, 1) / 16)))
    at_most = 2 ** int(np.log2(max(count / 4, 1)))
    return max(1, min(max(PALETTE_MIN, by_count), at_most, PALETTE_MAX_CPU))


def fit_palette(
    rows: NDArray[np.float32], weights: NDArray[np.float64], entries: int, seed: int
) -> NDArray[np.float32]:
    """[entries, D] centroids of weighted k-means over ``rows`` [N, D], ordered along their principal component."""
    kmeans = faiss.Kmeans(
        rows.shape[1],
        entries,
        niter=PALETTE_ITERATIONS,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=POINTS_PER_ENTRY,
    )
    kmeans.train(np.ascontiguousarray(rows, dtype=np.float32), weights=(weights / weights.mean()).astype(np.float32))
    centroids = np.asarray(kmeans.centroids, dtype=np.float32).reshape(entries, -1)
    centered = centroids - centroids.mean(axis=0)
    axis = np.linalg.eigh(centered.T.astype(np.float64) @ centered)[1][:, -1]
    return np.ascontiguousarray(centroids[np.argsort(centered @ axis, kind="stable")])


def palette_labels(rows: NDArray[np.float32], palette: NDArray[np.float32]) -> NDArray[np.int64]:
    """[N] index of the palette entry nearest to each row."""
    index = faiss.IndexFlatL2(palette.shape[1])
    index.add(np.ascontiguousarray(palette, dtype=np.float32))
    return np.asarray(index.search(np.ascontiguousarray(rows, dtype=np.float32), 1)[1][:, 0], dtype=np.int64)
