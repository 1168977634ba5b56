"""Cameras and the output of SfM: a reader of COLMAP's binary model (pinhole cameras only)."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# COLMAP, src/colmap/sensor/models.h: model id -> (name, number of parameters)
CAMERA_MODELS = {
    0: ("SIMPLE_PINHOLE", 3),
    1: ("PINHOLE", 4),
    2: ("SIMPLE_RADIAL", 4),
    3: ("RADIAL", 5),
    4: ("OPENCV", 8),
    5: ("OPENCV_FISHEYE", 8),
    6: ("FULL_OPENCV", 12),
}
PINHOLE = 1
OBSERVATION = np.dtype([("x", "<f8"), ("y", "<f8"), ("point", "<i8")])  # a keypoint and the id of its point, or -1


def fitted_size(width: int, height: int, long_side: int) -> tuple[int, int]:
    """So small that the long side has at most ``long_side`` pixels; never enlarged."""
    factor = min(1.0, long_side / max(width, height))
    return max(1, round(width * factor)), max(1, round(height * factor))


@dataclass(frozen=True, eq=False)
class View:
    """One photo's camera. World to camera as in COLMAP: x right, y down, z forward; pixel centres lie at +0.5."""

    name: str
    width: int
    height: int
    K: Array  # [3, 3] pixels
    world_to_camera: Array  # [4, 4]

    def resized(self, width: int, height: int) -> View:
        """The same camera for an image of another size."""
        factors = np.array([width / self.width, height / self.height, 1.0])
        return replace(self, width=width, height=height, K=factors[:, None] * self.K)

    def fitted(self, long_side: int) -> View:
        """The same camera, so small that its long side has at most ``long_side`` pixels (never larger than now)."""
        return self.resized(*fitted_size(self.width, self.height, long_side))

    def in_camera(self, points: Array) -> Array:
        """[n, 3] points of the scene frame in this camera's own: x right, y down, z forward."""
        return points @ self.world_to_camera[:3, :3].T + self.world_to_camera[:3, 3]

    @property
    def center(self) -> Array:
        """[3] the camera centre in the scene frame."""
        return -self.world_to_camera[:3, :3].T @ self.world_to_camera[:3, 3]


@dataclass(frozen=True, eq=False)
class Scene:
    """The output of SfM: registered photos, sorted by name, and the sparse points."""

    folder: Path
    views: list[View]
    points_xyz: Array  # [P, 3]
    points_rgb: NDArray[np.uint8]  # [P, 3]
    seen: dict[str, tuple[Array, NDArray[np.int64]]] = field(default_factory=dict)
    # by photo name: where points lie in it ([n, 2] pixels) and their rows in points_xyz ([n])

    def points_seen_in(self, name: str) -> Array:
        """[n, 3] the sparse points that the photo of this name sees."""
        rows = self.seen[name][1] if name in self.seen else np.empty(0, np.int64)
        return self.points_xyz[rows]

    def photo_path(self, view: View) -> Path:
        return self.folder / "images" / view.name


def read_scene(sfm_dir: str | Path) -> Scene:
    """Read ``sparse/{cameras,images,points3D}.bin`` below ``sfm_dir``.

    Raises FileNotFoundError for a missing file and ValueError (naming file and camera) for a distorted camera or a
    damaged file. Layout: COLMAP documentation, "Output Format, Binary File Format".
    """
    folder = Path(sfm_dir)
    sparse = folder / "sparse"
    cameras = _read_cameras(sparse / "cameras.bin")
    images = sorted(_read_images(sparse / "images.bin", cameras), key=lambda image: image[0].name)
    ids, xyz, rgb = _read_points(sparse / "points3D.bin")
    seen = {view.name: _rows_of(observations, ids) for view, observations in images}
    return Scene(folder, [view for view, _ in images], xyz, rgb, seen)


