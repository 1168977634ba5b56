"""Adam and noise of the GPU's kernels, run on the CPU, against the published formulas."""

import shutil

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import make_vjp

from splat.model import Gaussians
from tests.containers.cuda_on_cpu import compile_for_cpu
from tests.containers.kernel_step import GAUSSIANS, Step, make_gaussians
from tests.containers.test_splat_raster import (
    make_view,
    reference_rotation,
    reference_sh,
)
from train.engine import Rates
from train.gpu import launches


def adam(value, grad, first, second, rate, step):
    """Kingma & Ba 2015, algorithm 1, in float64."""
    first, second = 0.9 * first + 0.1 * grad, 0.999 * second + 0.001 * grad**2
    return value - rate * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-15), first, second


def test_adam_takes_the_published_step(kernels, arrays):
    """Of every parameter, with moments from before and gradients of any size, also none."""
    rng, n, at = np.random.default_rng(6), 200, 57
    gaussians, view = make_gaussians(n, 3, 6), make_view(6)
    step = Step(kernels, arrays, gaussians, view, 3)
    step.prepare()
    step.records[:] = rng.normal(size=step.records.shape)
    step.sums[:] = rng.normal(size=step.sums.shape) * 10 ** rng.uniform(-6, 0, (n, 1))
    step.sums[::7] = 0
    for moments in (step.colors, step.geometry):
        moments[0][:] = rng.normal(size=moments[0].shape) * 1e-3
        moments[1][:] = rng.uniform(0, 1e-5, moments[1].shape)
    start = [
        np.concatenate([p.reshape(n, -1).T for p in step.parameters]).astype(np.float64),
        step.sh.astype(np.float64),
    ]
    old = [[m.astype(np.float64) for m in moments] for moments in (step.geometry, step.colors)]
    gradients = [rng.normal(size=p.shape) * 1e-3 for p in step.exact]
    rates = Rates(1e-3, 5e-3, 2e-3, 5e-2, 2.5e-3, 1e-4, noise=0, opacity_reg=0.01, scale_reg=0.02)
    step.update(gradients, at, rates)

    def colours(means):
        offset = means - view.center
        d = offset / anp.sqrt(anp.sum(offset**2, axis=1, keepdims=True))
        return anp.einsum("nk,nkc->nc", reference_sh(3, d), start[1][:, :n].T.reshape(n, 16, 3))

    shown = np.stack([step.records[:, 6], step.records[:, 7], step.records[:, 8]], 1) > 0
    by_color = np.where(shown, step.sums[:, 6:9], 0).astype(np.float64)
    offset = step.exact[0] - view.center
    basis = reference_sh(3, offset / np.linalg.norm(offset, axis=1, keepdims=True))
    by_sh = (basis[:, :, None] * by_color[:, None, :]).reshape(n, 48).T
    rate = np.repeat([2.5e-3, 1e-4], [3, 45])[:, None]
    wanted = adam(start[1][:, :n], by_sh, old[1][0][:, :n], old[1][1][:, :n], rate, at)
    for value, want in zip((step.sh, *step.colors), wanted, strict=True):
        assert np.allclose(value[:, :n], want, rtol=1e-5, atol=1e-7)

    by_means = gradients[0] + make_vjp(colours)(step.exact[0])[0](by_color)
    opacity, scales = 1 / (1 + np.exp(-start[0][10])), np.exp(start[0][3:6])
    by_logits = step.sums[:, 0] * (1 - opacity) + 0.01 / n * opacity * (1 - opacity)
    by_scales = (gradients[1].T + 0.02 / (3 * n)) * scales
    grad = np.concatenate([by_means.T, by_scales, gradients[2].T, by_logits[None]])
    rate = np.repeat([1e-3, 5e-3, 2e-3, 5e-2], [3, 3, 4, 1])[:, None]
    wanted = adam(start[0], grad, old[0][0][:, :n], old[0][1][:, :n], rate, at)
    assert wanted[0][10].max() > launches.LOGIT_MAX + 0.001
    wanted[0][10] = wanted[0][10].clip(max=launches.LOGIT_MAX)
    got = np.concatenate([p.reshape(n, -1).T for p in step.parameters])
    for value, want in zip((got, *(m[:, :n] for m in step.geometry)), wanted, strict=True):
        assert np.allclose(value, want, rtol=1e-4, atol=1e-6)


def test_noise_is_normal_with_the_gaussians_own_covariance(kernels, arrays):
    """Kheradmand et al. 2024, eq. 10: noise * sigmoid(100 (0.005 - o)) * Sigma * normal; other numbers in each step."""
    n, turn = 4000, np.array([0.5, -1.0, 0.3, 0.8])
    scales, logits = np.log([0.5, 1.0, 2.0]), np.full(n, -7.0)
    model = Gaussians(np.zeros((n, 3)), np.tile(scales, (n, 1)), np.tile(turn, (n, 1)), logits, np.zeros((n, 1, 3)))
    step = Step(kernels, arrays, model, make_view(1), 0)
    step.prepare()
    rates, nothing = Rates(0, 0, 0, 0, 0, 0, noise=3.0, opacity_reg=0, scale_reg=0), [p * 0 for p in step.exact]
    step.update(nothing, 1, rates)
    first = step.parameters[0].copy()
    step.update(nothing, 2, rates)
    R = reference_rotation(turn[None])[0]
    sigma = R @ np.diag([0.25, 1.0, 4.0]) @ R.T
    amount = 3.0 / (1 + np.exp(-100 * (0.005 - 1 / (1 + np.exp(7)))))
    for moved in (first, step.parameters[0] - first):
        normal = moved.astype(np.float64) @ np.linalg.inv(sigma) / amount
        assert np.abs(normal.mean(0)).max() < 4 / np.sqrt(n)
        assert np.abs(np.cov(normal.T) - np.eye(3)).max() < 6 / np.sqrt(n)
        assert np.mean(np.abs(normal) < 0.674489750) == pytest.approx(0.5, abs=0.03)  # the quartile of a normal
    assert np.abs(np.corrcoef(first[:, 0], (step.parameters[0] - first)[:, 0])[0, 1]) < 4 / np.sqrt(n)


def test_random_numbers_are_those_of_philox(tmp_path):
    """Known answers of the authors' Random123, kat_vectors: philox4x32 with 10 rounds."""
    if shutil.which("g++") is None:
        pytest.skip("no g++ to run the kernels on the CPU with")
    source = tmp_path / "philox.cu"
    source.write_text(
        f'#include "{GAUSSIANS}"\n'
        'extern "C" __global__ void numbers(const uint4 *counter, const int *key, uint4 *result) {\n'
        "    *result = philox(*counter, key[0], key[1]);\n}\n"
    )
    kernel = compile_for_cpu({source: launches.SOURCES[GAUSSIANS]}, tmp_path)["numbers"]
    known = [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ]
    for counter, key, wanted in known:
        result = np.zeros(4, np.uint32)
        kernel(1, 1, counter=np.array(counter, np.uint32), key=np.array(key, np.uint32), result=result)
        assert " ".join(f"{number:08x}" for number in result) == wanted
