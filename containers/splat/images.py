"""Photos as arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError


def load_photo(path: str | Path, width: int, height: int) -> NDArray[np.uint8]:
    """[height, width, 3] sRGB, resized with an area (box) filter: each pixel is the mean of the area it covers.

    Raises ValueError that names the file when it is missing or no image.
    """
    try:
        with Image.open(path) as image:
            rgb = image.convert("RGB")
    except (FileNotFoundError, UnidentifiedImageError, OSError) as error:
        raise ValueError(f"The photo {path} cannot be read: {error}") from error
    if rgb.size != (width, height):
        rgb = rgb.resize((width, height), Image.Resampling.BOX)
    return np.asarray(rgb)


def save_photo(path: str | Path, image: NDArray[np.floating] | NDArray[np.uint8], quality: int = 92) -> None:
    """Write [H, W, 3], uint8 or 0..1, in the format of the file's suffix."""
    pixels = image.astype(np.uint8) if image.dtype == np.uint8 else to_uint8(image.astype(np.float32))
    Image.fromarray(pixels).save(path, quality=quality)


def to_uint8(image: NDArray[np.floating]) -> NDArray[np.uint8]:
    """0..1 to 0..255, rounded and clipped."""
    return (np.clip(image, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
