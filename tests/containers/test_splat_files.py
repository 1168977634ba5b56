"""PLY files, COLMAP models and photos: read what others write, and be read by them."""

import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from plyfile import PlyData, PlyElement

from splat.cameras import View, read_scene, rotation_matrix
from splat.images import load_photo, save_photo
from splat.model import Gaussians, read_ply, write_ply


def random_gaussians(n, degree, seed=0):
    rng = np.random.default_rng(seed)
    k = (degree + 1) ** 2
    return Gaussians(*[rng.normal(size=s) for s in ((n, 3), (n, 3), (n, 4), (n,), (n, k, 3))])


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("n", [0, 7])
def test_ply_round_trip(tmp_path, degree, n):
    gaussians = random_gaussians(n, degree)
    write_ply(tmp_path / "a.ply", gaussians)
    again = read_ply(tmp_path / "a.ply")
    assert again.sh_degree == degree
    for name, value in vars(gaussians).items():
        assert np.array_equal(value, getattr(again, name)) and getattr(again, name).dtype == np.float32


def test_ply_has_the_standard_layout(tmp_path):
    """Names and order of Kerbl et al.'s files; f_rest channel-major."""
    gaussians = random_gaussians(3, 2)
    write_ply(tmp_path / "a.ply", gaussians)
    vertex = PlyData.read(str(tmp_path / "a.ply"))["vertex"]
    names = [p.name for p in vertex.properties]
    assert names[:9] == ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    assert names[9 : 9 + 24] == [f"f_rest_{i}" for i in range(24)]
    assert names[33:] == ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    assert vertex["f_rest_8"][1] == gaussians.sh[1, 1, 1]  # eight coefficients of red, then green begins
    assert vertex["f_dc_2"][2] == gaussians.sh[2, 0, 2]
    assert (tmp_path / "a.ply").read_bytes().startswith(b"ply\nformat binary_little_endian 1.0\n")


def test_a_file_that_is_no_splat_is_named(tmp_path):
    (tmp_path / "b.ply").write_text("hello")
    with pytest.raises(ValueError, match=r"b\.ply is not a PLY file"):
        read_ply(tmp_path / "b.ply")
    header = "ply\nformat {} 1.0\nelement vertex 1\nproperty float x\nend_header\n"
    broken = {
        header.format("ascii") + "0\n": "not a binary PLY",
        header.format("binary_little_endian") + "\0\0\0\0": "no property y, z",
        header.format("binary_little_endian") + "\0\0": "cut short: 1 vertices need 4 bytes, not 2",
        header.replace("vertex", "face").format("binary_little_endian"): "begins with the element 'face'",
        header.replace("float x", "list uchar int x").format("binary_little_endian"): "no number",
        "ply\nformat binary_little_endian 1.0\n": "no end of header",
    }
    for text, words in broken.items():
        (tmp_path / "c.ply").write_text(text)
        with pytest.raises(ValueError, match=rf"c\.ply.*{words}"):
            read_ply(tmp_path / "c.ply")


@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_ply_files_of_other_programs(tmp_path, byte_order):
    """Another library's file: other property order and types, comments, a further element, either byte order."""
    gaussians = random_gaussians(5, 1)
    write_ply(tmp_path / "ours.ply", gaussians)
    vertex = PlyData.read(str(tmp_path / "ours.ply"))["vertex"].data
    layout = [("red", "u1"), *[(name, "f8" if name == "x" else "f4") for name in reversed(vertex.dtype.names)]]
    other = np.zeros(5, np.dtype(layout))
    for name in vertex.dtype.names:
        other[name] = vertex[name]
    faces = np.zeros(1, np.dtype([("a", "i4")]))
    elements = [PlyElement.describe(other, "vertex"), PlyElement.describe(faces, "face")]
    PlyData(elements, byte_order=byte_order, comments=["made elsewhere"]).write(str(tmp_path / "theirs.ply"))
    again = read_ply(tmp_path / "theirs.ply")
    for name, value in vars(gaussians).items():
        assert np.array_equal(value, getattr(again, name))


def test_gaussians_check_their_shapes():
    with pytest.raises(ValueError, match="quats has shape"):
        Gaussians(np.zeros((2, 3)), np.zeros((2, 3)), np.zeros((2, 3)), np.zeros(2), np.zeros((2, 1, 3)))
    with pytest.raises(ValueError, match="5 coefficients"):
        Gaussians(np.zeros((2, 3)), np.zeros((2, 3)), np.zeros((2, 4)), np.zeros(2), np.zeros((2, 5, 3)))


