"""SPZ version 3 by the layout of its specification."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest

from compress.spz import FLIP_SH, decode_spz, encode_spz, flip_frame, fractional_bits, pack_rotations, unpack_rotations
from splat.model import Gaussians
from tests.synthetic import covariances, make_gaussians


def real_harmonics(directions: np.ndarray) -> np.ndarray:
    """[N, 16] the basis of 3DGS without its constants (Sloan, "Efficient Spherical Harmonic Evaluation", 2013)."""
    x, y, z = directions.T
    return np.stack(
        [
            *(np.ones_like(x), -y, z, -x),
            *(x * y, -y * z, 2 * z * z - x * x - y * y, -x * z, x * x - y * y),
            *(-y * (3 * x * x - y * y), x * y * z, -y * (4 * z * z - x * x - y * y)),
            *(z * (2 * z * z - 3 * x * x - 3 * y * y), -x * (4 * z * z - x * x - y * y)),
            *(z * (x * x - y * y), -x * (x * x - 3 * y * y)),
        ],
        axis=1,
    )


def test_header_and_block_sizes() -> None:
    data = gzip.decompress(encode_spz(make_gaussians(20, 2)))
    magic, version, count, degree, bits, flags, reserved = struct.unpack_from("<IIIBBBB", data)
    assert (data[:4], magic, version, count, degree, flags, reserved) == (b"NGSP", 0x5053474E, 3, 100, 2, 0, 0)
    assert bits == 18
    assert len(data) == 16 + 100 * (9 + 1 + 3 + 3 + 4 + 24)


def test_one_gaussian_by_hand() -> None:
    """Every byte from the specification: y and z change sign on the way to right-up-back."""
    one = Gaussians(
        means=np.array([[1.5, 2.0, -3.0]], np.float32),
        log_scales=np.array([[-10.0, -2.5, 5.0]], np.float32),
        quats=np.array([[1.0, 0.0, 0.0, 0.0]], np.float32),
        opacity_logits=np.array([0.0], np.float32),
        sh=np.array([[[0.0, 1.0, -1.0]]], np.float32),
    )
    body = gzip.decompress(encode_spz(one))[16:]
    steps = [int.from_bytes(body[i : i + 3], "little", signed=True) for i in (0, 3, 6)]
    assert steps == [int(1.5 * 2**18), int(-2.0 * 2**18), int(3.0 * 2**18)]
    assert body[9] == 128  # sigmoid(0) = 0.5
    assert list(body[10:13]) == [128, round((0.5 + 0.15) * 255), round((0.5 - 0.15) * 255)]
    assert list(body[13:16]) == [0, 120, 240]
    assert struct.unpack("<I", body[16:20])[0] == 3 << 30  # w is the largest, the others are 0


def test_round_trip_within_the_steps() -> None:
    source = make_gaussians(100, 3)
    found = decode_spz(encode_spz(source))
    assert np.abs(found.means - source.means).max() <= 0.51 / 2**18
    assert np.abs(found.log_scales - source.log_scales).max() <= 0.51 / 16
    relative = np.linalg.norm(covariances(found) - covariances(source), axis=(1, 2))
    assert (relative / np.linalg.norm(covariances(source), axis=(1, 2))).max() < 0.08
    exact = decode_spz(encode_spz(source, first_band_bits=8, higher_band_bits=8))
    assert np.abs(exact.sh[:, 1:] - source.sh[:, 1:]).max() <= 0.51 / 128


def test_far_scenes_keep_fewer_bits_after_the_point() -> None:
    assert [fractional_bits(np.array([x])) for x in (0.1, 31.9, 40.0, 5000.0, 8_388_000.0)] == [18, 18, 17, 10, 0]
    with pytest.raises(ValueError, match="coordinates up to"):
        fractional_bits(np.array([1e8]))


def test_rotations_pack_to_ten_bits_each() -> None:
    rng = np.random.default_rng(0)
    quats = rng.normal(size=(500, 4))
    found = unpack_rotations(pack_rotations(quats))
    dot = np.abs((found * quats).sum(axis=1)) / np.linalg.norm(quats, axis=1)
    assert np.degrees(2 * np.arccos(np.clip(dot, -1, 1))).max() < 0.3


def test_turning_the_frame_turns_the_colours_with_it() -> None:
    """Colour seen from d before equals colour seen from the turned d after, for every coefficient."""
    directions = np.random.default_rng(1).normal(size=(50, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    before = real_harmonics(directions)
    after = real_harmonics(directions * [1, -1, -1])
    assert np.allclose(before, after * FLIP_SH)


def test_flip_is_a_rotation_and_its_own_inverse() -> None:
    source = make_gaussians(30, 3)
    turned, turn = flip_frame(source), np.diag([1.0, -1.0, -1.0])
    assert np.allclose(covariances(turned), turn @ covariances(source) @ turn.T, atol=1e-9)
    back = flip_frame(turned)
    assert np.array_equal(back.means, source.means) and np.array_equal(back.sh, source.sh)


def test_other_files_are_refused() -> None:
    with pytest.raises(ValueError, match="version 2"):
        decode_spz(gzip.compress(struct.pack("<IIIBBBB", 0x5053474E, 2, 0, 0, 12, 0, 0)))
    with pytest.raises(ValueError, match="bytes instead of"):
        decode_spz(gzip.compress(gzip.decompress(encode_spz(make_gaussians(2, 0)))[:-1]))
