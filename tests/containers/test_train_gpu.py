"""The GPU engine against the CPU engine: same images, gradients, loss and steps; exact resume."""

import numpy as np
import pytest

from splat.cameras import View
from splat.loss import PhotoLoss as CpuLoss
from splat.loss import to_planes
from splat.metrics import psnr
from splat.model import Gaussians
from splat.raster import Rasterizer as CpuRasterizer
from splat.threads import Workers
from train.cpu.engine import CpuEngine
from train.engine import Moves, Rates, Setup, TrainingPhoto
from train.engines import gpu_available
from train.relocation import refine
from train.schedule import Schedule

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not gpu_available(), reason="no CUDA device, or no torch and gsplat (the [gpu] extra)"),
]

FIELDS = ("means", "log_scales", "quats", "opacity_logits", "sh")
WIDTH, HEIGHT = 150, 101  # not multiples of a tile
K = np.array([[130.0, 0, 76], [0, 128, 49], [0, 0, 1]])


def made_gaussians(seed, degree, n=700):
    rng = np.random.default_rng(seed)
    means = rng.uniform([-1.6, -1.1, 2], [1.6, 1.1, 5], (n, 3))
    log_scales = np.log(rng.uniform(0.02, 0.25, (n, 3)))
    sh = rng.normal(size=(n, (degree + 1) ** 2, 3)) * 0.3
    return Gaussians(means, log_scales, rng.normal(size=(n, 4)), rng.normal(size=n), sh)