MAKE_MODEL = """
import sys
import numpy as np
import pycolmap
model = pycolmap.Reconstruction()
camera = pycolmap.Camera(model=sys.argv[2], width=640, height=480, params=eval(sys.argv[3]), camera_id=7)
model.add_camera_with_trivial_rig(camera)
for i, name in enumerate(["b/two.jpg", "a one.jpg"]):
    image = pycolmap.Image(name=name, camera_id=7, image_id=i + 3)
    image.points2D = pycolmap.Point2DList([pycolmap.Point2D(np.array([1.0 + i, 2.0])) for _ in range(i + 1)])
    pose = pycolmap.Rigid3d(pycolmap.Rotation3d(np.array([0.1, 0.2, 0.3, 0.9 + i])), np.array([1.0, 2.0, 3.0 + i]))
    model.add_image_with_trivial_frame(image, pose)
for k in range(4):
    track = pycolmap.Track()
    if k == 0:
        track.add_element(3, 0)
        track.add_element(4, 1)
    model.add_point3D(np.array([k, 2.0 * k, -k]), track, np.array([k, 10 * k, 255], np.uint8))
model.write(sys.argv[1])
"""


def write_colmap_model(folder, model, params):
    """COLMAP's own writer, in a process of its own: importing it replaces signal handlers."""
    (folder / "sparse").mkdir(parents=True)
    arguments = [sys.executable, "-c", MAKE_MODEL, str(folder / "sparse"), model, repr(params)]
    subprocess.run(arguments, check=True, capture_output=True)


def test_a_colmap_model_is_read_as_colmap_wrote_it(tmp_path):
    write_colmap_model(tmp_path, "PINHOLE", [500.0, 510.0, 320.5, 239.5])
    scene = read_scene(tmp_path)
    assert [view.name for view in scene.views] == ["a one.jpg", "b/two.jpg"]
    one, two = scene.views
    assert (one.width, one.height) == (640, 480)
    assert np.array_equal(one.K, np.array([[500, 0, 320.5], [0, 510, 239.5], [0, 0, 1]]))
    assert np.allclose(one.world_to_camera[:3, 3], [1, 2, 4]) and np.allclose(two.world_to_camera[:3, 3], [1, 2, 3])
    assert np.allclose(two.world_to_camera[:3, :3], rotation_matrix(np.array([0.9, 0.1, 0.2, 0.3])), atol=1e-12)
    order = np.argsort(scene.points_xyz[:, 1])
    assert np.allclose(scene.points_xyz[order], [[k, 2 * k, -k] for k in range(4)])
    assert np.array_equal(scene.points_rgb[order], [[k, 10 * k, 255] for k in range(4)])
    assert scene.photo_path(two) == tmp_path / "images" / "b/two.jpg"


def test_a_distorted_camera_is_refused_by_name(tmp_path):
    write_colmap_model(tmp_path, "OPENCV", [500.0, 500.0, 320.0, 240.0, 0.1, 0.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="camera 7 has the model OPENCV, but only PINHOLE"):
        read_scene(tmp_path)


def test_a_damaged_model_is_named(tmp_path):
    write_colmap_model(tmp_path, "PINHOLE", [500.0, 510.0, 320.5, 239.5])
    for file in ("cameras.bin", "images.bin", "points3D.bin"):
        path = tmp_path / "sparse" / file
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) - 9])
        with pytest.raises(ValueError, match=file.replace(".", r"\.")):
            read_scene(tmp_path)
        path.write_bytes(whole)
    (tmp_path / "sparse" / "points3D.bin").write_bytes(struct.pack("<Q", 2**60))
    with pytest.raises(ValueError, match="too short"):
        read_scene(tmp_path)
    (tmp_path / "sparse" / "points3D.bin").unlink()
    with pytest.raises(FileNotFoundError):
        read_scene(tmp_path)


def test_resized_views_see_the_same_scene():
    view = View("v", 200, 100, np.array([[150.0, 0, 90], [0, 160, 60], [0, 0, 1]]), np.eye(4))
    small = view.resized(50, 20)
    point = np.array([0.3, -0.1, 2.0])
    big_px, small_px = view.K @ point / 2, small.K @ point / 2
    assert np.allclose(small_px[:2], big_px[:2] * [0.25, 0.2])
    fitted = view.fitted(100)
    assert (fitted.width, fitted.height) == (100, 50)
    assert view.fitted(1000).width == 200


def test_the_centre_of_a_camera_projects_to_nothing():
    pose = np.eye(4)
    pose[:3, :3] = rotation_matrix(np.array([0.5, 0.1, -0.4, 0.2]))
    pose[:3, 3] = [3, -1, 2]
    view = View("v", 4, 4, np.eye(3), pose)
    assert np.allclose(pose @ [*view.center, 1], [0, 0, 0, 1])


def test_photos_are_shrunk_by_area(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    small = load_photo(tmp_path / "a.png", 15, 10)
    means = pixels.reshape(10, 4, 15, 4, 3).mean(axis=(1, 3))
    assert small.dtype == np.uint8 and np.abs(small - means).max() <= 1
    assert np.array_equal(load_photo(tmp_path / "a.png", 60, 40), pixels)
    save_photo(tmp_path / "b.png", pixels / 255.0)
    assert np.array_equal(load_photo(tmp_path / "b.png", 60, 40), pixels)


def test_a_photo_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"not a photo")
    for name in ("x.jpg", "missing.jpg"):
        with pytest.raises(ValueError, match=name):
            load_photo(tmp_path / name, 4, 4)
