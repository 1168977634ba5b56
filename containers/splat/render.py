"""Render a view of a Gaussian model on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from splat.cameras import View
from splat.model import Gaussians
from splat.raster import Rasterizer


def render(
    gaussians: Gaussians, view: View, background: Sequence[float] = (0.0, 0.0, 0.0)
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(rgb [H, W, 3], alpha [H, W]) of ``view``; rgb has ``background`` behind it and is not clipped.

    For many views of one model keep a ``splat.raster.Rasterizer`` and call its ``forward``.
    """
    return Rasterizer().forward(gaussians, view, background)
