"""Write and read SPZ version 3 (Niantic Spatial, github.com/nianticlabs/spz), for tools that do not read SOG.

SPZ keeps its data right-up-back (x right, y up, z towards the viewer), the scene frame is right-down-forward: y and z
change sign on the way, which is a rotation by 180 degrees about x, so nothing is mirrored.
"""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compress.clean import sigmoid
from splat.model import Gaussians

MAGIC = 0x5053474E  # "NGSP"
VERSION = 3
HEADER = struct.Struct("<IIIBBBB")  # magic, version, count, degree, fractional bits, flags, reserved
COLOR_SCALE = 0.15
ROTATION_STEPS = 511  # nine bits of magnitude for 1/sqrt(2)
FIRST_BAND_BITS = 5  # the reference writer's defaults
HIGHER_BAND_BITS = 4
# Sign of each coefficient (constant, bands 1 to 3) after y -> -y, z -> -z in the real basis of 3DGS.
FLIP_SH = np.array([1, -1, -1, 1, -1, 1, 1, -1, 1, -1, 1, -1, -1, 1, -1, 1], dtype=np.float32)
FLIP_XYZ = np.array([1, -1, -1], dtype=np.float32)
FLIP_QUAT = np.array([1, 1, -1, -1], dtype=np.float32)  # wxyz


def flip_frame(gaussians: Gaussians) -> Gaussians:
    """Right-down-forward to right-up-back, or back again."""
    return Gaussians(
        gaussians.means * FLIP_XYZ,
        gaussians.log_scales,
        gaussians.quats * FLIP_QUAT,
        gaussians.opacity_logits,
        gaussians.sh * FLIP_SH[None, : gaussians.sh.shape[1], None],
    )


def encode_spz(
    gaussians: Gaussians, first_band_bits: int = FIRST_BAND_BITS, higher_band_bits: int = HIGHER_BAND_BITS
) -> bytes:
    """The Gaussians, all finite, as an .spz file; the same input gives the same bytes.

    Positions take 24 bits, with as many of them after the point as the farthest one leaves; ln(scale) has steps of 1/16
    from -10 to 5.9, opacity and colour eight bits. Raises ValueError for positions beyond 2^23.
    """
    flipped = flip_frame(gaussians)
    bits = fractional_bits(flipped.means)
    steps = np.rint(flipped.means.astype(np.float64) * 2**bits).astype(np.int32)
    opacity = np.rint(sigmoid(flipped.opacity_logits) * 255)
    color = np.rint((flipped.sh[:, 0] * COLOR_SCALE + 0.5) * 255)
    body = [
        HEADER.pack(MAGIC, VERSION, len(steps), gaussians.sh_degree, bits, 0, 0),
        steps.astype("<i4").view(np.uint8).reshape(-1, 3, 4)[:, :, :3].tobytes(),
        as_bytes(opacity),
        as_bytes(color),
        as_bytes(np.rint((flipped.log_scales + 10) * 16)),
        pack_rotations(flipped.quats).tobytes(),
        quantize_harmonics(flipped.sh[:, 1:], first_band_bits, higher_band_bits).tobytes(),
    ]
    return gzip.compress(b"".join(body), compresslevel=9, mtime=0)


def fractional_bits(means: NDArray[np.floating]) -> int:
    """Bits after the point: as many as leave room for the largest coordinate, at most 18."""
    largest = float(np.abs(means).max(initial=0.0))
    bits = int(np.floor(np.log2((2**23 - 1) / max(largest, 1e-6))))
    if bits < 0:
        raise ValueError(f"SPZ holds coordinates up to {2**23 - 1}, the scene has {largest:.0f}")
    return min(bits, 18)


def as_bytes(values: NDArray[np.floating]) -> bytes:
    return np.clip(values, 0, 255).astype(np.uint8).tobytes()


