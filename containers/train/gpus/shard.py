"""A process of the training on several GPUs, with one GPU and one shard of the model: ``python -m train.gpus.shard``.

Started by ``engine_gpus.GpusEngine``, whose calls come through the pipe; lives as long as its standard input is open.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from math import sqrt
from multiprocessing.connection import Connection

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from splat.cameras import View
from train.engine import Photo, Rates
from train.gpu.engine import COLOR, GpuEngine
from train.gpu.raster import Camera
from train.gpus.engine import Start
from train.gpus.raster import ShardedRasterizer
from train.memory import OutOfDeviceMemory

LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}  # all ranks are on one machine


class ShardEngine(GpuEngine):
    """Every ``ranks``-th Gaussian of the model, from ``rank`` on. All ranks are called alike; what a shard can do alone
    it does as GpuEngine does."""

    _rasterizer: ShardedRasterizer

    def __init__(self, start: Start, photos: list[Photo], device: str) -> None:
        self.views, self._rank = start.ranks, start.rank
        super().__init__(photos, start.capacity, start.sh_degree, start.seed, start.pinned_photos, device)

    def _open_rasterizer(self) -> None:
        self._rasterizer = ShardedRasterizer(self._on, self.capacity, self.views, self._rank)

    @torch.no_grad()
    def step_of_all(self, photos: Sequence[int], level: int, sh_degree: int, rates: Rates, total: int) -> None:
        """``total``: Gaussians of the whole model."""
        cameras = [self._photos.cameras[level][photo] for photo in photos]
        own = cameras[self._rank]
        with self._memory(f"{self._count} Gaussians a GPU at {own.width}x{own.height} pixels"):
            self._photos.ask(photos[self._rank], level)
            self._rasterizer.forward_views(self._model, cameras, sh_degree)
            grad = self._rasterizer.loss(self._photos.get(), self._loss)
            gradients = self._rasterizer.backward_views(grad)
        self._loss_count += 1
        self._steps += self.views
        centers = torch.stack([camera.center for camera in cameras])
        # From rates for a photo a step to those for ``views`` (see gaussians.cu); pulls are on means over all shards.
        share = self.views * self._count / total
        pulls = {"opacity_pull": share * rates.opacity_pull, "scale_pull": share * rates.scale_pull}
        self._optimise(centers, gradients, sh_degree, replace(rates.slower(sqrt(self.views)), **pulls))

    @torch.no_grad()
    def render(self, view: View, sh_degree: int) -> NDArray[np.float32] | None:
        """None but on rank 0."""
        with self._memory(f"{self._count} Gaussians a GPU at {view.width}x{view.height} pixels"):
            image = self._forward_one(Camera.of(view, self._on), sh_degree)
        return None if image is None else image.cpu().numpy()

    def _forward_one(self, camera: Camera, sh_degree: int) -> Tensor | None:
        """One view of the whole model, on rank 0."""
        nobody: list[Camera | None] = [None] * (self.views - 1)
        return self._rasterizer.forward_views(self._model, [camera, *nobody], sh_degree)

    @torch.no_grad()
    def blame(self, photo: int, level: int, sh_degree: int) -> NDArray[np.float32]:
        camera, error = self._photos.cameras[level][photo], None
        with self._memory(f"{self._count} Gaussians a GPU at {camera.width}x{camera.height} pixels"):
            self._photos.ask(photo, level)
            image = self._forward_one(camera, sh_degree)
            if image is not None:
                error = self._error(image)
            sums = self._rasterizer.sums_of_views(error)[0]
        return sums[:, COLOR : COLOR + 3].mean(dim=1).cpu().numpy()

    @torch.no_grad()
    def adopt(
        self,
        sources: NDArray[np.int64],
        targets: NDArray[np.int64],
        logits: NDArray[np.float32],
        log_scales: NDArray[np.float32],
        rest_sources: bool,
    ) -> None:
        """Numbers are those of the whole model. A source's parameters are sent to the shard of its target."""
        ranks, rank = self.views, self._rank
        to_here, from_here = targets % ranks == rank, sources % ranks == rank
        given, order = self._local(sources[from_here]), np.argsort(targets[from_here] % ranks, kind="stable")
        taken = self._local(targets[to_here][np.argsort(sources[to_here] % ranks, kind="stable")])
        sent = np.bincount(targets[from_here] % ranks, minlength=ranks).tolist()
        received = np.bincount(sources[to_here] % ranks, minlength=ranks).tolist()
        rows = {}
        for name, values in self._rows(given[torch.from_numpy(order).to(self._on)]).items():
            rows[name] = torch.empty((len(taken), *values.shape[1:]), device=self._on)
            dist.all_to_all_single(rows[name], values.contiguous(), received, sent)
        self._place(taken, rows)
        for index, here in ((sources, from_here), (targets, to_here)):
            self._set(index[here] // ranks, logits[here], log_scales[here])
        self._rest(self._local(targets[to_here]))
        if rest_sources:
            self._rest(given)
        count = int(targets.max(initial=-1)) + 1  # of the whole model
        self._grow(len(range(rank, count, ranks)))

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
    start: Start = orders.recv()
    photos = [orders.recv() for _ in range(start.photos)]
    os.environ.update(LOOPBACK)
    device, backend = start.place(start.rank)
    limit = timedelta(seconds=start.timeout_s)
    store = dist.FileStore(start.store, start.ranks)  # not TCPStore, which listens on every network
    dist.init_process_group(backend, store=store, rank=start.rank, world_size=start.ranks, timeout=limit)
    shard = ShardEngine(start, photos, device)
    del photos
    orders.send(("done", shard.device))
    while True:
        name, arguments = orders.recv()
        orders.send(("done", getattr(shard, name)(*arguments)))


if __name__ == "__main__":
    main()
