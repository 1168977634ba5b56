"""Adam and the regularisation of the CPU engine, on the rasterizer's parameter rows (see ``splat.projection``)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from splat.lane_math import lane_exp
from splat.projection import LOGIT, MEAN, QUAT, SCALE
from splat.simd import lane_sqrt, lanes, load, store, take_next

BETA1, BETA2 = np.float32(0.9), np.float32(0.999)
EPSILON = np.float32(1e-15)
ONE, ZERO, TWO = np.float32(1), np.float32(0), np.float32(2)
BLOCK = 128  # vectors that a thread takes at a time
NOISE_LOGIT = -2.7  # opacity 0.063: above it the noise factor is below 1e-2 and is left out
NOISE_STEEPNESS, NOISE_CENTER = 100.0, 0.995  # Kheradmand et al. 2024, eq. 10


@njit(
    "void(int64[::1],int64,int64,float32[::1],float32[::1],float32[::1],float32[::1],float32[::1],float32,float32)",
    nogil=True,
    cache=True,
)
def adam(
    counter: Any,
    groups: int,
    stride: int,
    rates: Any,
    params: Any,
    grads: Any,
    first: Any,
    second: Any,
    correct1: Any,
    correct2: Any,
) -> None:
    """Kingma & Ba 2015 with one learning rate per row; rows with rate 0 are skipped.

    ``correct1`` = 1 / (1 - beta1^t), ``correct2`` = 1 / (1 - beta2^t).
    """
    blocks = (groups + BLOCK - 1) // BLOCK
    while True:
        turn = take_next(counter)
        if turn >= len(rates) * blocks:
            break
        row, block = turn // blocks, turn % blocks
        rate = rates[row] * correct1
        if rate == ZERO:
            continue
        for group in range(block * BLOCK, min((block + 1) * BLOCK, groups)):
            at = row * stride + group * 16
            g = load(grads, at)
            m = load(first, at) * BETA1 + g * (ONE - BETA1)
            v = load(second, at) * BETA2 + g * g * (ONE - BETA2)
            store(first, at, m)
            store(second, at, v)
            store(params, at, load(params, at) - rate * m / (lane_sqrt(v * correct2) + EPSILON))


@njit(forceinline=True, nogil=True)
def normal(seed: Any, index: Any) -> Any:
    """A nearly normal number (sum of four uniform ones, splitmix64), the same for the same seed and index."""
    z = seed + (index + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    low = np.uint64(0xFFFF)
    total = (z & low) + ((z >> np.uint64(16)) & low) + ((z >> np.uint64(32)) & low) + (z >> np.uint64(48))
    return (np.float64(np.int64(total)) / 65536.0 - 2.0) * 1.7320508


@njit("void(int64[::1],int64,int64,float32[::1],float32[::1],float32,float32,float32,uint64)", nogil=True, cache=True)
def regularise(
    counter: Any,
    count: int,
    stride: int,
    params: Any,
    grads: Any,
    opacity_reg: Any,
    scale_reg: Any,
    noise: Any,
    seed: Any,
) -> None:
    """Add the gradients of the mean opacity and mean scale, and move nearly transparent Gaussians at random.

    Noise: ``noise`` * Sigma * normal * sigmoid(100 ((1 - opacity) - 0.995)) (Kheradmand et al. 2024).
    """
    groups = (count + 15) // 16
    while True:
        block = take_next(counter)
        if block * BLOCK >= groups:
            break
        for group in range(block * BLOCK, min((block + 1) * BLOCK, groups)):
            at = LOGIT * stride + group * 16
            opacity = ONE / (ONE + lane_exp(lanes(ZERO) - load(params, at)))
            store(grads, at, load(grads, at) + opacity_reg * opacity * (ONE - opacity))
            for axis in range(3):
                at = (SCALE + axis) * stride + group * 16
                store(grads, at, load(grads, at) + scale_reg * lane_exp(load(params, at)))
            if noise == ZERO:
                continue
            for i in range(group * 16, min(group * 16 + 16, count)):
                logit = np.float64(params[LOGIT * stride + i])
                if logit > NOISE_LOGIT:
                    continue
                transparent = 1.0 / (1.0 + np.exp(logit))
                amount = noise / (1.0 + np.exp(-NOISE_STEEPNESS * (transparent - NOISE_CENTER)))
                at4 = np.uint64(4 * i)
                n0, n1, n2 = normal(seed, at4), normal(seed, at4 + np.uint64(1)), normal(seed, at4 + np.uint64(2))
                w, x = np.float64(params[QUAT * stride + i]), np.float64(params[(QUAT + 1) * stride + i])
                y, z = np.float64(params[(QUAT + 2) * stride + i]), np.float64(params[(QUAT + 3) * stride + i])
                inverse = 1.0 / np.sqrt(w * w + x * x + y * y + z * z + 1e-24)
                w, x, y, z = w * inverse, x * inverse, y * inverse, z * inverse
                r00, r01, r02 = 1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)
                r10, r11, r12 = 2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)
                r20, r21, r22 = 2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)
                a = (r00 * n0 + r10 * n1 + r20 * n2) * np.exp(2 * np.float64(params[SCALE * stride + i]))
                b = (r01 * n0 + r11 * n1 + r21 * n2) * np.exp(2 * np.float64(params[(SCALE + 1) * stride + i]))
                c = (r02 * n0 + r12 * n1 + r22 * n2) * np.exp(2 * np.float64(params[(SCALE + 2) * stride + i]))
                params[MEAN * stride + i] += amount * (r00 * a + r01 * b + r02 * c)
                params[(MEAN + 1) * stride + i] += amount * (r10 * a + r11 * b + r12 * c)
                params[(MEAN + 2) * stride + i] += amount * (r20 * a + r21 * b + r22 * c)
