"""Read the written files again: a file that reads back wrong must never be published."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compress.clean import CleanScene, log_position, sigmoid
from compress.sog_decode import decode_sog
from compress.spz import decode_spz, fractional_bits
from job import StageError
from splat.model import Gaussians

TOLERATED_STEPS = 0.75  # rounding alone gives 0.5; float32 in and out the rest
TOLERATED_MEAN_LN_SCALE = 0.1


def rows_in_clean(cleaned: CleanScene, index: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows of the cleaned scene, given their rows in the trained scene."""
    return np.searchsorted(cleaned.index, index)


def check_sog(path: Path, source: Gaussians) -> None:
    """Raises StageError BAD_SOG unless the file holds ``source``, in its order, within the steps of the format."""
    decoded = decode_sog(path)
    problems = wrong_count(decoded, source) or wrong_sog(decoded, source)
    if problems:
        raise StageError("BAD_SOG", f"scene.sog reads back wrong: {'; '.join(problems)}. This is a fault of Spaceport.")


def check_spz(path: Path, source: Gaussians) -> None:
    """Raises StageError BAD_SPZ unless the file holds ``source``, in its order, within the steps of the format."""
    decoded = decode_spz(path)
    problems = wrong_count(decoded, source) or wrong_spz(decoded, source)
    if problems:
        raise StageError("BAD_SPZ", f"scene.spz reads back wrong: {'; '.join(problems)}. This is a fault of Spaceport.")


def wrong_count(decoded: Gaussians, source: Gaussians) -> list[str]:
    return [f"{len(decoded)} Gaussians instead of {len(source)}"] if len(decoded) != len(source) else []


def wrong_sog(decoded: Gaussians, source: Gaussians) -> list[str]:
    """Positions and opacities to their steps; sizes, which come from a codebook in any axis order, on the mean."""
    wide = log_position(source.means)
    step = np.ptp(wide, axis=0) / 65_535 + 4e-7 * (1 + np.abs(wide))
    position = float((np.abs(log_position(decoded.means) - wide) / step).max())
    opacity = opacity_steps(decoded, source)
    size = float(np.abs(np.sort(decoded.log_scales, axis=1) - np.sort(source.log_scales, axis=1)).mean())
    return too_far(position, opacity, size)


def wrong_spz(decoded: Gaussians, source: Gaussians) -> list[str]:
    """Positions and opacities to their steps; ln(scale) to the half step within its range of -10 to 5.9375."""
    step = 2.0 ** -fractional_bits(source.means) + 4e-7 * np.abs(source.means)
    position = float((np.abs(decoded.means - source.means) / step).max())
    size = float(np.abs(decoded.log_scales - np.clip(source.log_scales, -10, 5.9375)).mean())
    return too_far(position, opacity_steps(decoded, source), size)


def opacity_steps(decoded: Gaussians, source: Gaussians) -> float:
    return float(np.abs(sigmoid(decoded.opacity_logits) - sigmoid(source.opacity_logits)).max() * 255)


def too_far(position: float, opacity: float, size: float) -> list[str]:
    found = []
    if position > TOLERATED_STEPS:
        found.append(f"a position is {position:.2f} steps off")
    if opacity > TOLERATED_STEPS:
        found.append(f"an opacity is {opacity:.2f} steps off")
    if size > TOLERATED_MEAN_LN_SCALE:
        found.append(f"sizes are off by {size:.3f} in ln(scale)")
    return found
