"""Triton kernels of the GPU engine: activations, the loss with its gradient, and the optimiser with regularisation.

An image [H, W, 3] is read as H rows of 3 W numbers, so a pixel to the right is three numbers away.
"""

# ruff: noqa: ANN201
# mypy: disable-error-code="no-untyped-def, misc"
# Triton reads the annotations of a kernel's arguments itself: only constants have one.

import triton
import triton.language as tl

BLOCK = 512
GAUSSIAN_BLOCK = 128
TAPS = tl.constexpr(11)
REACH = tl.constexpr(10)
C1, C2 = tl.constexpr(0.01**2), tl.constexpr(0.03**2)  # splat.metrics
BETA1, BETA2, EPSILON = tl.constexpr(0.9), tl.constexpr(0.999), tl.constexpr(1e-15)
NOISE_STEEPNESS, NOISE_CENTER = tl.constexpr(100.0), tl.constexpr(0.995)  # Kheradmand et al. 2024, eq. 10


@triton.jit
def prepare(
    means,
    log_scales,
    logits,
    center,
    scales,
    opacities,
    directions,
    n,
    B: tl.constexpr,
):
    """Scales, opacities, and the direction from the camera ``center`` to each Gaussian."""
    i = tl.program_id(0) * B + tl.arange(0, B)
    live = i < n
    tl.store(opacities + i, tl.sigmoid(tl.load(logits + i, live)), live)
    for axis in tl.static_range(3):
        at = 3 * i + axis
        tl.store(scales + at, tl.exp(tl.load(log_scales + at, live)), live)
        tl.store(directions + at, tl.load(means + at, live) - tl.load(center + axis), live)


@triton.jit
def blur_rows(image, photo, window, maps, height, line, B: tl.constexpr):
    """``maps`` [5, H, line]: x, y, xx, yy and xy blurred along each row (whole windows only, at their first pixel)."""
    row = tl.program_id(1)
    p = tl.program_id(0) * B + tl.arange(0, B)
    live = p < line - 3 * REACH
    a = tl.zeros([B], tl.float32)
    b, aa, bb, ab = a, a, a, a
    for tap in tl.static_range(TAPS):
        at = row * line + p + 3 * tap
        w = tl.load(window + tap)
        x = tl.load(image + at, live, 0.0)
        y = tl.load(photo + at, live, 0).to(tl.float32) * (1 / 255)
        a += w * x
        b += w * y
        aa += w * x * x
        bb += w * y * y
        ab += w * x * y
    at, plane = row * line + p, height * line
    tl.store(maps + at, a, live)
    tl.store(maps + plane + at, b, live)
    tl.store(maps + 2 * plane + at, aa, live)
    tl.store(maps + 3 * plane + at, bb, live)
    tl.store(maps + 4 * plane + at, ab, live)


@triton.jit
def similarity(maps, window, slopes, loss, factor, height, line, B: tl.constexpr):
    """Blur ``maps`` along the columns; ``slopes`` [3, H, line]: SSIM of each window by E[x], E[xx], E[xy].

    Takes ``factor`` times the sum of SSIM off ``loss``.
    """
    row = tl.program_id(1)
    p = tl.program_id(0) * B + tl.arange(0, B)
    live = p < line - 3 * REACH
    plane = height * line
    a = tl.zeros([B], tl.float32)
    b, aa, bb, ab = a, a, a, a
    for tap in tl.static_range(TAPS):
        at = (row + tap) * line + p
        w = tl.load(window + tap)
        a += w * tl.load(maps + at, live, 0.0)
        b += w * tl.load(maps + plane + at, live, 0.0)
        aa += w * tl.load(maps + 2 * plane + at, live, 0.0)
        bb += w * tl.load(maps + 3 * plane + at, live, 0.0)
        ab += w * tl.load(maps + 4 * plane + at, live, 0.0)
    a1, a2 = 2 * a * b + C1, 2 * (ab - a * b) + C2
    b1, b2 = a * a + b * b + C1, (aa - a * a) + (bb - b * b) + C2
    inverse = 1 / (b1 * b2)
    value = a1 * a2 * inverse
    by_aa, by_ab = -value / b2, 2 * a1 * inverse
    by_a = 2 * b * a2 * inverse - 2 * a * value / b1 - 2 * a * by_aa - b * by_ab
    at = row * line + p
    tl.store(slopes + at, by_a, live)
    tl.store(slopes + plane + at, by_aa, live)
    tl.store(slopes + 2 * plane + at, by_ab, live)
    tl.atomic_add(loss, -factor * tl.sum(tl.where(live, value, 0.0)))


