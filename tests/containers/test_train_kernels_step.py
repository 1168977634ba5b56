"""One step of the GPU's kernels, run on the CPU, against a float64 reference differentiated by autograd."""

import shutil

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad as autograd_grad
from autograd import make_vjp

from splat.model import Gaussians
from tests.containers.cuda_on_cpu import compile_for_cpu
from tests.containers.kernel_step import (
    GAUSSIANS,
    HEIGHT,
    WIDTH,
    Step,
    make_gaussians,
    reference_loss,
    reference_parameters,
    relative,
)
from tests.containers.test_splat_raster import (
    make_view,
    reference_render,
    reference_sh,
)
from train.engine import Rates
from train.gpu import launches


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_one_step_has_the_gradients_of_the_whole_loss(kernels, arrays, degree):
    """From the parameters to Adam's first moments, which are 0.1 times the gradients in the first step."""
    gaussians, view = make_gaussians(220, degree, degree), make_view(degree, WIDTH, HEIGHT)
    photo = np.random.default_rng(degree).integers(0, 256, (HEIGHT, WIDTH, 3))
    rates = Rates(0, 0, 0, 0, 0, 0, noise=0, opacity_reg=0.02, scale_reg=0.03)

    def loss(parameters):
        image, _ = reference_render(parameters, view, (0, 0, 0))
        opacity, scale = 1 / (1 + anp.exp(-parameters[3])), anp.exp(parameters[1])
        return reference_loss(image, photo / 255) + 0.02 * anp.mean(opacity) + 0.03 * anp.mean(scale)

    exact = reference_parameters(gaussians)
    wanted_image, _ = reference_render(exact, view, (0, 0, 0))
    wanted = autograd_grad(loss)(exact)

    step = Step(kernels, arrays, gaussians, view, degree)
    image = step.forward()
    assert np.abs(image - wanted_image).max() < 1e-3
    grad = arrays.empty(HEIGHT, WIDTH, 3)
    slopes, total = arrays.empty(9 * HEIGHT * WIDTH), arrays.zeros(1)
    pixels = arrays.copy(photo, np.uint8)
    launches.loss_gradient(kernels, WIDTH, HEIGHT, image=image, photo=pixels, slopes=slopes, grad=grad, total=total)
    step.update(step.backward(grad), 1, rates)
    n = step.n
    moments, colors = step.geometry[0][:, :n] / 0.1, step.colors[0][:, :n] / 0.1
    got = [moments[:3].T, moments[3:6].T, moments[6:10].T, moments[10], colors.T.reshape(n, -1, 3)]
    errors = [relative(value, want) for value, want in zip(got, wanted, strict=True)]
    assert max(errors) < 1e-3, errors


