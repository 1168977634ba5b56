"""What a step looks like at a given progress (0..1): resolution, SH degree, learning rates, growth.

Progress is elapsed time over the budget, or iterations over their number, so one schedule fits any budget.
"""

from __future__ import annotations

from dataclasses import dataclass

from train.engine import Rates


@dataclass(frozen=True)
class Schedule:
    """All fractions are of the whole training. Rates are those at the beginning."""

    half_from: float = 0.1  # resolution / 4 before, / 2 from here
    full_from: float = 0.5
    sh_step: float = 0.08  # SH degree d from d * sh_step
    refine_until: float = 0.85  # relocation, growth and noise
    refine_every: int = 50  # steps
    gap_share: float = 0.15  # of the Gaussians, at most: they begin where photos see no sparse point
    growth: float = 0.08  # per refinement
    pixels_per_gaussian: float = 40.0  # of the shrunk training photos for each Gaussian, at least; 0: never mind
    error_photos: int = 4  # whose error says which Gaussians are split, per refinement; 0: opacity alone says it
    means_rate: float = 1e-3  # times the extent of the scene
    means_final: float = 0.01  # its factor at the end
    rate: float = 2.5  # factor of every other rate
    rate_final: float = 0.2  # its factor at the end
    noise: float = 2.5e5  # times the means' rate, in a scene of extent 1
    opacity_reg: float = 0.01
    scale_reg: float = 0.01  # of the mean scale as a share of the extent

    def level(self, progress: float) -> int:
        """By how much the photos are shrunk."""
        if progress < self.half_from:
            return 4
        return 2 if progress < self.full_from else 1

    def sh_degree(self, progress: float, highest: int) -> int:
        return min(highest, int(progress / self.sh_step)) if self.sh_step > 0 else highest

    def rates(self, progress: float, extent: float) -> Rates:
        """``extent`` is the size of the scene in scene units (see ``scene_extent``)."""
        means = self.means_rate * extent * self.means_final**progress
        factor = self.rate * self.rate_final**progress
        refining = progress < self.refine_until
        return Rates(
            means=means,
            scales=5e-3 * factor,
            quats=1e-3 * factor,
            opacities=5e-2 * factor,
            sh0=2.5e-3 * factor,
            sh_rest=2.5e-3 / 20 * factor,
            noise=means * self.noise / extent**2 if refining else 0.0,
            opacity_reg=self.opacity_reg if refining else 0.0,
            scale_reg=self.scale_reg / extent if refining else 0.0,
        )
