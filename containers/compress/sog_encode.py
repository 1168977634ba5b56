"""Write SOG version 2: a ZIP of meta.json and lossless WebP images, one pixel for each Gaussian.

Format: developer.playcanvas.com, "SOG format"; where its text and the readers disagree, the readers count (codebooks of
scales hold ln(scale), the dropped quaternion component counts w as 0, a one-band palette is 192 pixels wide).
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from compress.clean import CleanScene, log_position, sigmoid
from compress.codebook import fit_codebook, fit_palette, nearest, palette_labels, palette_size
from compress.order import canonical_axes, morton_order
from splat.model import Gaussians

VERSION = 2
PALETTE_COLUMNS = 64  # palette entries side by side in the centroids image
Images = dict[str, NDArray[np.uint8]]  # file name -> [H, W, C]
ZIP_TIME = (1980, 1, 1, 0, 0, 0)
SEED = 20_001


@dataclass(frozen=True)
class EncodedSog:
    """``data`` is the file; pixel i holds row ``index[i]`` of the scene that went in."""

    data: bytes
    index: NDArray[np.int64]  # [N]
    palette_entries: int  # 0 without view-dependent colour


def encode_sog(scene: CleanScene, palette_entries: int | None = None) -> EncodedSog:
    """The scene as a .sog file; the same input gives the same bytes.

    ``palette_entries`` is the size of the palette of spherical harmonics (default: by the number of Gaussians, at most
    65,536).
    """
    order = morton_order(scene.gaussians.means)
    gaussians = scene.gaussians.select(order)
    weights = scene.visibility[order]
    bands = gaussians.sh_degree
    quats, log_scales = canonical_axes(gaussians.quats, gaussians.log_scales)

    images: Images = {}
    meta: dict[str, object] = {"version": VERSION, "asset": {"generator": "Spaceport"}, "count": len(order)}
    meta["means"] = put_means(gaussians.means, images)
    meta["scales"] = put_scales(log_scales, weights, images)
    meta["quats"] = put_quats(quats, images)
    meta["sh0"] = put_color(gaussians, weights, images)
    entries = 0
    if bands > 0:
        entries = min(palette_entries or palette_size(len(order)), len(order), 65_536)
        meta["shN"] = put_harmonics(gaussians.sh[:, 1:], weights, bands, entries, images)
    return EncodedSog(pack(meta, images), scene.index[order], entries)


def image_size(count: int) -> tuple[int, int]:
    """Width and height, both multiples of four, nearly square, of an image with at least ``count`` pixels."""
    width = int(np.ceil(np.sqrt(count) / 4)) * 4
    return width, int(np.ceil(count / width / 4)) * 4


def as_image(rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[N, C] bytes as [H, W, C], row by row, padded with the last one."""
    width, height = image_size(len(rows))
    padding = np.broadcast_to(rows[-1:], (width * height - len(rows), rows.shape[1]))
    return np.concatenate([rows, padding]).reshape(height, width, rows.shape[1])


def put_means(means: NDArray[np.floating], images: Images) -> dict[str, object]:
    """16 bits an axis of the log position between the smallest and the largest, rounded; low and high bytes apart."""
    values = log_position(means)
    low, high = values.min(axis=0), values.max(axis=0)
    span = np.where(high > low, high - low, 1.0)
    steps = np.rint((values - low) / span * 65_535).astype(np.uint16)
    images["means_l.webp"] = as_image((steps & 0xFF).astype(np.uint8))
    images["means_u.webp"] = as_image((steps >> 8).astype(np.uint8))
    return {"mins": low.tolist(), "maxs": high.tolist(), "files": ["means_l.webp", "means_u.webp"]}


def put_scales(log_scales: NDArray, weights: NDArray[np.float64], images: Images) -> dict[str, object]:
    """Indices into one codebook of ln(scale)."""
    codebook = fit_codebook(log_scales, np.repeat(color_weights(weights), 3))
    images["scales.webp"] = as_image(nearest(codebook, log_scales))
    return {"codebook": as_json(codebook), "files": ["scales.webp"]}