def pack_rotations(quats: NDArray[np.floating]) -> NDArray[np.uint32]:
    """[N] words: two bits for the largest of xyzw, then sign and nine bits of each of the other three, in order."""
    xyzw = quats[:, [1, 2, 3, 0]].astype(np.float64)
    xyzw /= np.linalg.norm(xyzw, axis=1, keepdims=True)
    largest = np.abs(xyzw).argmax(axis=1)
    xyzw *= np.where(np.take_along_axis(xyzw, largest[:, None], axis=1) < 0, -1.0, 1.0)
    magnitude = np.minimum(np.rint(np.abs(xyzw) * np.sqrt(2) * ROTATION_STEPS), ROTATION_STEPS).astype(np.uint32)
    field = magnitude | ((xyzw < 0).astype(np.uint32) << np.uint32(9))
    word = largest.astype(np.uint32)
    for component in range(4):
        shifted = (word << np.uint32(10)) | field[:, component]
        word = np.where(largest == component, word, shifted)
    return word.astype("<u4")


def quantize_harmonics(sh: NDArray[np.floating], first_band_bits: int, higher_band_bits: int) -> NDArray[np.uint8]:
    """[N, C, 3] to bytes (value * 128 + 128), rounded to the middle of the buckets of fewer bits."""
    bits = np.where(np.arange(sh.shape[1]) < 3, first_band_bits, higher_band_bits)[None, :, None]
    bucket = 2 ** (8 - bits)
    steps = np.rint(sh.astype(np.float64) * 128) + 128
    return np.clip(np.floor((steps + bucket / 2) / bucket) * bucket, 0, 255).astype(np.uint8)


def decode_spz(source: Path | bytes) -> Gaussians:
    """The Gaussians of an .spz file of version 3, back in the scene frame. Raises ValueError for anything else."""
    data = gzip.decompress(source if isinstance(source, bytes) else source.read_bytes())
    magic, version, count, degree, bits, _, _ = HEADER.unpack_from(data)
    if magic != MAGIC or version != VERSION or degree > 3:
        raise ValueError(f"not an SPZ file of version 3 and degree 0 to 3 (version {version}, degree {degree})")
    coefficients = (degree + 1) ** 2 - 1
    sizes = [9 * count, count, 3 * count, 3 * count, 4 * count, 3 * coefficients * count]
    if len(data) != HEADER.size + sum(sizes):
        raise ValueError(f"the file has {len(data)} bytes instead of {HEADER.size + sum(sizes)}")
    offsets = HEADER.size + np.concatenate([[0], np.cumsum(sizes)])
    parts = [np.frombuffer(data, np.uint8, size, offset) for size, offset in zip(sizes, offsets, strict=False)]
    words = np.zeros((count, 3, 4), dtype=np.uint8)
    words[:, :, 1:] = parts[0].reshape(count, 3, 3)
    steps = words.view("<i4")[:, :, 0] >> 8  # shifting down keeps the sign
    opacity = np.clip(parts[1] / 255.0, 1e-6, 1 - 1e-6)
    color = (parts[2].reshape(count, 1, 3) / 255.0 - 0.5) / COLOR_SCALE
    harmonics = (parts[5].reshape(count, coefficients, 3).astype(np.float64) - 128) / 128
    return flip_frame(
        Gaussians(
            (steps / 2.0**bits).astype(np.float32),
            (parts[3].reshape(count, 3) / 16.0 - 10).astype(np.float32),
            unpack_rotations(parts[4].view("<u4")),
            np.log(opacity / (1 - opacity)).astype(np.float32),
            np.concatenate([color, harmonics], axis=1).astype(np.float32),
        )
    )


def unpack_rotations(words: NDArray[np.uint32]) -> NDArray[np.float32]:
    """[N, 4] wxyz of packed words; the inverse of ``pack_rotations``."""
    largest = (words >> 30).astype(np.int64)
    rest = words.astype(np.uint32)
    xyzw = np.zeros((len(words), 4))
    for component in (3, 2, 1, 0):
        there = largest != component
        value = (rest & 511) / ROTATION_STEPS / np.sqrt(2)
        value = np.where((rest >> 9) & 1, -value, value)
        xyzw[there, component] = value[there]
        rest = np.where(there, rest >> 10, rest).astype(np.uint32)
    missing = np.sqrt(np.maximum(0, 1 - (xyzw**2).sum(axis=1)))
    np.put_along_axis(xyzw, largest[:, None], missing[:, None], axis=1)
    return xyzw[:, [3, 0, 1, 2]].astype(np.float32)
