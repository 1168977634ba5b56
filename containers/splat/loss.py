"""The training loss 0.8 L1 + 0.2 (1 - SSIM) and its gradient, for a photo kept as bytes.

SSIM as in ``metrics`` (Wang et al. 2004, whole windows only). With the blurred maps mu_x, E[xx], E[xy] as variables
dSSIM/dx is the adjoint blur of three maps, so two passes over the image are enough.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from splat import metrics
from splat.simd import (
    lane_abs,
    lane_numbers,
    lane_sum,
    lanes,
    load,
    load_bytes,
    select,
    store,
    take_next,
)
from splat.threads import Workers

SSIM_WEIGHT = 0.2
TAPS = metrics.WINDOW
REACH = TAPS - 1
MARGIN = 32  # zeros beside a row of maps: the adjoint blur may read beyond the image
C1, C2 = np.float32(metrics.C1), np.float32(metrics.C2)
BYTE = np.float32(1 / 255)
ZERO, ONE, TWO = np.float32(0), np.float32(1), np.float32(2)


@njit(
    "void(int64[::1],float32[::1],int64,int64,float32[::1],uint8[::1],float32[::1],float32[::1],float32[::1])",
    nogil=True,
    cache=True,
)
def similarity_maps(
    counter: Any,
    work: Any,
    width: int,
    height: int,
    image: Any,
    target: Any,
    weights: Any,
    maps: Any,
    sums: Any,
) -> None:
    """Per channel the maps dSSIM/dmu, dSSIM/dE[xx], dSSIM/dE[xy], and the sum of SSIM of each row of windows.

    ``image`` [4, H16, W16] float32 and ``target`` [3, H16, W16] uint8, flat; ``maps`` [3, 3, H + 10, W16 + 32], where
    the window that begins at (y, x) is stored at (y + 10, x + 10); ``sums`` [3 * H].
    """
    line = (width + 15) // 16 * 16
    plane = (height + 15) // 16 * 16 * line
    map_line = line + MARGIN
    map_plane = (height + REACH) * map_line
    windows = height - REACH
    zero = lanes(ZERO)
    while True:
        turn = take_next(counter)
        if turn >= 3 * windows:
            break
        channel, y = turn // windows, turn % windows
        for x in range(0, line, 16):
            a, b, aa, bb, ab = zero, zero, zero, zero, zero
            at = channel * plane + y * line + x
            for tap in range(TAPS):
                p = load(image, at + tap * line)
                q = load_bytes(target, at + tap * line) * BYTE
                wp, wq = p * weights[tap], q * weights[tap]
                a, b, aa, bb, ab = a + wp, b + wq, aa + wp * p, bb + wq * q, ab + wp * q
            store(work, x, a)
            store(work, map_line + x, b)
            store(work, 2 * map_line + x, aa)
            store(work, 3 * map_line + x, bb)
            store(work, 4 * map_line + x, ab)
        total = zero
        for x in range(0, width - REACH, 16):
            a, b, aa, bb, ab = zero, zero, zero, zero, zero
            for tap in range(TAPS):
                w, at = weights[tap], x + tap
                a, b = a + load(work, at) * w, b + load(work, map_line + at) * w
                aa, bb = aa + load(work, 2 * map_line + at) * w, bb + load(work, 3 * map_line + at) * w
                ab += load(work, 4 * map_line + at) * w
            a1, a2 = TWO * a * b + C1, TWO * (ab - a * b) + C2
            b1, b2 = a * a + b * b + C1, (aa - a * a) + (bb - b * b) + C2
            inverse = ONE / (b1 * b2)
            similarity = a1 * a2 * inverse
            by_aa = zero - similarity / b2
            by_ab = TWO * a1 * inverse
            by_a = TWO * b * a2 * inverse - TWO * a * similarity / b1 - TWO * a * by_aa - b * by_ab
            inside = lane_numbers() <= lanes(np.float32(width - REACH - x) - np.float32(0.5))
            at = 3 * channel * map_plane + (y + REACH) * map_line + x + REACH
            store(maps, at, select(inside, by_a, zero))
            store(maps, at + map_plane, select(inside, by_aa, zero))
            store(maps, at + 2 * map_plane, select(inside, by_ab, zero))
            total += select(inside, similarity, zero)
        sums[channel * height + y] = lane_sum(total)


@njit(
    "void(int64[::1],float32[::1],int64,int64,float32[::1],uint8[::1],float32[::1],float32[::1],float32,float32,float32[::1],float32[::1])",
    nogil=True,
    cache=True,
)
def loss_gradient(
    counter: Any,
    work: Any,
    width: int,
    height: int,
    image: Any,
    target: Any,
    weights: Any,
    maps: Any,
    by_l1: Any,
    by_ssim: Any,
    grad: Any,
    sums: Any,
) -> None:
    """Fill ``grad`` (like ``image``; columns beyond the width are 0), and ``sums`` [3 * H], each row's sum of |x - y|.

    ``by_l1`` and ``by_ssim`` are dL/d(sum of |x - y|) and dL/d(sum of SSIM).
    """
    line = (width + 15) // 16 * 16
    plane = (height + 15) // 16 * 16 * line
    map_line = line + MARGIN
    map_plane = (height + REACH) * map_line
    zero = lanes(ZERO)
    while True:
        turn = take_next(counter)
        if turn >= 3 * height:
            break
        channel, y = turn // height, turn % height
        for x in range(0, map_line, 16):
            a, aa, ab = zero, zero, zero
            at = 3 * channel * map_plane + y * map_line + x
            for tap in range(TAPS):
                w, near = weights[tap], at + tap * map_line
                a, aa = a + load(maps, near) * w, aa + load(maps, near + map_plane) * w
                ab += load(maps, near + 2 * map_plane) * w
            store(work, x, a)
            store(work, map_line + x, aa)
            store(work, 2 * map_line + x, ab)
        total = zero
        for x in range(0, line, 16):
            a, aa, ab = zero, zero, zero
            for tap in range(TAPS):
                w, near = weights[tap], x + tap
                a, aa = a + load(work, near) * w, aa + load(work, map_line + near) * w
                ab += load(work, 2 * map_line + near) * w
            at = channel * plane + y * line + x
            p, q = load(image, at), load_bytes(target, at) * BYTE
            sign = select(p > q, lanes(by_l1), select(q > p, zero - by_l1, zero))
            inside = lane_numbers() <= lanes(np.float32(width - x) - np.float32(0.5))
            store(grad, at, select(inside, sign + by_ssim * (a + TWO * p * aa + q * ab), zero))
            total += select(inside, lane_abs(p - q), zero)
        sums[channel * height + y] = lane_sum(total)


def to_planes(photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[H, W, 3] to the kernels' layout [3, H16, W16], padded with 0."""
    height, width = photo.shape[:2]
    planes = np.zeros((3, -(-height // 16) * 16, -(-width // 16) * 16), np.uint8)
    planes[:, :height, :width] = photo.transpose(2, 0, 1)
    return planes


class PhotoLoss:
    """The loss of a rendered image against a photo, with buffers kept per image size."""

    def __init__(self, workers: Workers, ssim_weight: float = SSIM_WEIGHT) -> None:
        self.workers, self.ssim_weight = workers, ssim_weight
        self._weights = metrics.gaussian_window().astype(np.float32)
        self._buffers: dict[tuple[int, int], tuple] = {}

    def __call__(
        self, image: NDArray[np.float32], target: NDArray[np.uint8], width: int, height: int
    ) -> tuple[float, NDArray[np.float32]]:
        """(loss, dL/dimage): ``image`` [4, H16, W16] by the rasterizer, ``target`` [3, H16, W16] by ``to_planes``.

        Images with a side under 11 pixels are compared by L1 alone. The gradient is overwritten by the next call.
        """
        if (width, height) not in self._buffers:
            self._buffers[width, height] = self._make_buffers(width, height, image.shape)
        work, maps, grad, row_similarity, row_difference = self._buffers[width, height]
        windows = 3 * max(0, width - REACH) * max(0, height - REACH)
        weight = self.ssim_weight if windows else 0.0
        flat, photo = image.reshape(-1), target.reshape(-1)
        if windows:
            self.workers.run(
                similarity_maps, width, height, flat, photo, self._weights, maps, row_similarity, own=(0, work)
            )
        self.workers.run(
            loss_gradient,
            width,
            height,
            flat,
            photo,
            self._weights,
            maps,
            (1 - weight) / (3 * width * height),
            -weight / max(windows, 1),
            grad.reshape(-1),
            row_difference,
            own=(0, work),
        )
        l1 = float(row_difference.sum(dtype=np.float64)) / (3 * width * height)
        similarity = float(row_similarity.sum(dtype=np.float64)) / max(windows, 1)
        return (1 - weight) * l1 + weight * (1 - similarity), grad

    def _make_buffers(self, width: int, height: int, shape: tuple[int, ...]) -> tuple:
        line = -(-width // 16) * 16 + MARGIN
        work = [np.zeros(5 * line, np.float32) for _ in range(self.workers.threads)]
        maps = np.zeros(9 * (height + REACH) * line, np.float32)
        sums = np.zeros(3 * height, np.float32)
        return work, maps, np.zeros(shape, np.float32), sums, sums.copy()
