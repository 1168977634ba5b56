"""The sample photos and their generator: EXIF, truth, and the ray caster against slow and plain references."""

import importlib.resources
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.ExifTags import GPS, IFD, Base

from benchmarks.hamlet.photos import ORIGIN, geodetic_from_enu, look_at, orbit, render_photos
from benchmarks.hamlet.render import ground_height, hit_ground, trace
from benchmarks.hamlet.scene import HALF_M, Solids, local_slopes, terrain_heights

pytestmark = pytest.mark.slow  # compiles the ray caster


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    done = []
    render_photos(folder, photos=4, width_px=320, height_px=240, progress=lambda k, n: done.append((k, n)))
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]
    return folder


def test_files_and_truth(sample):
    truth = json.loads((sample / "truth.json").read_text())
    names = [camera["name"] for camera in truth["cameras"]]
    assert sorted(path.name for path in sample.iterdir()) == [*names, "truth.json"]
    for camera in truth["cameras"]:
        with Image.open(sample / camera["name"]) as photo:
            assert photo.size == (camera["width"], camera["height"]) == (320, 240)
            values = np.asarray(photo, float)
        assert values.std() > 25 and 60 < values.mean() < 190  # exposed, and full of detail
        assert (values > 250).all(2).mean() < 0.02  # neither burnt out nor sky
        pose = np.array(camera["world_to_camera"])
        assert pose[:3, :3] @ pose[:3, :3].T == pytest.approx(np.eye(3))
        assert np.linalg.det(pose[:3, :3]) == pytest.approx(1)


def test_exif_agrees_with_the_truth(sample):
    truth = json.loads((sample / "truth.json").read_text())
    dates = []
    for camera in truth["cameras"]:
        with Image.open(sample / camera["name"]) as photo:
            exif = photo.getexif()
            details, gps = exif.get_ifd(IFD.Exif), exif.get_ifd(IFD.GPSInfo)
        assert exif[Base.Model] == "Spaceport Sample"
        dates.append(details[Base.DateTimeOriginal])
        film_diagonal = math.hypot(36, 24)
        assert camera["fx"] == pytest.approx(details[Base.FocalLengthIn35mmFilm] / film_diagonal * math.hypot(320, 240))
        assert camera["fx"] == pytest.approx(float(details[Base.FocalLength]) / 13.2 * 320, rel=1e-4)
        eye = np.linalg.inv(np.array(camera["world_to_camera"]))[:3, 3]
        latitude = sum(float(part) / 60**k for k, part in enumerate(gps[GPS.GPSLatitude]))
        longitude = sum(float(part) / 60**k for k, part in enumerate(gps[GPS.GPSLongitude]))
        metres_a_degree = 111_150.0  # of a meridian at this latitude, to a few tenths of a percent
        assert (latitude - ORIGIN["lat_deg"]) * metres_a_degree == pytest.approx(eye[1], abs=0.6)
        east = (longitude - ORIGIN["lon_deg"]) * 111_412 * math.cos(math.radians(ORIGIN["lat_deg"]))
        assert east == pytest.approx(eye[0], abs=0.7)
        assert float(gps[GPS.GPSAltitude]) - ORIGIN["alt_m"] == pytest.approx(eye[2], abs=0.6)
    assert dates == sorted(set(dates))


def test_geodesy_agrees_with_colmap():
    pycolmap = pytest.importorskip("pycolmap")
    points = np.array([[120.0, -80.0, 35.0], [-30.0, 55.0, 12.0]])
    lla = np.array([geodetic_from_enu(point) for point in points])
    enu = pycolmap.GPSTransform().ellipsoid_to_enu(lla, ORIGIN["lat_deg"], ORIGIN["lon_deg"], ORIGIN["alt_m"])
    assert np.abs(enu - points).max() < 0.005


