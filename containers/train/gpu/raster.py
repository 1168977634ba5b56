"""One view forward and its gradient back, without autograd.

Projection and tile lists are gsplat's kernels (1.5.3); the rest is our own (gaussians.cu, raster.cu, loss.cu). A step
is about fifteen launches, and Python is ahead of the device all the time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gsplat.cuda._backend import _C
from torch import Tensor

from splat.cameras import View
from train.gpu import launches
from train.gpu.launches import RECORD, TILE
from train.gpu.nvrtc import load_kernels

NEAR, FAR = 0.01, 1e10  # near as in the CPU rasterizer
SPARE = 1 << 16  # numbers; so the room for what is of another length each time has seldom another size
BLUR = 0.3  # pixels squared, added to the projected covariance


@dataclass(frozen=True, eq=False)
class Camera:
    """A view on the device."""

    width: int
    height: int
    pose: Tensor  # [1, 4, 4] world to camera
    intrinsics: Tensor  # [1, 3, 3]
    center: Tensor  # [3] in the scene frame

    @classmethod
    def of(cls, view: View, device: torch.device) -> Camera:
        def upload(array: Any) -> Tensor:
            return torch.tensor(array, dtype=torch.float32, device=device)

        return cls(
            view.width, view.height, upload(view.world_to_camera[None]), upload(view.K[None]), upload(view.center)
        )


@dataclass
class Model:
    """Parameters as views of the engine's buffers: the first N rows."""

    means: Tensor  # [N, 3]
    log_scales: Tensor  # [N, 3]
    quats: Tensor  # [N, 4]
    logits: Tensor  # [N]
    sh: Tensor  # [3 K, stride], by component: the first N columns
    stride: int


