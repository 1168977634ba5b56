"""Blend the Gaussians of each tile front to back, and carry the image's gradient back to them.

One block of 4x4 pixels is one vector, a tile is 4x4 blocks, and only the blocks that an ellipse touches are computed.
alpha = exp(-8 s) by a polynomial of degree 5 (relative error 8e-8) and three squarings. Thresholds are gsplat's:
alpha at least 1/255 and at most 0.999, transmittance at least 1e-4.

A pixel whose transmittance would fall below 1e-4 is finished; its transmittance is then kept with a minus sign, so
that every later test fails by itself. Backward walks front to back again with the remainder (everything that lies
behind the current Gaussian), so forward saves nothing but the image, and each (Gaussian, tile) pair writes its own
slot: no atomics.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from splat.projection import RECORD
from splat.simd import (
    lane_abs,
    lane_column,
    lane_max,
    lane_min,
    lane_row,
    lanes,
    load,
    lowest_bit,
    mask_bits,
    quads,
    select,
    store,
    sums_of_nine,
    take_next,
)

ALPHA_MAX = np.float32(0.999)
T_MIN = np.float32(1e-4)
LIMIT = np.float32(np.log(255.0) / 8)
BLOCK_LIMIT = np.float32(np.log(255.0) / 8 + 1e-4)  # blocks are chosen a little too generously; pixels are tested again
# exp(-x) on 0..0.694, weighted least squares for the relative error
P0, P1, P2, P3, P4, P5 = (
    np.float32(v) for v in (0.99999993, -0.99999302, 0.49988769, -0.16599458, 0.03980742, -0.00586762)
)
HALF, ONE, ZERO = np.float32(0.5), np.float32(1), np.float32(0)
TWO, THREE, FOUR = np.float32(2), np.float32(3), np.float32(4)
# Where the table of a tile's blocks lies in a thread's work space: sixteen numbers each.
VALUE, SLOPE_X, SLOPE_Y, PLACE_X, PLACE_Y = 1792, 1808, 1824, 1840, 1856
WORK = 1872  # floats of work space
quad0, quad1, quad2, quad3 = quads

inline = njit(forceinline=True, nogil=True)


@inline
def touched_blocks(records: Any, base: Any, x: Any, y: Any, work: Any) -> Any:
    """Bits of the tile's blocks in which some pixel centre may reach alpha 1/255; (x, y) is the tile's corner.

    The least value of the quadratic form in a box that does not hold its centre lies on one of the sides that face it.
    Leaves for each block, in ``work``, the place of its first pixel, and the form and its slopes there.
    """
    a, b, c, e = records[base + 2], records[base + 3], records[base + 4], records[base + 5]
    left = lane_column() * FOUR + (HALF + x - records[base])
    top = lane_row() * FOUR + (HALF + y - records[base + 1])
    right, bottom = left + THREE, top + THREE
    zero = lanes(ZERO)
    dx, dy = lane_max(lane_min(zero, right), left), lane_max(lane_min(zero, bottom), top)
    dy1 = lane_max(lane_min(dx * records[base + 12], bottom), top)
    dx2 = lane_max(lane_min(dy * records[base + 9], right), left)
    side = (dx * a + dy1 * b) * dx + (dy1 * c) * dy1
    other = (dx2 * a + dy * b) * dx2 + (dy * c) * dy
    store(work, VALUE, (left * a + top * b) * left + ((top * c) * top + e))
    store(work, SLOPE_X, left * (a * TWO) + top * b)
    store(work, SLOPE_Y, left * b + top * (c * TWO))
    store(work, PLACE_X, left)
    store(work, PLACE_Y, top)
    return mask_bits(lane_min(side, other) + e <= lanes(BLOCK_LIMIT))


@inline
def of_block(work: Any, table: Any, block: Any) -> Any:
    """One number of ``touched_blocks`` in every lane."""
    return lanes(work[np.uint64(table) + block])


@inline
def alpha_of(s: Any) -> Any:
    """exp(-8 s)."""
    p = ((((P5 * s + P4) * s + P3) * s + P2) * s + P1) * s + P0
    p = p * p
    p = p * p
    return p * p


@inline
def start_transmittance(work: Any, columns: Any, rows: Any) -> Any:
    """1 inside the image, -1 (finished) outside; returns the bits of the blocks with a pixel inside."""
    live = np.uint64(0)
    for block in range(16):
        x, y = np.float32(columns - block % 4 * 4), np.float32(rows - block // 4 * 4)
        inside = (lane_column() + HALF <= lanes(x)) & (lane_row() + HALF <= lanes(y))
        store(work, block * 16, select(inside, lanes(ONE), lanes(-ONE)))
        if mask_bits(inside) != 0:
            live |= np.uint64(1) << np.uint64(block)
    return live


@inline
def rows_to_blocks(source: Any, at: Any, line: Any, work: Any, to: Any) -> None:
    """Copy a 16x16 tile of an image plane into 16 blocks."""
    for k in range(4):
        i = at + 4 * k * line
        a, b, c, d = load(source, i), load(source, i + line), load(source, i + 2 * line), load(source, i + 3 * line)
        store(work, to + 64 * k, quad0(a, b, c, d))
        store(work, to + 64 * k + 16, quad1(a, b, c, d))
        store(work, to + 64 * k + 32, quad2(a, b, c, d))
        store(work, to + 64 * k + 48, quad3(a, b, c, d))


@inline
def blocks_to_rows(work: Any, start: Any, target: Any, at: Any, line: Any) -> None:
    """Copy 16 blocks into a 16x16 tile of an image plane."""
    for k in range(4):
        i, j = at + 4 * k * line, start + 64 * k
        a, b, c, d = load(work, j), load(work, j + 16), load(work, j + 32), load(work, j + 48)
        store(target, i, quad0(a, b, c, d))
        store(target, i + line, quad1(a, b, c, d))
        store(target, i + 2 * line, quad2(a, b, c, d))
        store(target, i + 3 * line, quad3(a, b, c, d))


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

    ``work``: WORK floats of this thread's own.
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
        live = start_transmittance(work, width - x, height - y)
        for i in range(256, 1024, 16):
            store(work, i, lanes(ZERO))
        fx, fy = np.float32(x), np.float32(y)
        for entry in range(tile_start[tile], tile_start[tile + 1]):
            base = np.int64(list_gaussian[entry]) * RECORD
            bits = touched_blocks(records, base, fx, fy, work) & live
            if bits == 0:
                continue
            a, b, c = records[base + 2], records[base + 3], records[base + 4]
            red, green, blue = lanes(records[base + 6]), lanes(records[base + 7]), lanes(records[base + 8])
            u, v = lane_column(), lane_row()
            curve = (u * a + v * b) * u + (v * c) * v
            while bits != 0:
                block = lowest_bit(bits)
                bits &= bits - np.uint64(1)
                at = block * np.uint64(16)
                s = (
                    curve
                    + u * of_block(work, SLOPE_X, block)
                    + v * of_block(work, SLOPE_Y, block)
                    + of_block(work, VALUE, block)
                )
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
                    live &= ~(np.uint64(1) << block)
            if live == 0:
                break
        for i in range(0, 256, 16):
            t = lane_abs(load(work, i))
            store(work, i, t)
            for channel in range(3):
                at = (channel + 1) * 256 + i
                store(work, at, load(work, at) + t * background[channel])
        for channel in range(3):
            blocks_to_rows(work, (channel + 1) * 256, image, channel * plane + y * line + x, line)
        blocks_to_rows(work, 0, image, 3 * plane + y * line + x, line)


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

    ``image`` is what ``blend`` wrote. ``work``: WORK floats of this thread's own.
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
        live = start_transmittance(work, width - x, height - y)
        for channel in range(3):
            rows_to_blocks(grad, channel * plane + y * line + x, line, work, 512 + 256 * channel)
        for channel in range(3):
            rows_to_blocks(image, channel * plane + y * line + x, line, work, 1280)
            for i in range(0, 256, 16):
                seen = load(work, 1280 + i) * load(work, 512 + 256 * channel + i)
                store(work, 256 + i, seen if channel == 0 else seen + load(work, 256 + i))
        rows_to_blocks(image, 3 * plane + y * line + x, line, work, 1280)
        rows_to_blocks(grad, 3 * plane + y * line + x, line, work, 1536)
        for i in range(0, 256, 16):
            store(work, 256 + i, load(work, 256 + i) - load(work, 1280 + i) * load(work, 1536 + i))
        fx, fy = np.float32(x), np.float32(y)
        for entry in range(tile_start[tile], tile_start[tile + 1]):
            slot = np.int64(list_slot[entry]) * 16
            base = np.int64(list_gaussian[entry]) * RECORD
            bits = touched_blocks(records, base, fx, fy, work) & live
            if bits == 0:
                store(slots, slot, zero)
                continue
            a, b, c = records[base + 2], records[base + 3], records[base + 4]
            red, green, blue = lanes(records[base + 6]), lanes(records[base + 7]), lanes(records[base + 8])
            u, v = lane_column(), lane_row()
            curve = (u * a + v * b) * u + (v * c) * v
            sum_q, sum_x, sum_y, sum_xx, sum_xy, sum_yy = zero, zero, zero, zero, zero, zero
            sum_red, sum_green, sum_blue = zero, zero, zero
            while bits != 0:
                block = lowest_bit(bits)
                bits &= bits - np.uint64(1)
                at = block * np.uint64(16)
                s = (
                    curve
                    + u * of_block(work, SLOPE_X, block)
                    + v * of_block(work, SLOPE_Y, block)
                    + of_block(work, VALUE, block)
                )
                valid = s <= lanes(LIMIT)
                t = load(work, at)
                full = alpha_of(s)
                alpha = lane_min(full, ALPHA_MAX)
                w = alpha * t
                after = t - w
                counted = valid & (after > lanes(T_MIN))
                w = select(counted, w, zero)
                grad_red, grad_green, grad_blue = load(work, 512 + at), load(work, 768 + at), load(work, 1024 + at)
                shade = w * (grad_red * red + grad_green * green + grad_blue * blue)
                behind = load(work, 256 + at) - shade
                store(work, 256 + at, behind)
                # alpha dL/dalpha = alpha (T shade - behind / (1 - alpha)); none where alpha was cut to 0.999.
                q = shade - alpha * behind / (ONE - alpha)
                q = select(counted & (full <= lanes(ALPHA_MAX)), q, zero)
                bx, by = of_block(work, PLACE_X, block), of_block(work, PLACE_Y, block)
                qx, qy = q * bx, q * by
                sum_q += q
                sum_x += qx
                sum_y += qy
                sum_xx += qx * bx
                sum_xy += qx * by
                sum_yy += qy * by
                sum_red += w * grad_red
                sum_green += w * grad_green
                sum_blue += w * grad_blue
                t = select(counted, after, select(valid, zero - lane_abs(t), t))
                store(work, at, t)
                if mask_bits(t > zero) == 0:
                    live &= ~(np.uint64(1) << np.uint64(block))
            # From the blocks' corners to the pixels: dx = bx + u, dy = by + v.
            sums = sums_of_nine(
                sum_q,
                sum_x + u * sum_q,
                sum_xx + u * (TWO * sum_x + u * sum_q),
                sum_y + v * sum_q,
                sum_xy + u * sum_y + v * (sum_x + u * sum_q),
                sum_yy + v * (TWO * sum_y + v * sum_q),
                sum_red,
                sum_green,
                sum_blue,
            )
            store(slots, slot, sums)
            if live == 0:
                for rest in range(entry + 1, tile_start[tile + 1]):
                    store(slots, np.int64(list_slot[rest]) * 16, zero)
                break