def test_look_at_and_orbit():
    pose = look_at(np.array([10.0, 0, 5]), np.array([0.0, 0, 5]))
    assert pose @ [0, 0, 5, 1] == pytest.approx([0, 0, 10, 1])
    assert (pose @ [0, 0, 4, 1])[1] == pytest.approx(1)  # lower is further down in the photo
    assert (pose @ [0, 1, 5, 1])[0] == pytest.approx(1)  # looking west, north is to the right
    first, second = orbit(24, np.random.default_rng(3)), orbit(24, np.random.default_rng(3))
    assert len(first) == 24 and all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


class FirstPhotoDone(Exception):
    """Ends the rendering."""


def test_the_committed_photos_are_those_of_the_generator(tmp_path):
    def stop(_done, _photos):
        raise FirstPhotoDone

    with pytest.raises(FirstPhotoDone):
        render_photos(tmp_path, quality=100, progress=stop)
    with importlib.resources.as_file(importlib.resources.files("spaceport.sample")) as committed:
        assert sum(photo.stat().st_size for photo in (committed / "photos").iterdir()) < 3_000_000
        cameras = json.loads((committed / "truth.json").read_text())["cameras"]
        images = [
            np.asarray(Image.open(folder / "photo_001.jpg"), float) for folder in (committed / "photos", tmp_path)
        ]
    psnr_db = 10 * math.log10(255**2 / np.square(images[0] - images[1]).mean())
    assert psnr_db > 31.5  # of JPEG with quality 81 and halved colour resolution: 32.1; the next photo has 12
    poses = orbit(24, np.random.default_rng(0))
    assert np.array([camera["world_to_camera"] for camera in cameras]) == pytest.approx(np.array(poses))


def test_a_set_that_makes_no_sense_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 3 photos"):
        render_photos(tmp_path, photos=2)


def test_ground_hit_agrees_with_a_fine_march():
    heights = terrain_heights(0)
    slopes = local_slopes(heights)
    rng = np.random.default_rng(1)
    for _ in range(60):
        origin = np.array([*rng.uniform(-35, 35, 2), rng.uniform(20, 34)])
        direction = np.array([*rng.normal(size=2), -rng.uniform(0.2, 1.5)])
        direction /= np.linalg.norm(direction)
        got = hit_ground(heights, HALF_M, float(heights.max()), slopes, *origin, *direction, 0.0, 600.0)
        t = np.arange(0, 300, 0.01)
        points = origin + t[:, None] * direction
        above = np.array([z - ground_height(heights, HALF_M, x, y) for x, y, z in points[::10]])
        coarse = int(np.argmax(above < 0)) * 10
        assert got == pytest.approx(t[coarse], abs=0.25)
        x, y, z = origin + got * direction
        assert abs(z - ground_height(heights, HALF_M, x, y)) < 0.02


def test_solids_are_hit_where_geometry_says():
    solids = Solids(np.zeros((1024, 1024), np.float32))
    solids.box((0.0, 0.0, 0.0), 90.0, (3.0, 1.0, 2.0), 4, (0.5, 0.5, 0.5))  # turned: 1 m to the east, 3 m to the north
    solids.ellipsoid((0.0, 20.0, 5.0), (1.0, 2.0, 1.0), 6, (0.5, 0.5, 0.5))
    world = solids.world()
    both = np.array([0, 1])
    distance, hit, _ = trace(world, both, 10.0, 0.5, 2.0, -1.0, 0.0, 0.0, 0.0)
    assert (distance, hit) == (pytest.approx(9.0), 0)
    distance, hit, _ = trace(world, both, 0.0, 0.0, 30.0, 0.0, 0.0, -1.0, 0.0)
    assert (distance, hit) == (pytest.approx(26.0), 0)
    distance, hit, _ = trace(world, both, 0.0, 40.0, 5.0, 0.0, -1.0, 0.0, 0.0)
    assert (distance, hit) == (pytest.approx(18.0), 1)
    distance, hit, _ = trace(world, both, 10.0, 10.0, 7.0, 0.0, 0.0, -1.0, 0.0)
    assert (distance, hit) == (pytest.approx(7.0, abs=1e-3), -1)
