"""The CPU rasterizer: one view forward, and the gradient of its image back to every parameter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from splat.blend import WORK, blend, blend_backward
from splat.cameras import View
from splat.model import Gaussians
from splat.projection import CLIP, LOGIT, MEAN, QUAT, RECORD, SCALE, SH, project, project_backward
from splat.threads import Workers
from splat.tiles import TILE, emit, scatter, sort_by_depth, start_lists

Floats = NDArray[np.float32]

NEAR = 0.01  # scene units; what is nearer to the camera is not drawn
BLOCK_MAX = 2048  # Gaussians sorted into tiles at a time
HIDDEN = -30.0  # opacity logit of the padding: never seen


def aligned(count: int, value: float | None = None) -> Floats:
    """[count] float32 that begin at a multiple of 64 bytes: a cache line and a vector."""
    raw = np.empty(count + 16, np.float32)
    start = (-raw.ctypes.data // 4) % 16
    if value is not None:
        raw[:] = value
    return raw[start : start + count]


def zero_rows(rows: int, stride: int) -> Floats:
    """[rows, stride] zeros; every row begins at a multiple of 64 bytes when ``stride`` is one of 16."""
    return aligned(rows * stride, 0.0).reshape(rows, stride)


def pack(gaussians: Gaussians, capacity: int | None = None) -> Floats:
    """[11 + 3 K, stride]: the kernels' layout (see ``projection``), padded with invisible Gaussians up to
    ``capacity``.
    """
    n, k = gaussians.sh.shape[:2]
    stride = -(-max(capacity or n, n, 1) // 16) * 16
    rows = aligned((SH + 3 * k) * stride, 0.0).reshape(-1, stride)
    rows[MEAN : MEAN + 3, :n] = gaussians.means.T
    rows[SCALE : SCALE + 3, :n] = gaussians.log_scales.T
    rows[QUAT : QUAT + 4, :n] = gaussians.quats.T
    rows[LOGIT, :n] = gaussians.opacity_logits
    rows[SH:, :n] = gaussians.sh.reshape(n, 3 * k).T
    rows[QUAT, n:] = 1.0
    rows[LOGIT, n:] = HIDDEN
    return rows


def unpack(rows: Floats, n: int) -> Gaussians:
    """The first ``n`` Gaussians (or gradients) of the kernels' layout."""
    return Gaussians(
        means=rows[MEAN : MEAN + 3, :n].T,
        log_scales=rows[SCALE : SCALE + 3, :n].T,
        quats=rows[QUAT : QUAT + 4, :n].T,
        opacity_logits=rows[LOGIT, :n],
        sh=rows[SH:, :n].T.reshape(n, (len(rows) - SH) // 3, 3),
    )


def camera_numbers(view: View, near: float) -> Floats:
    """The 26 numbers of ``view`` that ``project`` wants; limits of x / z as in gsplat's perspective projection."""
    fx, fy, cx, cy = view.K[0, 0], view.K[1, 1], view.K[0, 2], view.K[1, 2]
    beyond_x, beyond_y = CLIP * view.width / (2 * fx), CLIP * view.height / (2 * fy)
    limits = (
        -cx / fx - beyond_x,
        (view.width - cx) / fx + beyond_x,
        -cy / fy - beyond_y,
        (view.height - cy) / fy + beyond_y,
    )
    pose = view.world_to_camera
    return np.array(
        [*pose[:3, :3].ravel(), *pose[:3, 3], fx, fy, cx, cy, view.width, view.height, *view.center, *limits, near],
        np.float32,
    )


class Rasterizer:
    """Buffers and threads, kept from call to call. One view at a time: ``backward`` belongs to the last ``forward``."""

    def __init__(self, threads: int | None = None, near: float = NEAR) -> None:
        self.workers = Workers(threads)
        self.near = near
        self._work = [aligned(WORK) for _ in range(self.workers.threads)]
        self._slots = aligned(0)
        self._pairs = np.zeros((4, 0), np.int32)  # tile and Gaussian of each slot, Gaussian and slot of each list entry
        self._list_blocks = np.zeros(0, np.uint16)
        self._image = aligned(0)
        self._per_gaussian(0)

    def _per_gaussian(self, stride: int) -> None:
        self._stride = stride
        self._records = aligned(stride * RECORD, 0.0)
        self._depth, self._tiles = aligned(stride), aligned(stride)
        self._first_slot, self._slot_count = np.zeros(stride, np.int64), np.zeros(stride, np.int32)
        self._order, self._keys = np.zeros((2, stride), np.int32), np.zeros((2, stride), np.uint32)

    def forward_packed(self, rows: Floats, n: int, sh_degree: int, view: View, background: Sequence[float]) -> Floats:
        """[4, H16, W16] red, green, blue (with background) and transmittance; sizes rounded up to whole tiles.

        ``rows`` [11 + 3 K, stride] holds ``n`` Gaussians. The result is overwritten by the next call.
        """
        stride = rows.shape[1]
        if stride != self._stride:
            self._per_gaussian(stride)
        self._rows, self._n, self._degree, self._view = rows, n, sh_degree, view
        self._camera = camera_numbers(view, self.near)
        self._groups = -(-n // 16)
        flat = rows.reshape(-1)
        self.workers.run(
            project, self._groups, stride, flat, self._camera, sh_degree, self._records, self._depth, self._tiles
        )
        self._bin()
        size = 4 * -(-view.height // TILE) * -(-view.width // TILE) * TILE * TILE
        if len(self._image) != size:
            self._image = aligned(size)
        self.workers.run(
            blend,
            self._tile_order,
            self._tile_start,
            self._list_gaussian,
            self._list_blocks,
            self._records,
            view.width,
            view.height,
            np.asarray(background, np.float32),
            self._image,
            own=(8, self._work),
        )
        return self._planes(self._image)

    def backward_packed(self, grad_image: Floats, grads: Floats) -> None:
        """Fill ``grads`` (like ``rows``) from ``grad_image`` [4, H16, W16], dL/d(red, green, blue) and dL/dalpha."""
        view = self._view
        if len(self._slots) < 16 * self._slot_room:
            self._slots = aligned(16 * int(1.3 * self._slot_room))
        self.workers.run(
            blend_backward,
            self._tile_order,
            self._tile_start,
            self._list_gaussian,
            self._list_slot,
            self._list_blocks,
            self._records,
            view.width,
            view.height,
            self._image,
            grad_image.reshape(-1),
            self._slots,
            own=(10, self._work),
        )
        self.workers.run(
            project_backward,
            self._groups,
            self._stride,
            self._rows.reshape(-1),
            self._camera,
            self._degree,
            self._records,
            self._first_slot,
            self._slot_count,
            self._slots,
            grads.reshape(-1),
        )

    def _bin(self) -> None:
        """Depth order, then the list of each tile."""
        view, padded = self._view, 16 * self._groups
        blocks, room = np.empty((2, padded // BLOCK_MAX + 2), np.int64)
        parts, self._slot_room = sort_by_depth(
            self._depth[:padded].view(np.uint32),
            self._tiles,
            self._order,
            self._keys,
            BLOCK_MAX,
            blocks,
            room,
            self._slot_count,
        )
        if self._pairs.shape[1] < self._slot_room:
            self._pairs = np.zeros((4, int(1.3 * self._slot_room)), np.int32)
            self._list_blocks = np.zeros(self._pairs.shape[1], np.uint16)
        slot_tile, slot_gaussian, self._list_gaussian, self._list_slot = self._pairs
        tiles = -(-view.width // TILE) * -(-view.height // TILE)
        places, self._tile_start = np.empty((parts, tiles), np.int32), np.empty(tiles + 1, np.int64)
        starts = room.copy()
        self.workers.run(
            emit,
            self._order[0],
            blocks,
            room,
            self._records,
            view.width,
            view.height,
            slot_tile,
            slot_gaussian,
            self._first_slot,
            self._slot_count,
            places,
        )
        start_lists(places, self._tile_start)
        # Long tiles first: no thread waits at the end.
        self._tile_order = np.argsort(-np.diff(self._tile_start), kind="stable")
        self.workers.run(scatter, starts, room, slot_tile, slot_gaussian, places, self._list_gaussian, self._list_slot)

    def _planes(self, image: Floats) -> Floats:
        return image.reshape(4, -1, -(-self._view.width // TILE) * TILE)

    def forward(
        self, gaussians: Gaussians, view: View, background: Sequence[float] = (0.0, 0.0, 0.0)
    ) -> tuple[Floats, Floats]:
        """(rgb [H, W, 3], alpha [H, W]) of ``view``."""
        planes = self.forward_packed(pack(gaussians), len(gaussians), gaussians.sh_degree, view, background)
        seen = planes[:, : view.height, : view.width]
        return np.ascontiguousarray(seen[:3].transpose(1, 2, 0)), 1 - seen[3]

    def backward(self, grad_rgb: Floats, grad_alpha: Floats | None = None) -> Gaussians:
        """dL/d(every parameter), shaped like the model of the last ``forward``, from dL/drgb [H, W, 3], dL/dalpha [H,
        W].
        """
        view = self._view
        grad_image = aligned(len(self._image), 0.0)
        planes = self._planes(grad_image)
        planes[:3, : view.height, : view.width] = grad_rgb.transpose(2, 0, 1)
        if grad_alpha is not None:
            planes[3, : view.height, : view.width] = grad_alpha
        grads = aligned(self._rows.size, 0.0).reshape(self._rows.shape)
        self.backward_packed(grad_image, grads)
        return unpack(grads, self._n)
