"""report.html: report.json for people, in one file that loads nothing."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from compress.evaluate import GATE_DB, PhotoQuality
from compress.templates import environment
from job.documents import CurvePoint, ExposureSummary, Report, ReportTraining, StragglerReason

PREVIEW_PAIRS = 3
PREVIEW_LONG_SIDE = 900
PLOT_WIDTH, PLOT_HEIGHT = 640, 280
# What a photo that fits badly has, and what whoever took it can do.
STRAGGLERS: dict[StragglerReason, tuple[str, str]] = {
    "exposure": (
        "Its brightness or colour differs from the other photos.",
        "Keep exposure and white balance fixed while taking photos.",
    ),
    "pose": (
        "Its camera could not be placed exactly.",
        "Take more photos that overlap with it, or leave it out.",
    ),
    "light": (
        "Parts of it are lit differently, as by a shadow.",
        "Take all photos in the same light, and keep your own shadow out.",
    ),
    "background": (
        "It shows something that the other photos hardly see.",
        "Take more photos of that part, from several places.",
    ),
    "unknown": (
        "No single cause was found.",
        "Look whether it is blurred or something in it moved; leave it out then.",
    ),
}
PLOT_MARGIN = {"left": 44, "right": 22, "top": 14, "bottom": 52}


@dataclass(frozen=True)
class Pair:
    """A held-out photo and the render of the published scene, as data URIs."""

    name: str
    label: str
    psnr: float
    photo: str
    render: str
    width: int
    height: int


def write_report_page(path: Path, report: Report, curve: list[CurvePoint], heldout: list[PhotoQuality]) -> None:
    """Write the page; ``curve`` is the one of metrics.json."""
    html = (
        environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            pairs=choose_pairs(heldout),
            curve=draw_curve(curve),
            ended=why_training_ended(report.training),
            exposure=describe_exposure(report.training.exposure),
            stragglers=[
                (one.name, one.below_db, *STRAGGLERS[one.reason])
                for one in sorted(report.training.stragglers, key=lambda one: -one.below_db)
            ],
            gate_db=GATE_DB,
            date=date,
            duration=duration,
            size=size,
            money=money,
            number=number,
        )
    )
    path.write_text(html, encoding="utf-8")


def why_training_ended(training: ReportTraining) -> str:
    """Sentences on the end of the training, and on how often it diverged."""
    saved = f", {duration(training.saved_seconds)} before its time" if training.saved_seconds >= 1 else ""
    ended = {
        "plateau": f"It ended by itself when it did not get better any more{saved}.",
        "max_iterations": "It ended after all the steps it was given.",
        "time_budget": "It ended when its time was used up.",
        "cost_limit": "It ended when what the cost limit left for it was used up; a higher limit may make it better.",
    }.get(training.stop_reason, f"It ended: {training.stop_reason.replace('_', ' ')}.")
    times = training.rollbacks
    if not times:
        return ended
    count = "once" if times == 1 else f"{times} times"
    return f"{ended} It diverged {count}, and restarted from its last good state in smaller steps."


def describe_exposure(exposure: ExposureSummary) -> str:
    percent = 100 * math.expm1(exposure.spread)
    if exposure.compensated:
        return f"varies by about {percent:.0f} % from photo to photo; evened out before training"
    return f"varies by about {percent:.1f} % from photo to photo; left as it is"


def choose_pairs(heldout: list[PhotoQuality]) -> list[Pair]:
    """The best, the middle and the worst held-out photo, so that nothing is made to look better than it is."""
    ranked = sorted(heldout, key=lambda photo: photo.psnr, reverse=True)
    if len(ranked) <= PREVIEW_PAIRS:
        chosen = [("", photo) for photo in ranked]
    else:
        chosen = [
            ("the best of those kept out", ranked[0]),
            ("in the middle", ranked[len(ranked) // 2]),
            ("the worst", ranked[-1]),
        ]
    return [as_pair(label, photo) for label, photo in chosen]


def as_pair(label: str, quality: PhotoQuality) -> Pair:
    height, width = quality.photo.shape[:2]
    factor = min(1.0, PREVIEW_LONG_SIDE / max(width, height))
    size_px = (round(width * factor), round(height * factor))
    photo, render = data_uri(quality.photo, size_px), data_uri(quality.render, size_px)
    return Pair(quality.name, label, quality.psnr, photo, render, *size_px)


def data_uri(image: NDArray[np.uint8], size_px: tuple[int, int]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).resize(size_px, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def draw_curve(curve: list[CurvePoint]) -> Markup | None:
    """Inline SVG of held-out PSNR over iterations; None with fewer than two points."""
    points = [(float(p.iteration), p.psnr) for p in curve if math.isfinite(p.psnr)]
    if len(points) < 2:
        return None
    xs, ys = zip(*points, strict=True)
    x_ticks, y_ticks = nice_ticks(0.0, max(xs), 5), nice_ticks(min(ys), max(ys), 4, beyond=True)
    y_low, y_high = min(*ys, y_ticks[0]), max(*ys, y_ticks[-1])

    def x_of(value: float) -> float:
        return PLOT_MARGIN["left"] + value / max(xs) * (PLOT_WIDTH - PLOT_MARGIN["left"] - PLOT_MARGIN["right"])

    def y_of(value: float) -> float:
        inner = PLOT_HEIGHT - PLOT_MARGIN["top"] - PLOT_MARGIN["bottom"]
        return PLOT_MARGIN["top"] + (y_high - value) / (y_high - y_low) * inner

    template = environment().get_template("curve.svg.j2")
    return Markup(
        template.render(
            width=PLOT_WIDTH,
            height=PLOT_HEIGHT,
            left=PLOT_MARGIN["left"],
            top=PLOT_MARGIN["top"],
            right=PLOT_WIDTH - PLOT_MARGIN["right"],
            bottom=PLOT_HEIGHT - PLOT_MARGIN["bottom"],
            x_ticks=[(x_of(t), number(t)) for t in x_ticks],
            y_ticks=[(y_of(t), f"{t:g}") for t in y_ticks],
            line=" ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in points),
            last=(x_of(xs[-1]), y_of(ys[-1])),
            summary=f"PSNR on held-out photos from {ys[0]:.1f} to {ys[-1]:.1f} dB over {number(xs[-1])} iterations",
        )
    )


def nice_ticks(low: float, high: float, wanted: int, beyond: bool = False) -> list[float]:
    """Round numbers, 1, 2 or 5 times a power of ten apart, from at or below ``low`` to ``high`` or the next."""
    raw = max(high - low, 1e-6) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw)
    first = math.floor(low / step)
    last = math.ceil(high / step - 1e-9) if beyond else math.floor(high / step + 1e-9)
    return [round(k * step, 10) for k in range(first, last + 1)]


def date(iso: str) -> str:
    """23 November 2026, 20:59 UTC."""
    when = datetime.fromisoformat(iso)
    when = when.astimezone(UTC) if when.tzinfo else when
    return f"{when.day} {when:%B %Y, %H:%M} UTC"


def duration(seconds: float) -> str:
    """42 s, 3 min 20 s, 1 h 05 min."""
    total = round(seconds)
    if total < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s"
    return f"{total // 3600} h {total % 3600 // 60:02d} min"


def size(count: float) -> str:
    """Decimal units, as browsers and disks show them."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}" if count / factor < 100 else f"{count / factor:.0f} {unit}"
    return f"{count:.0f} B"


def money(usd: float) -> str:
    return f"${usd:.2f}" if usd >= 0.1 or usd == 0 else f"${usd:.4f}"


def number(value: float) -> str:
    """Thousands apart by a thin space."""
    return f"{value:,.0f}".replace(",", "\u202f")