def put_quats(quats: NDArray[np.float64], images: Images) -> dict[str, object]:
    """Smallest three of unit wxyz quaternions: three bytes, and 252 + the index of the dropped (largest) one."""
    largest = np.abs(quats).argmax(axis=1)
    sign = np.where(np.take_along_axis(quats, largest[:, None], axis=1) < 0, -1.0, 1.0)
    others = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])[largest]
    three = np.take_along_axis(quats * sign, others, axis=1) * np.sqrt(2)
    steps = np.clip(np.rint((three * 0.5 + 0.5) * 255), 0, 255)
    images["quats.webp"] = as_image(np.column_stack([steps, 252 + largest]).astype(np.uint8))
    return {"files": ["quats.webp"]}


def put_color(gaussians: Gaussians, weights: NDArray[np.float64], images: Images) -> dict[str, object]:
    """Indices into one codebook of f_dc, and the opacity (not its logit) in eight bits."""
    base = gaussians.sh[:, 0]
    codebook = fit_codebook(base, np.repeat(color_weights(weights), 3))
    opacity = np.clip(np.rint(sigmoid(gaussians.opacity_logits) * 255), 1, 255)
    images["sh0.webp"] = as_image(np.column_stack([nearest(codebook, base), opacity]).astype(np.uint8))
    return {"codebook": as_json(codebook), "files": ["sh0.webp"]}


def put_harmonics(
    sh: NDArray[np.floating],
    weights: NDArray[np.float64],
    bands: int,
    entries: int,
    images: Images,
) -> dict[str, object]:
    """A palette of whole sets of coefficients [entries, C, 3] in one codebook, and two bytes of index a Gaussian.

    Labels are chosen after the palette is rounded to the codebook, so that they know its rounding.
    """
    coefficients = sh.shape[1]
    rows = np.ascontiguousarray(sh.reshape(len(sh), -1), dtype=np.float32)
    palette = fit_palette(rows, color_weights(weights), entries, SEED)
    used = np.bincount(palette_labels(rows, palette), color_weights(weights), entries)
    codebook = fit_codebook(palette, np.repeat(used + used.mean() * 1e-3, palette.shape[1]))
    indices = nearest(codebook, palette)
    labels = palette_labels(rows, codebook[indices])
    grid_rows = int(np.ceil(entries / PALETTE_COLUMNS))
    padding = np.broadcast_to(indices[-1:], (grid_rows * PALETTE_COLUMNS - entries, indices.shape[1]))
    grid = np.concatenate([indices, padding]).reshape(grid_rows, PALETTE_COLUMNS * coefficients, 3)
    images["shN_centroids.webp"] = grid
    images["shN_labels.webp"] = as_image(np.column_stack([labels & 0xFF, labels >> 8, labels * 0]).astype(np.uint8))
    files = ["shN_centroids.webp", "shN_labels.webp"]
    return {"count": entries, "bands": bands, "codebook": as_json(codebook), "files": files}


def color_weights(visibility: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weight of each Gaussian's colour error: visibility, softened so that the many faint ones keep colour."""
    softened = np.sqrt(visibility)
    return softened + softened.mean() * 0.05


def as_json(codebook: NDArray[np.float32]) -> list[float]:
    """The shortest decimals that give the same float32 back."""
    return [float(str(value)) for value in codebook]


def webp(image: NDArray[np.uint8]) -> bytes:
    """Lossless; ``exact`` keeps the colour of pixels whose alpha is 0."""
    buffer = io.BytesIO()
    Image.fromarray(image, "RGBA" if image.shape[2] == 4 else "RGB").save(
        buffer, "WEBP", lossless=True, quality=75, method=4, exact=True
    )
    return buffer.getvalue()


def pack(meta: dict[str, object], images: Images) -> bytes:
    """The ZIP: stored, fixed times and attributes, meta.json first, everything at the root."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        members = {"meta.json": json.dumps(meta, separators=(",", ":")).encode()}
        members |= {name: webp(image) for name, image in images.items()}
        for name, content in members.items():
            info = zipfile.ZipInfo(name, ZIP_TIME)
            info.create_system = 3
            info.external_attr = 0o644 << 16
            archive.writestr(info, content)
    return buffer.getvalue()
