"""SOG version 2: the rules that viewers depend on, rounding, and the way back."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from compress.clean import clean, log_position, sigmoid
from compress.codebook import palette_size
from compress.sog_decode import decode_sog, open_sog
from compress.sog_encode import encode_sog, image_size
from splat.model import Gaussians
from tests.synthetic import covariances, make_gaussians


@pytest.fixture(scope="module")
def encoded():
    return encode_sog(clean(make_gaussians(200, 3)))


@pytest.fixture(scope="module")
def source(encoded) -> Gaussians:
    return make_gaussians(200, 3).select(encoded.index)


def test_archive_is_stored_flat_and_the_same_each_time(encoded) -> None:
    assert encode_sog(clean(make_gaussians(200, 3))).data == encoded.data
    with zipfile.ZipFile(io.BytesIO(encoded.data)) as archive:
        assert archive.namelist()[0] == "meta.json"
        assert all("/" not in name for name in archive.namelist())
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        meta = json.loads(archive.read("meta.json"))
        sizes = {name: Image.open(io.BytesIO(archive.read(name))).size for name in archive.namelist()[1:]}
    assert meta["version"] == 2 and isinstance(meta["version"], int)
    assert meta["count"] == 1000
    assert {sizes.pop("shN_centroids.webp")[0]} == {960}
    assert set(sizes.values()) == {image_size(1000)}
    assert [len(meta[part]["codebook"]) for part in ("scales", "sh0", "shN")] == [256] * 3


@pytest.mark.parametrize(("degree", "width"), [(1, 192), (2, 512), (3, 960)])
def test_centroid_image_has_the_width_of_its_bands(degree: int, width: int) -> None:
    archive = open_sog(encode_sog(clean(make_gaussians(60, degree))).data)
    assert archive.meta["shN"]["bands"] == degree
    assert archive.images["shN_centroids.webp"].shape[1] == width


def test_degree_zero_has_no_palette() -> None:
    result = encode_sog(clean(make_gaussians(40, 0)))
    assert "shN" not in open_sog(result.data).meta
    assert result.palette_entries == 0
    assert decode_sog(result.data).sh.shape == (200, 1, 3)


def test_positions_are_rounded_to_the_nearest_step(encoded, source: Gaussians) -> None:
    archive = open_sog(encoded.data)
    low, high = (archive.pixels("means", byte)[:, :3].astype(int) for byte in (0, 1))
    wide = log_position(source.means)
    mins, maxs = wide.min(axis=0), wide.max(axis=0)
    assert np.allclose(archive.meta["means"]["mins"], mins) and np.allclose(archive.meta["means"]["maxs"], maxs)
    error = (low + 256 * high) - (wide - mins) / (maxs - mins) * 65_535
    assert np.abs(error).max() <= 0.5001  # truncation would reach 1
    assert abs(error.mean()) < 0.03  # and lean to one side by half a step


def test_opacity_is_its_sigmoid_rounded(encoded, source: Gaussians) -> None:
    error = open_sog(encoded.data).pixels("sh0")[:, 3] - 255 / (1 + np.exp(-source.opacity_logits.astype(np.float64)))
    assert np.abs(error).max() <= 0.5001


def test_rotations_and_sizes_describe_the_same_ellipsoids(encoded, source: Gaussians) -> None:
    found, wanted = covariances(decode_sog(encoded.data)), covariances(source)
    error = np.linalg.norm(found - wanted, axis=(1, 2)) / np.linalg.norm(wanted, axis=(1, 2))
    assert np.median(error) < 0.012 and error.max() < 0.06


def test_quaternion_bytes_follow_the_smallest_three_rule() -> None:
    """By hand: a turn by 0.4 rad about x is (cos 0.2, sin 0.2, 0, 0), of which w is dropped."""
    one = make_gaussians(1, 0)
    one.quats[:] = [np.cos(0.2), np.sin(0.2), 0, 0]
    archive = open_sog(encode_sog(clean(one)).data)
    x_byte = round(255 * (np.sin(0.2) * np.sqrt(2) * 0.5 + 0.5))
    assert archive.pixels("quats").tolist() == [[x_byte, 128, 128, 252]] * 5


def test_harmonics_keep_their_coefficient_and_channel() -> None:
    """Each Gaussian is alone with one coefficient in one channel: a transposed palette would move it."""
    gaussians = make_gaussians(9, 3)
    gaussians.sh[:, 1:] = 0
    for row in range(45):
        gaussians.sh[row, 1 + row // 3, row % 3] = 0.5
    result = encode_sog(clean(gaussians), palette_entries=45)
    found = decode_sog(result.data).sh[:, 1:].reshape(45, 45)
    assert np.array_equal(np.abs(found).argmax(axis=1), result.index)
    assert np.allclose(found.max(axis=1), 0.5, atol=0.01)


def test_size_of_the_palette() -> None:
    assert [palette_size(n) for n in (0, 3, 300, 9_080, 90_586, 10**6)] == [1, 1, 64, 1024, 4096, 16_384]
    asked = encode_sog(clean(make_gaussians(60, 1)), palette_entries=10**6)
    assert asked.palette_entries == 300  # never more entries than Gaussians


def test_a_broken_file_is_refused_by_name(encoded) -> None:
    def altered(change) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(encoded.data)) as old, zipfile.ZipFile(buffer, "w") as new:
            meta = json.loads(old.read("meta.json"))
            change(meta)
            new.writestr("meta.json", json.dumps(meta))
            for name in old.namelist()[1:]:
                new.writestr(name, old.read(name))
        return buffer.getvalue()

    with pytest.raises(ValueError, match="version None"):
        decode_sog(altered(lambda meta: meta.pop("version")))
    with pytest.raises(ValueError, match=r"absent\.webp for quats"):
        decode_sog(altered(lambda meta: meta["quats"].update(files=["absent.webp"])))
    with pytest.raises(ValueError, match="codebook of scales has 3"):
        decode_sog(altered(lambda meta: meta["scales"].update(codebook=[1, 2, 3])))
    with pytest.raises(ValueError, match="palette entry"):
        decode_sog(altered(lambda meta: meta["shN"].update(count=1)))
    with pytest.raises(ValueError, match="pixels for 9999"):
        decode_sog(altered(lambda meta: meta.update(count=9999)))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 70), st.integers(0, 3), st.integers(0, 2**31))
def test_any_scene_comes_back_within_the_steps(count: int, degree: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    gaussians = Gaussians(
        means=(rng.normal(size=(count, 3)) * 10.0 ** rng.uniform(-3, 3)).astype(np.float32),
        log_scales=rng.uniform(-8, 2, size=(count, 3)).astype(np.float32),
        quats=rng.normal(size=(count, 4)).astype(np.float32),
        opacity_logits=rng.uniform(-5, 8, size=count).astype(np.float32),
        sh=rng.normal(size=(count, (degree + 1) ** 2, 3)).astype(np.float32),
    )
    scene = clean(gaussians)
    result = encode_sog(scene)
    found, wanted = decode_sog(result.data), gaussians.select(result.index)
    wide = log_position(wanted.means)
    step = np.ptp(wide, axis=0) / 65_535
    assert np.all(np.abs(log_position(found.means) - wide) <= 0.5 * step + 1e-6 * (1 + np.abs(wide)))
    assert np.abs(sigmoid(found.opacity_logits) - sigmoid(wanted.opacity_logits)).max() <= 0.501 / 255
    # up to 210 different values fit 256 entries: nothing but float32 may be lost
    assert np.abs(np.sort(found.log_scales, axis=1) - np.sort(wanted.log_scales, axis=1)).max() < 1e-5
    assert np.abs(found.sh[:, 0] - wanted.sh[:, 0]).max() < 1e-5
