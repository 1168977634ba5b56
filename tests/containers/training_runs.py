"""A small scene rendered from known Gaussians, and ``python -m train`` on it as the service runs it."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np

from splat.cameras import View
from splat.images import save_photo
from splat.model import Gaussians
from splat.raster import Rasterizer

CONTAINERS = Path(__file__).parents[2] / "containers"
VIEWS, WIDTH, HEIGHT = 24, 96, 72
RUN_TIMEOUT_S = 300


def look_at(eye, target=(0, 0, 0)):
    """World to camera, x right, y down, z forward; the world's y points down."""
    forward = np.subtract(target, eye) / np.linalg.norm(np.subtract(target, eye))
    right = np.cross([0, 1, 0], forward)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = [right, np.cross(forward, right), forward]
    pose[:3, 3] = -pose[:3, :3] @ eye
    return pose


def true_gaussians():
    """A textured box around the cameras, and a ball of colours in the middle."""
    rng = np.random.default_rng(0)
    wall = rng.uniform(-1, 1, (900, 3))
    axis = rng.integers(0, 3, 900)
    wall[np.arange(900), axis] = np.sign(wall[np.arange(900), axis])
    ball = rng.normal(size=(300, 3))
    means = np.concatenate([wall * 6, ball / np.linalg.norm(ball, axis=1, keepdims=True)])
    scales = np.concatenate([np.full((900, 3), 0.45), np.full((300, 3), 0.1)])
    colors = 0.5 + 0.4 * np.sin(means * [1.1, 1.7, 2.3] + [0, 1, 2]) + 0.1 * rng.normal(size=means.shape)
    sh = ((np.clip(colors, 0, 1) - 0.5) / 0.28209479)[:, None]
    return Gaussians(means, np.log(scales), rng.normal(size=(1200, 4)), np.full(1200, 3.0), sh)


def quat_of(R):
    w = np.sqrt(max(0, 1 + np.trace(R))) / 2
    return [w, (R[2, 1] - R[1, 2]) / (4 * w), (R[0, 2] - R[2, 0]) / (4 * w), (R[1, 0] - R[0, 1]) / (4 * w)]


def observations(points, colors, image, K, pose):
    """Where the points lie in a photo: those that show there, by their colour."""
    camera = points @ pose[:3, :3].T + pose[:3, 3]
    xy = camera[:, :2] / camera[:, 2:] * K[[0, 1], [0, 1]] + K[:2, 2]
    rows = np.flatnonzero((camera[:, 2] > 0.1) & (xy > 0).all(axis=1) & (xy < [WIDTH, HEIGHT]).all(axis=1))
    x, y = xy[rows].astype(int).T
    rows = rows[np.abs(image[y, x] - colors[rows]).max(axis=1) < 0.1]
    return struct.pack("<Q", len(rows)) + b"".join(struct.pack("<2dq", *xy[row], row) for row in rows)


def write_scene(folder, views=VIEWS, gains=None):
    """What SfM writes (the part that training reads), from the true Gaussians; each photo as bright as its gain."""
    truth, rng = true_gaussians(), np.random.default_rng(1)
    points = truth.means[::2] + 0.03 * rng.normal(size=(600, 3))
    colors = np.clip(0.5 + 0.28209479 * truth.sh[::2, 0], 0, 1)
    (folder / "images").mkdir(parents=True)
    (folder / "sparse").mkdir()
    K = np.array([[80.0, 0, WIDTH / 2], [0, 80, HEIGHT / 2], [0, 0, 1]])
    records = b""
    for i in range(views):
        angle = 0.2 + 2 * np.pi * i / views
        pose = look_at([3.5 * np.sin(angle), 0.8 * np.sin(2.3 * i), -3.5 * np.cos(angle)])
        image, _ = Rasterizer(1).forward(truth, View("v", WIDTH, HEIGHT, K, pose))
        save_photo(folder / "images" / f"{i:03}.png", image * (1.0 if gains is None else gains[i]))
        records += struct.pack("<I7dI", i + 1, *quat_of(pose[:3, :3]), *pose[:3, 3], 1)
        records += f"{i:03}.png".encode() + b"\0" + observations(points, colors, image, K, pose)
    sparse = folder / "sparse"
    (sparse / "cameras.bin").write_bytes(struct.pack("<QiiQQ4d", 1, 1, 1, WIDTH, HEIGHT, 80, 80, WIDTH / 2, HEIGHT / 2))
    (sparse / "images.bin").write_bytes(struct.pack("<Q", views) + records)
    rgb = (255 * colors).astype(int)
    body = b"".join(
        struct.pack("<Q3d3BdQ", k, *p, *c, 0.5, 0) for k, (p, c) in enumerate(zip(points, rgb, strict=True))
    )
    (sparse / "points3D.bin").write_bytes(struct.pack("<Q", 600) + body)


def prepare(root, scene, **options):
    (root / "input/data").mkdir(parents=True)
    (root / "input/config").mkdir()
    (root / "input/data/sfm").symlink_to(scene)
    set_options(root, **options)
    return root


def set_options(root, **options):
    values = {"job_id": "toy-01", "scene": "toy", "preset": "draft", **options}
    (root / "input/config/hyperparameters.json").write_text(json.dumps({k: str(v) for k, v in values.items()}))


def start(root):
    environment = {**os.environ, "SPACEPORT_ML_ROOT": str(root), "PYTHONPATH": str(CONTAINERS)}
    return subprocess.Popen(
        [sys.executable, "-m", "train", "train"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(root):
    process = start(root)
    out, err = process.communicate(timeout=RUN_TIMEOUT_S)
    return process.returncode, [json.loads(line) for line in out.splitlines()], err


def failure(root):
    return (root / "output/failure").read_text()
