"""A model in training on one device: parameters, Adam's moments and steps, relocation, what is saved."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from splat.model import Gaussians
from train.engine import Arrays, Moves, Rates, Setup
from train.gpu import launches
from train.gpu.gsplat_api import ProjectionGradients
from train.gpu.launches import Kernels
from train.gpu.raster import Parameters
from train.memory import most_opaque

COLUMNS = 32  # a row of numbers by component is a multiple of this: rows begin at whole memory transactions


class Drawn(Protocol):
    """What a step of Adam reads of a rasterizer, after its ``backward``; V views."""

    kernels: Kernels

    @property
    def records(self) -> Tensor: ...  # [V, N, RECORD]
    @property
    def sums(self) -> Tensor: ...  # [V, N, RECORD]
    @property
    def scales(self) -> Tensor: ...  # [N, 3]
    @property
    def opacities(self) -> Tensor: ...  # [N]


class DeviceModel:
    """Parameters and moments lie in buffers for ``max_gaussians``; the first N are in use. SH and all moments are by
    component, [components, stride].
    """

    def __init__(self, setup: Setup, device: torch.device) -> None:
        self.setup, self._on = setup, device
        self.count = self._steps = 0  # steps: photos, as Adam counts them
        n, coefficients = setup.max_gaussians, (setup.sh_degree + 1) ** 2
        self._stride = -(-n // COLUMNS) * COLUMNS
        shapes = {
            "means": (n, 3),
            "log_scales": (n, 3),
            "quats": (n, 4),
            "opacity_logits": (n,),
            "sh": (3 * coefficients, self._stride),
        }
        self._values = {name: torch.zeros(shape, device=device) for name, shape in shapes.items()}
        self._geometry, self._colors = (
            [torch.zeros((rows, self._stride), device=device) for _ in range(2)]
            for rows in (launches.GEOMETRY, 3 * coefficients)
        )
        self._directions = torch.empty((n, 3), device=device)

    def load(self, gaussians: Gaussians) -> None:
        """Begin with these Gaussians, the most opaque where there are too many, with Adam at rest."""
        gaussians = gaussians.select(most_opaque(gaussians.opacity_logits, self.setup.max_gaussians))
        n = len(gaussians)
        rows = min(3 * gaussians.sh.shape[1], len(self._values["sh"]))
        for name in ("means", "log_scales", "quats", "opacity_logits"):
            self._values[name][:n] = torch.from_numpy(getattr(gaussians, name)).to(self._on)
        self._values["sh"].zero_()
        self._values["sh"][:rows, :n] = torch.from_numpy(by_component(gaussians.sh)[:rows]).to(self._on)
        for moments in (*self._geometry, *self._colors):
            moments.zero_()
        self._steps = 0
        self._bind(n)

    def _bind(self, n: int) -> None:
        """Take the first ``n`` Gaussians into use."""
        self.count, values = n, self._values
        values["opacity_logits"][:n].clamp_(max=launches.LOGIT_MAX)  # blending would divide by 0 above it
        self.parameters = Parameters(
            means=values["means"][:n],
            log_scales=values["log_scales"][:n],
            quats=values["quats"][:n],
            logits=values["opacity_logits"][:n],
            sh=values["sh"],
            stride=self._stride,
        )

    def optimise(
        self,
        raster: Drawn,
        gradients: ProjectionGradients,
        center: Tensor,  # [3] of the camera, or [V, 3]
        photos: int,
        sh_degree: int,
        rates: Rates,
    ) -> None:
        """A step of Adam on the gradients of this many photos; the rest of these lies in ``raster``."""
        self._steps += photos
        model, n, by_directions = self.parameters, self.count, self._directions[: self.count]
        first, second = self._colors
        launches.update_colors(
            raster.kernels,
            rates,
            self._steps,
            n,
            means=model.means,
            center=center,
            records=raster.records,
            sums=raster.sums,
            sh=model.sh,
            first=first,
            second=second,
            by_directions=by_directions,
            stride=self._stride,
            degree=sh_degree,
        )
        first, second = self._geometry
        launches.update_geometry(
            raster.kernels,
            rates,
            self._steps,
            self.setup.seed,
            n,
            means=model.means,
            log_scales=model.log_scales,
            quats=model.quats,
            logits=model.logits,
            first=first,
            second=second,
            scales=raster.scales,
            opacities=raster.opacities,
            by_means=gradients.means,
            by_directions=by_directions,
            by_scales=gradients.scales,
            by_quats=gradients.quats,
            sums=raster.sums,
            stride=self._stride,
        )

    def is_finite(self) -> bool:
        checks = [torch.isfinite(values).all() for values in self._used().values()]
        return bool(torch.stack(checks).all())

    def _used(self) -> dict[str, Tensor]:
        """The parameters in use; sh is [3 K, N]."""
        n = self.count
        return {name: values[:, :n] if name == "sh" else values[:n] for name, values in self._values.items()}

    def opacities(self) -> NDArray[np.float32]:
        return torch.sigmoid(self._values["opacity_logits"][: self.count]).cpu().numpy()

    def log_scales(self) -> NDArray[np.float32]:
        return self._values["log_scales"][: self.count].cpu().numpy()

    @torch.no_grad()
    def relocate(self, moves: Moves) -> None:
        source, target = torch.from_numpy(moves.sources).to(self._on), torch.from_numpy(moves.targets).to(self._on)
        self.write_rows(target, self.rows(source))
        for index in (moves.sources, moves.targets):
            self.write_sizes(index, moves.logits, moves.log_scales)
        self.reset_moments(torch.cat([source, target]) if moves.reset_sources else target)
        self.grow(moves.count)

    def rows(self, index: Tensor) -> dict[str, Tensor]:
        """The parameters of some Gaussians, [k, ...] each."""
        return {name: values[:, index].T if name == "sh" else values[index] for name, values in self._values.items()}

    def write_rows(self, index: Tensor, rows: dict[str, Tensor]) -> None:
        for name, values in rows.items():
            if name == "sh":
                self._values[name][:, index] = values.T
            else:
                self._values[name][index] = values

    def write_sizes(
        self, index: NDArray[np.int64], logits: NDArray[np.float32], log_scales: NDArray[np.float32]
    ) -> None:
        """Give the Gaussians ``index`` [k] these opacities [k] and scales [k, 3]."""
        touched = torch.from_numpy(index).to(self._on)
        self._values["opacity_logits"][touched] = torch.from_numpy(logits).to(self._on)
        self._values["log_scales"][touched] = torch.from_numpy(log_scales).to(self._on)

    def reset_moments(self, index: Tensor) -> None:
        """Adam's moments of these Gaussians become zero."""
        for moments in (*self._geometry, *self._colors):
            moments[:, index] = 0

    def grow(self, count: int) -> None:
        if count > self.count:
            self._bind(count)

    def gaussians(self) -> Gaussians:
        used = {name: values.cpu().numpy() for name, values in self._used().items()}
        return Gaussians(**(used | {"sh": by_gaussian(used["sh"])}))

    def state(self) -> Arrays:
        n = self.count
        saved: Arrays = {"steps": np.array(self._steps)}
        saved |= {f"value_{name}": values.cpu().numpy() for name, values in self._used().items()}
        for moment in range(2):
            saved[f"geometry_{moment}"] = self._geometry[moment][:, :n].cpu().numpy()
            saved[f"colors_{moment}"] = self._colors[moment][:, :n].cpu().numpy()
        return saved

    def restore(self, state: Arrays) -> None:
        """Go on from ``state``. Of more Gaussians than fit (after out-of-memory) the most opaque are kept."""
        keep = most_opaque(state["value_opacity_logits"], self.setup.max_gaussians)
        n, self._steps = len(keep), int(state["steps"])
        for name, values in self._values.items():
            saved = state[f"value_{name}"]
            if name == "sh":
                values[:, :n] = torch.from_numpy(saved[:, keep]).to(self._on)
            else:
                values[:n] = torch.from_numpy(saved[keep]).to(self._on)
        for moment in range(2):
            self._geometry[moment][:, :n] = torch.from_numpy(state[f"geometry_{moment}"][:, keep]).to(self._on)
            self._colors[moment][:, :n] = torch.from_numpy(state[f"colors_{moment}"][:, keep]).to(self._on)
        self._bind(n)


def by_component(sh: NDArray[np.float32]) -> NDArray[np.float32]:
    """[N, K, 3] to [3 K, N]."""
    return np.ascontiguousarray(sh.reshape(len(sh), -1).T)


def by_gaussian(sh: NDArray[np.float32]) -> NDArray[np.float32]:
    """[3 K, N] to [N, K, 3]."""
    return np.ascontiguousarray(sh.T).reshape(sh.shape[1], -1, 3)