def view_number(i):
    pose = np.eye(4)
    angle = 0.06 * i
    pose[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    pose[:3, 3] = [0.05 * i, -0.02 * i, 0.1]
    return View(f"{i}.jpg", WIDTH, HEIGHT, K, pose)


def made_photos(count=4):
    truth = made_gaussians(7, 1)
    images = [CpuRasterizer(1).forward(truth, view_number(i))[0] for i in range(count)]
    return [TrainingPhoto(view_number(i), (np.clip(x, 0, 1) * 255).astype(np.uint8)) for i, x in enumerate(images)]


def gpu_engine(photos, capacity, degree, pinned_photos=False):
    from train.gpu.engine import GpuEngine

    return GpuEngine(Setup(photos, capacity, degree, 1, 1, pinned_photos))


def relative(value, wanted):
    return np.linalg.norm(value.astype(np.float64) - wanted) / np.linalg.norm(wanted)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_image_and_gradients_equal_those_of_the_cpu(degree):
    import torch

    from train.gpu.raster import Camera

    gaussians, view = made_gaussians(degree, degree), view_number(1)
    engine = gpu_engine([], 1000, degree)
    engine.load(gaussians)
    image = engine.render(view, degree)
    cpu = CpuRasterizer(1)
    wanted, _ = cpu.forward(gaussians, view)
    assert np.abs(image - wanted).max() < 1e-3

    upstream = np.random.default_rng(9).normal(size=wanted.shape).astype(np.float32)
    wanted_grads = cpu.backward(upstream)
    camera = Camera.of(view, engine._on)
    gradients = engine._rasterizer.backward(torch.from_numpy(upstream).to(engine._on))
    still = Rates(0, 0, 0, 0, 0, 0, noise=0, opacity_reg=0, scale_reg=0)
    engine._model.optimise(engine._rasterizer, gradients, camera.center, 1, degree, still)
    state = engine.state()
    moments, colors = state["geometry_0"] / 0.1, state["colors_0"] / 0.1  # in the first step 0.1 times the gradients
    raw = {
        "means": moments[:3].T,
        "log_scales": moments[3:6].T,
        "quats": moments[6:10].T,
        "opacity_logits": moments[10],
        "sh": colors.T.reshape(len(gaussians), -1, 3),
    }
    errors = {name: relative(raw[name], getattr(wanted_grads, name)) for name in FIELDS}
    print(f"degree {degree}: image {np.abs(image - wanted).max():.2e}, gradients {errors}")
    assert max(errors.values()) < 1e-3, errors


@pytest.mark.parametrize("size", [(WIDTH, HEIGHT), (30, 9)])
def test_loss_and_its_gradient_equal_those_of_the_cpu(size):
    import torch

    width, height = size
    engine = gpu_engine([], 1000, 0)
    engine.load(made_gaussians(3, 0))
    image = engine.render(view_number(0).resized(width, height), 0)
    photo = np.random.default_rng(3).integers(0, 256, image.shape).astype(np.uint8)
    total = torch.zeros(1, device=engine._on)
    grad = engine._rasterizer.loss_gradient(torch.from_numpy(photo).to(engine._on), total)
    padded = np.zeros((4, -(-height // 16) * 16, -(-width // 16) * 16), np.float32)
    padded[:3, :height, :width] = image.transpose(2, 0, 1)
    loss, wanted = CpuLoss(Workers(1))(padded, to_planes(photo), width, height)
    assert abs(float(total) - loss) < 1e-4 * loss
    planes = wanted.reshape(padded.shape)[:3, :height, :width].transpose(1, 2, 0)
    assert relative(grad.cpu().numpy(), planes) < 1e-3


def test_a_step_changes_the_model_as_on_the_cpu():
    """Without noise, whose numbers differ. The first step of Adam is a sign: compare where the gradient is clear."""
    photos, start = made_photos(), made_gaussians(11, 1)
    rates = Schedule(noise=0.0).rates(0.5, 1.0)
    engines = [CpuEngine(Setup(photos, 1000, 1, 1)), gpu_engine(photos, 1000, 1)]
    for engine in engines:
        engine.load(start)
        for i in range(3):
            engine.step([i % 4], 1, 1, rates)
    cpu, gpu = (engine.gaussians() for engine in engines)
    for name in FIELDS:
        moved = getattr(cpu, name) - getattr(start, name)
        assert np.mean(np.abs(getattr(gpu, name) - getattr(cpu, name))) < 0.02 * np.mean(np.abs(moved)), name
    assert abs(engines[0].mean_loss() - engines[1].mean_loss()) < 1e-4


def test_training_with_noise_and_all_levels_improves_the_model():
    photos = made_photos()
    engine = gpu_engine(photos, 1000, 1)
    engine.load(made_gaussians(12, 1))

    def error():
        return np.mean([psnr(np.clip(engine.render(p.view, 1), 0, 1), p.pixels / 255.0) for p in photos])

    before = error()
    for i in range(300):
        engine.step([i % 4], (4, 2, 1)[i // 100], 1, Schedule().rates(i / 300, 1.0))
    assert error() > before + 4
    assert engine.is_finite()
    assert 0 < engine.mean_loss() < 1


def test_a_restored_engine_goes_on_exactly():
    photos, rates = made_photos(), Schedule().rates(0.2, 1.0)
    one = gpu_engine(photos, 1000, 1)
    one.load(made_gaussians(13, 1))
    for i in range(5):
        one.step([i % 4], 1, 1, rates)
    other = gpu_engine(photos, 1000, 1)
    other.restore(one.state())
    for engine in (one, other):
        engine.step([1], 1, 1, rates)
    a, b = one.gaussians(), other.gaussians()
    for name in FIELDS:  # sums by atomics have no fixed order, hence not equal to the bit
        assert np.allclose(getattr(a, name), getattr(b, name), rtol=1e-4, atol=2e-3), name
        assert np.mean(np.abs(getattr(a, name) - getattr(b, name))) < 1e-5, name


def test_relocated_gaussians_are_copies_with_moments_of_zero():
    engine = gpu_engine(made_photos(), 710, 1)
    engine.load(made_gaussians(14, 1))
    engine.step([0], 1, 1, Schedule().rates(0.2, 1.0))
    logits, log_scales = np.array([0.5, -0.5], np.float32), np.full((2, 3), -2, np.float32)
    engine.relocate(Moves(np.array([3, 4]), np.array([9, 700]), logits, log_scales, reset_sources=False))
    state = engine.state()
    assert engine.count() == 701
    assert np.array_equal(state["value_means"][[9, 700]], state["value_means"][[3, 4]])
    assert np.array_equal(state["value_opacity_logits"][[3, 4, 9, 700]], [0.5, -0.5, 0.5, -0.5])
    assert np.array_equal(state["value_sh"][:, [9, 700]], state["value_sh"][:, [3, 4]])
    assert not state["geometry_0"][:, [9, 700]].any() and not state["colors_1"][:, [9, 700]].any()
    assert state["geometry_1"][:, [3, 4]].any()


def test_photos_in_the_hosts_memory_give_the_same_steps():
    photos, rates = made_photos(), Schedule(noise=0.0).rates(0.2, 1.0)
    engines = [gpu_engine(photos, 1000, 1, pinned_photos) for pinned_photos in (False, True)]
    for engine in engines:
        engine.load(made_gaussians(15, 1))
        for i in range(8):
            engine.step([i % 4], (1, 2)[i % 2], 1, rates)
    a, b = (engine.gaussians() for engine in engines)
    for name in FIELDS:
        assert np.mean(np.abs(getattr(a, name) - getattr(b, name))) < 1e-5, name
    assert abs(engines[0].mean_loss() - engines[1].mean_loss()) < 1e-5


def test_a_smaller_engine_takes_over_the_most_opaque():
    start = made_gaussians(16, 1)
    large, small = gpu_engine([], 700, 1), gpu_engine([], 300, 1)
    large.load(start)
    small.restore(large.state())
    kept = small.gaussians()
    rows = np.sort(np.argsort(-start.opacity_logits)[:300])
    assert small.count() == 300
    for name in FIELDS:
        assert np.array_equal(getattr(kept, name), getattr(start, name)[rows]), name
    small.load(start)
    assert np.array_equal(small.gaussians().means, start.means[rows])


def test_a_full_device_is_told():
    from train.memory import OutOfDeviceMemory

    with pytest.raises(OutOfDeviceMemory, match="is not enough for 0 photos and 4000000000 Gaussians"):
        gpu_engine([], 4_000_000_000, 3)


def gpus():
    if not gpu_available():
        return 0
    import torch

    return torch.cuda.device_count()


@pytest.mark.skipif(gpus() < 2, reason="less than two CUDA devices")
def test_several_gpus_train_render_and_resume_as_one_does():
    from train.gpus.engine import GpusEngine

    photos, start, count = made_photos(), made_gaussians(17, 1), gpus()
    one, several = gpu_engine(photos, 1000, 1), GpusEngine(Setup(photos, 1000, 1, 1, gpus=count))
    for engine in (one, several):
        engine.load(start)
    assert np.abs(one.render(view_number(1), 1) - several.render(view_number(1), 1)).max() < 1e-4
    assert relative(several.error_per_gaussian(2, 2, 1), one.error_per_gaussian(2, 2, 1)) < 1e-3

    def error(engine):
        return np.mean([psnr(np.clip(engine.render(p.view, 1), 0, 1), p.pixels / 255.0) for p in photos])

    before = error(several)
    for i in range(100):
        several.step([(i * count + k) % 4 for k in range(count)], (4, 2, 1)[i // 34], 1, Schedule().rates(i / 100, 1.0))
    assert error(several) > before + 3
    assert several.is_finite() and 0 < several.mean_loss() < 1
    refine(several, np.random.default_rng(1), 0.1)
    one.restore(several.state())
    assert one.count() == several.count() == 770
    for name in FIELDS:
        assert np.array_equal(getattr(one.gaussians(), name), getattr(several.gaussians(), name)), name
    several.close()
