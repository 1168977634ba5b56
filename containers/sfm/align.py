"""Turn a reconstruction into the scene frame: +y down, origin in the middle, metres where GPS can be trusted.

Frames: "model" is what the mapper returns (arbitrary similarity), ENU is east-north-up in metres at a reference point,
"scene" is (x, y, z) = (east, -up, north), right-handed with y down. Rotations act on column vectors; cameras as in
COLMAP: x right, y down, z forward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

SCENE_FROM_ENU = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
MIN_GPS = 5
MIN_WIDTH_RATIO = (
    0.05  # second over first singular value of the positions; less is a line, around which a model can roll
)
MAX_RESIDUAL_RATIO = 0.06  # of the extent; above, GPS gives neither scale nor north
ARBITRARY_DISTANCE = 5.0  # median distance of the cameras from the centre where there are no metres


@dataclass(frozen=True)
class Similarity:
    """p -> scale * rotation @ p + translation."""

    scale: float
    rotation: Array  # [3, 3]
    translation: Array  # [3]

    def apply(self, points: Array) -> Array:
        """[n, 3] -> [n, 3]"""
        return self.scale * points @ self.rotation.T + self.translation


@dataclass(frozen=True)
class Alignment:
    scene_from_model: Similarity
    georeferenced: bool
    origin_enu_m: Array | None  # [3] scene origin in ENU at the reference point
    gps_residual_m: float | None  # median over the cameras with a position
    gravity: str  # where "down" comes from: "gps", "horizon", "camera up" or "view direction"


def align(centres: Array, world_to_camera: Array, points: Array, gps_enu_m: Array) -> Alignment:
    """Find the scene frame.

    ``centres`` [n, 3] and ``points`` [p, 3] in the model frame, ``world_to_camera`` [n, 3, 3], ``gps_enu_m`` [n, 3] the
    positions from EXIF at any reference point nearby, NaN where unknown.
    """
    middle = robust_centre(points, centres)
    fit = fit_gps(centres, gps_enu_m)
    if fit is not None and fit[2]:
        enu_from_model, residual, _ = fit
        origin = enu_from_model.apply(middle[None])[0]
        rotation = SCENE_FROM_ENU @ enu_from_model.rotation
        scale = enu_from_model.scale
        return Alignment(Similarity(scale, rotation, -scale * rotation @ middle), True, origin, residual, "gps")
    hint = fit[0].rotation.T @ np.array([0, 0, -1.0]) if fit is not None else None
    down, gravity = find_down(world_to_camera, hint)
    rotation = upright(down, world_to_camera)
    distance = float(np.median(np.linalg.norm(centres - middle, axis=1)))
    scale = ARBITRARY_DISTANCE / max(distance, 1e-9)
    scene_from_model = Similarity(scale, rotation, -scale * rotation @ middle)
    return Alignment(scene_from_model, False, None, fit[1] if fit is not None else None, gravity)


def robust_centre(points: Array, centres: Array) -> Array:
    """Geometric median (Weiszfeld 1937) of the points, or of the cameras where there are none.

    Far background does not move it, and unlike a median by coordinate it does not depend on the axes.
    """
    cloud = points if len(points) else centres
    middle = np.median(cloud, axis=0)
    for _ in range(50):
        weights = 1 / np.maximum(np.linalg.norm(cloud - middle, axis=1), 1e-9)
        middle = (weights[:, None] * cloud).sum(0) / weights.sum()
    return middle


def fit_gps(centres: Array, gps_enu_m: Array) -> tuple[Similarity, float, bool] | None:
    """(ENU from model, median residual in metres, whether to trust it); None for too few positions or a line."""
    known = ~np.isnan(gps_enu_m).any(1)
    if known.sum() < MIN_GPS:
        return None
    source, target = centres[known], gps_enu_m[known]
    for cloud in (source, target):
        spread = np.linalg.svd(cloud - cloud.mean(0), compute_uv=False)
        if spread[0] < 1e-9 or spread[1] < MIN_WIDTH_RATIO * spread[0]:
            return None
    similarity = robust_similarity(source, target)
    if similarity is None:
        return None
    residuals = np.linalg.norm(similarity.apply(source) - target, axis=1)
    extent = float(np.median(np.linalg.norm(target - np.median(target, 0), axis=1)))
    residual = float(np.median(residuals))
    return similarity, residual, residual <= MAX_RESIDUAL_RATIO * extent


def robust_similarity(source: Array, target: Array, trials: int = 300) -> Similarity | None:
    """Similarity target from source [n, 3] with the least median residual (Rousseeuw 1984), refined on its inliers."""
    rng = np.random.default_rng(0)
    best, best_score = umeyama(source, target), np.inf
    if best is not None:
        best_score = float(np.median(np.linalg.norm(best.apply(source) - target, axis=1)))
    for _ in range(trials):
        pick = rng.choice(len(source), 4, replace=False)
        candidate = umeyama(source[pick], target[pick])
        if candidate is None:
            continue
        score = float(np.median(np.linalg.norm(candidate.apply(source) - target, axis=1)))
        if score < best_score:
            best, best_score = candidate, score
    if best is None:
        return None
    for _ in range(5):
        residuals = np.linalg.norm(best.apply(source) - target, axis=1)
        inliers = residuals <= max(2.5 * 1.4826 * float(np.median(residuals)), 1e-9)
        refined = umeyama(source[inliers], target[inliers]) if inliers.sum() >= 4 else None
        if refined is None:
            break
        best = refined
    return best


def umeyama(source: Array, target: Array) -> Similarity | None:
    """Least-squares similarity target from source [n, 3] (Umeyama 1991); None where the points do not determine it."""
    source_mean, target_mean = source.mean(0), target.mean(0)
    s, t = source - source_mean, target - target_mean
    u, values, vt = np.linalg.svd(t.T @ s / len(s))
    if values[1] <= 1e-9 * max(values[0], 1e-300):
        return None
    flip = np.diag([1.0, 1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    rotation = u @ flip @ vt
    scale = float((values * np.diag(flip)).sum() / (s**2).sum(1).mean())
    if scale <= 0:
        return None
    return Similarity(scale, rotation, target_mean - scale * rotation @ source_mean)


def find_down(world_to_camera: Array, hint: Array | None) -> tuple[Array, str]:
    """Unit vector [3] of gravity in the model frame from the way photos are held, and where it comes from.

    Photographers and gimbals keep the horizon level: the x axes of the cameras are horizontal, and gravity is the
    direction most perpendicular to all of them. That holds for orbits and for cameras that look straight down. Where
    all x axes are parallel (one heading), the mean "down" of the photos decides, or the viewing direction where those
    cancel out (straight down, turning); ``hint`` [3], a rough guess from poor GPS, chooses between the two.
    """
    x_axes, y_axes, z_axes = world_to_camera[:, 0], world_to_camera[:, 1], world_to_camera[:, 2]
    values, vectors = np.linalg.eigh(x_axes.T @ x_axes / len(x_axes))
    if values[1] > 0.08 and values[0] < 0.3 * values[1]:
        down = vectors[:, 0]
        if (y_axes @ down).mean() + 0.5 * (z_axes @ down).mean() < 0:
            down = -down
        return down, "horizon"
    mean_y, mean_z = y_axes.mean(0), z_axes.mean(0)
    by_view = bool(np.linalg.norm(mean_y) < min(0.7, float(np.linalg.norm(mean_z))))
    if hint is not None and min(np.linalg.norm(mean_y), np.linalg.norm(mean_z)) > 0.3:
        by_view = cosine(mean_z, hint) > cosine(mean_y, hint)
    mean, name = (mean_z, "view direction") if by_view else (mean_y, "camera up")
    length = np.linalg.norm(mean)
    return (mean / length, name) if length > 1e-6 else (np.array([0.0, 1.0, 0.0]), name)


def cosine(a: Array, b: Array) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def upright(down: Array, world_to_camera: Array) -> Array:
    """Rotation [3, 3] scene from model with ``down`` on +y; z is the mean heading of the cameras where there is one."""
    headings = world_to_camera[:, 2] - np.outer(world_to_camera[:, 2] @ down, down)
    forward = headings.mean(0)
    if np.linalg.norm(forward) < 0.1:
        forward = headings[np.argmax(np.linalg.norm(headings, axis=1))]
    if np.linalg.norm(forward) < 1e-6:
        forward = np.cross(down, np.eye(3)[np.argmin(np.abs(down))])
    forward = forward / np.linalg.norm(forward)
    return np.stack([np.cross(down, forward), down, forward])
