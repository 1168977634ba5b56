"""Gaussians to image plane, forward and backward: EWA projection and spherical harmonics, sixteen Gaussians at a time.

Formulas: Zwicker et al. 2001 (EWA splatting), Kerbl et al. 2023 (3D Gaussian splatting); thresholds and conventions are
gsplat's: 0.3 px blur, field of view clipped at 1.3 times the image, opacity-aware radius, colour max(0, 0.5 + SH).

Parameters lie in one flat float32 array, one row of ``stride`` floats per number (``stride`` is a multiple of 16 and
rows beyond the last Gaussian are invisible): means 0-2, log_scales 3-5, quats 6-9 (wxyz), opacity_logit 10, sh[k, c]
11 + 3k + c. Gradients have the same layout.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from splat.lane_math import HALF, ONE, TWO, inline, lane_exp, lane_log, lane_round
from splat.simd import (
    lane_max,
    lane_min,
    lane_sqrt,
    lanes,
    load,
    load_strided,
    prefetch,
    select,
    store,
    store_strided,
    take_next,
)
from splat.spherical_harmonics import sh_backward, sh_color

MEAN, SCALE, QUAT, LOGIT, SH = 0, 3, 6, 10, 11
RECORD = 16  # floats per projected Gaussian: one cache line
# A record: 0 mx, 1 my (pixels); 2 a, 3 b, 4 c, 5 e with alpha = exp(-8 (a dx^2 + b dx dy + c dy^2 + e)); 6-8 colour;
# 9 dx / dy of the least value in a row, 12 dy / dx of that in a column; 10, 11 half width and half height (pixels) of
# the region with alpha >= 1/255.
BLUR = np.float32(0.3)  # px^2, added to the projected covariance
CLIP = 0.3  # how far beyond the image the projection's Jacobian is evaluated, in half fields of view
LOG_255 = np.float32(np.log(255.0))
EIGHTH = np.float32(0.125)
BLOCK = 16  # groups of sixteen Gaussians that a thread takes at a time
AHEAD = 32  # Gaussians; so far ahead are rows fetched
FAR_AWAY = np.float32(np.inf)  # depth of what is not seen
SLACK = np.float32(0.01)  # tiles; larger than the margin of the exact choice of tiles


@inline
def rotation(params: Any, stride: Any, at: Any) -> Any:
    """The nine entries of the rotation (row by row), the normalised quaternion, and 1 / its length."""
    w, x = load(params, QUAT * stride + at), load(params, (QUAT + 1) * stride + at)
    y, z = load(params, (QUAT + 2) * stride + at), load(params, (QUAT + 3) * stride + at)
    inverse = ONE / lane_sqrt(lane_max(w * w + x * x + y * y + z * z, np.float32(1e-24)))
    w, x, y, z = w * inverse, x * inverse, y * inverse, z * inverse
    r = (
        ONE - TWO * (y * y + z * z),
        TWO * (x * y - w * z),
        TWO * (x * z + w * y),
        TWO * (x * y + w * z),
        ONE - TWO * (x * x + z * z),
        TWO * (y * z - w * x),
        TWO * (x * z - w * y),
        TWO * (y * z + w * x),
        ONE - TWO * (x * x + y * y),
    )
    return r, (w, x, y, z), inverse


@inline
def to_camera(params: Any, stride: Any, at: Any, cam: Any) -> Any:
    """Camera-space position."""
    x, y = load(params, MEAN * stride + at), load(params, (MEAN + 1) * stride + at)
    z = load(params, (MEAN + 2) * stride + at)
    return (
        cam[0] * x + cam[1] * y + cam[2] * z + cam[9],
        cam[3] * x + cam[4] * y + cam[5] * z + cam[10],
        cam[6] * x + cam[7] * y + cam[8] * z + cam[11],
    )


@inline
def clipped_slopes(tx: Any, ty: Any, inverse_z: Any, cam: Any) -> Any:
    """x / z and y / z, limited to 1.3 times the field of view."""
    x_low, x_high, y_low, y_high = cam[21], cam[22], cam[23], cam[24]
    return lane_max(lane_min(tx * inverse_z, x_high), x_low), lane_max(lane_min(ty * inverse_z, y_high), y_low)


@inline
def image_axes(r: Any, u: Any, v: Any, inverse_z: Any, cam: Any) -> Any:
    """The 2x3 matrix J W R: how the Gaussian's own axes lie in the image, pixels per scene unit.

    Returns J W (6 lanes) and J W R (6 lanes), row by row.
    """
    jx, jy = cam[12] * inverse_z, cam[13] * inverse_z
    m = (
        jx * (cam[0] - u * cam[6]),
        jx * (cam[1] - u * cam[7]),
        jx * (cam[2] - u * cam[8]),
        jy * (cam[3] - v * cam[6]),
        jy * (cam[4] - v * cam[7]),
        jy * (cam[5] - v * cam[8]),
    )
    a = (
        m[0] * r[0] + m[1] * r[3] + m[2] * r[6],
        m[0] * r[1] + m[1] * r[4] + m[2] * r[7],
        m[0] * r[2] + m[1] * r[5] + m[2] * r[8],
        m[3] * r[0] + m[4] * r[3] + m[5] * r[6],
        m[3] * r[1] + m[4] * r[4] + m[5] * r[7],
        m[3] * r[2] + m[4] * r[5] + m[5] * r[8],
    )
    return m, a


@inline
def covariance(params: Any, stride: Any, at: Any, a: Any) -> Any:
    """Scales, J W R S (6 lanes, row by row) of ``a`` = J W R, and the blurred covariance in the image: xx, yy, xy."""
    s0 = lane_exp(load(params, SCALE * stride + at))
    s1 = lane_exp(load(params, (SCALE + 1) * stride + at))
    s2 = lane_exp(load(params, (SCALE + 2) * stride + at))
    x0, x1, x2, y0, y1, y2 = a[0] * s0, a[1] * s1, a[2] * s2, a[3] * s0, a[4] * s1, a[5] * s2
    xx = x0 * x0 + x1 * x1 + x2 * x2 + BLUR
    yy = y0 * y0 + y1 * y1 + y2 * y2 + BLUR
    return (s0, s1, s2), (x0, x1, x2, y0, y1, y2), (xx, yy, x0 * y0 + x1 * y1 + x2 * y2)


@inline
def viewing_direction(params: Any, stride: Any, at: Any, cam: Any) -> Any:
    """Unit vector from the camera to the Gaussian, and 1 / distance."""
    x = load(params, MEAN * stride + at) - cam[18]
    y = load(params, (MEAN + 1) * stride + at) - cam[19]
    z = load(params, (MEAN + 2) * stride + at) - cam[20]
    inverse = ONE / lane_sqrt(lane_max(x * x + y * y + z * z, np.float32(1e-24)))
    return x * inverse, y * inverse, z * inverse, inverse


@njit(
    "void(int64[::1],int64,int64,float32[::1],float32[::1],int64,float32[::1],float32[::1],float32[::1])",
    nogil=True,
    cache=True,
)
def project(
    counter: Any, groups: int, stride: int, params: Any, cam: Any, degree: int, records: Any, depth: Any, tiles: Any
) -> None:
    """Fill ``records`` [N * 16], ``depth`` [N] (infinite when unseen), ``tiles`` [N] (at least the tiles touched).

    ``cam``: 0-8 rotation, 9-11 translation, 12 fx, 13 fy, 14 cx, 15 cy, 16 width, 17 height, 18-20 centre, 21-24
    limits of x / z and y / z, 25 near plane.
    """
    width, height, near = cam[16], cam[17], cam[25]
    tile = np.float32(1 / 16)
    columns, rows = np.floor((width + np.float32(15)) * tile), np.floor((height + np.float32(15)) * tile)
    zero = lanes(np.float32(0))
    while True:
        first = take_next(counter) * BLOCK
        if first >= groups:
            break
        for group in range(first, min(first + BLOCK, groups)):
            at = group * 16
            tx, ty, tz = to_camera(params, stride, at, cam)
            iz = ONE / lane_max(tz, near)
            u, v = clipped_slopes(tx, ty, iz, cam)
            r, _q, _inverse = rotation(params, stride, at)
            _m, a = image_axes(r, u, v, iz, cam)
            _s, _b, (xx, yy, xy) = covariance(params, stride, at, a)
            scale = EIGHTH / (xx * yy - xy * xy)
            ca, cb, cc = HALF * yy * scale, zero - xy * scale, HALF * xx * scale
            log_opacity = zero - lane_log(ONE + lane_exp(zero - load(params, LOGIT * stride + at)))
            reach = TWO * lane_max(log_opacity + LOG_255, np.float32(0))
            half_width, half_height = lane_sqrt(reach * xx), lane_sqrt(reach * yy)
            mx, my = cam[12] * tx * iz + cam[14], cam[13] * ty * iz + cam[15]
            seen = (tz > near) & (reach > zero) & (mx + half_width > zero) & (my + half_height > zero)
            seen = seen & (mx - half_width <= width) & (my - half_height <= height)
            left = lane_max((mx - half_width) * tile - SLACK, np.float32(0))
            right = lane_min((mx + half_width) * tile + SLACK, columns)
            top = lane_max((my - half_height) * tile - SLACK, np.float32(0))
            bottom = lane_min((my + half_height) * tile + SLACK, rows)
            # Exact whole tiles: rounding (v - 0.5) up to the next whole number is floor for all but exact edges,
            # where one tile too many is only an upper bound.
            across = lane_round(right + HALF) - lane_round(left - HALF)
            down = lane_round(bottom + HALF) - lane_round(top - HALF)
            store(tiles, at, select(seen, across * down, zero))
            store(depth, at, select(seen, tz, lanes(FAR_AWAY)))
            dx, dy, dz, _id = viewing_direction(params, stride, at, cam)
            base = at * RECORD
            store_strided(records, base, RECORD, mx)
            store_strided(records, base + 1, RECORD, my)
            store_strided(records, base + 2, RECORD, ca)
            store_strided(records, base + 3, RECORD, cb)
            store_strided(records, base + 4, RECORD, cc)
            store_strided(records, base + 5, RECORD, zero - EIGHTH * log_opacity)
            for channel in range(3):
                coefficients = (SH + channel) * stride + at
                color = lane_max(sh_color(params, coefficients, 3 * stride, degree, dx, dy, dz), np.float32(0))
                store_strided(records, base + 6 + channel, RECORD, color)
            store_strided(records, base + 9, RECORD, zero - HALF * cb / ca)
            store_strided(records, base + 10, RECORD, half_width)
            store_strided(records, base + 11, RECORD, half_height)
            store_strided(records, base + 12, RECORD, zero - HALF * cb / cc)


@inline
def quaternion_gradient(q: Any, inverse: Any, g: Any) -> Any:
    """dL/d(quaternion as stored) from dL/d(rotation matrix) ``g`` (row by row)."""
    w, x, y, z = q
    gw = TWO * (x * (g[7] - g[5]) + y * (g[2] - g[6]) + z * (g[3] - g[1]))
    gx = TWO * (w * (g[7] - g[5]) + y * (g[1] + g[3]) + z * (g[2] + g[6]) - TWO * x * (g[4] + g[8]))
    gy = TWO * (w * (g[2] - g[6]) + x * (g[1] + g[3]) + z * (g[5] + g[7]) - TWO * y * (g[0] + g[8]))
    gz = TWO * (w * (g[3] - g[1]) + x * (g[2] + g[6]) + y * (g[5] + g[7]) - TWO * z * (g[0] + g[4]))
    along = gw * w + gx * x + gy * y + gz * z
    return (
        (gw - along * w) * inverse,
        (gx - along * x) * inverse,
        (gy - along * y) * inverse,
        (gz - along * z) * inverse,
    )


@njit(
    "void(int64[::1],int64,int64,float32[::1],float32[::1],int64,float32[::1],int64[::1],int32[::1],float32[::1],float32[::1])",
    nogil=True,
    cache=True,
)
def project_backward(
    counter: Any,
    groups: int,
    stride: int,
    params: Any,
    cam: Any,
    degree: int,
    records: Any,
    first_slot: Any,
    slot_count: Any,
    slots: Any,
    grads: Any,
) -> None:
    """Sum each Gaussian's slots in their order and carry the sums back to the parameters; fills ``grads``.

    A slot: sums over one tile's pixels of q, q dx, q dx^2, q dy, q dx dy, q dy^2 with q = alpha dL/dalpha, then
    dL/dcolour.
    Rows of ``grads`` beyond the SH degree are left as they are.
    """
    zero = lanes(np.float32(0))
    used = SH + 3 * (degree + 1) * (degree + 1)
    sums = np.zeros(16 * 16, np.float32)
    while True:
        first = take_next(counter) * BLOCK
        if first >= groups:
            break
        for group in range(first, min(first + BLOCK, groups)):
            at = group * 16
            for row in range(used):
                prefetch(params, row * stride + at + AHEAD)
                prefetch(grads, row * stride + at + AHEAD)
            for lane in range(16):
                total = lanes(np.float32(0))
                start = first_slot[at + lane]
                for slot in range(start, start + slot_count[at + lane]):
                    total += load(slots, slot * 16)
                store(sums, lane * 16, total)
            q0, q1, q2 = load_strided(sums, 0, 16), load_strided(sums, 1, 16), load_strided(sums, 2, 16)
            q3, q4, q5 = load_strided(sums, 3, 16), load_strided(sums, 4, 16), load_strided(sums, 5, 16)

            tx, ty, tz = to_camera(params, stride, at, cam)
            iz = ONE / lane_max(tz, cam[25])
            u, v = clipped_slopes(tx, ty, iz, cam)
            r, q, quat_inverse = rotation(params, stride, at)
            m, a = image_axes(r, u, v, iz, cam)
            (s0, s1, s2), (x0, x1, x2, y0, y1, y2), (xx, yy, xy) = covariance(params, stride, at, a)
            inverse_det = ONE / (xx * yy - xy * xy)
            ca, cb, cc = yy * inverse_det, zero - xy * inverse_det, xx * inverse_det

            # Opacity: alpha = o exp(-sigma), so dL/d ln o = sum of q, and d ln o / d logit = 1 - o.
            store(grads, LOGIT * stride + at, q0 / (ONE + lane_exp(load(params, LOGIT * stride + at))))
            # Image position, and the conic as a symmetric matrix.
            gmx, gmy = ca * q1 + cb * q3, cb * q1 + cc * q3
            ga, gb, gc = zero - HALF * q2, zero - HALF * q4, zero - HALF * q5
            # Covariance = conic^-1, so dL/dcov = -conic dL/dconic conic.
            ha, hb = ca * ga + cb * gb, ca * gb + cb * gc
            hc, hd = cb * ga + cc * gb, cb * gb + cc * gc
            gxx = zero - (ha * ca + hb * cb)
            gxy = zero - (ha * cb + hb * cc)
            gyy = zero - (hc * cb + hd * cc)
            # cov = B B^T with B = J W R S, so dL/dB = 2 dL/dcov B.
            b0, b1, b2 = TWO * (gxx * x0 + gxy * y0), TWO * (gxx * x1 + gxy * y1), TWO * (gxx * x2 + gxy * y2)
            b3, b4, b5 = TWO * (gxy * x0 + gyy * y0), TWO * (gxy * x1 + gyy * y1), TWO * (gxy * x2 + gyy * y2)
            store(grads, SCALE * stride + at, b0 * x0 + b3 * y0)
            store(grads, (SCALE + 1) * stride + at, b1 * x1 + b4 * y1)
            store(grads, (SCALE + 2) * stride + at, b2 * x2 + b5 * y2)
            b0, b1, b2, b3, b4, b5 = b0 * s0, b1 * s1, b2 * s2, b3 * s0, b4 * s1, b5 * s2
            gr = (
                m[0] * b0 + m[3] * b3,
                m[0] * b1 + m[3] * b4,
                m[0] * b2 + m[3] * b5,
                m[1] * b0 + m[4] * b3,
                m[1] * b1 + m[4] * b4,
                m[1] * b2 + m[4] * b5,
                m[2] * b0 + m[5] * b3,
                m[2] * b1 + m[5] * b4,
                m[2] * b2 + m[5] * b5,
            )
            gq = quaternion_gradient(q, quat_inverse, gr)
            for i in range(4):
                store(grads, (QUAT + i) * stride + at, gq[i])
            # dL/d(J W), then J = [[fx/z, 0, -fx u/z], [0, fy/z, -fy v/z]] with u, v clipped.
            m0, m1, m2 = (
                b0 * r[0] + b1 * r[1] + b2 * r[2],
                b0 * r[3] + b1 * r[4] + b2 * r[5],
                b0 * r[6] + b1 * r[7] + b2 * r[8],
            )
            m3, m4, m5 = (
                b3 * r[0] + b4 * r[1] + b5 * r[2],
                b3 * r[3] + b4 * r[4] + b5 * r[5],
                b3 * r[6] + b4 * r[7] + b5 * r[8],
            )
            j00, j02 = m0 * cam[0] + m1 * cam[1] + m2 * cam[2], m0 * cam[6] + m1 * cam[7] + m2 * cam[8]
            j11, j12 = m3 * cam[3] + m4 * cam[4] + m5 * cam[5], m3 * cam[6] + m4 * cam[7] + m5 * cam[8]
            fx, fy = cam[12] * iz, cam[13] * iz
            raw_u, raw_v = tx * iz, ty * iz
            gu, gv = zero - fx * j02, zero - fy * j12
            gu = select((raw_u <= cam[22]) & (cam[21] <= raw_u), gu, zero) + cam[12] * gmx
            gv = select((raw_v <= cam[24]) & (cam[23] <= raw_v), gv, zero) + cam[13] * gmy
            gtx, gty = gu * iz, gv * iz
            gtz = zero - iz * (fx * (j00 - u * j02) + fy * (j11 - v * j12) + gu * raw_u + gv * raw_v)

            dx, dy, dz, inverse_distance = viewing_direction(params, stride, at, cam)
            gdx, gdy, gdz = zero, zero, zero
            for channel in range(3):
                shown = load_strided(records, at * RECORD + 6 + channel, RECORD) > zero
                gcolor = select(shown, load_strided(sums, 6 + channel, 16), zero)
                coefficients = (SH + channel) * stride + at
                px, py, pz = sh_backward(params, grads, coefficients, 3 * stride, degree, (dx, dy, dz), gcolor)
                gdx, gdy, gdz = gdx + px, gdy + py, gdz + pz
            along = gdx * dx + gdy * dy + gdz * dz
            gdx, gdy, gdz = (gdx - along * dx), (gdy - along * dy), (gdz - along * dz)
            gx = cam[0] * gtx + cam[3] * gty + cam[6] * gtz + gdx * inverse_distance
            gy = cam[1] * gtx + cam[4] * gty + cam[7] * gtz + gdy * inverse_distance
            gz = cam[2] * gtx + cam[5] * gty + cam[8] * gtz + gdz * inverse_distance
            store(grads, MEAN * stride + at, gx)
            store(grads, (MEAN + 1) * stride + at, gy)
            store(grads, (MEAN + 2) * stride + at, gz)