@triton.jit
def spread_columns(slopes, window, spread, height, line, B: tl.constexpr):
    """The adjoint of the blur along the columns: ``slopes`` to ``spread``, both [3, H, line]."""
    row = tl.program_id(1)
    p = tl.program_id(0) * B + tl.arange(0, B)
    live = p < line - 3 * REACH
    plane = height * line
    a = tl.zeros([B], tl.float32)
    aa, ab = a, a
    for tap in tl.static_range(TAPS):
        source = row - tap
        inside = live & (source >= 0) & (source < height - REACH)
        at = source * line + p
        w = tl.load(window + tap)
        a += w * tl.load(slopes + at, inside, 0.0)
        aa += w * tl.load(slopes + plane + at, inside, 0.0)
        ab += w * tl.load(slopes + 2 * plane + at, inside, 0.0)
    at = row * line + p
    tl.store(spread + at, a, live)
    tl.store(spread + plane + at, aa, live)
    tl.store(spread + 2 * plane + at, ab, live)


@triton.jit
def image_gradient(image, photo, window, spread, grad, loss, l1, ssim, height, line, B: tl.constexpr):
    """The adjoint of the blur along the rows, and the gradient of l1 * sum |x - y| - ssim * sum SSIM by x.

    Adds l1 * sum |x - y| to ``loss``.
    """
    row = tl.program_id(1)
    p = tl.program_id(0) * B + tl.arange(0, B)
    live = p < line
    plane = height * line
    a = tl.zeros([B], tl.float32)
    aa, ab = a, a
    for tap in tl.static_range(TAPS):
        source = p - 3 * tap
        inside = (source >= 0) & (source < line - 3 * REACH)
        at = row * line + source
        w = tl.load(window + tap)
        a += w * tl.load(spread + at, inside, 0.0)
        aa += w * tl.load(spread + plane + at, inside, 0.0)
        ab += w * tl.load(spread + 2 * plane + at, inside, 0.0)
    at = row * line + p
    x = tl.load(image + at, live, 0.0)
    y = tl.load(photo + at, live, 0).to(tl.float32) * (1 / 255)
    sign = tl.where(x > y, 1.0, tl.where(x < y, -1.0, 0.0))
    tl.store(grad + at, l1 * sign - ssim * (a + 2 * x * aa + y * ab), live)
    tl.atomic_add(loss, l1 * tl.sum(tl.where(live, tl.abs(x - y), 0.0)))


@triton.jit
def adam_step(value, grad, first, second, at, live, rate, correct1, correct2):
    """The new value (Kingma & Ba 2015); the moments at ``at`` are replaced."""
    m = tl.load(first + at, live, 0.0) * BETA1 + grad * (1 - BETA1)
    v = tl.load(second + at, live, 0.0) * BETA2 + grad * grad * (1 - BETA2)
    tl.store(first + at, m, live)
    tl.store(second + at, v, live)
    return value - rate * correct1 * m / (tl.sqrt(v * correct2) + EPSILON)


