"""How good the model is on photos that it has not seen."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from splat.images import save_photo, to_uint8
from splat.metrics import WINDOW, psnr, ssim
from train.engine import Engine, Photo

PREVIEWS = 12


class Score(TypedDict):
    name: str
    psnr: float
    ssim: float


def mean_psnr(engine: Engine, photos: list[Photo], sh_degree: int) -> float:
    """Mean PSNR in dB over ``photos``; NaN for none."""
    values = [psnr(render_clipped(engine, photo, sh_degree), photo.pixels / 255.0) for photo in photos]
    return float(np.mean(values)) if values else float("nan")


def score(engine: Engine, photos: list[Photo], sh_degree: int, previews: Path | None = None) -> list[Score]:
    """PSNR and SSIM of each photo; the first twelve also as ``previews``/<name>.jpg, photo left, render right."""
    scores: list[Score] = []
    for i, photo in enumerate(photos):
        image = render_clipped(engine, photo, sh_degree)
        truth = photo.pixels / 255.0
        similarity = ssim(image, truth) if min(image.shape[:2]) >= WINDOW else float("nan")
        scores.append({"name": photo.view.name, "psnr": psnr(image, truth), "ssim": similarity})
        if previews is not None and i < PREVIEWS:
            file = previews / Path(photo.view.name).with_suffix(".jpg")
            file.parent.mkdir(parents=True, exist_ok=True)
            save_photo(file, np.concatenate([photo.pixels, to_uint8(image)], axis=1))
    return scores


def render_clipped(engine: Engine, photo: Photo, sh_degree: int) -> NDArray[np.float32]:
    return np.clip(engine.render(photo.view, sh_degree), 0.0, 1.0)


def spread(items: list[Photo], most: int) -> list[Photo]:
    """At most ``most`` of ``items``, evenly spread."""
    if len(items) <= most:
        return items
    return [items[i] for i in np.linspace(0, len(items) - 1, most).round().astype(int)]
