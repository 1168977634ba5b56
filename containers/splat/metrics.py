"""Image quality: PSNR and SSIM."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.floating]

WINDOW = 11
SIGMA = 1.5
C1, C2 = 0.01**2, 0.03**2


def gaussian_window() -> NDArray[np.float64]:
    """[11] the separable window of SSIM, sum 1."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * SIGMA**2))
    return weights / weights.sum()


def psnr(a: Image, b: Image) -> float:
    """Peak signal-to-noise ratio in dB of two images [H, W, 3] in 0..1; infinite when they are equal."""
    _require_same_shape(a, b)
    error = float(np.mean((a.astype(np.float64) - b) ** 2))
    return float("inf") if error == 0 else -10 * float(np.log10(error))


def ssim(a: Image, b: Image) -> float:
    """Structural similarity of two images [H, W, 3] in 0..1: the mean over channels and over all whole windows.

    Wang et al. 2004: Gaussian window of 11x11 with sigma 1.5, K1 = 0.01, K2 = 0.03; no padding.
    """
    _require_same_shape(a, b)
    if min(a.shape[:2]) < WINDOW:
        raise ValueError(f"SSIM needs images of at least {WINDOW}x{WINDOW} pixels, got {a.shape[1]}x{a.shape[0]}")
    x, y = a.astype(np.float64), b.astype(np.float64)
    mx, my = _blur(x), _blur(y)
    vx, vy, cxy = _blur(x * x) - mx * mx, _blur(y * y) - my * my, _blur(x * y) - mx * my
    similarity = ((2 * mx * my + C1) * (2 * cxy + C2)) / ((mx * mx + my * my + C1) * (vx + vy + C2))
    return float(similarity.mean())


def _blur(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """Separable Gaussian blur over whole windows: [H, W, C] -> [H - 10, W - 10, C]."""
    weights = gaussian_window()
    rows = image.shape[0] - WINDOW + 1
    vertical = sum(w * image[i : i + rows] for i, w in enumerate(weights))
    columns = image.shape[1] - WINDOW + 1
    return sum(w * vertical[:, i : i + columns] for i, w in enumerate(weights))


def _require_same_shape(a: Image, b: Image) -> None:
    if a.shape != b.shape:
        raise ValueError(f"images of different shape cannot be compared: {a.shape} and {b.shape}")
