"""Read SOG version 2 back into Gaussians, strictly: what a viewer would misread is an error here."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from splat.model import Gaussians

COEFFICIENTS_BY_BANDS = {0: 0, 1: 3, 2: 8, 3: 15}


@dataclass(frozen=True)
class SogArchive:
    """The parts of a .sog file, images decoded."""

    meta: dict[str, Any]
    images: dict[str, NDArray[np.uint8]]  # [H, W, 4]

    def pixels(self, part: str, which: int = 0) -> NDArray[np.uint8]:
        """[count, C] the first pixels of an image, row by row. Raises ValueError when there are too few."""
        name = self.meta[part]["files"][which]
        image = self.images[name]
        count = self.meta["count"]
        if image.shape[0] * image.shape[1] < count:
            raise ValueError(f"{name} has {image.shape[0] * image.shape[1]} pixels for {count} Gaussians")
        return image.reshape(-1, image.shape[2])[:count]


def open_sog(source: Path | bytes) -> SogArchive:
    """Unpack a .sog file. Raises ValueError naming what is not SOG version 2 about it."""
    with zipfile.ZipFile(io.BytesIO(source) if isinstance(source, bytes) else source) as archive:
        if "meta.json" not in archive.namelist():
            raise ValueError("the archive has no meta.json at its root")
        meta = json.loads(archive.read("meta.json"))
        if meta.get("version") != 2:
            raise ValueError(f"meta.json has version {meta.get('version')!r}, only 2 is read")
        images = {name: read_image(archive.read(name)) for name in archive.namelist() if name.endswith(".webp")}
    for part in ("means", "scales", "quats", "sh0", "shN"):
        for name in meta.get(part, {}).get("files", []):
            if name not in images:
                raise ValueError(f"meta.json names {name} for {part}, which is not in the archive")
    return SogArchive(meta, images)


def read_image(data: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGBA"))  # libwebp writes no alpha where it is 255 everywhere


def decode_sog(source: Path | bytes) -> Gaussians:
    """The Gaussians of a .sog file in its order; rotations are unit quaternions wxyz, frame as written (+y down)."""
    archive = open_sog(source)
    opacity = np.clip(archive.pixels("sh0")[:, 3] / 255.0, 1e-6, 1 - 1e-6)
    return Gaussians(
        decode_means(archive).astype(np.float32),
        codebook(archive, "scales")[archive.pixels("scales")[:, :3]],
        decode_quats(archive).astype(np.float32),
        np.log(opacity / (1 - opacity)).astype(np.float32),
        decode_color(archive),
    )


def codebook(archive: SogArchive, part: str) -> NDArray[np.float32]:
    values = np.asarray(archive.meta[part]["codebook"], dtype=np.float32)
    if values.shape != (256,):
        raise ValueError(f"the codebook of {part} has {values.size} entries instead of 256")
    return values


def decode_means(archive: SogArchive) -> NDArray[np.float64]:
    low_byte, high_byte = archive.pixels("means", 0)[:, :3], archive.pixels("means", 1)[:, :3]
    steps = low_byte.astype(np.uint16) | (high_byte.astype(np.uint16) << 8)
    mins, maxs = (np.asarray(archive.meta["means"][key], dtype=np.float64) for key in ("mins", "maxs"))
    values = mins + (maxs - mins) * (steps / 65_535)
    return np.sign(values) * np.expm1(np.abs(values))


def decode_quats(archive: SogArchive) -> NDArray[np.float64]:
    """[N, 4] wxyz. Raises ValueError where the index of the dropped component is not 252 to 255."""
    pixels = archive.pixels("quats")
    dropped = pixels[:, 3].astype(np.int64) - 252
    if (dropped < 0).any():
        raise ValueError(f"{int((dropped < 0).sum())} quaternions have an index outside 252 to 255")
    three = (pixels[:, :3] / 255.0 * 2 - 1) / np.sqrt(2)
    quats = np.empty((len(three), 4))
    others = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])[dropped]
    np.put_along_axis(quats, others, three, axis=1)
    largest = np.sqrt(np.maximum(0, 1 - (three**2).sum(axis=1)))
    np.put_along_axis(quats, dropped[:, None], largest[:, None], axis=1)
    return quats


def decode_color(archive: SogArchive) -> NDArray[np.float32]:
    """[N, K, 3] spherical harmonics, the constant one first."""
    base = codebook(archive, "sh0")[archive.pixels("sh0")[:, :3]][:, None, :]
    if "shN" not in archive.meta:
        return np.ascontiguousarray(base)
    part = archive.meta["shN"]
    coefficients = COEFFICIENTS_BY_BANDS[part["bands"]]
    grid = archive.images[part["files"][0]][:, :, :3]
    if grid.shape[1] != 64 * coefficients:
        raise ValueError(f"{part['files'][0]} is {grid.shape[1]} pixels wide instead of {64 * coefficients}")
    palette = codebook(archive, "shN")[grid.reshape(-1, coefficients, 3)[: part["count"]]]
    pixels = archive.pixels("shN", 1)
    labels = pixels[:, 0].astype(np.int64) | (pixels[:, 1].astype(np.int64) << 8)
    if labels.max(initial=0) >= part["count"]:
        raise ValueError(f"a label points to palette entry {labels.max()} of {part['count']}")
    return np.concatenate([base, palette[labels]], axis=1)
