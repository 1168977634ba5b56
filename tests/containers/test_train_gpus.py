"""Training on several GPUs, without one: processes that exchange by gloo, with the engine's kernels run on the CPU."""

import copy
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from splat.cameras import View
from tests.containers import gpu_on_cpu
from tests.containers.cuda_on_cpu import Arrays, compile_for_cpu
from tests.containers.kernel_step import GAUSSIANS, Step, make_gaussians
from train.engine import Rates, Setup, TrainingPhoto
from train.gpu import launches
from train.gpus import engine as engine_gpus
from train.gpus.engine import GpusEngine
from train.memory import OutOfDeviceMemory
from train.relocation import refine

pytest.importorskip("torch", reason="no torch, which makes the processes' connections")
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to run the kernels on the CPU with")

WIDTH, HEIGHT, DEGREE, SEED, CAPACITY = 48, 33, 1, 7, 61
RATES = Rates(1e-3, 5e-3, 1e-3, 2e-2, 5e-3, 2e-3, noise=40.0, opacity_reg=0.01, scale_reg=0.02)
PARAMETERS = ("means", "log_scales", "quats", "opacity_logits", "sh")


def made_photo(number, behind=0.0):
    """The scene lies ``behind`` the camera by so much more."""
    pose = np.eye(4)
    angle = 0.1 * number
    pose[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    pose[:3, 3] = [0.05 * number, -0.02 * number, 0.1 - behind]
    width = WIDTH + 4 * number  # photos of several sizes
    K = np.array([[40.0, 0, width / 2], [0, 41, HEIGHT / 2], [0, 0, 1]])
    pixels = np.random.default_rng(number).integers(0, 256, (HEIGHT, width, 3)).astype(np.uint8)
    return TrainingPhoto(View(f"{number}.jpg", width, HEIGHT, K, pose), pixels)


PHOTOS = [made_photo(0), made_photo(1), made_photo(2), made_photo(3, behind=50.0)]
SETUP = Setup(PHOTOS, CAPACITY, DEGREE, SEED)


def made_model(n=50):
    gaussians = make_gaussians(n, DEGREE, 3)
    gaussians.opacity_logits[::5] = -6  # nearly transparent: noise moves them, and they are relocated
    return gaussians


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kernels")
    for ranks in (1, 2, 3):
        for rank in range(ranks):
            compile_for_cpu(launches.sources(ranks, rank), folder)
    return folder


@pytest.fixture(scope="module")
def open_engine(compiled):
    """Opens an engine with this number of processes. What is opened lives until the module's last test."""
    engines = []
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(gpu_on_cpu.GSPLAT)

        def opened(ranks, place=gpu_on_cpu.place, timeout_s=120.0):
            placed = partial(place, compiled)
            engines.append(GpusEngine(replace(SETUP, gpus=ranks), placed, timeout_s))
            return engines[-1]

        yield opened
    for engine in engines:
        engine.close()


@pytest.fixture(scope="module")
def engines(open_engine):
    """By their number of processes; each test loads its own model."""
    return {ranks: open_engine(ranks) for ranks in (2, 3)}


class OneProcess:
    """The whole model in one process, and the views of a step one after the other: the same kernels, no exchange."""

    def __init__(self, compiled, views, gaussians):
        self.arrays, self.photos_seen, self.views = Arrays(), 0, views
        # A Gaussian's number is its place in the model, which no shard is of.
        constants = {GAUSSIANS: launches.sources(views, 0)[GAUSSIANS] | {"RANK": "(i-VIEWS*i)"}} if views > 1 else {}
        kernels = compile_for_cpu(launches.SOURCES | constants, compiled)
        self.base = Step(kernels, self.arrays, gaussians, PHOTOS[0].view, DEGREE)
        self.loss = self.arrays.zeros(1)

    def step(self, photos, rates):
        base, arrays = self.base, self.arrays
        base.exact = [p.astype(np.float64) for p in base.parameters[:3]]
        records, sums = (arrays.zeros(self.views, base.n, launches.RECORD) for _ in range(2))
        totals = [np.zeros_like(values) for values in base.exact]
        for number, photo in enumerate(photos):
            of_view = copy.copy(base)
            of_view.view, of_view.center = PHOTOS[photo].view, arrays.copy(PHOTOS[photo].view.center)
            of_view.records, of_view.sums = records[number], sums[number]
            image = of_view.forward()
            grad, pixels = arrays.empty(*image.shape), arrays.copy(PHOTOS[photo].pixels, np.uint8)
            slopes = arrays.empty(3 * image.size)
            given = {"image": image, "photo": pixels, "slopes": slopes, "grad": grad, "total": self.loss}
            launches.loss_gradient(base.kernels, image.shape[1], HEIGHT, **given)
            totals = [total + part for total, part in zip(totals, of_view.backward(grad), strict=True)]
        base.center = arrays.copy([PHOTOS[photo].view.center for photo in photos])
        base.records, base.sums = records, sums
        self.photos_seen += self.views
        pulls = {"opacity_reg": self.views * rates.opacity_reg, "scale_reg": self.views * rates.scale_reg}
        rates = Rates(**{**vars(rates.slower(np.sqrt(self.views))), **pulls})
        base.update(totals, self.photos_seen, rates, SEED)
        arrays.check()

    def parameters(self):
        n = self.base.n
        means, log_scales, quats, logits = self.base.parameters
        return dict(
            zip(
                PARAMETERS,
                (means, log_scales, quats, logits, self.base.sh[:, :n].T.reshape(n, -1, 3)),
                strict=True,
            )
        )


def assert_same_models(got, wanted, start):
    """Alike to 1e-4 of how far parameters came, on average: Adam's first steps are long where gradients are tiny."""
    for name in PARAMETERS:
        moved = np.abs(wanted[name] - getattr(start, name)).mean()
        apart = np.abs(getattr(got, name) - wanted[name])
        assert moved > 0 and apart.mean() < 1e-4 * moved, (name, apart.mean(), moved)


@pytest.mark.parametrize("ranks", [2, 3])
def test_steps_are_those_of_one_process_with_as_many_views(engines, compiled, ranks):
    """50 Gaussians on 3 GPUs are uneven shards; photo 3 sees nothing."""
    start, engine = made_model(), engines[ranks]
    whole = OneProcess(compiled, ranks, start)
    engine.load(start)
    for photos in ([0, 1, 2], [2, 0, 1], [1, 3, 0], [3, 2, 1]):
        engine.step(photos[:ranks], 1, DEGREE, RATES)
        whole.step(photos[:ranks], RATES)
    assert_same_models(engine.gaussians(), whole.parameters(), start)
    assert engine.mean_loss() == pytest.approx(float(whole.loss[0]) / (4 * ranks), rel=1e-5)
    assert np.isnan(engine.mean_loss()) and engine.is_finite() and engine.count() == 50
    assert engine.device == f"{ranks} x CPU" and not engine.render(PHOTOS[3].view, DEGREE).any()


def seen_and_refined(engine):
    """Everything that the trainer reads of an engine, and its state after relocation and growth."""
    read = [
        np.array(values)  # on the CPU some share the engine's memory
        for values in (engine.render(PHOTOS[1].view, DEGREE), engine.log_scales(), engine.opacities())
    ]
    read.append(engine.error_per_gaussian(2, 2, DEGREE))
    moved, added = refine(engine, np.random.default_rng(5), 0.2)
    assert moved > 5 and added > 5
    return read, engine.state(), engine.count()


def test_any_number_of_gpus_goes_on_from_what_another_has_saved(engines, compiled):
    """And all of them, one too, render, share out errors, relocate and grow alike."""
    engines[2].load(made_model())
    for photos in ([0, 1], [2, 3], [1, 2]):
        engines[2].step(photos, 1, DEGREE, RATES)
    saved = engines[2].state()
    assert saved["steps"] == 6  # photos
    engines[3].restore(saved)
    again = engines[3].state()
    assert saved.keys() == again.keys() and all(np.array_equal(saved[name], again[name]) for name in saved)
    with ProcessPoolExecutor(1, get_context("spawn")) as alone:
        job = alone.submit(gpu_on_cpu.on_one_gpu, compiled, PHOTOS, saved, seen_and_refined)
        results = [seen_and_refined(engine) for engine in engines.values()]
        wanted_read, wanted, count = job.result(timeout=120)
    assert count == 60
    for read, state, counted in results:
        assert counted == count and state.keys() == wanted.keys()
        assert all(np.array_equal(state[name], wanted[name]) for name in wanted)
        for a, b in zip(read, wanted_read, strict=True):
            assert np.allclose(a, b, rtol=1e-5, atol=1e-6)
        assert wanted_read[0].any() and wanted_read[3].any()


def test_a_restored_engine_goes_on_exactly(engines):
    engine = engines[3]
    engine.load(made_model())
    engine.step([0, 1, 2], 2, DEGREE, RATES)
    saved, ends = engine.state(), []
    for _ in range(2):
        engine.restore(saved)
        engine.step([2, 3, 0], 1, DEGREE, RATES)
        ends.append(engine.state())
    assert all(np.array_equal(ends[0][name], ends[1][name]) for name in saved)


def test_the_most_opaque_are_kept_where_there_is_less_room(engines):
    start = made_model(200)
    engines[2].load(start)
    rows = np.sort(np.argsort(-start.opacity_logits, kind="stable")[:CAPACITY])
    assert engines[2].count() == CAPACITY
    assert np.array_equal(engines[2].gaussians().means, start.means[rows])


# ------------------------------------------------------------------ one step is one GPU's step


def three_steps(engine):
    for photo in (0, 2, 1):
        engine.step([photo], 1, DEGREE, RATES)
    return engine.gaussians()


@pytest.mark.usefixtures("open_engine")  # for the path to gsplat's stand-in
def test_an_engine_of_one_gpu_steps_as_its_kernels_do(compiled):
    """The whole GPU engine, with everything but gsplat and the device as it is."""
    start = made_model()
    whole = OneProcess(compiled, 1, start)
    for photo in (0, 2, 1):
        whole.step([photo], RATES)
    n, zero = len(start), np.zeros
    state = {f"value_{name}": getattr(start, name) for name in PARAMETERS if name != "sh"}
    state |= {"value_sh": start.sh.reshape(n, -1).T, "steps": np.array(0)}
    for moment in range(2):
        state |= {f"geometry_{moment}": zero((11, n), np.float32), f"colors_{moment}": zero((12, n), np.float32)}
    with ProcessPoolExecutor(1, get_context("spawn")) as alone:
        got = alone.submit(gpu_on_cpu.on_one_gpu, compiled, PHOTOS, state, three_steps).result(timeout=120)
    assert_same_models(got, whole.parameters(), start)


# ------------------------------------------------------------------ failures


def test_a_process_that_dies_ends_the_training_and_is_named(open_engine):
    engine = open_engine(2)
    engine.load(made_model())
    engine._processes[1].send_signal(signal.SIGTERM)  # as a service that stops tells all processes: not theirs to hear
    assert engine.is_finite()
    engine._processes[1].kill()
    with pytest.raises(RuntimeError, match=r"GPU 1 of 2 ended: exit status -9"):
        for _ in range(2):
            engine.step([0, 1], 1, DEGREE, RATES)
    assert all(process.poll() is not None for process in engine._processes)


def test_a_full_gpu_is_told_though_others_wait_for_it(open_engine):
    engine = open_engine(2, gpu_on_cpu.full_on_1)
    engine.load(made_model())
    with pytest.raises(OutOfDeviceMemory, match="memory of CPU is not enough for 25 Gaussians a GPU at 52x33 pixels"):
        for _ in range(2):
            engine.step([0, 1], 1, DEGREE, RATES)
    assert all(process.poll() is not None for process in engine._processes)


def test_a_process_that_hangs_ends_the_training(open_engine, monkeypatch):
    monkeypatch.setattr(engine_gpus, "END_S", 0.5)
    engine = open_engine(2)
    engine._timeout_s = 10.0
    engine._processes[0].send_signal(signal.SIGSTOP)
    with pytest.raises(RuntimeError, match=r"GPUs \[0\] of 2 gave no answer for 10.0 s"):
        engine.is_finite()
    assert all(process.poll() is not None for process in engine._processes)


def test_processes_end_when_the_one_that_started_them_is_killed(compiled, open_engine):
    program = (
        "from functools import partial\n"
        "from pathlib import Path\n"
        "from tests.containers import gpu_on_cpu\n"
        "from train.gpus.engine import GpusEngine\n"
        "from train.engine import Setup\n"
        f"engine = GpusEngine(Setup([], 9, 0, 1, gpus=2), partial(gpu_on_cpu.place, Path({str(compiled)!r})))\n"
        "print(*[process.pid for process in engine._processes], flush=True)\n"
        "input()\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    starter = subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    pids = [int(word) for word in starter.stdout.readline().split()]
    assert len(pids) == 2 and all(is_running(pid) for pid in pids)
    starter.kill()
    starter.communicate()
    until = time.monotonic() + 20
    while any(is_running(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(is_running(pid) for pid in pids)


def is_running(pid):
    """Not one that has ended and that nobody has asked for its status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
