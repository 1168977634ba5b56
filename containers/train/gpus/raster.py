"""As many views at once as there are GPUs, of a model that is spread over them.

Each rank has a shard of the model and the camera of one view. It projects its shard for every camera; an all-to-all
brings what a camera sees to the camera's rank, which blends it; the gradient's sums go back the same way. So does
gsplat (its rendering.py, ``distributed``; Zhao et al. 2024, "On Scaling Up 3D Gaussian Splatting Training"). Here a
Gaussian that is seen is sent as 13 floats and comes back as 9.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from train.engine import Setup
from train.gpu import launches
from train.gpu.gsplat_api import Projected, ProjectionGradients
from train.gpu.launches import RECORD
from train.gpu.raster import Camera, GpuRasterizer, Parameters

SENT = 10  # numbers of a record that blending reads; after them the two radii and the depth
RETURNED = 9  # columns of the sums that are written


class ShardRasterizer:
    """``forward`` and ``backward`` are called by all ranks together, each with its own shard of the model.

    ``local`` projects this shard for every camera, and blends what this rank's camera sees.
    """

    def __init__(self, setup: Setup, device: torch.device, rank: int) -> None:
        self.local = GpuRasterizer(setup, device, launches.sources(setup.gpus, rank))
        self.kernels, self._rank, self._device = self.local.kernels, rank, device
        for name in ("records of views", "sums of views"):
            self.local.buffers.get(name, setup.gpus, setup.max_gaussians, RECORD)

    @property
    def scales(self) -> Tensor:
        """[N, 3] of the shard."""
        return self.local.scales

    @property
    def opacities(self) -> Tensor:
        """[N] of the shard."""
        return self.local.opacities

    def forward(self, model: Parameters, cameras: Sequence[Camera | None], sh_degree: int) -> Tensor | None:
        """The image [H, W, 3] of this rank's camera, if it has one; ``cameras`` of all ranks."""
        views, n = len(cameras), len(model)
        self._cameras = cameras
        self.local.prepare(model)
        self.records = self.local.buffers.get("records of views", views, n, RECORD)
        self._views = [
            self.local.project(camera, sh_degree, self.records[view]) if camera else self._nothing(n)
            for view, camera in enumerate(cameras)
        ]
        radii = torch.cat([seen.radii for seen in self._views])
        self._exchange_counts((radii > 0).all(dim=2))
        here = self._here
        got = self._to_cameras(
            torch.cat(
                [
                    self.records.view(-1, RECORD)[here, :SENT],
                    radii.view(-1, 2)[here].float(),  # exact up to 2^24
                    torch.cat([seen.depths for seen in self._views]).view(-1, 1)[here],
                ],
                dim=1,
            )
        )
        camera = cameras[self._rank]
        if camera is None:
            return None
        records = self.local.buffers.get("records", len(got), RECORD)
        records[:, :SENT] = got[:, :SENT]
        means2d, depths = got[:, :2].contiguous(), got[:, SENT + 2].contiguous()
        return self.local.blend(camera, means2d[None], got[None, :, SENT : SENT + 2].int(), depths[None], records)

    def _nothing(self, n: int) -> Projected:
        """For a rank without a camera."""
        radii = torch.zeros((1, n, 2), dtype=torch.int32, device=self._device)
        means2d, depths, conics = (torch.empty((1, n, *shape), device=self._device) for shape in ((2,), (), (3,)))
        return Projected(radii, means2d, depths, conics)

    def _exchange_counts(self, visible: Tensor) -> None:
        """From ``visible`` [views, N] to which rows go where, and how many come. Waits for the device."""
        counts = torch.empty((2, len(visible)), dtype=torch.int64, device=self._device)
        counts[0] = visible.sum(dim=1)
        dist.all_to_all_single(counts[1], counts[0])
        self._here = visible.view(-1).nonzero().view(-1)
        self._sent, self._received = counts.tolist()

    def _to_cameras(self, rows: Tensor) -> Tensor:
        """What this rank's camera sees: [M, k] from rows [seen, k]."""
        got = torch.empty((sum(self._received), rows.shape[1]), device=self._device)
        dist.all_to_all_single(got, rows, self._received, self._sent)
        return got

    def _to_shards(self, rows: Tensor) -> Tensor:
        """The way back, from [M, k] to [seen, k]."""
        got = torch.empty((sum(self._sent), rows.shape[1]), device=self._device)
        dist.all_to_all_single(got, rows, self._sent, self._received)
        return got

    def sums_of_views(self, grad_image: Tensor | None) -> Tensor:
        """[views, N, RECORD] of this shard, as ``GpuRasterizer.sums``, for dL/dimage [H, W, 3] if there is an image."""
        if grad_image is None:
            returned = torch.empty((0, RETURNED), device=self._device)
        else:
            returned = self.local.blend_backward(grad_image, sum(self._received))[:, :RETURNED].contiguous()
        sums = self.local.buffers.get("sums of views", len(self._views), len(self.local.model), RECORD).zero_()
        sums.view(-1, RECORD)[self._here, :RETURNED] = self._to_shards(returned)
        return sums

    def backward(self, grad_image: Tensor) -> ProjectionGradients:
        """As ``GpuRasterizer.backward``, the sum over all views; also ``sums`` [views, N, RECORD]."""
        self.sums = self.sums_of_views(grad_image)
        model = self.local.model
        totals = torch.zeros_like(model.means), torch.zeros_like(model.log_scales), torch.zeros_like(model.quats)
        for camera, seen, sums, count in zip(self._cameras, self._views, self.sums, self._sent, strict=True):
            if camera is None or not count:
                continue
            torch._foreach_add_(totals, self.local.project_backward(camera, seen, sums))
        return ProjectionGradients(*totals)
