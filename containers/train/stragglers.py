"""Photos whose error stays far above that of the others, and why.

Four causes can be told apart by trying: the exposure (a gain and an offset per channel mend it), the pose (a small
movement of the camera mends it, found by Gauss-Newton with derivatives from renders), a background that the other
photos hardly see (the error lies where the photo has no point of the sparse model) and the light, such as the shadow
of the photographer (a gain that changes slowly over the photo mends it).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from job.documents import StragglerReason
from splat.cameras import Scene, View
from splat.metrics import psnr
from train.engine import Engine, TrainingPhoto
from train.evaluate import Score, fit_exposure, render_clipped

BELOW_MEDIAN_DB = 4.0
MOST = 4  # photos that are looked into, the worst ones
LONG_SIDE = 240  # pixels, for the search of the pose
CAUSE_DB = 1.0  # a cause is named when its remedy brings at least this
CELLS = 8  # along the long side: the grid in which points are counted
UNSEEN_RATIO = 1.5  # of the squared error in cells without points and in those with some
LIGHT_DB = 3.0  # so much more must a gain that varies over the photo bring than one that does not
LIGHT_CELLS = (8, 6)
STEPS, PROBE_PX = 6, 0.5
DARKEST = 0.02  # 0..1, so that a gain stays finite
BOX, BICUBIC = Image.Resampling.BOX, Image.Resampling.BICUBIC
ROBUST = 0.05  # residuals above it count less, 0..1


class Straggler(TypedDict):
    name: str
    psnr: float
    below_db: float  # the median of the photos it was compared with
    reason: StragglerReason
    detail: str


@dataclass(frozen=True)
class PoseFit:
    psnr_before: float  # both after an exposure fit, at the size of the search
    psnr_after: float
    view: View  # at the size of the photo
    moved_px: float  # median over the photo's points


def find_stragglers(
    engine: Engine,
    scene: Scene,
    photos: list[TrainingPhoto],
    scores: list[Score],
    sh_degree: int,
    check_stop: Callable[[], None] = lambda: None,
) -> list[Straggler]:
    """The worst of ``photos`` with ``scores`` at least 4 dB under their median, each with a reason.

    ``check_stop`` is called before each of them.
    """
    if not scores:
        return []
    median = float(np.median([s["psnr"] for s in scores]))
    worst = sorted(range(len(scores)), key=lambda i: scores[i]["psnr"])[:MOST]
    below = {i: median - scores[i]["psnr"] for i in worst if scores[i]["psnr"] < median - BELOW_MEDIAN_DB}
    found = []
    for i, db in below.items():
        check_stop()
        found.append(explain(engine, scene, photos[i], scores[i], db, sh_degree))
    return found


def explain(
    engine: Engine, scene: Scene, photo: TrainingPhoto, score: Score, below_db: float, sh_degree: int
) -> Straggler:
    """The remedy that brings the photo nearest to the others names the cause."""
    by_exposure = score["psnr_fitted"] - score["psnr"]
    pose = fit_pose(engine, scene, photo, sh_degree)
    by_pose = pose.psnr_after - pose.psnr_before
    without, beside = error_without_points(engine, scene, photo, sh_degree)
    by_light = psnr_with_light(engine, photo, sh_degree) - score["psnr_fitted"]
    reason: StragglerReason = "unknown"
    detail = "neither exposure nor pose nor light nor an unseen background explains it"
    if max(by_exposure, by_pose) >= max(CAUSE_DB, by_light):
        if by_exposure >= by_pose:
            reason, detail = "exposure", f"its brightness or colour differs: adapting both brings {by_exposure:.1f} dB"
        else:
            reason = "pose"
            detail = f"its camera is off by about {pose.moved_px:.1f} pixels: moving it brings {by_pose:.1f} dB"
    elif by_light >= LIGHT_DB and without <= UNSEEN_RATIO * beside:
        reason = "light"
        detail = f"parts of it are lit differently, as by a shadow: adapting the light brings {by_light:.1f} dB"
    elif without > UNSEEN_RATIO * beside:
        reason = "background"
        detail = f"the error is {without / beside:.1f} times as large where other photos share no point with it"
    return {
        "name": photo.view.name,
        "psnr": score["psnr"],
        "below_db": round(below_db, 2),
        "reason": reason,
        "detail": detail,
    }


def fit_pose(engine: Engine, scene: Scene, photo: TrainingPhoto, sh_degree: int) -> PoseFit:
    """The camera near ``photo``'s that shows it best: Gauss-Newton on the pixels, derivatives by central differences.

    The model is not changed. A step moves the image by about half a pixel, whatever the scale of the scene.
    """
    fitted = photo.view.fitted(LONG_SIDE)
    level = max(1, round(photo.view.width / fitted.width))
    small = photo.shrunk(level)
    truth = small.pixels / 255.0
    points = scene.points_seen_in(photo.view.name)
    camera = photo.view.in_camera(points)
    depth = float(np.median(camera[:, 2])) if len(camera) else 1.0
    focal = small.view.K[0, 0]
    probe = PROBE_PX / focal * np.array([1, 1, 1, depth, depth, depth])
    view, damping = small.view, 1e-3
    image = fit_exposure(engine.render(view, sh_degree), truth)
    before = best = psnr(image, truth)
    for _ in range(STEPS):
        steps = np.diag(probe)
        slopes = np.stack(
            [
                (engine.render(moved(view, step), sh_degree) - engine.render(moved(view, -step), sh_degree)).ravel() / 2
                for step in steps
            ],
            axis=1,
        )
        rest = (truth - image).ravel()
        weighted = slopes / np.maximum(np.abs(rest), ROBUST)[:, None]
        normal = weighted.T @ slopes
        step = np.linalg.solve(normal + damping * np.diag(np.diag(normal)) + 1e-12 * np.eye(6), weighted.T @ rest)
        there = moved(view, step * probe)
        picture = fit_exposure(engine.render(there, sh_degree), truth)
        found = psnr(picture, truth)
        if found > best:
            view, image, best, damping = there, picture, found, damping / 4
        else:
            damping *= 16
    shift = np.linalg.norm(project(view, points) - project(small.view, points), axis=1) * level
    after = replace(photo.view, world_to_camera=view.world_to_camera)
    return PoseFit(before, best, after, float(np.median(shift)) if len(shift) else 0.0)


def moved(view: View, step: NDArray[np.float64]) -> View:
    """``view`` turned by the vector step[:3] (radians) and shifted by step[3:] (scene units), in its own frame."""
    angle = float(np.linalg.norm(step[:3]))
    x, y, z = step[:3] / max(angle, 1e-12)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    change = np.eye(4)
    change[:3, :3] += np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    change[:3, 3] = step[3:]
    return replace(view, world_to_camera=change @ view.world_to_camera)


def error_without_points(engine: Engine, scene: Scene, photo: TrainingPhoto, sh_degree: int) -> tuple[float, float]:
    """Mean squared error in the cells of the photo that show no sparse point, and in the others; 0 for none."""
    view = photo.view
    error = (fit_exposure(render_clipped(engine, photo, sh_degree), photo.pixels / 255.0) - photo.pixels / 255.0) ** 2
    cell = max(view.width, view.height) / CELLS
    rows, columns = (np.arange(view.height) / cell).astype(int), (np.arange(view.width) / cell).astype(int)
    shape = (rows[-1] + 1, columns[-1] + 1)
    number = rows[:, None] * shape[1] + columns
    sums = np.bincount(number.ravel(), error.mean(axis=2).ravel())
    sizes = np.bincount(number.ravel())
    at = project(view, scene.points_seen_in(view.name)) / cell
    x, y = at.astype(int).T if len(at) else (np.empty(0, int), np.empty(0, int))
    filled = np.zeros(shape, bool)
    filled[y.clip(0, shape[0] - 1), x.clip(0, shape[1] - 1)] = True
    means = [float(sums[cells].sum() / max(sizes[cells].sum(), 1)) for cells in (~filled.ravel(), filled.ravel())]
    return means[0], means[1]


def psnr_with_light(engine: Engine, photo: TrainingPhoto, sh_degree: int) -> float:
    """PSNR after a gain per channel that changes slowly over the photo, from the means of 8 x 6 cells."""
    image, truth = render_clipped(engine, photo, sh_degree), (photo.pixels / 255.0).astype(np.float32)
    gain = slowly(truth) / np.maximum(slowly(image), DARKEST)
    return psnr(np.clip(image * gain, 0, 1), truth)


def slowly(image: NDArray[np.floating]) -> NDArray[np.float32]:
    """[H, W, 3] reduced to a few cells and enlarged again."""
    size = image.shape[1::-1]
    planes = [
        Image.fromarray(np.ascontiguousarray(plane, np.float32)).resize(LIGHT_CELLS, BOX).resize(size, BICUBIC)
        for plane in image.transpose(2, 0, 1)
    ]
    return np.stack([np.asarray(plane) for plane in planes], axis=-1)


def project(view: View, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """[n, 2] pixels."""
    image = view.in_camera(points) @ view.K.T
    return image[:, :2] / image[:, 2:]
