"""Blend the Gaussians of each tile front to back, and carry the image's gradient back to them.

One row of sixteen pixels is one vector. alpha = exp(-8 s) by a polynomial of degree 5 (relative error 8e-8) and three
squarings. Thresholds are gsplat's: alpha at least 1/255 and at most 0.999, transmittance at least 1e-4.

A pixel whose transmittance would fall below 1e-4 is finished; its transmittance is then kept with a minus sign, so that
every later test fails by itself. Backward walks front to back again with the remainder (everything that lies behind the
current Gaussian), so forward saves nothing but the image, and each (Gaussian, tile) pair writes its own slot: no atomics.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from splat.projection import RECORD
from splat.simd import (
    lane_abs,
    lane_max,
    lane_min,
    lane_numbers,
    lanes,
    load,
    lowest_bit,
    mask_bits,
    select,
    store,
    sums_of_nine,
    take_next,
)

ALPHA_MAX = np.float32(0.999)
T_MIN = np.float32(1e-4)
LIMIT = np.float32(np.log(255.0) / 8)
ROW_LIMIT = np.float32(np.log(255.0) / 8 + 1e-4)  # rows are chosen a little too generously; each pixel is tested again
# exp(-x) on 0..0.694, weighted least squares for the relative error
P0, P1, P2, P3, P4, P5 = (
    np.float32(v) for v in (0.99999993, -0.99999302, 0.49988769, -0.16599458, 0.03980742, -0.00586762)
)
HALF, ONE, ZERO, LAST = np.float32(0.5), np.float32(1), np.float32(0), np.float32(15.5)

inline = njit(forceinline=True, nogil=True)


@inline
def touched_rows(records: Any, base: Any, x: Any, y: Any) -> Any:
    """Bits of the tile's rows in which some pixel centre may reach alpha 1/255; (x, y) is the tile's corner."""
    mx, my = records[base] - x, records[base + 1] - y
    a, b, c, e = records[base + 2], records[base + 3], records[base + 4], records[base + 5]
    dy = lane_numbers() + (HALF - my)
    dx = lane_max(lane_min(dy * records[base + 9], LAST - mx), HALF - mx)
    return mask_bits(((dx * a + dy * b) * dx + (dy * c) * dy) + e <= lanes(ROW_LIMIT))


@inline
def alpha_of(s: Any) -> Any:
    """exp(-8 s)."""
    p = ((((P5 * s + P4) * s + P3) * s + P2) * s + P1) * s + P0
    p = p * p
    p = p * p
    return p * p


@inline
def start_transmittance(work: Any, columns: Any, rows: Any) -> None:
    """1 inside the image, -1 (finished) outside."""
    inside = select(lane_numbers() + HALF <= lanes(np.float32(columns)), lanes(ONE), lanes(-ONE))
    for row in range(16):
        store(work, row * 16, inside if row < rows else lanes(-ONE))


@njit(
    "void(int64[::1],int64[::1],int64[::1],int32[::1],float32[::1],int64,int64,float32[::1],float32[::1],float32[::1])",
    nogil=True,
    cache=True,
)
def blend(
    counter: Any,
    tile_order: Any,
    tile_start: Any,
    list_gaussian: Any,
    records: Any,
    width: int,
    height: int,
    background: Any,
    work: Any,
    image: Any,
) -> None:
    """Fill ``image`` [4, rows * 16, columns * 16]: red, green, blue with background, and transmittance.

    ``work``: 1,024 floats of this thread's own.
    """
    columns = (width + 15) // 16
    line = columns * 16
    plane = (height + 15) // 16 * 16 * line
    while True:
        turn = take_next(counter)
        if turn >= len(tile_order):
            break
        tile = tile_order[turn]
        x, y = tile % columns * 16, tile // columns * 16
        rows = min(16, height - y)
        start_transmittance(work, min(16, width - x), rows)
        for i in range(256, 1024, 16):
            store(work, i, lanes(ZERO))
        live = np.uint64((1 << rows) - 1)
        fx, fy = np.float32(x), np.float32(y)
        for entry in range(tile_start[tile], tile_start[tile + 1]):
            base = np.int64(list_gaussian[entry]) * RECORD
            bits = touched_rows(records, base, fx, fy) & live
            if bits == 0:
                continue
            a, b, c = records[base + 2], records[base + 3], records[base + 4]
            red, green, blue = lanes(records[base + 6]), lanes(records[base + 7]), lanes(records[base + 8])
            my = records[base + 1] - fy - HALF
            dx = lane_numbers() + (HALF + fx - records[base])
            sx, sxy = (dx * a) * dx + records[base + 5], dx * b
            while bits != 0:
                row = np.int64(lowest_bit(bits))
                bits &= bits - np.uint64(1)
                at = row * 16
                dy = np.float32(row) - my
                s = (sxy + c * dy) * dy + sx
                valid = s <= lanes(LIMIT)
                t = load(work, at)
                w = lane_min(alpha_of(s), ALPHA_MAX) * t
                after = t - w
                counted = valid & (after > lanes(T_MIN))
                w = select(counted, w, lanes(ZERO))
                store(work, 256 + at, w * red + load(work, 256 + at))
                store(work, 512 + at, w * green + load(work, 512 + at))
                store(work, 768 + at, w * blue + load(work, 768 + at))
                t = select(counted, after, select(valid, lanes(ZERO) - lane_abs(t), t))
                store(work, at, t)
                if mask_bits(t > lanes(ZERO)) == 0:
                    live &= ~(np.uint64(1) << np.uint64(row))
            if live == 0:
                break
        for row in range(16):
            out = (y + row) * line + x
            t = lane_abs(load(work, row * 16))
            for channel in range(3):
                value = load(work, (channel + 1) * 256 + row * 16)
                store(image, channel * plane + out, value + t * background[channel])
            store(image, 3 * plane + out, t)


@njit(
    "void(int64[::1],int64[::1],int64[::1],int32[::1],int32[::1],float32[::1],int64,int64,float32[::1],float32[::1],float32[::1],float32[::1])",
    nogil=True,
    cache=True,
)
def blend_backward(
    counter: Any,
    tile_order: Any,
    tile_start: Any,
    list_gaussian: Any,
    list_slot: Any,
    records: Any,
    width: int,
    height: int,
    image: Any,
    grad: Any,
    work: Any,
    slots: Any,
) -> None:
    """Fill each pair's slot (see ``project_backward``) from ``grad`` [4, …], dL/d(red, green, blue) and dL/dalpha.

    ``image`` is what ``blend`` wrote. ``work``: 1,280 floats of this thread's own.
    """
    columns = (width + 15) // 16
    line = columns * 16
    plane = (height + 15) // 16 * 16 * line
    zero = lanes(ZERO)
    while True:
        turn = take_next(counter)
        if turn >= len(tile_order):
            break
        tile = tile_order[turn]
        x, y = tile % columns * 16, tile // columns * 16
        rows = min(16, height - y)
        start_transmittance(work, min(16, width - x), rows)
        for row in range(16):
            at, i = row * 16, (y + row) * line + x
            red, green, blue = load(grad, i), load(grad, plane + i), load(grad, 2 * plane + i)
            behind = load(image, i) * red + load(image, plane + i) * green + load(image, 2 * plane + i) * blue
            store(work, 256 + at, behind - load(image, 3 * plane + i) * load(grad, 3 * plane + i))
            store(work, 512 + at, red)
            store(work, 768 + at, green)
            store(work, 1024 + at, blue)
        live = np.uint64((1 << rows) - 1)
        fx, fy = np.float32(x), np.float32(y)
        for entry in range(tile_start[tile], tile_start[tile + 1]):
            slot = np.int64(list_slot[entry]) * 16
            base = np.int64(list_gaussian[entry]) * RECORD
            bits = touched_rows(records, base, fx, fy) & live
            if bits == 0:
                store(slots, slot, zero)
                continue
            a, b, c = records[base + 2], records[base + 3], records[base + 4]
            red, green, blue = lanes(records[base + 6]), lanes(records[base + 7]), lanes(records[base + 8])
            my = records[base + 1] - fy - HALF
            dx = lane_numbers() + (HALF + fx - records[base])
            sx, sxy = (dx * a) * dx + records[base + 5], dx * b
            sum_q, sum_qy, sum_qyy = zero, zero, zero
            sum_red, sum_green, sum_blue = zero, zero, zero
            while bits != 0:
                row = np.int64(lowest_bit(bits))
                bits &= bits - np.uint64(1)
                at = row * 16
                dy = np.float32(row) - my
                s = (sxy + c * dy) * dy + sx
                valid = s <= lanes(LIMIT)
                t = load(work, at)
                full = alpha_of(s)
                alpha = lane_min(full, ALPHA_MAX)
                w = alpha * t
                after = t - w
                counted = valid & (after > lanes(T_MIN))
                w = select(counted, w, zero)
                grad_red, grad_green, grad_blue = load(work, 512 + at), load(work, 768 + at), load(work, 1024 + at)
                shade = grad_red * red + grad_green * green + grad_blue * blue
                behind = load(work, 256 + at) - w * shade
                store(work, 256 + at, behind)
                # alpha dL/dalpha = alpha (T shade - behind / (1 - alpha)); none where alpha was cut to 0.999.
                q = w * shade - alpha * behind / (ONE - alpha)
                q = select(counted & (full <= lanes(ALPHA_MAX)), q, zero)
                sum_q += q
                qy = q * dy
                sum_qy += qy
                sum_qyy += qy * dy
                sum_red += w * grad_red
                sum_green += w * grad_green
                sum_blue += w * grad_blue
                t = select(counted, after, select(valid, zero - lane_abs(t), t))
                store(work, at, t)
                if mask_bits(t > zero) == 0:
                    live &= ~(np.uint64(1) << np.uint64(row))
            sum_qx = sum_q * dx
            sums = sums_of_nine(sum_q, sum_qx, sum_qx * dx, sum_qy, sum_qy * dx, sum_qyy, sum_red, sum_green, sum_blue)
            store(slots, slot, sums)
            if live == 0:
                for rest in range(entry + 1, tile_start[tile + 1]):
                    store(slots, np.int64(list_slot[rest]) * 16, zero)
                break
