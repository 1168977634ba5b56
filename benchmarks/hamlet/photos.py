"""A photo set of the hamlet as a drone takes it, with the true camera poses beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.ExifTags import GPS, IFD, Base

from benchmarks.hamlet.render import develop, perspective_tiles, render_photo
from benchmarks.hamlet.scene import INNER_HALF_M, build_scene

Array = np.ndarray[Any, Any]

ORIGIN = {"lat_deg": 46.6210, "lon_deg": 2.4480, "alt_m": 212.0}  # open country; height above the WGS84 ellipsoid
FILM_DIAGONAL_MM = math.hypot(36, 24)  # FocalLengthIn35mmFilm compares diagonals (CIPA DCG-001)
FOCAL_35MM = 28
SENSOR_WIDTH_MM = 13.2
GPS_NOISE_M = 0.1
SENSOR_NOISE = 1.3  # standard deviation in 8-bit steps
TRUTH_FILE = "truth.json"
JPEG_QUALITY = 92


def render_photos(
    folder: Path,
    photos: int = 24,
    width_px: int = 800,
    height_px: int = 600,
    seed: int = 0,
    quality: int = JPEG_QUALITY,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write ``photo_001.jpg``… and ``truth.json`` to ``folder``; ``progress`` is called with (photos done, photos).

    The photos carry EXIF as a drone writes it: focal length, date, and a GPS position with a decimetre of noise.
    ``truth.json`` is not a photo, so the pipeline passes it by: ``{"cameras": [{name, width, height, fx, fy, cx, cy,
    world_to_camera}], "origin", "scene_radius_m", "frame"}``, poses 4x4, world in ENU metres, camera x right, y down,
    z forward, pixel centres at +0.5. The first run compiles the ray caster (half a minute) and caches it. Raises
    ValueError for sizes that make no photo set.
    """
    if photos < 3 or min(width_px, height_px) < 64:
        raise ValueError(f"a sample needs at least 3 photos of 64 px, not {photos} of {width_px}x{height_px}")
    folder.mkdir(parents=True, exist_ok=True)
    focal_px = FOCAL_35MM / FILM_DIAGONAL_MM * math.hypot(width_px, height_px)
    rng = np.random.default_rng(seed)
    poses = orbit(photos, rng)
    scene = build_scene(seed)
    cameras = []
    for index, world_to_camera in enumerate(poses):
        linear = np.empty((height_px, width_px, 3), np.float32)
        tiles = perspective_tiles(scene.world, world_to_camera, focal_px, width_px, height_px)
        camera_to_world = np.linalg.inv(world_to_camera)[:3]
        render_photo(scene.world, scene.inner, INNER_HALF_M, scene.outer, camera_to_world, focal_px, *tiles, linear)
        photo = develop(linear, rng.normal(0, SENSOR_NOISE, linear.shape))
        name = f"photo_{index + 1:03d}.jpg"
        exif = photo_exif(index, camera_to_world[:, 3] + rng.normal(0, GPS_NOISE_M, 3), focal_px, width_px)
        Image.fromarray(photo).save(folder / name, quality=quality, subsampling=0 if quality > 90 else 2, exif=exif)
        cameras.append(
            {
                "name": name,
                "width": width_px,
                "height": height_px,
                "fx": focal_px,
                "fy": focal_px,
                "cx": width_px / 2,
                "cy": height_px / 2,
                "world_to_camera": world_to_camera.tolist(),
            }
        )
        if progress:
            progress(index + 1, photos)
    centres = np.array([np.linalg.inv(pose)[:3, 3] for pose in poses])
    truth = {
        "cameras": cameras,
        "scene_radius_m": float(np.median(np.linalg.norm(centres - centres.mean(0), axis=1))),
        "origin": ORIGIN,
        "frame": "ENU metres at the origin: x east, y north, z up; world_to_camera with x right, y down, z forward",
    }
    (folder / TRUTH_FILE).write_text(json.dumps(truth, indent=1), encoding="utf-8")


