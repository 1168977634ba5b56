"""The option background: what lies behind the Gaussians, from the training to the page."""

import json
import re
import shutil
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad as autograd_grad
from PIL import Image

from compress.fetch_viewer import installed_version, pinned_version
from compress.stage import run as compress
from job import Job, JobKind
from spaceport import view
from splat.cameras import read_scene
from splat.images import load_photo, save_photo
from splat.model import read_ply
from splat.render import render
from tests.containers import gpu_on_cpu
from tests.containers.cuda_on_cpu import Arrays, compile_for_cpu
from tests.containers.kernel_step import NO_RATES, Step, make_gaussians, reference_parameters, relative
from tests.containers.test_compress_stage import job, viewer
from tests.containers.test_splat_raster import make_view, reference_render
from tests.containers.test_train_kernels import ARCHITECTURES
from tests.containers.training_runs import prepare
from tests.containers.training_runs import run as train
from tests.e2e.test_page import Watched, browser
from tests.synthetic import make_gaussians as make_balls
from tests.synthetic import make_views, write_stage_inputs
from train.cpu.engine import CpuEngine
from train.engine import Setup, TrainingPhoto
from train.gpu import launches
from train.gpu.nvrtc import compile_cubin, open_nvrtc
from train.stage import BLACK, WHITE, choose_background

__all__ = ["browser", "job", "viewer"]

RASTER = next(source for source in launches.SOURCES if source.name == "raster.cu")
COLOR = (0.9, 0.3, 0.6)
CHANNELS = ("BACKGROUND_RED", "BACKGROUND_GREEN", "BACKGROUND_BLUE")
COLORED = {**launches.SOURCES[RASTER], **dict(zip(CHANNELS, COLOR, strict=True))}
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to run the kernels on the CPU with")


def photo_with(edges, count=1):
    """Photos of 40 x 30 grey pixels; ``edges`` of the four are white."""
    pixels = np.full((30, 40, 3), 120, np.uint8)
    for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1])[:edges]:
        pixels[edge] = 244
    return [TrainingPhoto(make_view(0, 40, 30), pixels)] * count


# ------------------------------------------------------------------ choosing


@pytest.mark.parametrize(
    ("asked", "photos", "wanted"),
    [
        ("black", photo_with(4), BLACK),
        ("white", photo_with(0), WHITE),
        ("auto", photo_with(4), WHITE),
        ("auto", photo_with(2), BLACK),  # a wall and a bright sky
        ("auto", photo_with(4, 2) + photo_with(0), WHITE),
        ("auto", photo_with(4) + photo_with(0), BLACK),
    ],
)
def test_auto_is_white_where_most_photos_have_a_white_margin(asked, photos, wanted):
    assert choose_background(asked, photos) == wanted


def test_a_margin_is_white_in_every_channel():
    photos = photo_with(4)
    photos[0].pixels[..., 2] = 120  # yellow
    assert choose_background("auto", photos) == BLACK


def test_the_choice_stands_in_the_metrics_and_in_the_log(tmp_path, scene):
    studio = tmp_path / "studio"
    shutil.copytree(scene, studio)
    for seen in read_scene(studio).views:
        pixels = load_photo(studio / "images" / seen.name, seen.width, seen.height).copy()
        pixels[[0, -1]], pixels[:, [0, -1]] = 255, 255
        save_photo(studio / "images" / seen.name, pixels / 255.0)
    for asked, folder, wanted in (("auto", studio, WHITE), ("auto", scene, BLACK), (None, studio, BLACK)):
        given = {"background": asked} if asked else {}
        root = prepare(tmp_path / f"{asked}-{folder.name}", folder, max_iterations=20, **given)
        status, log, err = train(root)
        assert status == 0, err
        assert json.loads((root / "model/metrics.json").read_text())["background_rgb"] == list(wanted)
        (line,) = [line for line in log if line["event"] == "background"]
        assert line["rgb"] == list(wanted)


# ------------------------------------------------------------------ drawing and training


def test_the_cpu_engine_learns_on_the_background():
    """A model fits its own picture on the background that it was drawn on, and on no other."""
    gaussians, seen = make_gaussians(40, 0, 1), make_view(1, 64, 48)
    drawn, losses = reference_render(reference_parameters(gaussians), seen, WHITE)[0], []
    photo = TrainingPhoto(seen, np.rint(255 * drawn.clip(0, 1)).astype(np.uint8))
    for background in (WHITE, BLACK):
        engine = CpuEngine(Setup([photo], 40, 0, 1, background=background))
        engine.load(gaussians)
        error = np.abs(engine.render(seen, 0) - reference_render(reference_parameters(gaussians), seen, background)[0])
        assert error.max() < 1e-3
        engine.step([0], 1, 0, NO_RATES)
        losses.append(engine.mean_loss())
    assert losses[0] < 0.1 < 0.3 < losses[1]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """The GPU's kernels for a background."""
    return compile_for_cpu(launches.SOURCES | {RASTER: COLORED}, tmp_path_factory.mktemp("kernels"))


