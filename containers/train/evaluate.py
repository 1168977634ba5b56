"""How good the model is on photos that it has not seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from splat.images import save_photo, to_uint8
from splat.metrics import WINDOW, psnr, ssim
from train.engine import Engine, TrainingPhoto

PREVIEWS = 12


class Score(TypedDict):
    name: str
    psnr: float
    ssim: float
    psnr_fitted: float  # after the exposure was fitted, see ``fit_exposure``
    gain: list[float]  # what the render was multiplied with, see ``exposure``


def mean_psnr(engine: Engine, photos: list[TrainingPhoto], sh_degree: int) -> float:
    """Mean PSNR in dB over ``photos``; NaN for none."""
    values = [psnr(render_clipped(engine, photo, sh_degree), photo.pixels / 255.0) for photo in photos]
    return float(np.mean(values)) if values else float("nan")


def score(
    engine: Engine,
    photos: list[TrainingPhoto],
    sh_degree: int,
    previews: Path | None = None,
    check_stop: Callable[[], None] = lambda: None,
) -> list[Score]:
    """PSNR and SSIM of each photo; the first twelve also as ``previews``/<name>.jpg, photo left, render right.

    ``check_stop`` is called before each photo.
    """
    scores: list[Score] = []
    for i, photo in enumerate(photos):
        check_stop()
        image = render_clipped(engine, photo, sh_degree)
        truth = photo.pixels / 255.0
        similarity = ssim(image, truth) if min(image.shape[:2]) >= WINDOW else float("nan")
        fitted = psnr(fit_exposure(image, truth), truth)
        scores.append(
            {
                "name": photo.view.name,
                "psnr": psnr(image, truth),
                "ssim": similarity,
                "psnr_fitted": fitted,
                "gain": [round(gain, 4) for gain in photo.gain],
            }
        )
        if previews is not None and i < PREVIEWS:
            file = previews / Path(photo.view.name).with_suffix(".jpg")
            file.parent.mkdir(parents=True, exist_ok=True)
            save_photo(file, np.concatenate([photo.pixels, to_uint8(image)], axis=1))
    return scores


def fit_exposure(image: NDArray[np.floating], truth: NDArray[np.floating]) -> NDArray[np.float64]:
    """``image`` with the gain and the offset per channel that bring it closest to ``truth`` [H, W, 3], least squares.

    A model has one exposure, a photo has its own: what is left after the fit is the model's own error.
    """
    fitted = np.empty(image.shape)
    for channel in range(3):
        x, y = image[..., channel].astype(np.float64), truth[..., channel].astype(np.float64)
        gain = ((x - x.mean()) * (y - y.mean())).mean() / max(x.var(), 1e-9)
        fitted[..., channel] = np.clip(gain * (x - x.mean()) + y.mean(), 0.0, 1.0)
    return fitted


def render_clipped(engine: Engine, photo: TrainingPhoto, sh_degree: int) -> NDArray[np.float32]:
    """[H, W, 3] in 0..1, at the exposure of the photo."""
    return np.clip(engine.render(photo.view, sh_degree) * np.array(photo.gain, np.float32), 0.0, 1.0)