class Buffers:
    """Room on the device that is allocated once and grows when more is asked for. What was in it is lost then."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._rooms: dict[str, Tensor] = {}
        self._last: dict[str, Tensor] = {}  # what ``room`` returned: a view costs as much of the host as a launch

    def room(self, name: str, *shape: int) -> Tensor:
        """float32 (or any four bytes), not initialised; the same memory for each call with this name."""
        last = self._last.get(name)
        if last is not None and last.shape == shape:
            return last
        count = torch.Size(shape).numel()
        if name not in self._rooms or self._rooms[name].numel() < count:
            self._rooms.pop(name, None)
            self._last.pop(name, None)
            self._rooms[name] = torch.empty(count, device=self._device)
        self._last[name] = self._rooms[name][:count].view(shape)
        return self._last[name]


@dataclass
class Projected:
    """The Gaussians of a model as one camera sees them; those with a radius of 0 are not seen."""

    radii: Tensor  # [1, N, 2] int32, pixels
    means2d: Tensor  # [1, N, 2]
    depths: Tensor  # [1, N]
    conics: Tensor  # [1, N, 3]


class Rasterizer:
    """One view at a time: ``backward`` belongs to the last ``forward``."""

    def __init__(self, device: torch.device, capacity: int, sources: dict[Path, dict[str, float]]) -> None:
        self.kernels: dict[str, Any] = {}
        for source, constants in sources.items():
            self.kernels |= load_kernels(source, constants, device)
        self._buffers = Buffers(device)
        self._pinhole = _C.CameraModelType.PINHOLE
        self._scales, self._by_conics = (torch.empty((capacity, 3), device=device) for _ in range(2))
        self._opacities, self._by_means2d = (torch.empty((capacity, k), device=device) for k in (1, 2))
        for name in ("records", "sums"):
            self._buffers.room(name, capacity, RECORD)
        self._no_depth = torch.zeros((1, capacity), device=device)  # the loss does not depend on depth

    def forward(self, model: Model, camera: Camera, sh_degree: int) -> Tensor:
        """[H, W, 3] on black, overwritten by the next call."""
        n = len(model.means)
        self._model, self._camera = model, camera
        self._prepare(model)
        # Before the tile lists, where the host waits for the device: what does not need them is queued by then.
        self.records = self._buffers.room("records", n, RECORD)
        seen = self._projected = self._project(camera, sh_degree, self.records)
        return self._blend(camera, seen.means2d, seen.radii, seen.depths, self.records)

    def _prepare(self, model: Model) -> None:
        n = len(model.means)
        self.scales, self.opacities = self._scales[:n], self._opacities.view(-1)[:n]
        launches.prepare(self.kernels, model.log_scales, model.logits, n, self.scales, self.opacities)

    def _project(self, camera: Camera, sh_degree: int, records: Tensor) -> Projected:
        """Of the model that was prepared; ``records`` [N, 12] is written."""
        model, n = self._model, len(self._model.means)
        radii, means2d, depths, conics, _ = _C.projection_ewa_3dgs_fused_fwd(
            model.means,
            None,
            model.quats,
            self.scales,
            self.opacities,
            camera.pose,
            camera.intrinsics,
            camera.width,
            camera.height,
            BLUR,
            NEAR,
            FAR,
            0.0,
            False,
            self._pinhole,
        )
        launches.pack(
            self.kernels,
            model.means,
            camera.center,
            model.sh,
            radii,
            means2d,
            conics,
            self.opacities,
            n,
            model.stride,
            sh_degree,
            records,
        )
        return Projected(radii, means2d, depths, conics)

    def _blend(self, camera: Camera, means2d: Tensor, radii: Tensor, depths: Tensor, records: Tensor) -> Tensor:
        """The image of ``records`` [N, 12], with the rest as in Projected."""
        self._image = self._buffers.room("image", camera.height, camera.width, 3)
        columns, rows = launches.tiles(camera.width, camera.height)
        _, pairs, ids = _C.intersect_tile(means2d, radii, depths, None, None, 1, TILE, columns, rows, True, False)
        offsets = _C.intersect_offset(pairs, 1, columns, rows)
        self._lists = self._with_room(offsets, ids, records, camera)
        launches.blend(self.kernels, self._lists, self._image)
        return self._image

    def _with_room(self, offsets: Tensor, ids: Tensor, records: Tensor, camera: Camera) -> launches.Lists:
        room, pairs, size = self._buffers.room, len(ids), (camera.width, camera.height)
        order, chunks = room("order", offsets.numel()), room("chunks", launches.blocks_of_pixels(*size))
        hits = room("hits", -(-launches.hits(pairs, *size) // SPARE) * SPARE)
        return launches.Lists(offsets, ids, pairs, records, *size, order, hits, chunks)

    def loss(self, photo: Tensor, total: Tensor) -> Tensor:
        """dL/dimage [H, W, 3] of the last image and ``photo`` [H, W, 3] bytes, overwritten by the next call.

        0.8 L1 + 0.2 (1 - SSIM), see ``splat.loss``; the loss is added to ``total`` [1].
        """
        height, width = self._image.shape[:2]
        if photo.shape != self._image.shape:
            raise ValueError(f"the image is {tuple(self._image.shape)} and the photo {tuple(photo.shape)}")
        slopes, grad = self._buffers.room("slopes", 9 * height * width), self._buffers.room("grad", height, width, 3)
        launches.loss(self.kernels, self._image, photo, width, height, slopes, grad, total)
        return grad

    def backward(self, grad_image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients by means (but for their part in the colours), scales and quats, for dL/dimage [H, W, 3].

        ``sums`` holds the rest for ``launches.update_colors`` and ``launches.update_geometry``.
        """
        self.sums = self._sums_of(grad_image, len(self._model.means))
        return self._through_projection(self._camera, self._projected, self.sums)

    def _sums_of(self, grad_image: Tensor, n: int) -> Tensor:
        """[n, 12] of the Gaussians that were blended."""
        sums = self._buffers.room("sums", n, RECORD).zero_()
        launches.blend_backward(self.kernels, self._lists, self._image, grad_image, sums)
        return sums

    def _through_projection(self, camera: Camera, seen: Projected, sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients by means, scales and quats of what ``_project`` returned."""
        model, n = self._model, len(self._model.means)
        by_means2d, by_conics = self._by_means2d[:n], self._by_conics[:n]
        launches.finish(self.kernels, seen.conics, sums, n, by_means2d, by_conics)
        by_means, _, by_quats, by_scales, _ = _C.projection_ewa_3dgs_fused_bwd(
            model.means,
            None,
            model.quats,
            self.scales,
            camera.pose,
            camera.intrinsics,
            camera.width,
            camera.height,
            BLUR,
            self._pinhole,
            seen.radii,
            seen.conics,
            None,
            by_means2d[None],
            self._no_depth[:, :n],
            by_conics[None],
            None,
            False,
        )
        return by_means, by_scales, by_quats
