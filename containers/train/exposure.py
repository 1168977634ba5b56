"""How bright each photo is against the others, from the sparse points that several photos see.

A phone on automatic shows the same wall at another brightness in each photo; a model can only take the mean, or explain
the difference by the direction of view. Colour c of point j in photo i is taken as log c_ij = g_i + p_j; the gains g
are found before training, from the photos alone. The engine is given photos divided by them; a render is multiplied by
a photo's gain before the two are compared.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from splat.cameras import Scene
from train.dataset import Dataset
from train.engine import TrainingPhoto

SPREAD_LIMIT = 0.04  # standard deviation of the logarithm of the gains, above which photos are compensated
ERRORS_LIMIT = 2.0  # the same in errors of a point: shine and wrong matches must not pass for exposure
SAMPLE_LONG_SIDE = 400  # pixels; a point's colour is the mean over one of these
DARKEST, BRIGHTEST = 10, 245  # colours outside say nothing about the exposure
MOST_POINTS = 20_000
ROUNDS = 8  # of reweighted least squares
USUAL_ERROR = 0.03  # of log c; larger ones count less
PRIOR = 1.0  # observation in favour of a gain of 1: a photo with hardly any points is left as it is
UNIT = (1.0, 1.0, 1.0)
KNEE = 230  # a brighter photo's pixels above it are overexposed: they stay bright


@dataclass(frozen=True)
class Exposures:
    """All as natural logarithms."""

    gains: NDArray[np.float64]  # [photos, 3] relative to the median photo, 0 where unknown
    colors: NDArray[np.float64]  # [P, 3] of each point at a gain of 1, NaN where unknown
    error: float  # median of what gains and colours leave unexplained


def measure(scene: Scene, data: Dataset) -> tuple[Dataset, float]:
    """``data`` with the gain of every photo, and how far the gains spread; gains of 1 when that is too little.

    Test photos get theirs from the colours that the others give to the points, and do not change those.
    """
    known = data.train + data.validation
    found = log_gains(scene, known)
    spread = float(found.gains.mean(axis=1).std())
    if spread <= max(SPREAD_LIMIT, ERRORS_LIMIT * found.error):
        return data, spread
    tested = gains_against(scene, data.test, found.colors)
    trained = [replace(photo, gain=tuple(np.exp(gain))) for photo, gain in zip(known, found.gains, strict=True)]
    test = [replace(photo, gain=tuple(np.exp(gain))) for photo, gain in zip(data.test, tested, strict=True)]
    return replace(data, train=trained[: len(data.train)], validation=trained[len(data.train) :], test=test), spread


def log_gains(scene: Scene, photos: list[TrainingPhoto]) -> Exposures:
    """Gains per photo and channel, from the points that several photos see.

    Least absolute differences by reweighting; the points are eliminated, which leaves one equation per photo.
    """
    n = len(photos)
    photo, row, colors = _observations(scene, photos)
    rows, point = _most_seen(row)
    photo, colors, point = photo[point >= 0], colors[point >= 0], point[point >= 0]
    gains, found = np.zeros((n, 3)), np.full((len(scene.points_xyz), 3), np.nan)
    if len(point) == 0:
        return Exposures(gains, found, 0.0)
    weight, points = np.ones(len(photo)), len(rows)
    for _ in range(ROUNDS):
        table = np.bincount(point * n + photo, weight, points * n).reshape(points, n)
        per_point = table.sum(axis=1)
        normal = np.diag(table.sum(axis=0) + PRIOR) - table.T @ (table / per_point[:, None])
        mean = np.stack([np.bincount(point, weight * c) / per_point for c in colors.T], axis=1)
        right = np.stack([np.bincount(photo, weight * c, n) for c in (colors - mean[point]).T], axis=1)
        gains = np.linalg.solve(normal, right)
        rest = colors - gains[photo]
        mean = np.stack([np.bincount(point, weight * c) / per_point for c in rest.T], axis=1)
        error = np.abs(rest - mean[point]).mean(axis=1)
        weight = USUAL_ERROR / np.maximum(error, USUAL_ERROR)
    seeing = np.bincount(photo, minlength=n) > 0
    usual = np.median(gains[seeing], axis=0)
    found[rows] = mean + usual
    return Exposures(np.where(seeing[:, None], gains - usual, 0.0), found, float(np.median(error)))


def gains_against(scene: Scene, photos: list[TrainingPhoto], colors: NDArray[np.float64]) -> NDArray[np.float64]:
    """[photos, 3] log gains of photos, given the log colours of the points: the median difference, 0 where unknown."""
    photo, row, seen = _observations(scene, photos)
    rest = seen - colors[row]
    known = np.isfinite(rest).all(axis=1)
    gains = [
        np.median(rest[known & (photo == i)], axis=0) if (known & (photo == i)).any() else np.zeros(3)
        for i in range(len(photos))
    ]
    return np.array(gains).reshape(-1, 3)


def is_compensated(data: Dataset) -> bool:
    return any(photo.gain != UNIT for photo in data.train)


def compensated(photo: TrainingPhoto) -> TrainingPhoto:
    """The photo as if its gain were 1. What is overexposed in a brighter photo cannot be known and stays bright."""
    if photo.gain == UNIT:
        return photo
    values, gain = np.arange(256.0)[:, None], np.array(photo.gain)
    overexposed = np.clip((values - KNEE) / (255 - KNEE), 0, 1) * (gain > 1)
    table = values / gain * (1 - overexposed) + values * overexposed
    table = np.clip(np.round(table), 0, 255).astype(np.uint8)
    pixels = np.stack([table[photo.pixels[..., c], c] for c in range(3)], axis=-1)
    return replace(photo, pixels=pixels, gain=UNIT)


def _observations(
    scene: Scene, photos: list[TrainingPhoto]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """(number of the photo, row of the point, log colour [n, 3]) of every well exposed observation."""
    full = {view.name: view for view in scene.views}
    found: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]] = []
    for number, photo in enumerate(photos):
        view = full[photo.view.name]
        small = photo.view.fitted(SAMPLE_LONG_SIDE)
        pixels = np.asarray(Image.fromarray(photo.pixels).resize((small.width, small.height), Image.Resampling.BOX))
        xy, rows = scene.seen.get(view.name, (np.empty((0, 2)), np.empty(0, np.int64)))
        at = (xy * [small.width / view.width, small.height / view.height]).astype(int)
        at = at.clip(0, [small.width - 1, small.height - 1])
        colors = pixels[at[:, 1], at[:, 0]].astype(float)
        good = (colors.min(axis=1) >= DARKEST) & (colors.max(axis=1) <= BRIGHTEST)
        found.append((np.full(good.sum(), number), rows[good], np.log(colors[good])))
    if not found:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, 3))
    numbers, points, logs = zip(*found, strict=True)
    return np.concatenate(numbers), np.concatenate(points), np.concatenate(logs)


def _most_seen(row: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The points that at least two photos see, at most 20,000; and for each of ``row`` its number among them, or -1."""
    count = np.bincount(row)
    rows = np.argsort(-count, kind="stable")[:MOST_POINTS]
    rows = rows[count[rows] >= 2]
    number = np.full(len(count), -1)
    number[rows] = np.arange(len(rows))
    return rows, number[row]
