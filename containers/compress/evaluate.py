"""How good the compressed scene is: against the trained one, and against photos that were kept out of training.

Which photos those are, metrics.json says in ``heldout_are``. Photos kept out as ``test`` were seen by nothing. In a
user's run they are ``validation`` photos: they join the training for its last part, so the scene that is measured here
has seen them, and its figures are better than on photos it has not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compress.clean import CleanScene
from compress.sog_decode import decode_sog
from compress.sog_encode import EncodedSog, encode_sog
from job import Job
from job.documents import Metrics
from splat.cameras import Scene, View
from splat.images import load_photo
from splat.metrics import psnr, ssim
from splat.model import Gaussians
from splat.render import render
from splat.spread import spread

GATE_DB = 45.0
GATE_VIEWS = 4
GATE_LONG_SIDE = 640
EVALUATED_VIEWS = 16
PSNR_LIMIT_DB = 100.0  # equal pictures have no finite PSNR, and JSON has no infinity
BLACK = (0.0, 0.0, 0.0)
HELDOUT_STEP = 8  # docs/contracts.md: every eighth registered photo, from the first


@dataclass(frozen=True)
class PhotoQuality:
    """One held-out photo, 0..255, beside the render of the compressed scene at the same size."""

    name: str
    psnr: float
    ssim: float
    photo: NDArray[np.uint8]  # [H, W, 3]
    render: NDArray[np.uint8]


@dataclass(frozen=True)
class Quality:
    """``psnr_vs_uncompressed`` is the mean over views of compressed against trained renders.

    ``heldout`` is compressed against photo, which says how good unseen views are for test photos alone (see above).
    """

    psnr_vs_uncompressed: float
    heldout: list[PhotoQuality]

    @property
    def psnr(self) -> float | None:
        return float(np.mean([photo.psnr for photo in self.heldout])) if self.heldout else None

    @property
    def ssim(self) -> float | None:
        return float(np.mean([photo.ssim for photo in self.heldout])) if self.heldout else None


def heldout_views(scene: Scene, names: Sequence[str] = ()) -> list[View]:
    """The views of these photos; every eighth view when none is named."""
    views = sorted(scene.views, key=lambda view: view.name)
    return [view for view in views if view.name in names] or views[::HELDOUT_STEP]


def draw(gaussians: Gaussians, view: View, background: Sequence[float] = BLACK) -> NDArray[np.float32]:
    """[H, W, 3] on the background, clipped to 0..1."""
    return np.clip(render(gaussians, view, background)[0], 0, 1)


def limited_psnr(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    return min(float(psnr(a, b)), PSNR_LIMIT_DB)


def encode_to_quality(
    scene: CleanScene, original: Gaussians, views: list[View], job: Job, background: Sequence[float] = BLACK
) -> tuple[EncodedSog, Gaussians]:
    """Encode, decode and look; below 45 dB against the trained scene the palette is doubled, up to what SOG holds.

    Returns the file and what a viewer will make of it. When the largest palette is not enough the result is used
    all the same; the log and the report say so.
    """
    chosen = [view.fitted(GATE_LONG_SIDE) for view in spread(views, GATE_VIEWS)]
    wanted = [draw(original, view, background) for view in chosen]
    entries: int | None = None
    while True:
        encoded = encode_sog(scene, entries)
        decoded = decode_sog(encoded.data)
        drawn = [draw(decoded, view, background) for view in chosen]
        reached = float(np.mean([limited_psnr(d, w) for d, w in zip(drawn, wanted, strict=True)]))
        job.log("encoded", palette_entries=encoded.palette_entries, sog_bytes=len(encoded.data), gate_psnr_db=reached)
        limit = min(65_536, len(encoded.index))
        if reached >= GATE_DB or encoded.palette_entries in (0, limit):
            if reached < GATE_DB:
                job.log("below_quality_gate", gate_psnr_db=reached, wanted_db=GATE_DB)
            return encoded, decoded
        entries = min(encoded.palette_entries * 2, limit)
        job.check_stop()


def evaluate(
    decoded: Gaussians,
    original: Gaussians,
    scene: Scene,
    held_out: list[View],
    metrics: Metrics,
    job: Job,
) -> Quality:
    """Compare on at most 16 held-out photos, at the size and on the background of the training."""
    long_side, background = max(metrics.image_width, metrics.image_height), metrics.background_rgb
    gains = {photo.name: photo.gain for photo in metrics.heldout}  # bring a render to the exposure of the photo
    views = spread(held_out, EVALUATED_VIEWS)
    against_trained: list[float] = []
    photos: list[PhotoQuality] = []
    for number, full in enumerate(views):
        job.progress(number, len(views), "views", "Comparing with photos")
        job.check_stop()
        view = full.fitted(long_side)
        picture = draw(decoded, view, background)
        against_trained.append(limited_psnr(picture, draw(original, view, background)))
        exposed = np.clip(picture * np.array(gains.get(full.name, [1.0]), np.float32), 0, 1)
        photos.append(compare_with_photo(scene.photo_path(full), view, exposed))
    return Quality(float(np.mean(against_trained)), photos)


def compare_with_photo(path: Path, view: View, picture: NDArray[np.float32]) -> PhotoQuality:
    photo = load_photo(path, view.width, view.height)
    truth = photo.astype(np.float32) / np.float32(255)
    pixels = np.rint(picture * 255).astype(np.uint8)
    return PhotoQuality(
        view.name,
        limited_psnr(picture, truth),
        float(ssim(picture, truth)),
        photo,
        pixels,
    )