@needs_compiler
@pytest.mark.parametrize(("count", "closer"), [(220, 1.0), (300, 0.15)], ids=["spread", "opaque"])
def test_image_and_gradients_of_the_gpu_kernels_agree_with_the_reference(kernels, count, closer):
    """In the opaque scene pixels are finished before their last Gaussian: there the background is hardly seen."""
    gaussians, seen = make_gaussians(count, 1, 8), make_view(3, 49, 35)
    gaussians.means *= closer
    weight = np.random.default_rng(2).normal(size=(35, 49, 3))
    exact = reference_parameters(gaussians)
    wanted_image, alpha = reference_render(exact, seen, COLOR)
    wanted = autograd_grad(lambda p: anp.sum(reference_render(p, seen, COLOR)[0] * weight))(exact)
    assert alpha.max() > 0.999 and alpha.min() < 0.6
    arrays = Arrays()
    step = Step(kernels, arrays, gaussians, seen, 1)
    assert np.abs(step.forward() - wanted_image).max() < 1e-3
    by_means, by_scales, by_quats = step.backward(arrays.copy(weight))
    assert relative(by_scales * np.exp(step.exact[1]), wanted[1]) < 1e-3
    assert relative(by_quats, wanted[2]) < 1e-3
    opacity = 1 / (1 + np.exp(-exact[3]))
    assert relative(step.sums[:, 0] * (1 - opacity), wanted[3]) < 1e-3
    assert np.isfinite(by_means).all()
    arrays.check()


def drawn_by_gpu_engine(kernels, gaussians, seen):
    """For a process of its own."""
    gpu_on_cpu.prepare(kernels)
    from train.gpu.engine import GpuEngine

    engine = GpuEngine(Setup([], len(gaussians), 0, 1, gpus=1, background=COLOR), device="cpu")
    engine.load(gaussians)
    return engine.render(seen, 0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kernels_with_a_background_stay_in_registers(architecture):
    pytest.importorskip("nvidia.cuda_nvrtc", reason="no wheel nvidia-cuda-nvrtc-cu12")
    options = ("--ptxas-options=--verbose",)
    _binary, log = compile_cubin(open_nvrtc("12"), RASTER, COLORED, architecture, options)
    assert set(re.findall(r"(\d+) bytes spill stores", log)) == {"0"}, log
    assert max(int(count) for count in re.findall(r"Used (\d+) registers", log)) <= 128, log


@needs_compiler
def test_the_gpu_engine_draws_on_the_background(tmp_path, monkeypatch):
    pytest.importorskip("torch", reason="no torch, which the engine is made with")
    monkeypatch.syspath_prepend(gpu_on_cpu.GSPLAT)
    gaussians, seen = make_gaussians(60, 0, 1), make_view(1, 64, 48)
    with ProcessPoolExecutor(1, get_context("spawn")) as alone:
        drawn = alone.submit(drawn_by_gpu_engine, tmp_path, gaussians, seen).result(timeout=120)
    wanted = reference_render(reference_parameters(gaussians), seen, COLOR)[0]
    assert np.abs(drawn - wanted).max() < 1e-3


# ------------------------------------------------------------------ publishing


def make_white(job):
    file = job.input("train") / "metrics.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"background_rgb": [1.0, 1.0, 1.0]}))


def published(job):
    """The colour in settings.json and in report.json, and the poster's upper left pixel."""
    compress(job)
    settings, report = (json.loads((job.output / name).read_text()) for name in ("settings.json", "report.json"))
    poster = np.asarray(Image.open(job.output / "poster.jpg"))
    return settings["background"]["color"], report["training"]["background_rgb"], poster[0, 0].tolist()


def test_a_scene_on_white_is_published_on_white(job):
    make_white(job)
    for seen in read_scene(job.input("sfm")).views:  # the photos, on white too
        image, _ = render(read_ply(job.input("train") / "scene.ply"), seen, WHITE)
        save_photo(job.input("sfm") / "images" / seen.name, np.clip(image, 0, 1))
    assert published(job) == ([1, 1, 1], [1, 1, 1], [255, 255, 255])
    report = json.loads((job.output / "report.json").read_text())
    assert report["compression"]["psnr"] > 35 and report["compression"]["psnr_vs_uncompressed"] > 45
    for name in ("page.css", "scene.html"):
        assert "color-scheme: light" in (job.output / name).read_text()
    assert ">white<" in (job.output / "report.html").read_text()


def test_a_scene_of_before_the_option_is_on_black(job):
    assert published(job) == ([0, 0, 0], [0, 0, 0], [0, 0, 0])
    assert "color-scheme: light" not in (job.output / "page.css").read_text()
    assert ">black<" in (job.output / "report.html").read_text()


@pytest.mark.browser
@pytest.mark.slow
def test_the_page_of_a_scene_on_white_is_legible(browser, tmp_path):
    if installed_version() != pinned_version():
        pytest.skip("the viewer is not installed")
    write_stage_inputs(tmp_path / "processing/input", make_balls(), make_views())
    job = Job("compress", JobKind.PROCESSING, tmp_path, {"title": "Five balls on white"})
    job.output.mkdir(parents=True)
    job.progress_folder.mkdir(parents=True)
    make_white(job)
    compress(job)
    server = view.serve(job.output)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    watched = Watched(browser, f"http://127.0.0.1:{server.server_address[1]}/")
    try:
        watched.wait_for_first_frame()
        watched.page.wait_for_timeout(1000)
        picture = watched.picture("page-on-white.png")
        assert (picture[260, 20] > 250).all() and (picture[260, -20] > 250).all()
        title = watched.page.locator("header h1").bounding_box()
        left, top, width, height = (int(title[side]) for side in ("x", "y", "width", "height"))
        behind = picture[top : top + height, left : left + width]
        assert behind.max() > 240 and behind.min() < 40, "a title of dark letters on white"
        watched.page.evaluate("document.getElementById('problem').hidden = false")
        watched.page.evaluate("document.getElementById('problem').textContent = 'The scene could not be loaded.'")
        watched.picture("page-on-white-problem.png")
        assert watched.complaints == []
    finally:
        watched.context.close()
        server.shutdown()
        server.server_close()
