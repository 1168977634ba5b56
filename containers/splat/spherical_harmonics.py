"""Colour of sixteen Gaussians from real spherical harmonics up to degree 3, with the signs of 3DGS files; backward too.

Coefficient k of a colour channel lies at ``base + k * step`` of the flat parameters, see ``splat.projection``.
Numba's cache looks at the file of a kernel alone: to try a change here, empty ``__pycache__``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from splat.lane_math import HALF, TWO, inline
from splat.model import SH_C0, SH_C1, SH_C2, SH_C3
from splat.simd import load, store

C0, C1 = np.float32(SH_C0), np.float32(SH_C1)
C20, C21, C22 = (np.float32(v) for v in SH_C2)
C30, C31, C32, C33, C34 = (np.float32(v) for v in SH_C3)
N2, N3, N4, N5, N6, N8 = (np.float32(v) for v in (2, 3, 4, 5, 6, 8))


@inline
def sh_color(params: Any, base: Any, step: Any, degree: Any, x: Any, y: Any, z: Any) -> Any:
    """0.5 + SH of one colour channel, seen along the unit vector (x, y, z)."""
    value = C0 * load(params, base) + HALF
    if degree >= 1:
        value += C1 * (
            z * load(params, base + 2 * step) - y * load(params, base + step) - x * load(params, base + 3 * step)
        )
    if degree >= 2:
        xx, yy, zz = x * x, y * y, z * z
        value += C20 * (x * y * load(params, base + 4 * step) - y * z * load(params, base + 5 * step))
        value += C21 * (TWO * zz - xx - yy) * load(params, base + 6 * step)
        value += C22 * (xx - yy) * load(params, base + 8 * step) - C20 * x * z * load(params, base + 7 * step)
        if degree >= 3:
            value += C31 * x * y * z * load(params, base + 10 * step)
            value -= C30 * y * (N3 * xx - yy) * load(params, base + 9 * step)
            value -= C32 * y * (N4 * zz - xx - yy) * load(params, base + 11 * step)
            value += C33 * z * (TWO * zz - N3 * xx - N3 * yy) * load(params, base + 12 * step)
            value -= C32 * x * (N4 * zz - xx - yy) * load(params, base + 13 * step)
            value += C34 * z * (xx - yy) * load(params, base + 14 * step)
            value -= C30 * x * (xx - N3 * yy) * load(params, base + 15 * step)
    return value


@inline
def sh_backward(params: Any, grads: Any, base: Any, step: Any, degree: Any, d: Any, g: Any) -> Any:
    """Store dL/dsh of one channel for dL/dcolour ``g``; returns this channel's dL/d(direction)."""
    x, y, z = d
    store(grads, base, C0 * g)
    gx, gy, gz = g * np.float32(0), g * np.float32(0), g * np.float32(0)
    if degree >= 1:
        store(grads, base + step, np.float32(-C1) * y * g)
        store(grads, base + 2 * step, C1 * z * g)
        store(grads, base + 3 * step, np.float32(-C1) * x * g)
        gy -= C1 * load(params, base + step)
        gz += C1 * load(params, base + 2 * step)
        gx -= C1 * load(params, base + 3 * step)
    if degree >= 2:
        xx, yy, zz = x * x, y * y, z * z
        k4, k5 = C20 * load(params, base + 4 * step), C20 * load(params, base + 5 * step)
        k6, k7 = C21 * load(params, base + 6 * step), C20 * load(params, base + 7 * step)
        k8 = C22 * load(params, base + 8 * step)
        store(grads, base + 4 * step, C20 * x * y * g)
        store(grads, base + 5 * step, np.float32(-C20) * y * z * g)
        store(grads, base + 6 * step, C21 * (TWO * zz - xx - yy) * g)
        store(grads, base + 7 * step, np.float32(-C20) * x * z * g)
        store(grads, base + 8 * step, C22 * (xx - yy) * g)
        gx += k4 * y - TWO * k6 * x - k7 * z + TWO * k8 * x
        gy += k4 * x - k5 * z - TWO * k6 * y - TWO * k8 * y
        gz += N4 * k6 * z - k5 * y - k7 * x
        if degree >= 3:
            k9, k10 = C30 * load(params, base + 9 * step), C31 * load(params, base + 10 * step)
            k11, k12 = C32 * load(params, base + 11 * step), C33 * load(params, base + 12 * step)
            k13, k14 = C32 * load(params, base + 13 * step), C34 * load(params, base + 14 * step)
            k15 = C30 * load(params, base + 15 * step)
            store(grads, base + 9 * step, np.float32(-C30) * y * (N3 * xx - yy) * g)
            store(grads, base + 10 * step, C31 * x * y * z * g)
            store(grads, base + 11 * step, np.float32(-C32) * y * (N4 * zz - xx - yy) * g)
            store(grads, base + 12 * step, C33 * z * (TWO * zz - N3 * xx - N3 * yy) * g)
            store(grads, base + 13 * step, np.float32(-C32) * x * (N4 * zz - xx - yy) * g)
            store(grads, base + 14 * step, C34 * z * (xx - yy) * g)
            store(grads, base + 15 * step, np.float32(-C30) * x * (xx - N3 * yy) * g)
            gx += k10 * y * z - N6 * k9 * x * y + TWO * k11 * x * y - N6 * k12 * x * z
            gx += k13 * (N3 * xx + yy - N4 * zz) + TWO * k14 * x * z - N3 * k15 * (xx - yy)
            gy += k10 * x * z - N3 * k9 * (xx - yy) - k11 * (N4 * zz - xx - N3 * yy) - N6 * k12 * y * z
            gy += TWO * k13 * x * y - TWO * k14 * y * z + N6 * k15 * x * y
            gz += k10 * x * y - N8 * k11 * y * z + k12 * N3 * (TWO * zz - xx - yy) - N8 * k13 * x * z + k14 * (xx - yy)
    return gx * g, gy * g, gz * g
