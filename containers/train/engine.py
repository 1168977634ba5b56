"""The contract between the trainer and its engines: the CPU (numba) and GPUs (torch and gsplat) do the same things."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from splat.cameras import View
from splat.model import Gaussians

Arrays = dict[str, NDArray[Any]]  # an engine's saved state, by name
LEVELS = (4, 2, 1)  # photos are shrunk by these factors, coarse first


@dataclass(frozen=True)
class TrainingPhoto:
    """A photo at the training resolution, with the camera of exactly this size."""

    view: View
    pixels: NDArray[np.uint8]  # [H, W, 3]
    gain: tuple[float, ...] = (1.0, 1.0, 1.0)  # per channel, against the scene's usual exposure

    def shrunk(self, level: int) -> TrainingPhoto:
        """Both sides divided by ``level`` (area filter), with the camera that belongs to the true new size."""
        if level == 1:
            return self
        width, height = max(1, self.view.width // level), max(1, self.view.height // level)
        small = Image.fromarray(self.pixels).resize((width, height), Image.Resampling.BOX)
        return TrainingPhoto(self.view.resized(width, height), np.asarray(small), self.gain)


@dataclass(frozen=True)
class Rates:
    """Learning rates of one step, absolute; ``means`` in scene units."""

    means: float
    scales: float
    quats: float
    opacities: float
    sh0: float
    sh_rest: float
    noise: float  # times Sigma (scene units squared) is a displacement; 0 = none
    opacity_reg: float  # opacity regularisation of 3DGS-MCMC: weight of the mean opacity in the loss
    scale_reg: float  # scale regularisation: weight of the mean scale, in scene units, in the loss

    def slower(self, factor: float) -> Rates:
        """Every step ``factor`` times as long; the loss stays the same."""
        steps = ("means", "scales", "quats", "opacities", "sh0", "sh_rest", "noise")
        return replace(self, **{name: factor * getattr(self, name) for name in steps})


@dataclass(frozen=True, eq=False)
class Setup:
    """What an engine is opened with. It is passed on whole, down to the rasterizer: who needs a field reads it there.

    Every field that changes the result must be equal for a checkpoint to be resumed (``checkpoint.fingerprint``).
    """

    photos: Sequence[TrainingPhoto]  # to train
    max_gaussians: int  # cap_max of 3DGS-MCMC: there are never more
    sh_degree: int  # the highest
    seed: int
    gpus: int = 0  # 0: train on the CPU
    pinned_photos: bool = False  # photos lie in pinned memory of the host, not on the GPU
    background: tuple[float, float, float] = (0.0, 0.0, 0.0)  # red, green, blue behind the Gaussians


@dataclass(frozen=True, eq=False)
class Moves:
    """Relocated or added Gaussians (3DGS-MCMC, Kheradmand et al. 2024; ``relocate`` and ``sample_add`` of gsplat).

    Each target becomes a copy of its source, both with this opacity and scale; targets may lie beyond the count. Adam's
    moments of the targets, and of the sources when ``reset_sources``, become zero.
    """

    sources: NDArray[np.int64]  # [n]
    targets: NDArray[np.int64]  # [n]
    logits: NDArray[np.float32]  # [n] opacities
    log_scales: NDArray[np.float32]  # [n, 3]
    reset_sources: bool

    @property
    def count(self) -> int:
        """How many Gaussians there are afterwards, at least."""
        return int(self.targets.max(initial=-1)) + 1


class Engine(Protocol):
    """One model in training.

    Where a device is full its methods raise ``memory.OutOfDeviceMemory``; the engine is of no use then.
    """

    name: str
    device: str
    setup: Setup
    views: int  # photos of a step; above 1 its rates are those of a step on one photo all the same

    def load(self, gaussians: Gaussians) -> None:
        """Begin with these Gaussians, with the optimiser at rest."""

    def step(self, photos: Sequence[int], level: int, sh_degree: int, rates: Rates) -> None:
        """One optimiser step on the training photos of these numbers, ``views`` of them, shrunk by ``level``."""

    def error_per_gaussian(self, photo: int, level: int, sh_degree: int) -> NDArray[np.float32]:
        """[N] each Gaussian's share of the error of a training photo, shrunk by ``level``, which says where to densify.

        The sum over the pixels of |render - photo| (mean over channels) times the Gaussian's weight in the pixel (Rota
        Bulo et al. 2024, "Revising Densification in Gaussian Splatting").
        """

    def mean_loss(self) -> float:
        """Mean loss of the steps since the last call; NaN when there was none. May wait for the device."""

    def is_finite(self) -> bool:
        """True if no parameter is NaN or infinite; such a one hides its Gaussian and would go unnoticed."""

    def count(self) -> int: ...

    def opacities(self) -> NDArray[np.float32]:
        """[N] in 0..1."""

    def log_scales(self) -> NDArray[np.float32]:
        """[N, 3]."""

    def relocate(self, moves: Moves) -> None:
        """Copy Gaussians to where they are needed, see ``Moves``."""

    def render(self, view: View, sh_degree: int) -> NDArray[np.float32]:
        """[H, W, 3] on the background."""

    def gaussians(self) -> Gaussians: ...

    def state(self) -> Arrays:
        """Everything that ``restore`` needs to go on exactly here."""

    def restore(self, state: Arrays) -> None: ...

    def versions(self) -> dict[str, str]: ...
