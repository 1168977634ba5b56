"""The photos of a scene for training, validation and testing, and the Gaussians to begin with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from job import StageError
from splat.cameras import Scene, View
from splat.images import load_photo
from splat.model import SH_C0, Gaussians
from train.engine import TrainingPhoto
from train.gaps import points_in_gaps

FEWEST_VIEWS = 4
FEWEST_POINTS = 20
HELD_OUT_EVERY = 8
VALIDATION_SHARE, VALIDATION_MOST = 12, 8
START_OPACITY, GAP_OPACITY = 0.3, 0.1
NEIGHBOURS = 3


@dataclass(frozen=True)
class Dataset:
    """No photo is in two lists."""

    train: list[TrainingPhoto]
    validation: list[TrainingPhoto]  # what decisions look at; they join the training for the cool-down
    test: list[TrainingPhoto]  # for the report only: neither training nor any decision sees them; empty in a user's run


def load_dataset(
    scene: Scene,
    long_side: int,
    with_validation: bool,
    with_test: bool = True,
    check_stop: Callable[[], None] = lambda: None,
) -> Dataset:
    """Load all photos at ``long_side`` (never enlarged). Test: names[0::8]; validation: 1 in 12 of the rest, 1 to 8.

    ``check_stop`` is called before each photo. Raises what it raises, and StageError TOO_FEW_PHOTOS and
    PHOTO_UNREADABLE.
    """
    if len(scene.views) < FEWEST_VIEWS:
        raise StageError(
            "TOO_FEW_PHOTOS",
            f"Only {len(scene.views)} photos have a known camera, but training needs at least {FEWEST_VIEWS}. "
            "Add photos that overlap by at least two thirds and are sharp.",
        )

    def load(view: View) -> TrainingPhoto:
        check_stop()
        fitted = view.fitted(long_side)
        try:
            return TrainingPhoto(fitted, load_photo(scene.photo_path(view), fitted.width, fitted.height))
        except ValueError as error:
            raise StageError("PHOTO_UNREADABLE", f"{error}. Run SfM again.") from error

    with ThreadPoolExecutor() as pool:
        return split(list(pool.map(load, scene.views)), with_validation, with_test)


def split(photos: list[TrainingPhoto], with_validation: bool, with_test: bool) -> Dataset:
    """``photos`` in the order of their names, dealt to the three lists."""
    test = photos[::HELD_OUT_EVERY] if with_test else []
    rest = [photo for i, photo in enumerate(photos) if i % HELD_OUT_EVERY or not with_test]
    count = min(VALIDATION_MOST, max(1, len(rest) // VALIDATION_SHARE)) if with_validation else 0
    chosen = set(np.linspace(0, len(rest) - 1, count + 2)[1:-1].astype(int).tolist())
    train = [photo for i, photo in enumerate(rest) if i not in chosen]
    return Dataset(train, [rest[i] for i in sorted(chosen)], test)


def trainable(data: Dataset) -> list[TrainingPhoto]:
    """The photos that an engine must hold: those of the training, then those that join it for the cool-down."""
    return data.train + data.validation


def scene_extent(views: list[View]) -> float:
    """1.1 times the largest distance of a camera from the cameras' centroid, in scene units."""
    centers = np.array([view.center for view in views])
    return 1.1 * float(np.linalg.norm(centers - centers.mean(axis=0), axis=1).max())


def initial_gaussians(
    scene: Scene, most: int, rng: np.random.Generator, photos: Sequence[TrainingPhoto] = (), gap_share: float = 0.0
) -> Gaussians:
    """One round Gaussian per sparse point, as wide as the root mean square distance to its three nearest neighbours.

    At most ``most``, drawn at random; up to ``gap_share`` of them lie where ``photos`` see no sparse point. Raises
    StageError TOO_FEW_POINTS.
    """
    keep = np.flatnonzero(np.isfinite(scene.points_xyz).all(axis=1))
    if len(keep) < FEWEST_POINTS:
        raise StageError(
            "TOO_FEW_POINTS",
            f"SfM found only {len(keep)} points in the scene. Use sharper photos of a subject with visible texture.",
        )
    gap_xyz, gap_rgb, gap_width = points_in_gaps(scene, list(photos), int(gap_share * most), rng)
    if len(keep) > most - len(gap_xyz):
        keep = np.sort(rng.choice(keep, most - len(gap_xyz), replace=False))
    xyz = scene.points_xyz[keep].astype(np.float32)
    distance = np.sqrt(np.maximum(neighbour_distances_squared(xyz).mean(axis=1), 1e-14))
    low, high = np.quantile(distance, [0.01, 0.99])
    scales = np.concatenate([np.clip(distance, low, high), gap_width])
    opacity = np.repeat([START_OPACITY, GAP_OPACITY], [len(xyz), len(gap_xyz)])
    rgb = np.concatenate([scene.points_rgb[keep], gap_rgb])
    n = len(rgb)
    return Gaussians(
        means=np.concatenate([xyz, gap_xyz]),
        log_scales=np.repeat(np.log(scales)[:, None], 3, axis=1),
        quats=np.tile(np.array([1, 0, 0, 0], np.float32), (n, 1)),
        opacity_logits=np.log(opacity / (1 - opacity)),
        sh=((rgb / 255.0 - 0.5) / SH_C0)[:, None],
    )


def neighbour_distances_squared(xyz: NDArray[np.float32]) -> NDArray[np.float32]:
    """[N, 3] squared distances to the three nearest other points (approximate for more than 20,000 points)."""
    n = len(xyz)
    centred = np.ascontiguousarray(xyz - xyz.mean(axis=0))
    index: Any = faiss.IndexFlatL2(3)
    if n > 20_000:
        index = faiss.IndexIVFFlat(index, 3, round(n**0.5))
        index.nprobe = 4
        index.train(centred)
    index.add(centred)
    squared, _ = index.search(centred, NEIGHBOURS + 1)
    usable = np.where(squared[:, 1:] < np.finfo(np.float32).max, squared[:, 1:], np.nan)
    return np.nan_to_num(usable, nan=float(np.nanmedian(usable)))
