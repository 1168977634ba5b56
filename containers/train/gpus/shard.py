"""A process of the training on several GPUs, with one GPU and one shard of the model: ``python -m train.gpus.shard``.

Started by ``gpus.engine.GpusEngine``, whose calls come through the pipe; lives as long as its standard input is open.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import timedelta
from math import sqrt
from multiprocessing.connection import Connection
from operator import attrgetter

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from splat.cameras import View
from train.engine import Moves, Rates, TrainingPhoto
from train.gpu.engine import LossMean, error_image, mean_color_sum, memory_for, versions
from train.gpu.model import DeviceModel
from train.gpu.photos import keep_photos
from train.gpu.raster import Camera
from train.gpus.engine import Start
from train.gpus.raster import ShardRasterizer
from train.memory import OutOfDeviceMemory

LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}  # all ranks are on one machine


class ShardEngine:
    """Every ``ranks``-th Gaussian of the model, from ``rank`` on.

    All ranks are called alike; ``model`` answers alone what needs no other shard.
    """

    def __init__(self, start: Start, photos: list[TrainingPhoto], device: str) -> None:
        self.views, self._rank, self._on = start.setup.gpus, start.rank, torch.device(device)
        self.device = torch.cuda.get_device_name(self._on)
        with memory_for(self._on, f"{len(photos)} photos and {start.setup.max_gaussians} Gaussians"):
            self._photos = keep_photos(replace(start.setup, photos=photos), self._on)
            self.model = DeviceModel(start.setup, self._on)
            self._rasterizer = ShardRasterizer(start.setup, self._on, self._rank)
            self._loss = LossMean(self._on)

    def _memory(self, camera: Camera | View) -> AbstractContextManager[None]:
        what = f"{self.model.count} Gaussians a GPU at {camera.width}x{camera.height} pixels"
        return memory_for(self._on, what)

    @torch.no_grad()
    def step_of_all(self, photos: Sequence[int], level: int, sh_degree: int, rates: Rates, total: int) -> None:
        """One step on a photo a rank; ``total``: Gaussians of the whole model."""
        cameras = [self._photos.cameras[level][photo] for photo in photos]
        raster = self._rasterizer
        with self._memory(cameras[self._rank]):
            self._photos.fetch(photos[self._rank], level)
            raster.forward(self.model.parameters, cameras, sh_degree)
            gradients = raster.backward(raster.local.loss_gradient(self._photos.get(), self._loss.next()))
        centers = torch.stack([camera.center for camera in cameras])
        # From rates for a photo a step to those for ``views`` (see gaussians.cu); regularisation is of means over all
        # shards.
        share = self.views * self.model.count / total
        regs = {"opacity_reg": share * rates.opacity_reg, "scale_reg": share * rates.scale_reg}
        rates = replace(rates.slower(sqrt(self.views)), **regs)
        self.model.optimise(raster, gradients, centers, self.views, sh_degree, rates)

    @torch.no_grad()
    def render(self, view: View, sh_degree: int) -> NDArray[np.float32] | None:
        """None but on rank 0."""
        with self._memory(view):
            image = self._forward_one(Camera.of(view, self._on), sh_degree)
        return None if image is None else image.cpu().numpy()

    def _forward_one(self, camera: Camera, sh_degree: int) -> Tensor | None:
        """One view of the whole model, on rank 0."""
        nobody: list[Camera | None] = [None] * (self.views - 1)
        return self._rasterizer.forward(self.model.parameters, [camera, *nobody], sh_degree)

    @torch.no_grad()
    def error_per_gaussian(self, photo: int, level: int, sh_degree: int) -> NDArray[np.float32]:
        camera, error = self._photos.cameras[level][photo], None
        with self._memory(camera):
            self._photos.fetch(photo, level)
            image = self._forward_one(camera, sh_degree)
            if image is not None:
                error = error_image(image, self._photos.get())
            sums = self._rasterizer.sums_of_views(error)[0]
        return mean_color_sum(sums)

    def mean_loss(self) -> float:
        return self._loss.mean()

    def versions(self) -> dict[str, str]:
        return versions()

    @torch.no_grad()
    def relocate(self, moves: Moves) -> None:
        """Numbers are those of the whole model. A source's parameters are sent to the shard of its target."""
        ranks, rank, sources, targets = self.views, self._rank, moves.sources, moves.targets
        to_here, from_here = targets % ranks == rank, sources % ranks == rank
        given, order = self._local(sources[from_here]), np.argsort(targets[from_here] % ranks, kind="stable")
        taken = self._local(targets[to_here][np.argsort(sources[to_here] % ranks, kind="stable")])
        sent = np.bincount(targets[from_here] % ranks, minlength=ranks).tolist()
        received = np.bincount(sources[to_here] % ranks, minlength=ranks).tolist()
        rows = {}
        for name, values in self.model.rows(given[torch.from_numpy(order).to(self._on)]).items():
            rows[name] = torch.empty((len(taken), *values.shape[1:]), device=self._on)
            dist.all_to_all_single(rows[name], values.contiguous(), received, sent)
        self.model.write_rows(taken, rows)
        for index, here in ((sources, from_here), (targets, to_here)):
            self.model.write_sizes(index[here] // ranks, moves.logits[here], moves.log_scales[here])
        self.model.reset_moments(self._local(targets[to_here]))
        if moves.reset_sources:
            self.model.reset_moments(given)
        self.model.grow(len(range(rank, moves.count, ranks)))

    def _local(self, numbers: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(numbers // self.views).to(self._on)


def main() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # the process that started this one decides
    threading.Thread(target=end_with_starter, daemon=True).start()
    orders = Connection(int(sys.argv[1]))
    try:
        serve(orders)
    except OutOfDeviceMemory as error:
        orders.send(("full", str(error)))
    except Exception as error:  # noqa: BLE001 - the boundary of the process: every error is told to its starter
        traceback.print_exc()
        kind = "full" if "out of memory" in str(error) else "failed"
        orders.send((kind, f"{type(error).__name__}: {error}"))
    threading.Event().wait()  # ending now would make the others fail too, and hide the reason


def end_with_starter() -> None:
    """Even where the main thread waits for other ranks in vain."""
    sys.stdin.buffer.read()
    os._exit(1)


def serve(orders: Connection) -> None:
    """Open a shard and answer what is asked, for ever."""
    start: Start = orders.recv()
    photos = [orders.recv() for _ in range(start.photos)]
    os.environ.update(LOOPBACK)
    device, backend = start.place(start.rank)
    limit = timedelta(seconds=start.timeout_s)
    ranks = start.setup.gpus
    store = dist.FileStore(start.store, ranks)  # not TCPStore, which listens on every network
    dist.init_process_group(backend, store=store, rank=start.rank, world_size=ranks, timeout=limit)
    shard = ShardEngine(start, photos, device)
    del photos
    orders.send(("done", shard.device))
    while True:
        name, arguments = orders.recv()
        orders.send(("done", attrgetter(name)(shard)(*arguments)))


if __name__ == "__main__":
    main()