@pytest.mark.parametrize("tiles", [1, 3, 700, 3000])
def test_tiles_with_long_lists_are_drawn_first(ordered, arrays, tiles):
    rng = np.random.default_rng(tiles)
    lengths = np.where(rng.random(tiles) < 0.1, 0, 2 ** rng.uniform(0, 17, tiles)).astype(int)
    lengths[: tiles // 3] = rng.integers(0, 5, tiles // 3)
    ends = np.cumsum(lengths)
    order = arrays.empty(tiles, kind=np.int32)
    offsets = arrays.copy(ends - lengths, np.int32)
    ordered["order_tiles"](1, 512, offsets=offsets, pairs=int(ends[-1]), tiles=tiles, order=order)
    assert sorted(order) == list(range(tiles))
    drawn = lengths[order]
    assert (drawn[1:] <= 1.25 * np.minimum.accumulate(drawn)[:-1] + 1).all()


def test_many_gaussians_on_one_pixel(ordered, arrays):
    """Lists longer than a warp takes at once, and pixels that end within one."""
    gaussians, view = make_gaussians(300, 0, 8), make_view(3, 33, 35)
    gaussians.means *= 0.15
    gaussians.opacity_logits[:] = np.random.default_rng(1).uniform(-4, 1, 300)
    weight = np.random.default_rng(2).normal(size=(35, 33, 3))
    wanted_image, _ = reference_render(reference_parameters(gaussians), view, (0, 0, 0))
    wanted = autograd_grad(lambda p: anp.sum(reference_render(p, view, (0, 0, 0))[0] * weight))(
        reference_parameters(gaussians)
    )
    step = Step(ordered, arrays, gaussians, view, 0)
    assert np.abs(step.forward() - wanted_image).max() < 1e-3
    by_means, by_scales, by_quats = step.backward(arrays.copy(weight))
    assert relative(by_means, wanted[0]) < 1e-3
    assert relative(by_scales * np.exp(step.exact[1]), wanted[1]) < 1e-3
    assert relative(by_quats, wanted[2]) < 1e-3


def test_only_the_active_bands_are_seen_and_stepped(kernels, arrays):
    gaussians, view = make_gaussians(150, 3, 4), make_view(4, WIDTH, HEIGHT)
    step = Step(kernels, arrays, gaussians, view, degree=1)
    cut = Gaussians(*reference_parameters(gaussians)[:4], gaussians.sh[:, :4])
    wanted, _ = reference_render(reference_parameters(cut), view, (0, 0, 0))
    assert np.abs(step.forward() - wanted).max() < 1e-3
    before = step.sh.copy()
    step.update(step.backward(arrays.copy(wanted - 0.5)), 1, Rates(0, 0, 0, 0, 0.01, 0.02, 0, 0, 0))
    assert np.array_equal(step.sh[12:, : step.n], before[12:, : step.n])
    assert not step.colors[0][12:].any() and not step.colors[1][12:].any()
    moved = np.abs(step.sh[:12, : step.n] - before[:12, : step.n])
    assert np.allclose(moved[:3].max(), 0.01, rtol=1e-3) and np.allclose(moved[3:].max(), 0.02, rtol=1e-3)


@pytest.fixture(scope="module", params=[2, 3], ids=["2 views", "3 views"])
def kernels_of_views(request, tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("no g++ to run the kernels on the CPU with")
    constants = {GAUSSIANS: launches.sources(request.param, 1)[GAUSSIANS]}
    return request.param, compile_for_cpu(constants, tmp_path_factory.mktemp("kernels"))


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_a_step_of_several_views_is_one_adam_step_on_their_sum(kernels_of_views, arrays, degree):
    """Of the sum over sqrt(V), and moments decay as in V steps: betas 0.9^V and 0.999^V."""
    (views, kernels), n, at = kernels_of_views, 90, 60
    rng, gaussians = np.random.default_rng(degree), make_gaussians(90, degree, degree)
    cameras = [make_view(seed) for seed in range(views)]
    step = Step(kernels, arrays, gaussians, cameras[0], degree)
    step.prepare()
    step.center = arrays.copy([camera.center for camera in cameras])
    step.records = arrays.copy(rng.normal(size=(views, n, launches.RECORD)))
    step.sums = arrays.copy(rng.normal(size=(views, n, launches.RECORD)) * 10 ** rng.uniform(-6, 0, (views, n, 1)))
    step.sums[rng.random((views, n)) < 0.5] = 0  # not seen
    for moments in (step.colors, step.geometry):
        moments[0][:] = rng.normal(size=moments[0].shape) * 1e-3
        moments[1][:] = rng.uniform(0, 1e-5, moments[1].shape)
    geometry = np.concatenate([p.reshape(n, -1).T for p in step.parameters]).astype(np.float64)
    sh = step.sh[:, :n].astype(np.float64)
    old = [[m[:, :n].astype(np.float64) for m in moments] for moments in (step.geometry, step.colors)]
    gradients = [rng.normal(size=p.shape) * 1e-3 for p in step.exact]  # summed over the views already
    rates = Rates(1e-3, 5e-3, 2e-3, 5e-2, 2.5e-3, 1e-4, noise=0, opacity_reg=0.01, scale_reg=0.02)
    step.update(gradients, at, rates)

    def colours(means):
        shown = []
        for camera in cameras:
            offset = means - camera.center
            d = offset / anp.sqrt(anp.sum(offset**2, axis=1, keepdims=True))
            shown.append(anp.einsum("nk,nkc->nc", reference_sh(degree, d), sh.T.reshape(n, -1, 3)))
        return anp.stack(shown)

    by_color = np.where(step.records[:, :, 6:9] > 0, step.sums[:, :, 6:9], 0).astype(np.float64)
    by_sh = 0
    for camera, by_view in zip(cameras, by_color, strict=True):
        offset = step.exact[0] - camera.center
        basis = reference_sh(degree, offset / np.linalg.norm(offset, axis=1, keepdims=True))
        by_sh += (basis[:, :, None] * by_view[:, None, :]).reshape(n, -1).T
    by_means = gradients[0] + (make_vjp(colours)(step.exact[0])[0](by_color) if degree else 0)
    opacity, scales = 1 / (1 + np.exp(-geometry[10])), np.exp(geometry[3:6])
    by_logits = step.sums[:, :, 0].sum(axis=0) * (1 - opacity) + 0.01 / n * opacity * (1 - opacity)
    by_scales = (gradients[1].T + 0.02 / (3 * n)) * scales
    by_geometry = np.concatenate([by_means.T, by_scales, gradients[2].T, by_logits[None]])

    def adam_of_views(value, grad, first, second, rate):
        beta1, beta2 = 0.9**views, 0.999**views
        first = beta1 * first + (1 - beta1) * grad / np.sqrt(views)
        second = beta2 * second + (1 - beta2) * grad**2 / views
        steps = at // views
        return value - rate * first / (1 - beta1**steps) / np.sqrt(second / (1 - beta2**steps)), first, second

    rate = np.repeat([1e-3, 5e-3, 2e-3, 5e-2], [3, 3, 4, 1])[:, None]
    wanted = adam_of_views(geometry, by_geometry, *old[0], rate)
    wanted[0][10] = wanted[0][10].clip(max=launches.LOGIT_MAX)
    got = np.concatenate([p.reshape(n, -1).T for p in step.parameters])
    for value, want in zip((got, *(m[:, :n] for m in step.geometry)), wanted, strict=True):
        assert np.allclose(value, want, rtol=1e-4, atol=1e-6)
    wanted = adam_of_views(sh, by_sh, *old[1], np.where(np.arange(len(sh)) < 3, 2.5e-3, 1e-4)[:, None])
    for value, want in zip((step.sh, *step.colors), wanted, strict=True):
        assert np.allclose(value[:, :n], want, rtol=1e-5, atol=1e-7)
