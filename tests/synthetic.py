"""A small scene with known colours, and the files that SfM and training would leave for it.

Frame of docs/contracts.md: x right, y down, z forward as seen from the middle photo. Red is on top, blue at the bottom,
green on the right, yellow on the left, white in the middle.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from splat.cameras import View
from splat.images import save_photo
from splat.model import SH_C0, Gaussians, write_ply
from splat.render import render

BLOBS = {  # name: (centre, colour)
    "red": ((0.0, -1.0, 0.0), (0.9, 0.05, 0.05)),
    "blue": ((0.0, 1.0, 0.0), (0.05, 0.1, 0.9)),
    "green": ((1.0, 0.0, 0.0), (0.05, 0.8, 0.1)),
    "yellow": ((-1.0, 0.0, 0.0), (0.9, 0.85, 0.05)),
    "white": ((0.0, 0.0, 0.0), (0.9, 0.9, 0.9)),
}
WIDTH, HEIGHT, FOCAL = 400, 300, 340.0


def make_gaussians(per_blob: int = 300, degree: int = 3, seed: int = 7) -> Gaussians:
    """Five balls of ``per_blob`` Gaussians each, with small view-dependent colours that repeat, as real ones do."""
    rng = np.random.default_rng(seed)
    count = per_blob * len(BLOBS)
    directions = rng.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    means = np.repeat([centre for centre, _ in BLOBS.values()], per_blob, axis=0) + directions * 0.33
    colors = np.repeat([color for _, color in BLOBS.values()], per_blob, axis=0)
    colors = np.clip(colors + rng.normal(0, 0.03, colors.shape), 0, 1)
    coefficients = (degree + 1) ** 2
    sh = np.zeros((count, coefficients, 3))
    sh[:, 0] = (colors - 0.5) / SH_C0
    kinds = rng.normal(0, 0.03, size=(24, coefficients - 1, 3))
    sh[:, 1:] = kinds[rng.integers(0, len(kinds), count)] + rng.normal(0, 0.003, size=(count, coefficients - 1, 3))
    return Gaussians(
        means=means.astype(np.float32),
        log_scales=np.log(rng.uniform(0.02, 0.08, size=(count, 3))).astype(np.float32),
        quats=rng.normal(size=(count, 4)).astype(np.float32),
        opacity_logits=rng.uniform(1.5, 5.0, size=count).astype(np.float32),
        sh=sh.astype(np.float32),
    )


def look_from(position: Any, name: str = "view", target: Any = (0.0, 0.0, 0.0)) -> View:
    """An upright camera (y down) of 400 x 300 pixels."""
    position, target = np.asarray(position, float), np.asarray(target, float)
    forward = (target - position) / np.linalg.norm(target - position)
    right = np.cross([0.0, 1.0, 0.0], forward)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = [right, np.cross(forward, right), forward]
    pose[:3, 3] = -pose[:3, :3] @ position
    intrinsics = np.array([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1.0]])
    return View(name, WIDTH, HEIGHT, intrinsics, pose)


def make_views(count: int = 9, distance: float = 4.5, arc_deg: float = 80.0) -> list[View]:
    """Photos on an arc before the scene, a little above it; the middle one looks along +z."""
    azimuths = np.radians(np.linspace(-arc_deg / 2, arc_deg / 2, count))
    height = np.sin(np.radians(15)) * distance
    ground = np.cos(np.radians(15)) * distance
    return [
        look_from((np.sin(a) * ground, -height, -np.cos(a) * ground), f"photo_{i:03d}.jpg")
        for i, a in enumerate(azimuths)
    ]


def write_stage_inputs(folder: Path, gaussians: Gaussians, views: list[View]) -> tuple[Path, Path]:
    """(sfm, train): what the two stages before compress would have left, as docs/contracts.md has it."""
    sfm, train = folder / "sfm", folder / "train"
    (sfm / "images").mkdir(parents=True)
    (sfm / "sparse").mkdir()
    train.mkdir()
    for view in views:
        save_photo(sfm / "images" / view.name, np.clip(render(gaussians, view)[0], 0, 1))
    write_colmap(sfm / "sparse", views, gaussians.means[::10])
    (sfm / "scene.json").write_text(json.dumps(scene_json(len(views), len(gaussians.means[::10]))))
    (sfm / "photos.json").write_text(json.dumps(photos_json(views)))
    write_ply(train / "scene.ply", gaussians)
    (train / "metrics.json").write_text(json.dumps(metrics_json(gaussians, views)))
    return sfm, train


def photos_json(views: list[View]) -> list[dict[str, Any]]:
    photos = [
        {"name": v.name, "image": f"images/{v.name}", "registered": True, "code": None, "reason": None} for v in views
    ]
    lost = {
        "name": "blurred.jpg",
        "image": None,
        "registered": False,
        "code": "NOT_REGISTERED",
        "reason": "Too <blurred>.",
    }
    return [*photos, lost]


def scene_json(photos: int, points: int) -> dict[str, Any]:
    return {
        "units": "arbitrary",
        "georeferenced": False,
        "origin": None,
        "enu_from_scene": None,
        "gps_residual_m": None,
        "photos": photos + 1,
        "registered": photos,
        "points": points,
        "reprojection_error_px": 0.61,
        "center": [0.0, 0.0, 0.0],
        "radius": 4.5,
        "matcher": "exhaustive",
        "settings": "fast",
        "gravity": "camera up",
        "seconds": 12.5,
        "versions": {"pycolmap": "4.2.1"},
    }


def metrics_json(gaussians: Gaussians, views: list[View]) -> dict[str, Any]:
    heldout = [
        {"name": view.name, "psnr": 30.0, "ssim": 0.95, "psnr_fitted": 30.5, "gain": [1.0, 1.0, 1.0]}
        for view in views[::8]
    ]
    curve = [
        {"iteration": i, "seconds": i / 10, "psnr": 18 + i / 60, "gaussians": 900 + i} for i in range(100, 701, 100)
    ]
    return {
        "seconds": 70.0,
        "training_seconds": 60.0,
        "iterations": 700,
        "stop_reason": "max_iterations",
        "device": "cpu",
        "engine": "synthetic",
        "preset": "draft",
        "gaussians": len(gaussians.means),
        "sh_degree": gaussians.sh_degree,
        "background_rgb": [0.0, 0.0, 0.0],
        "image_width": WIDTH,
        "image_height": HEIGHT,
        "psnr": 30.0,
        "psnr_median": 30.0,
        "psnr_fitted": 30.5,
        "ssim": 0.95,
        "train_psnr": 31.0,
        "heldout": heldout,
        "heldout_are": "test",
        "saved_seconds": 0.0,
        "rollbacks": 0,
        "exposure": {"spread": 0.012, "compensated": False},
        "stragglers": [
            {"name": views[3].name, "psnr": 22.0, "below_db": 8.1, "reason": "pose", "detail": "off by 3.2 pixels"}
        ],
        "curve": curve,
        "versions": {"numba": "0.0"},
    }


def write_colmap(sparse: Path, views: list[View], points: np.ndarray) -> None:
    """COLMAP's binary model: one PINHOLE camera, poses as quaternions, points without tracks."""
    first = views[0]
    focal_and_center = (first.K[0, 0], first.K[1, 1], first.K[0, 2], first.K[1, 2])
    camera = struct.pack("<Q", 1) + struct.pack("<iiQQ4d", 1, 1, first.width, first.height, *focal_and_center)
    (sparse / "cameras.bin").write_bytes(camera)
    images = struct.pack("<Q", len(views))
    for number, view in enumerate(views, start=1):
        pose = view.world_to_camera
        images += struct.pack("<I7dI", number, *quat_wxyz(pose[:3, :3]), *pose[:3, 3], 1)
        images += view.name.encode() + b"\0" + struct.pack("<Q", 0)
    (sparse / "images.bin").write_bytes(images)
    records = [
        struct.pack("<Q3d3BdQ", i, *xyz.tolist(), 128, 128, 128, 0.5, 0) for i, xyz in enumerate(points, start=1)
    ]
    (sparse / "points3D.bin").write_bytes(struct.pack("<Q", len(points)) + b"".join(records))


def quat_wxyz(matrix: np.ndarray) -> tuple[float, float, float, float]:
    """Of a rotation by less than 180 degrees (Shepperd 1978, the branch of a positive trace)."""
    w = np.sqrt(1 + np.trace(matrix)) / 2
    x, y, z = (matrix[2, 1] - matrix[1, 2], matrix[0, 2] - matrix[2, 0], matrix[1, 0] - matrix[0, 1])
    return float(w), float(x / (4 * w)), float(y / (4 * w)), float(z / (4 * w))


def covariances(gaussians: Gaussians) -> np.ndarray:
    """[N, 3, 3] float64 R diag(s^2) R^T."""
    w, x, y, z = (gaussians.quats / np.linalg.norm(gaussians.quats, axis=1, keepdims=True)).T.astype(np.float64)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    axes = np.moveaxis(np.array(rows), 2, 0) * np.exp(gaussians.log_scales.astype(np.float64))[:, None, :]
    return axes @ axes.transpose(0, 2, 1)
