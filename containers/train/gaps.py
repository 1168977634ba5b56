"""Points where SfM found none: smooth walls, the sky, a background that few photos see.

Gaussians only spread from where there are some, so such places stay a smear for long. Each photo is given points in the
cells of a grid in which it sees no sparse point, with the photo's colour, at about the depth of the nearest point that
it does see. Wrong depths are mended by training: such a Gaussian is nearly transparent and soon dead or moved.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from splat.cameras import Scene
from train.engine import TrainingPhoto

CELLS = 12  # along the long side
NEARER, FARTHER = -0.1, 0.4  # logarithm of the depth against that of the nearest point


def points_in_gaps(
    scene: Scene, photos: list[TrainingPhoto], most: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """At most ``most`` points: xyz [n, 3], rgb [n, 3] in 0..255, and half the width of a cell there [n]."""
    each = most // max(len(photos), 1)
    found = [_in_gaps_of(scene, photo, each, rng) for photo in photos] if each else []
    if not found:
        return np.empty((0, 3)), np.empty((0, 3)), np.empty(0)
    xyz, rgb, width = zip(*found, strict=True)
    return np.concatenate(xyz), np.concatenate(rgb), np.concatenate(width)


def _in_gaps_of(
    scene: Scene, photo: TrainingPhoto, count: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    view = photo.view
    camera = view.in_camera(scene.points_seen_in(view.name))
    camera = camera[camera[:, 2] > 0]
    if len(camera) == 0:
        return np.empty((0, 3)), np.empty((0, 3)), np.empty(0)
    seen = (camera / camera[:, 2:] @ view.K.T)[:, :2]
    cell = max(view.width, view.height) / CELLS
    filled = np.zeros((CELLS + 1, CELLS + 1), bool)
    filled[tuple((seen / cell).astype(int).clip(0, CELLS).T)] = True
    drawn = rng.uniform(size=(4 * count, 2)) * [view.width, view.height]
    at = drawn[~filled[tuple((drawn / cell).astype(int).T)]][:count]
    nearest = ((at[:, None] - seen[None]) ** 2).sum(axis=2).argmin(axis=1)
    depth = camera[nearest, 2] * np.exp(rng.uniform(NEARER, FARTHER, len(at)))
    rays = np.concatenate([at, np.ones((len(at), 1))], axis=1) @ np.linalg.inv(view.K).T
    xyz = (rays * depth[:, None] - view.world_to_camera[:3, 3]) @ view.world_to_camera[:3, :3]
    x, y = at.astype(int).T
    return xyz, photo.pixels[y, x].astype(float), 0.5 * cell / view.K[0, 0] * depth