@triton.jit(do_not_specialize=["n", "seed"])
def update_geometry(
    means,
    log_scales,
    quats,
    logits,
    first,
    second,
    scales,
    opacities,
    by_means,
    by_directions,
    by_scales,
    by_quats,
    by_opacities,
    n,
    capacity,
    rate_means,
    rate_scales,
    rate_quats,
    rate_opacities,
    opacity_pull,
    scale_pull,
    correct1,
    correct2,
    noise,
    seed,
    NOISE: tl.constexpr,
    B: tl.constexpr,
):
    """Adam on means, scales, quats and opacities; ``first`` and ``second`` are [11, capacity] moments in this order.

    Adds the gradients of the mean opacity and mean scale, and moves nearly transparent Gaussians at random.
    """
    i = tl.program_id(0) * B + tl.arange(0, B)
    live = i < n
    w, x = tl.load(quats + 4 * i, live, 1.0), tl.load(quats + 4 * i + 1, live, 0.0)
    y, z = tl.load(quats + 4 * i + 2, live, 0.0), tl.load(quats + 4 * i + 3, live, 0.0)
    opacity = tl.load(opacities + i, live, 0.5)
    if NOISE:
        normal0, normal1, normal2, _ = tl.randn4x(seed, i)
        inverse = 1 / tl.sqrt(w * w + x * x + y * y + z * z + 1e-24)
        qw, qx, qy, qz = w * inverse, x * inverse, y * inverse, z * inverse
        r00, r01, r02 = 1 - 2 * (qy * qy + qz * qz), 2 * (qx * qy - qw * qz), 2 * (qx * qz + qw * qy)
        r10, r11, r12 = 2 * (qx * qy + qw * qz), 1 - 2 * (qx * qx + qz * qz), 2 * (qy * qz - qw * qx)
        r20, r21, r22 = 2 * (qx * qz - qw * qy), 2 * (qy * qz + qw * qx), 1 - 2 * (qx * qx + qy * qy)
        s0, s1 = tl.load(scales + 3 * i, live, 0.0), tl.load(scales + 3 * i + 1, live, 0.0)
        s2 = tl.load(scales + 3 * i + 2, live, 0.0)
        amount = noise * tl.sigmoid(NOISE_STEEPNESS * ((1 - opacity) - NOISE_CENTER))
        along0 = amount * s0 * s0 * (r00 * normal0 + r10 * normal1 + r20 * normal2)
        along1 = amount * s1 * s1 * (r01 * normal0 + r11 * normal1 + r21 * normal2)
        along2 = amount * s2 * s2 * (r02 * normal0 + r12 * normal1 + r22 * normal2)
    for axis in tl.static_range(3):
        at = 3 * i + axis
        grad = tl.load(by_means + at, live, 0.0) + tl.load(by_directions + at, live, 0.0)
        value = tl.load(means + at, live, 0.0)
        value = adam_step(value, grad, first, second, axis * capacity + i, live, rate_means, correct1, correct2)
        if NOISE:
            if axis == 0:
                value += r00 * along0 + r01 * along1 + r02 * along2
            elif axis == 1:
                value += r10 * along0 + r11 * along1 + r12 * along2
            else:
                value += r20 * along0 + r21 * along1 + r22 * along2
        tl.store(means + at, value, live)
        grad = (tl.load(by_scales + at, live, 0.0) + scale_pull) * tl.load(scales + at, live, 0.0)
        value = tl.load(log_scales + at, live, 0.0)
        value = adam_step(value, grad, first, second, (3 + axis) * capacity + i, live, rate_scales, correct1, correct2)
        tl.store(log_scales + at, value, live)
    for axis in tl.static_range(4):
        at = 4 * i + axis
        grad, value = tl.load(by_quats + at, live, 0.0), tl.load(quats + at, live, 0.0)
        value = adam_step(value, grad, first, second, (6 + axis) * capacity + i, live, rate_quats, correct1, correct2)
        tl.store(quats + at, value, live)
    grad = (tl.load(by_opacities + i, live, 0.0) + opacity_pull) * opacity * (1 - opacity)
    value = tl.load(logits + i, live, 0.0)
    value = adam_step(value, grad, first, second, 10 * capacity + i, live, rate_opacities, correct1, correct2)
    tl.store(logits + i, value, live)


@triton.jit(do_not_specialize=["size"])
def update_colors(
    sh,
    first,
    second,
    grads,
    size,
    per_row,
    active,
    rate0,
    rate_rest,
    correct1,
    correct2,
    B: tl.constexpr,
):
    """Adam on the flat SH coefficients, ``per_row`` numbers a Gaussian, of which the first ``active`` are in use."""
    at = tl.program_id(0) * B + tl.arange(0, B)
    column = at % per_row
    live = (at < size) & (column < active)
    rate = tl.where(column < 3, rate0, rate_rest)
    grad, value = tl.load(grads + at, live, 0.0), tl.load(sh + at, live, 0.0)
    tl.store(sh + at, adam_step(value, grad, first, second, at, live, rate, correct1, correct2), live)
