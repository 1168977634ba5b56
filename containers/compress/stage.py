"""The compress stage from its inputs to its outputs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from compress.clean import clean
from compress.evaluate import draw, encode_to_quality, evaluate, heldout_views
from compress.fetch_viewer import viewer_package
from compress.options import headline
from compress.page import SINGLE_PAGE, write_page, write_single_page
from compress.report import build_report, read_earlier_stages
from compress.report_page import write_report_page
from compress.sog_decode import decode_sog
from compress.sog_encode import encode_sog
from compress.spz import decode_spz, encode_spz
from compress.start_camera import choose_start_camera, viewer_settings
from compress.verify import check_sog, check_spz, rows_in_clean
from compress.viewer_settings import Background
from job import Job, StageError
from job.documents import write_document
from job.options import CompressOptions
from splat.cameras import Scene, read_scene
from splat.images import save_photo
from splat.model import Gaussians, read_ply

POSTER_SIZE = (1280, 720)
STEPS = (
    "Reading the trained scene",
    "Compressing",
    "Writing SPZ",
    "Drawing the poster",
    "Comparing",
    "Writing the report",
)
OUTPUTS = (
    *("scene.sog", "scene.spz", "index.html", "index.js", "index.css", "page.js", "page.css", "LICENSE-viewer.txt"),
    *("settings.json", "poster.jpg", "report.json", "report.html", SINGLE_PAGE),
)


def run(job: Job) -> None:
    """Read ``sfm`` and ``train``, write the files of ``OUTPUTS``."""
    started = time.monotonic()
    sfm, train = job.input("sfm"), job.input("train")
    viewer_package()  # before the work, not after it
    options = CompressOptions.model_validate(job.options)
    announce(job, 0)
    earlier = read_earlier_stages(sfm, train)
    metrics, background = earlier.metrics, earlier.metrics.background_rgb
    scene, original = read_inputs(sfm, train)
    cleaned = clean(original)
    held_out = heldout_views(scene, [photo.name for photo in metrics.heldout])
    job.log("cleaned", gaussians=len(cleaned.index), dropped=cleaned.dropped)

    announce(job, 1)
    with job.stop_at_once():  # learning the palette of a large scene takes minutes
        encoded, decoded = encode_to_quality(cleaned, original, held_out, job, background)
    (job.output / "scene.sog").write_bytes(encoded.data)
    published = cleaned.gaussians.select(rows_in_clean(cleaned, encoded.index))
    check_sog(job.output / "scene.sog", published)

    announce(job, 2)
    (job.output / "scene.spz").write_bytes(encode_spz(published))
    check_spz(job.output / "scene.spz", published)

    announce(job, 3)
    camera = choose_start_camera(scene)
    save_photo(job.output / "poster.jpg", draw(decoded, camera.view(*POSTER_SIZE), background), quality=85)
    settings = viewer_settings(camera).model_copy(update={"background": Background(color=background)})
    write_page(job.output, headline(options), settings)
    write_single_page(job.output, headline(options))

    announce(job, 4)
    quality = evaluate(decoded, original, scene, held_out, metrics, job)

    announce(job, 5)
    ply_bytes, seconds = (train / "scene.ply").stat().st_size, time.monotonic() - started
    report = build_report(options, earlier, seconds, ply_bytes, len(encoded.data), quality)
    write_document(job.output / "report.json", report)
    write_report_page(job.output / "report.html", report, metrics.curve, quality.heldout)
    job.progress(len(STEPS), len(STEPS), "steps", "Done")


def announce(job: Job, step: int) -> None:
    job.check_stop()
    job.progress(step, len(STEPS), "steps", STEPS[step])


def read_inputs(sfm: Path, train: Path) -> tuple[Scene, Gaussians]:
    """Raises StageError BAD_INPUT when a file of an earlier stage is missing or cannot be read."""
    try:
        scene, gaussians = read_scene(sfm), read_ply(train / "scene.ply")
    except (OSError, ValueError) as error:
        raise StageError(
            "BAD_INPUT", f"The output of an earlier stage cannot be read: {error}. Run it again."
        ) from error
    if not scene.views:
        raise StageError("BAD_INPUT", "The SfM stage left no registered photo. Run it again.")
    return scene, gaussians


def selfcheck() -> None:
    """Everything the stage loads at run time is there: codecs, the viewer, the templates."""
    rng = np.random.default_rng(0)
    sample = Gaussians(*sample_parameters(rng, 64))
    assert_same(len(decode_sog(encode_sog(clean(sample)).data)), 64)
    assert_same(len(decode_spz(encode_spz(sample))), 64)
    viewer_package()


def sample_parameters(rng: np.random.Generator, count: int) -> list[Any]:
    shapes = [(count, 3), (count, 3), (count, 4), (count,), (count, 4, 3)]
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def assert_same(found: int, wanted: int) -> None:
    if found != wanted:
        raise StageError("SELFCHECK_FAILED", f"{found} Gaussians came back instead of {wanted}.")