def _rows_of(observations: NDArray[Any], ids: NDArray[np.int64]) -> tuple[Array, NDArray[np.int64]]:
    order = np.argsort(ids)
    row = np.searchsorted(ids[order], observations["point"]).clip(max=max(len(ids) - 1, 0))
    known = ids[order][row] == observations["point"] if len(ids) else np.zeros(len(observations), bool)
    return np.stack([observations["x"], observations["y"]], axis=1)[known], order[row[known]]


class _Reader:
    """Little-endian values from one file, with errors that name it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = path.read_bytes()
        self.at = 0

    def take(self, layout: str) -> tuple:
        try:
            values = struct.unpack_from("<" + layout, self.data, self.at)
        except struct.error as error:
            raise ValueError(
                f"{self.path} ends early at byte {len(self.data)}: the file is damaged; run SfM again"
            ) from error
        self.at += struct.calcsize("<" + layout)
        return values

    def text(self) -> str:
        end = self.data.find(b"\0", self.at)
        if end < 0:
            raise ValueError(f"{self.path} ends inside a name: the file is damaged; run SfM again")
        value = self.data[self.at : end].decode("utf-8")
        self.at = end + 1
        return value


def _read_cameras(path: Path) -> dict[int, tuple[int, int, Array]]:
    """Camera id -> (width, height, K)."""
    reader = _Reader(path)
    cameras = {}
    (count,) = reader.take("Q")
    for _ in range(count):
        camera_id, model, width, height = reader.take("iiQQ")
        name, _parameters = CAMERA_MODELS.get(model, (f"number {model}", 0))
        if model != PINHOLE:
            raise ValueError(
                f"{path}: camera {camera_id} has the model {name}, but only PINHOLE can be trained; "
                "undistort the photos first"
            )
        fx, fy, cx, cy = reader.take("4d")
        cameras[camera_id] = (width, height, np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], np.float64))
    return cameras


def _read_images(path: Path, cameras: dict[int, tuple[int, int, Array]]) -> list[tuple[View, NDArray[Any]]]:
    """The views, each with its observations (those without a point too)."""
    reader = _Reader(path)
    images = []
    (count,) = reader.take("Q")
    for _ in range(count):
        _image_id, qw, qx, qy, qz, tx, ty, tz, camera_id = reader.take("I7dI")
        name = reader.text()
        (points,) = reader.take("Q")
        if reader.at + points * OBSERVATION.itemsize > len(reader.data) or camera_id not in cameras:
            raise ValueError(f"{path}: photo {name} is damaged or has no camera; run SfM again")
        observations = np.frombuffer(reader.data, OBSERVATION, points, reader.at)
        reader.at += observations.nbytes
        pose = np.eye(4)
        pose[:3, :3] = rotation_matrix(np.array([qw, qx, qy, qz]))
        pose[:3, 3] = tx, ty, tz
        width, height, K = cameras[camera_id]
        images.append((View(name, width, height, K, pose), observations))
    return images


def _read_points(path: Path) -> tuple[NDArray[np.int64], Array, NDArray[np.uint8]]:
    reader = _Reader(path)
    (count,) = reader.take("Q")
    if count * struct.calcsize("<Q3d3BdQ") > len(reader.data):
        raise ValueError(f"{path} is too short for {count} points: the file is damaged; run SfM again")
    ids = np.empty(count, np.int64)
    xyz = np.empty((count, 3), np.float64)
    rgb = np.empty((count, 3), np.uint8)
    for i in range(count):
        values = reader.take("Q3d3BdQ")
        ids[i] = values[0]
        xyz[i] = values[1:4]
        rgb[i] = values[4:7]
        reader.at += values[8] * struct.calcsize("<ii")
    return ids, xyz, rgb


def rotation_matrix(quat_wxyz: Array) -> Array:
    """[3, 3] rotation of a quaternion (w, x, y, z), which need not be normalised."""
    w, x, y, z = quat_wxyz / np.linalg.norm(quat_wxyz)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
