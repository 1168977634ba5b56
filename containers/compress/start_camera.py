"""Where the page and the poster look from: near where the photos were taken, at what they were taken of, upright."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compress.viewer_settings import (
    AnimationTrack,
    Background,
    CameraPose,
    Keyframes,
    KeyframeValues,
    ViewerCamera,
    ViewerSettings,
)
from splat.cameras import Scene, View

Vector = NDArray[np.float64]

FOV_RANGE_DEG = (50.0, 75.0)  # of the long side; wider distorts, narrower hides the surroundings
ASPECT = 16 / 9
AIR = 1.2  # how much farther than the photos, so that the subject does not touch the frame
NADIR_ELEVATION_DEG = 60.0  # photos from steeper than this look straight down
OBLIQUE_ELEVATION_DEG = 42.0
PLEASANT_ELEVATION_DEG = 25.0
FULL_CIRCLE_DEG = 300.0
SWAY_DEG = 25.0
TRACK_KEYS = 16
TRACK_SECONDS = 24
FRAMES_PER_SECOND = 30
DOWN = np.array([0.0, 1.0, 0.0])


@dataclass(frozen=True)
class StartCamera:
    """A camera at ``position`` that looks at ``target``, upright. Scene frame and units; fov of the long side."""

    position: Vector  # [3]
    target: Vector  # [3]
    fov_deg: float
    circle: bool  # the photos go all around, so a full turn shows nothing that was never seen

    def view(self, width: int, height: int) -> View:
        """The camera as a View of ``width`` x ``height`` pixels."""
        forward = unit(self.target - self.position)
        right = unit(np.cross(DOWN, forward))
        pose = np.eye(4)
        pose[:3, :3] = [right, np.cross(forward, right), forward]
        pose[:3, 3] = -pose[:3, :3] @ self.position
        focal = max(width, height) / 2 / np.tan(np.radians(self.fov_deg) / 2)
        intrinsics = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
        return View("start", width, height, intrinsics, pose)


def choose_start_camera(scene: Scene) -> StartCamera:
    """The start camera of a scene with at least one view.

    Photos around a subject: the direction that most photos share among those of a pleasant elevation, at their median
    distance from where they look together. Photos straight down: an oblique view from the bottom of the photos.
    """
    centers = np.stack([view.center for view in scene.views])
    forwards = np.stack([view.world_to_camera[2, :3] for view in scene.views])
    target = look_target(centers, forwards, scene.points_xyz)
    fov_deg, step_back = viewer_fov(scene.views)
    offsets = centers - target
    distance = float(np.median(np.linalg.norm(offsets, axis=1))) * step_back
    looking_down_deg = float(np.degrees(np.arcsin(np.clip(np.median(forwards @ DOWN), -1, 1))))
    if looking_down_deg > NADIR_ELEVATION_DEG:
        direction = oblique_direction(scene.views)
        distance = max(distance, extent(scene.points_xyz, target) / np.tan(np.radians(fov_deg) / 2))
    else:
        direction = shared_direction(offsets)
    position = target + distance * direction
    return StartCamera(position, target, fov_deg, azimuth_coverage_deg(offsets) >= FULL_CIRCLE_DEG)


def unit(vector: Vector) -> Vector:
    length = float(np.linalg.norm(vector))
    return vector / length if length > 1e-12 else np.array([0.0, 0.0, 1.0])


def look_target(centers: Vector, forwards: Vector, points: Vector) -> Vector:
    """[3] the point nearest to all optical axes; where they are parallel or diverge, the median sparse point."""
    middle = np.median(points, axis=0) if len(points) else centers.mean(axis=0) + forwards.mean(axis=0)
    across = np.eye(3) - forwards[:, :, None] * forwards[:, None, :]
    normal = across.mean(axis=0)
    if np.linalg.eigvalsh(normal)[0] < 0.05:
        return middle
    focus = np.linalg.solve(normal, np.einsum("nij,nj->i", across, centers) / len(centers))
    depths = np.einsum("ni,ni->n", focus - centers, forwards)
    spread = np.median(np.linalg.norm(centers - centers.mean(axis=0), axis=1))
    converging = (depths > 0.1 * spread).mean() > 0.8
    return focus if converging else middle


def viewer_fov(views: list[View]) -> tuple[float, float]:
    """Field of view of the long side in degrees, and how many times farther away to stand.

    As much fits the short side of a 16:9 window then as fitted the short side of the photos.
    """
    short_tan = float(np.median([min(v.width / v.K[0, 0], v.height / v.K[1, 1]) / 2 for v in views]))
    wanted = 2 * np.degrees(np.arctan(short_tan * ASPECT))
    fov_deg = float(np.clip(wanted, *FOV_RANGE_DEG))
    return fov_deg, AIR * max(1.0, short_tan * ASPECT / float(np.tan(np.radians(fov_deg) / 2)))


def shared_direction(offsets: Vector) -> Vector:
    """[3] unit vector from the target to the photo with the most photos near its direction, not too flat or steep."""
    directions = offsets / np.maximum(np.linalg.norm(offsets, axis=1, keepdims=True), 1e-12)
    closeness = np.exp((directions @ directions.T - 1) / (1 - np.cos(np.radians(20)))).sum(axis=1)
    elevation_deg = np.degrees(np.arcsin(np.clip(-directions @ DOWN, -1, 1)))
    pleasant = np.exp(-(((elevation_deg - PLEASANT_ELEVATION_DEG) / 20) ** 2))
    return directions[int(np.argmax(closeness * (0.05 + pleasant)))]


def oblique_direction(views: list[View]) -> Vector:
    """[3] unit vector from the ground to an oblique camera that has the top of most photos away from it."""
    tops = np.stack([-view.world_to_camera[1, :3] for view in views])
    heading = tops.mean(axis=0) * [1, 0, 1]
    heading = unit(heading) if np.linalg.norm(heading) > 0.2 else np.array([0.0, 0.0, 1.0])
    elevation = np.radians(OBLIQUE_ELEVATION_DEG)
    return -np.cos(elevation) * heading - np.sin(elevation) * DOWN


def extent(points: Vector, target: Vector) -> float:
    """Horizontal distance from the target within which 80 % of the sparse points lie."""
    return float(np.percentile(np.linalg.norm((points - target)[:, [0, 2]], axis=1), 80)) if len(points) else 0.0


def azimuth_coverage_deg(offsets: Vector) -> float:
    """360 minus the largest gap between the compass directions of the photos."""
    azimuth = np.sort(np.degrees(np.arctan2(offsets[:, 0], offsets[:, 2])))
    gaps = np.diff(np.append(azimuth, azimuth[0] + 360))
    return float(360 - gaps.max())


def to_viewer(point: Vector) -> list[float]:
    """The viewer turns SOG by 180 degrees about z: (x, y, z) in the scene is (-x, -y, z) there."""
    return [round(float(-point[0]), 5), round(float(-point[1]), 5), round(float(point[2]), 5)]


def orbit_positions(camera: StartCamera) -> list[Vector]:
    """Camera positions of the animation, beginning at the start: a full turn about the target, or a sway."""
    offset = camera.position - camera.target
    phases = np.arange(TRACK_KEYS) / TRACK_KEYS
    angles = 2 * np.pi * phases if camera.circle else np.radians(SWAY_DEG) * np.sin(2 * np.pi * phases)
    positions = []
    for angle in angles:
        c, s = np.cos(angle), np.sin(angle)
        turned = np.array([c * offset[0] + s * offset[2], offset[1], -s * offset[0] + c * offset[2]])
        positions.append(camera.target + turned)
    return positions


def viewer_settings(camera: StartCamera) -> ViewerSettings:
    """The animation is only played when the visitor asks for it; it begins at the start camera."""
    target = to_viewer(camera.target)
    return ViewerSettings(
        version=2,
        tonemapping="none",
        high_precision_rendering=False,
        background=Background(color=[0, 0, 0]),
        post_effect_settings={
            "sharpness": {"enabled": False, "amount": 0},
            "bloom": {"enabled": False, "intensity": 0.1, "blurLevel": 2},
            "grading": {"enabled": False, "brightness": 1, "contrast": 1, "saturation": 1, "tint": [1, 1, 1]},
            "vignette": {"enabled": False, "intensity": 0.5, "inner": 0.3, "outer": 0.75, "curvature": 1},
            "fringing": {"enabled": False, "intensity": 0.5},
        },
        anim_tracks=[orbit_track(camera)],
        cameras=[
            ViewerCamera(initial=CameraPose(position=to_viewer(camera.position), target=target, fov=camera.fov_deg))
        ],
        annotations=[],
        start_mode="animTrack",
    )


def orbit_track(camera: StartCamera) -> AnimationTrack:
    values = KeyframeValues(
        position=[x for p in orbit_positions(camera) for x in to_viewer(p)],
        target=to_viewer(camera.target) * TRACK_KEYS,
        fov=[camera.fov_deg] * TRACK_KEYS,
    )
    times = [round(k * TRACK_SECONDS * FRAMES_PER_SECOND / TRACK_KEYS) for k in range(TRACK_KEYS)]
    return AnimationTrack(
        name="orbit",
        duration=TRACK_SECONDS,
        frame_rate=FRAMES_PER_SECOND,
        loop_mode="repeat",
        interpolation="spline",
        smoothness=1,
        keyframes=Keyframes(times=times, values=values),
    )
