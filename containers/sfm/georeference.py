"""The model in the scene frame, and where that lies on Earth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pycolmap

from job.documents import Origin
from sfm.align import Alignment, align
from sfm.request import MapPhoto

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Positions:
    """EXIF positions in ENU metres at a reference point; NaN where unknown (only "up" without an altitude)."""

    enu_m: Array  # [n, 3]
    reference: tuple[float, float, float] | None  # latitude, longitude (degrees), height (metres)


def positions_enu(photos: Sequence[MapPhoto]) -> Positions:
    rows = [[photo.info.latitude_deg, photo.info.longitude_deg, photo.info.altitude_m] for photo in photos]
    lla = np.array(rows, dtype=float)
    known = ~np.isnan(lla[:, :2]).any(1)
    enu = np.full((len(photos), 3), np.nan)
    if not known.any():
        return Positions(enu, None)
    altitude = lla[known, 2]
    height = float(np.median(altitude[~np.isnan(altitude)])) if (~np.isnan(altitude)).any() else 0.0
    reference = (float(np.median(lla[known, 0])), float(np.median(lla[known, 1])), height)
    filled = lla[known].copy()
    filled[np.isnan(altitude), 2] = height
    enu[known] = pycolmap.GPSTransform().ellipsoid_to_enu(filled, *reference)
    enu[np.isnan(lla[:, 2]), 2] = np.nan
    return Positions(enu, reference)


def geodetic(enu_m: Array, gps: Positions) -> Origin:
    assert gps.reference is not None
    latitude, longitude, height = pycolmap.GPSTransform().enu_to_ellipsoid(enu_m[None], *gps.reference)[0]
    return Origin(lat_deg=float(latitude), lon_deg=float(longitude), alt_m=float(height))


def registered_images(model: pycolmap.Reconstruction) -> list[pycolmap.Image]:
    return sorted((image for image in model.images.values() if image.has_pose), key=lambda image: image.name)


def align_model(model: pycolmap.Reconstruction, photos: Sequence[MapPhoto], gps: Positions) -> Alignment:
    """Transform ``model`` in place into the scene frame."""
    row = {photo.image: k for k, photo in enumerate(photos)}
    images = registered_images(model)
    centres = np.array([image.projection_center() for image in images])
    rotations = np.array([image.cam_from_world().rotation.matrix() for image in images])
    points = np.array([point.xyz for point in model.points3D.values()]).reshape(-1, 3)
    alignment = align(centres, rotations, points, gps.enu_m[[row[image.name] for image in images]])
    s = alignment.scene_from_model
    model.transform(pycolmap.Sim3d(s.scale, pycolmap.Rotation3d(s.rotation), s.translation))
    return alignment
