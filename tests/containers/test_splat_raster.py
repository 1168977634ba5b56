"""The CPU rasterizer against a dense float64 reference that is written from the papers and differentiated by
autograd.
"""

import autograd.numpy as anp
import llvmlite.binding as llvm
import numpy as np
import pytest
from autograd import grad as autograd_grad
from numba import njit

from splat import blend
from splat.cameras import View, rotation_matrix
from splat.model import Gaussians
from splat.raster import Rasterizer
from splat.tiles import sort_by_depth

FIELDS = ("means", "log_scales", "quats", "opacity_logits", "sh")
WIDTH, HEIGHT = 53, 38


# ------------------------------------------------------------------ reference: Kerbl et al. 2023, Zwicker et al. 2001


def reference_rotation(q):
    w, x, y, z = [q[:, i] / anp.sqrt(anp.sum(q * q, axis=1)) for i in range(4)]
    rows = [
        [w * w + x * x - y * y - z * z, 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), w * w - x * x + y * y - z * z, 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), w * w - x * x - y * y + z * z],
    ]
    return anp.stack([anp.stack(row, axis=1) for row in rows], axis=1)


def reference_sh(degree, d):
    """Real spherical harmonics with the signs of the original 3DGS file format."""
    x, y, z = d[:, 0], d[:, 1], d[:, 2]
    pi = np.pi
    basis = [0.5 * np.sqrt(1 / pi) * anp.ones_like(x)]
    if degree > 0:
        k = np.sqrt(3 / (4 * pi))
        basis += [-k * y, k * z, -k * x]
    if degree > 1:
        k = 0.5 * np.sqrt(15 / pi)
        basis += [
            k * x * y,
            -k * y * z,
            0.25 * np.sqrt(5 / pi) * (3 * z * z - 1),
            -k * x * z,
            0.5 * k * (x * x - y * y),
        ]
    if degree > 2:
        a, b, c = 0.25 * np.sqrt(35 / (2 * pi)), 0.5 * np.sqrt(105 / pi), 0.25 * np.sqrt(21 / (2 * pi))
        basis += [-a * y * (3 * x * x - y * y), b * x * y * z, -c * y * (5 * z * z - 1)]
        basis += [0.25 * np.sqrt(7 / pi) * z * (5 * z * z - 3), -c * x * (5 * z * z - 1)]
        basis += [0.5 * b * z * (x * x - y * y), -a * x * (x * x - 3 * y * y)]
    return anp.stack(basis, axis=1)


def reference_render(parameters, view, background, near=0.01):
    """(rgb [H, W, 3], alpha [H, W]), every Gaussian at every pixel."""
    means, log_scales, quats, logits, sh = parameters
    R, t = view.world_to_camera[:3, :3], view.world_to_camera[:3, 3]
    fx, fy, cx, cy = view.K[0, 0], view.K[1, 1], view.K[0, 2], view.K[1, 2]
    p = means @ R.T + t
    x, y, z = p[:, 0], p[:, 1], p[:, 2]
    x_low, x_high = -cx / fx - 0.15 * view.width / fx, (view.width - cx) / fx + 0.15 * view.width / fx
    y_low, y_high = -cy / fy - 0.15 * view.height / fy, (view.height - cy) / fy + 0.15 * view.height / fy
    u, v = anp.clip(x / z, x_low, x_high), anp.clip(y / z, y_low, y_high)
    zero = anp.zeros_like(z)
    J = anp.stack(
        [anp.stack([fx / z, zero, -fx * u / z], axis=1), anp.stack([zero, fy / z, -fy * v / z], axis=1)], axis=1
    )
    L = reference_rotation(quats) * anp.exp(log_scales)[:, None, :]
    B = anp.einsum("nij,jk,nkl->nil", J, R, L)
    cov = anp.einsum("nij,nkj->nik", B, B) + 0.3 * np.eye(2)
    det = cov[:, 0, 0] * cov[:, 1, 1] - cov[:, 0, 1] ** 2
    a, b, c = cov[:, 1, 1] / det, -cov[:, 0, 1] / det, cov[:, 0, 0] / det
    opacity = 1 / (1 + anp.exp(-logits))
    offset = means + R.T @ t
    direction = offset / anp.sqrt(anp.sum(offset * offset, axis=1, keepdims=True))
    degree = round(sh.shape[1] ** 0.5) - 1
    color = anp.maximum(0.5 + anp.einsum("nk,nkc->nc", reference_sh(degree, direction), sh), 0.0)

    px, py = np.meshgrid(np.arange(view.width) + 0.5, np.arange(view.height) + 0.5)
    T, rgb, finished = np.ones_like(px), [0.0, 0.0, 0.0], np.zeros(px.shape, bool)
    plain_z = getattr(z, "_value", z)
    for i in np.argsort(plain_z, kind="stable"):
        if plain_z[i] <= near:
            continue
        dx, dy = px - (fx * x[i] / z[i] + cx), py - (fy * y[i] / z[i] + cy)
        power = 0.5 * (a[i] * dx * dx + c[i] * dy * dy) + b[i] * dx * dy
        alpha = anp.minimum(opacity[i] * anp.exp(-power), 0.999)
        plain_alpha, plain_T = getattr(alpha, "_value", alpha), getattr(T, "_value", T)
        seen = (plain_alpha >= 1 / 255) & ~finished
        finished = finished | (seen & (plain_T * (1 - plain_alpha) <= 1e-4))
        alpha = anp.where(seen & ~finished, alpha, 0.0)
        rgb = [channel + T * alpha * color[i, k] for k, channel in enumerate(rgb)]
        T = T * (1 - alpha)
    return anp.stack([channel + T * background[k] for k, channel in enumerate(rgb)], axis=2), 1 - T


