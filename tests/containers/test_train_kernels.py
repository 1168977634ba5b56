"""The GPU engine's own kernels without a GPU: compiled for every GPU generation, and run on the CPU against float64."""

import ctypes
import re
import shutil
from pathlib import Path

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad as autograd_grad
from autograd import make_vjp

from splat.metrics import gaussian_window
from splat.model import Gaussians
from tests.containers.cuda_on_cpu import Arrays, compile_for_cpu
from tests.containers.test_splat_raster import (
    make_gaussians as make_any_gaussians,
)
from tests.containers.test_splat_raster import (
    make_view,
    reference_render,
    reference_rotation,
    reference_sh,
)
from train.engine import Rates
from train.gpu import launches
from train.gpu.nvrtc import Arguments, compile_cubin, open_nvrtc, parameters_of

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90")  # T4, A100, A10G, L4 and L40S, H100
GAUSSIANS = Path(launches.__file__).with_name("gaussians.cu")
WIDTH, HEIGHT = 64, 48
NO_RATES = Rates(0, 0, 0, 0, 0, 0, noise=0, opacity_reg=0, scale_reg=0)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("no g++ to run the kernels on the CPU with")
    return compile_for_cpu(launches.SOURCES, tmp_path_factory.mktemp("kernels"))


@pytest.fixture(params=[False, True], ids=["rising", "falling"])
def ordered(kernels, request):
    """The kernels with threads in this order between barriers."""
    for kernel in kernels.values():
        kernel.falling = request.param
    return kernels


@pytest.fixture
def arrays():
    made = Arrays()
    yield made
    made.check()


def relative(value, wanted):
    return np.linalg.norm(value - wanted) / np.linalg.norm(wanted)


# ------------------------------------------------------------------ compiled by NVRTC, without a device


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("source", "views"),
    [*((source, 1) for source in launches.SOURCES), *((GAUSSIANS, views) for views in (2, 3, 8))],
    ids=lambda value: getattr(value, "name", value),
)
def test_kernels_compile_and_stay_in_registers(source, views, architecture):
    pytest.importorskip("nvidia.cuda_nvrtc", reason="no wheel nvidia-cuda-nvrtc-cu12")
    constants = launches.sources(views, views - 1)[source]
    binary, log = compile_cubin(open_nvrtc("12"), source, constants, architecture, ("--ptxas-options=--verbose",))
    assert binary[:4] == b"\x7fELF"
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    registers = [int(count) for count in re.findall(r"Used (\d+) registers", log)]
    assert len(registers) == len(frames) == len(parameters_of(source.read_text())), log
    assert set(frames) == {("0", "0", "0")}, log
    assert max(registers) <= 128, log  # four blocks of 128 threads on a multiprocessor


def test_an_error_of_the_compiler_is_told(tmp_path):
    pytest.importorskip("nvidia.cuda_nvrtc", reason="no wheel nvidia-cuda-nvrtc-cu12")
    broken = tmp_path / "broken.cu"
    broken.write_text('extern "C" __global__ void f(int n) { undeclared = n; }')
    with pytest.raises(RuntimeError, match=r"broken\.cu cannot be compiled for sm_75(.|\n)*undeclared"):
        compile_cubin(open_nvrtc("12"), broken, {}, "sm_75")


def test_a_missing_compiler_is_named():
    with pytest.raises(RuntimeError, match=r"libnvrtc\.so\.7, which comes with torch, is missing"):
        open_nvrtc("7.5")


# ------------------------------------------------------------------ launches