def orbit(photos: int, rng: np.random.Generator) -> list[Array]:
    """World-to-camera poses [4, 4] on two rings around the hamlet, a low wide one and a high narrow one.

    Heights and targets vary a little, as with a hand-flown drone: a perfect circle leaves the focal length badly
    determined.
    """
    low = max(2, round(photos * 0.58))
    poses = []
    for ring, count, radius, height, target in ((0, low, 35.0, 24.0, 2.0), (1, photos - low, 21.0, 33.0, 1.0)):
        for k in range(count):
            angle = 2 * math.pi * (k + 0.5 * ring) / count
            r, z = radius + rng.uniform(-2, 2), height + rng.uniform(-2, 2)
            eye = np.array([r * math.cos(angle), r * math.sin(angle), z])
            aim = np.array([*rng.uniform(-2, 2, 2), target])
            poses.append(look_at(eye, aim, roll_rad=rng.uniform(-0.02, 0.02)))
    return poses


def look_at(eye: Array, aim: Array, roll_rad: float = 0.0) -> Array:
    """World-to-camera [4, 4] of a camera at ``eye`` [3] that looks at ``aim`` [3]; world z up, camera y down."""
    forward = (aim - eye) / np.linalg.norm(aim - eye)
    right = np.cross(forward, [0, 0, 1])
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    c, s = math.cos(roll_rad), math.sin(roll_rad)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([c * right + s * down, c * down - s * right, forward])
    pose[:3, 3] = -pose[:3, :3] @ eye
    return pose


def photo_exif(index: int, position_enu_m: Array, focal_px: float, width_px: int) -> Image.Exif:
    """EXIF of one photo; the focal length in millimetres, in 35 mm film and in pixels agree."""
    exif = Image.Exif()
    exif[Base.Make] = "Spaceport"
    exif[Base.Model] = "Spaceport Sample"
    taken = (datetime(2026, 6, 21, 10, 0, 0) + timedelta(seconds=4 * index)).strftime("%Y:%m:%d %H:%M:%S")
    exif[Base.DateTime] = taken
    details = exif.get_ifd(IFD.Exif)
    details[Base.DateTimeOriginal] = taken
    details[Base.FocalLength] = focal_px * SENSOR_WIDTH_MM / width_px
    details[Base.FocalLengthIn35mmFilm] = FOCAL_35MM
    latitude, longitude, altitude = geodetic_from_enu(position_enu_m)
    gps = exif.get_ifd(IFD.GPSInfo)
    gps[GPS.GPSLatitudeRef] = "N" if latitude >= 0 else "S"
    gps[GPS.GPSLatitude] = degrees_minutes_seconds(latitude)
    gps[GPS.GPSLongitudeRef] = "E" if longitude >= 0 else "W"
    gps[GPS.GPSLongitude] = degrees_minutes_seconds(longitude)
    gps[GPS.GPSAltitudeRef] = b"\0"
    gps[GPS.GPSAltitude] = round(altitude, 3)
    return exif


def degrees_minutes_seconds(angle_deg: float) -> tuple[float, float, float]:
    angle = abs(angle_deg)
    minutes = (angle - int(angle)) * 60
    return float(int(angle)), float(int(minutes)), round((minutes - int(minutes)) * 60, 5)


def geodetic_from_enu(enu_m: Array) -> tuple[float, float, float]:
    """Latitude, longitude (degrees) and ellipsoidal height of a point [3] near the origin.

    Radii of curvature of the WGS84 ellipsoid at the origin; exact to a millimetre within a few hundred metres.
    """
    a, e2 = 6378137.0, 6.69437999014e-3
    lat = math.radians(ORIGIN["lat_deg"])
    w = math.sqrt(1 - e2 * math.sin(lat) ** 2)
    meridian, normal = a * (1 - e2) / w**3, a / w
    up = ORIGIN["alt_m"] + float(enu_m[2])
    north_rad = float(enu_m[1]) / (meridian + up)
    east_rad = float(enu_m[0]) / ((normal + up) * math.cos(lat))
    return ORIGIN["lat_deg"] + math.degrees(north_rad), ORIGIN["lon_deg"] + math.degrees(east_rad), up