# ------------------------------------------------------------------ scenes


def make_view(seed, width=WIDTH, height=HEIGHT):
    rng = np.random.default_rng(seed)
    pose = np.eye(4)
    pose[:3, :3] = rotation_matrix(np.array([1.0, 0, 0, 0]) + 0.3 * rng.normal(size=4))
    pose[:3, 3] = [0.1, -0.2, 4.0]
    K = np.array([[1.1 * width, 0, width * 0.47], [0, 1.05 * width, height * 0.55], [0, 0, 1]])
    return View("view", width, height, K, pose)


def make_gaussians(n, degree, seed):
    """Ordinary, tiny, large, elongated, near-opaque, faint, off-screen, clipped and behind-camera Gaussians."""
    rng = np.random.default_rng(seed)
    means = rng.uniform(-1.3, 1.3, (n, 3))
    scales = rng.uniform(0.03, 0.15, (n, 3))
    scales[: n // 10] = 1e-4
    scales[n // 10 : n // 5] = [0.6, 0.01, 0.05]
    logits = rng.uniform(-3, 4, n)
    logits[::11] = 9.0
    logits[1::13] = -5.4
    means[-n // 6 :] = rng.uniform(-4, 4, (len(means[-n // 6 :]), 3))
    scales[-n // 6 :] *= 8
    sh = 0.3 * rng.normal(size=(n, (degree + 1) ** 2, 3))
    sh[:, 0] += 0.4
    return Gaussians(means, np.log(scales), rng.normal(size=(n, 4)) * 1.7, logits, sh)


def one_gaussian(mean, scale, logit, f_dc):
    quat, sh = np.array([[1.0, 0, 0, 0]]), np.full((1, 1, 3), f_dc)
    return Gaussians(np.array([mean], float), np.log(np.full((1, 3), scale)), quat, np.array([logit]), sh)


def compare(gaussians, view, background, threads=2):
    """Error of the image, coverage, and for each field the gradient that is got and the one that is wanted."""
    rng = np.random.default_rng(5)
    weight_rgb = rng.normal(size=(view.height, view.width, 3))
    weight_alpha = rng.normal(size=(view.height, view.width))
    exact = [getattr(gaussians, name).astype(np.float64) for name in FIELDS]
    rgb, alpha = reference_render(exact, view, background)

    def loss(parameters):
        image, coverage = reference_render(parameters, view, background)
        return anp.sum(image * weight_rgb) + anp.sum(coverage * weight_alpha)

    wanted = autograd_grad(loss)(exact)
    rasterizer = Rasterizer(threads)
    got_rgb, got_alpha = rasterizer.forward(gaussians, view, background)
    got = rasterizer.backward(weight_rgb.astype(np.float32), weight_alpha.astype(np.float32))
    image_error = max(np.abs(got_rgb - rgb).max(), np.abs(got_alpha - alpha).max())
    gradients = {name: (getattr(got, name), want) for name, want in zip(FIELDS, wanted, strict=True)}
    return image_error, alpha, gradients


def relative_error(got, want):
    return np.linalg.norm(got - want) / np.linalg.norm(want)


def check(gaussians, view, background):
    image_error, alpha, gradients = compare(gaussians, view, background)
    return image_error, {name: relative_error(*pair) for name, pair in gradients.items()}, alpha


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("background", [(0.0, 0.0, 0.0), (0.9, 0.3, 0.6)])
def test_image_and_every_gradient_agree_with_the_reference(degree, background):
    gaussians, view = make_gaussians(150, degree, seed=degree), make_view(seed=10 + degree)
    image_error, gradient_errors, alpha = check(gaussians, view, background)
    assert alpha.max() > 0.999 and alpha.min() < 0.9  # finished pixels and background both occur
    assert image_error < 1e-5
    assert max(gradient_errors.values()) < 1e-4, gradient_errors


def groups_by_kind(n, gaussians, view):
    """Indices of the kinds that ``make_gaussians`` makes, and of those that lie beside the image in this view."""
    index = np.arange(n)
    camera = gaussians.means @ view.world_to_camera[:3, :3].T + view.world_to_camera[:3, 3]
    in_front = camera[:, 2] > 0.01
    image = camera[:, :2] / camera[:, 2:] * np.diag(view.K)[:2] + view.K[:2, 2]
    beside = np.maximum(-image, image - [view.width, view.height]) / [view.width, view.height]  # in widths, heights
    return {
        "tiny": index[: n // 10],
        "elongated": index[n // 10 : n // 5],
        "near-opaque": index[::11],
        "faint": index[1::13],
        "off-screen": index[in_front & (beside.max(axis=1) > 0)],
        "clipped": index[in_front & (beside.max(axis=1) > 0.15)],
    }, index[~in_front]


@pytest.mark.parametrize(("degree", "background"), [(0, (0.0, 0.0, 0.0)), (3, (0.9, 0.3, 0.6))])
def test_gradients_of_each_kind_agree_however_small_they_are(degree, background):
    """Over all Gaussians the norm is that of the largest gradients: those of tiny scales are 1e-6 of it.

    No floor is needed: each kind has gradients in every field, as the tiny ones are no spheres here, whose rotation
    would have none.
    """
    n = 150
    gaussians, view = make_gaussians(n, degree, seed=degree), make_view(seed=10 + degree)
    gaussians.log_scales[: n // 10] = np.log([1e-4, 3e-4, 5e-5])
    _, _, gradients = compare(gaussians, view, background)
    groups, behind = groups_by_kind(n, gaussians, view)
    assert min(len(group) for group in groups.values()) >= 10 and len(behind)
    errors = {
        (kind, name): relative_error(got[group], want[group])
        for kind, group in groups.items()
        for name, (got, want) in gradients.items()
    }
    assert max(errors.values()) < 1e-4, max(errors, key=lambda pair: errors[pair])
    assert not any(got[behind].any() for got, _ in gradients.values()), "nobody sees them"
    want = gradients["log_scales"][1]
    assert np.linalg.norm(want[groups["tiny"]]) < 1e-4 * np.linalg.norm(want), "the norm over all would miss them"


def test_gradient_of_gaussians_outside_the_clipped_field_of_view():
    """Large Gaussians whose centres lie beyond 1.3 times the field of view, but which reach into the image."""
    view = make_view(seed=3)
    rng = np.random.default_rng(1)
    n = 12
    camera = np.stack(
        [rng.choice([-1, 1], n) * rng.uniform(2.9, 3.4, n), rng.uniform(-3.2, 3.2, n), rng.uniform(3.5, 5, n)], 1
    )
    R, t = view.world_to_camera[:3, :3], view.world_to_camera[:3, 3]
    slope = np.abs(camera[:, 0] / camera[:, 2]) * view.K[0, 0]
    assert (slope > 0.65 * view.width).sum() >= n - 2
    gaussians = Gaussians(
        (camera - t) @ R,
        np.log(rng.uniform(0.7, 1.1, (n, 3))),
        rng.normal(size=(n, 4)),
        np.zeros(n),
        rng.normal(size=(n, 4, 3)),
    )
    image_error, gradient_errors, alpha = check(gaussians, view, (0.2, 0.2, 0.2))
    assert alpha.max() > 0.05
    assert image_error < 1e-5
    assert max(gradient_errors.values()) < 1e-4, gradient_errors


def test_a_single_gaussian_has_its_opacity_at_its_centre():
    """The simplest case, by hand: on the optical axis alpha is the opacity and the colour is 0.5 + SH_C0 f_dc."""
    view = View("v", 33, 33, np.array([[40.0, 0, 16.5], [0, 40, 16.5], [0, 0, 1]]), np.eye(4))
    gaussians = one_gaussian([0, 0, 2], 0.1, 0.0, 1.0)
    rgb, alpha = Rasterizer(1).forward(gaussians, view)
    assert alpha[16, 16] == pytest.approx(0.5, abs=1e-6)
    assert rgb[16, 16] == pytest.approx([0.5 * (0.5 + 0.28209479)] * 3, abs=1e-6)
    variance = (40 * 0.1 / 2) ** 2 + 0.3
    assert alpha[16, 19] == pytest.approx(0.5 * np.exp(-9 / (2 * variance)), abs=1e-6)


def test_nothing_in_view_is_background():
    view = make_view(seed=1)
    behind = one_gaussian([0, 0, -50], 1.0, 3.0, 0.0)
    for gaussians in (behind, behind.select(np.array([], int))):
        rasterizer = Rasterizer(2)
        rgb, alpha = rasterizer.forward(gaussians, view, (0.1, 0.2, 0.3))
        assert np.allclose(rgb, [0.1, 0.2, 0.3]) and not alpha.any()
        gradient = rasterizer.backward(np.ones_like(rgb))
        assert all(not getattr(gradient, name).any() for name in FIELDS)


def test_the_same_bits_with_any_number_of_threads():
    gaussians, view = make_gaussians(5000, 2, seed=4), make_view(2, 130, 95)
    results = []
    for threads in (1, 2, 3, 5):
        rasterizer = Rasterizer(threads)
        rgb, alpha = rasterizer.forward(gaussians, view, (0.1, 0.5, 0.2))
        gradient = rasterizer.backward(np.sin(rgb * 9), np.cos(alpha))
        results.append([rgb, alpha, *[getattr(gradient, name) for name in FIELDS]])
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_a_rasterizer_can_change_size_and_model():
    rasterizer = Rasterizer(2)
    for n, size in ((300, (64, 48)), (40, (17, 90)), (500, (31, 16))):
        gaussians, view = make_gaussians(n, 1, seed=n), make_view(1, *size)
        rgb, _ = rasterizer.forward(gaussians, view)
        fresh, _ = Rasterizer(1).forward(gaussians, view)
        assert np.array_equal(rgb, fresh)


@pytest.mark.parametrize("n", [0, 1, 16, 5000])
def test_depth_order_is_that_of_a_stable_sort(n):
    rng = np.random.default_rng(n)
    depth = rng.choice(np.exp(rng.uniform(-4, 9, max(n // 2, 1))), n).astype(np.float32)
    depth[::7] = np.inf
    tiles = rng.integers(1, 9, n).astype(np.float32)
    seen = int(np.isfinite(depth).sum())
    order, keys, slot_count = np.zeros((2, n), np.int32), np.zeros((2, n), np.uint32), np.ones(n, np.int32)
    blocks, room = np.zeros((2, n // 300 + 2), np.int64)
    parts, slots = sort_by_depth(depth.view(np.uint32), tiles, order, keys, 300, blocks, room, slot_count)
    wanted = np.argsort(depth, kind="stable")[:seen]
    assert np.array_equal(order[0, :seen], wanted) and not slot_count.any()
    assert blocks[: parts + 1].tolist() == [*range(0, seen, 300), seen]
    before = np.concatenate([[0], np.cumsum(tiles[wanted])])
    assert room[: parts + 1].tolist() == before[blocks[: parts + 1]].tolist() and slots == before[-1]


@pytest.mark.parametrize("kernel", [blend.blend, blend.blend_backward], ids=["forward", "backward"])
def test_blending_is_vector_instructions(kernel):
    """Fused multiplications of whole registers and none of single numbers, with AVX-512 and with AVX2 only."""
    fresh = njit(nogil=True)(kernel.py_func)  # what comes from the cache cannot be inspected
    fresh.compile(kernel.signatures[0])
    code = next(iter(fresh.inspect_llvm().values()))
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    for cpu, register in (("skylake-avx512", "%zmm"), ("haswell", "%ymm")):
        machine = llvm.Target.from_triple("x86_64-unknown-linux-gnu").create_target_machine(cpu=cpu, opt=3)
        lines = machine.emit_assembly(llvm.parse_assembly(code)).splitlines()
        fused = [line for line in lines if "vfmadd" in line]
        assert sum(register in line for line in fused) >= 15
        assert not any("ss\t" in line for line in fused)