def test_arguments_must_be_those_of_the_kernel():
    kinds = parameters_of(
        'extern "C" __global__ void __launch_bounds__(32 * W)\n f(const float4 *a, int n,\n float x) {'
    )
    assert kinds == {"f": {"a": "pointer", "n": "int", "x": "float"}}
    array = np.zeros(4, np.float32)
    arguments = Arguments(kinds["f"])
    for second, third in ((3, 2), (-5, 0.5)):
        addresses = arguments.filled({"x": third, "a": array, "n": second})
        kept = [
            kind.from_address(at).value
            for kind, at in zip((ctypes.c_void_p, ctypes.c_int, ctypes.c_float), addresses, strict=True)
        ]
        assert kept == [array.ctypes.data, second, third]
    with pytest.raises(TypeError, match=r"missing, or too many, are \['x'\]"):
        arguments.filled({"a": array, "n": 3})
    with pytest.raises(TypeError, match=r"missing, or too many, are \['m', 'n'\]"):
        arguments.filled({"a": array, "m": 3, "x": 2.0})
    with pytest.raises(TypeError, match="argument n of a kernel is int, not float"):
        arguments.filled({"a": array, "n": 3.0, "x": 2.0})
    with pytest.raises(ValueError, match="contiguous"):
        arguments.filled({"a": np.zeros((4, 4))[:, 1:], "n": 3, "x": 2.0})


def test_a_barrier_that_a_thread_misses_is_found(tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("no g++ to run the kernels on the CPU with")
    source = tmp_path / "hang.cu"
    source.write_text('extern "C" __global__ void hang(int n) { if (threadIdx.x < n) __syncthreads(); }')
    hang = compile_for_cpu({source: {}}, tmp_path)["hang"]
    hang(1, 64, n=64)
    with pytest.raises(RuntimeError, match="hangs"):
        hang(1, 64, n=63)


# ------------------------------------------------------------------ loss


def reference_loss(x, y):
    """0.8 L1 + 0.2 (1 - SSIM), or L1 where no window fits.

    Wang et al. 2004 from the definition: weighted means, variances and covariance.
    """
    l1 = anp.mean(anp.abs(x - y))
    rows, columns = x.shape[0] - 10, x.shape[1] - 10
    if min(rows, columns) < 1:
        return l1
    w = np.outer(gaussian_window(), gaussian_window())
    parts = [(w[i, j], slice(i, i + rows), slice(j, j + columns)) for i in range(11) for j in range(11)]
    mx, my = (sum(k * image[a, b] for k, a, b in parts) for image in (x, y))
    vx, vy = (sum(k * (image[a, b] - m) ** 2 for k, a, b in parts) for image, m in ((x, mx), (y, my)))
    vxy = sum(k * (x[a, b] - mx) * (y[a, b] - my) for k, a, b in parts)
    ssim = (2 * mx * my + 1e-4) * (2 * vxy + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
    return 0.8 * l1 + 0.2 * (1 - anp.mean(ssim))


def test_blocks_of_the_loss_cover_the_image_and_fill_the_device():
    assert launches.loss_blocks(3600, 900) == ((29, 21), 44)
    assert launches.loss_blocks(900, 225) == ((8, 15), 16)
    assert launches.loss_blocks(24_000, 6000) == ((188, 94), 64)


@pytest.mark.parametrize("blocks", [1, 600])
@pytest.mark.parametrize("size", [(97, 75), (11, 11), (60, 42), (9, 40), (40, 9)])
def test_loss_and_its_gradient(ordered, arrays, monkeypatch, size, blocks):
    monkeypatch.setattr(launches, "LOSS_BLOCKS", blocks)
    width, height = size
    rng = np.random.default_rng(width)
    photo = rng.integers(0, 256, (height, width, 3))
    image = (0.6 * photo / 255 + 0.3 * rng.random(photo.shape) - 0.05).astype(np.float32)
    grad, total = arrays.empty(height, width, 3), arrays.copy([0.25])
    slopes = arrays.empty(9 * height * width)
    given = {"image": arrays.copy(image), "photo": arrays.copy(photo, np.uint8)}
    launches.loss_gradient(ordered, width, height, **given, slopes=slopes, grad=grad, total=total)
    exact = image.astype(np.float64)
    assert float(total[0]) - 0.25 == pytest.approx(reference_loss(exact, photo / 255), abs=2e-6)
    assert relative(grad, autograd_grad(reference_loss)(exact, photo / 255)) < 2e-4


# ------------------------------------------------------------------ one step, but for gsplat's projection and sort


def project(means, scales, quats, view):
    """(means2d [n, 2], conics [n, 3], depths [n]) in float64, as ``reference_render``."""
    R, t = view.world_to_camera[:3, :3], view.world_to_camera[:3, 3]
    fx, fy, cx, cy = view.K[0, 0], view.K[1, 1], view.K[0, 2], view.K[1, 2]
    p = means @ R.T + t
    z = p[:, 2]
    u = anp.clip(p[:, 0] / z, (-cx - 0.15 * view.width) / fx, (1.15 * view.width - cx) / fx)
    v = anp.clip(p[:, 1] / z, (-cy - 0.15 * view.height) / fy, (1.15 * view.height - cy) / fy)
    zero = anp.zeros_like(z)
    J = anp.stack([anp.stack([fx / z, zero, -fx * u / z], 1), anp.stack([zero, fy / z, -fy * v / z], 1)], 1)
    B = anp.einsum("nij,jk,nkl->nil", J, R, reference_rotation(quats) * scales[:, None, :])
    cov = anp.einsum("nij,nkj->nik", B, B) + 0.3 * np.eye(2)
    det = cov[:, 0, 0] * cov[:, 1, 1] - cov[:, 0, 1] ** 2
    conics = anp.stack([cov[:, 1, 1] / det, -cov[:, 0, 1] / det, cov[:, 0, 0] / det], 1)
    return anp.stack([fx * p[:, 0] / z + cx, fy * p[:, 1] / z + cy], 1), conics, z


def radii_of(means2d, conics, depths, opacities, width, height):
    """[n, 2]: half the sides of the box of each ellipse, 0 where it is not seen."""
    a, b, c = conics.T
    extend = np.sqrt(2 * np.log(np.maximum(opacities * 255, 1)))[:, None]
    radii = np.ceil(extend * np.sqrt(np.stack([c, a], 1) / (a * c - b * b)[:, None]))
    radii[(depths <= 0.01) | (means2d - radii > [width, height]).any(1) | (means2d + radii < 0).any(1)] = 0
    return radii


def tile_lists(means2d, radii, depths, width, height):
    """(offsets [tiles], ids [pairs]): the tiles that each box touches, front to back."""
    low, high = means2d - radii, means2d + radii
    columns, rows = launches.tiles(width, height)
    order = np.argsort(depths, kind="stable")
    order = order[radii[order, 0] > 0]
    lists = []
    for tile in range(columns * rows):
        corner = np.array([tile % columns, tile // columns]) * launches.TILE
        lists.append(order[((high[order] >= corner) & (low[order] <= corner + launches.TILE)).all(1)])
    return np.cumsum([0] + [len(ids) for ids in lists[:-1]]), np.concatenate(lists)


def lists_of(arrays, offsets, ids, records, width, height):
    room = launches.blocks_of_pixels(width, height), launches.hits(len(ids), width, height)
    chunks, hits = (arrays.empty(count, kind=np.int32) for count in room)
    order = arrays.empty(len(offsets), kind=np.int32)
    offsets, ids = arrays.copy(offsets, np.int32), arrays.copy(ids, np.int32)
    return launches.Lists(offsets, ids, len(ids), records, width, height, order, hits, chunks)


def make_gaussians(n, degree, seed):
    gaussians = make_any_gaussians(n, degree, seed)
    gaussians.opacity_logits[:] = gaussians.opacity_logits.clip(max=launches.LOGIT_MAX)
    return gaussians


class Step:
    """A model in the engine's layout, and its launches in the engine's order."""

    def __init__(self, kernels, arrays, gaussians, view, degree, spare=37):
        self.kernels, self.arrays, self.view, self.degree = kernels, arrays, view, degree
        self.n = n = len(gaussians)
        self.stride = n + spare
        self.exact = [np.asarray(getattr(gaussians, name), np.float64) for name in ("means", "log_scales", "quats")]
        self.parameters = (*map(arrays.copy, self.exact), arrays.copy(gaussians.opacity_logits))
        self.sh = arrays.empty(3 * gaussians.sh.shape[1], self.stride)
        self.sh[:, :n] = gaussians.sh.reshape(n, -1).T
        self.center = arrays.copy(view.center)
        self.scales, self.opacities = arrays.empty(n, 3), arrays.empty(n)
        self.records, self.sums = arrays.empty(n, launches.RECORD), arrays.zeros(n, launches.RECORD)
        self.colors, self.geometry = (
            [arrays.zeros(rows, self.stride) for _ in range(2)] for rows in (len(self.sh), launches.GEOMETRY)
        )

    def named(self):
        """The parameters by the names that the kernels have for them."""
        return dict(zip(("means", "log_scales", "quats", "logits"), self.parameters, strict=True))

    def prepare(self):
        named = {name: values for name, values in self.named().items() if name in ("log_scales", "logits")}
        launches.prepare(self.kernels, self.n, **named, scales=self.scales, opacities=self.opacities)

    def forward(self):
        n, arrays, view = self.n, self.arrays, self.view
        self.prepare()
        means2d, conics, depths = project(self.exact[0], np.exp(self.exact[1]), self.exact[2], view)
        radii = radii_of(means2d, conics, depths, self.opacities, view.width, view.height)
        offsets, ids = tile_lists(means2d, radii, depths, view.width, view.height)
        self.seen = radii[:, 0] > 0
        conics[~self.seen] = np.nan
        self.conics = arrays.copy(conics)
        launches.per_gaussian(
            self.kernels["pack"],
            n,
            means=self.parameters[0],
            center=self.center,
            sh=self.sh,
            radii=arrays.copy(radii, np.int32),
            means2d=arrays.copy(means2d),
            conics=self.conics,
            opacities=self.opacities,
            stride=self.stride,
            degree=self.degree,
            records=self.records,
        )
        self.lists = lists_of(arrays, offsets, ids, self.records, view.width, view.height)
        self.image = arrays.empty(view.height, view.width, 3)
        launches.blend(self.kernels, self.lists, self.image)
        return self.image

    def backward(self, grad):
        """The gradients by means, scales and quats through the projection."""
        n, arrays = self.n, self.arrays
        launches.blend_backward(self.kernels, self.lists, self.image, grad, self.sums)
        by_means2d, by_conics = arrays.empty(n, 2), arrays.empty(n, 3)
        launches.per_gaussian(
            self.kernels["projected_gradients"],
            n,
            conics=self.conics,
            sums=self.sums,
            by_means2d=by_means2d,
            by_conics=by_conics,
        )
        assert np.isfinite(by_means2d).all() and not by_conics[~self.seen].any()
        view = self.view
        back = [
            make_vjp(lambda *p, k=k: project(*p, view)[k], argnum)(self.exact[0], np.exp(self.exact[1]), self.exact[2])[
                0
            ]
            for k in (0, 1)
            for argnum in (0, 1, 2)
        ]
        upstream = (by_means2d, by_conics)
        return [sum(back[3 * k + which](upstream[k].astype(np.float64)) for k in (0, 1)) for which in range(3)]

    def update(self, gradients, step, rates, seed=5):
        arrays, n = self.arrays, self.n
        by_directions = arrays.empty(n, 3)
        first, second = self.colors
        launches.update_colors(
            self.kernels,
            rates,
            step,
            n,
            means=self.parameters[0],
            center=self.center,
            records=self.records,
            sums=self.sums,
            sh=self.sh,
            first=first,
            second=second,
            by_directions=by_directions,
            stride=self.stride,
            degree=self.degree,
        )
        by_means, by_scales, by_quats = map(arrays.copy, gradients)
        first, second = self.geometry
        launches.update_geometry(
            self.kernels,
            rates,
            step,
            seed,
            n,
            **self.named(),
            first=first,
            second=second,
            scales=self.scales,
            opacities=self.opacities,
            by_means=by_means,
            by_directions=by_directions,
            by_scales=by_scales,
            by_quats=by_quats,
            sums=self.sums,
            stride=self.stride,
        )


def reference_parameters(gaussians):
    names = ("means", "log_scales", "quats", "opacity_logits", "sh")
    return [getattr(gaussians, name).astype(np.float64) for name in names]


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


# ------------------------------------------------------------------ Adam and noise


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
