"""report.json: what went in, what came out, how good it is and what it cost, as numbers."""

from __future__ import annotations

import math
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from compress.evaluate import Quality
from compress.fetch_viewer import pinned_version
from compress.options import created_at, headline
from job.documents import (
    Metrics,
    PhotoRow,
    PhotosJson,
    RejectedPhoto,
    Report,
    ReportCompression,
    ReportCost,
    ReportPhotos,
    ReportSfm,
    ReportStraggler,
    ReportTraining,
    SceneJson,
    read_document,
)
from job.options import CompressOptions

NO_REASON = "Not registered: too little in common with the other photos."


@dataclass(frozen=True)
class EarlierStages:
    """The documents that SfM and training wrote about their work."""

    scene: SceneJson
    photos: list[PhotoRow]
    metrics: Metrics


def read_earlier_stages(sfm: Path, train: Path) -> EarlierStages:
    """Raises StageError BAD_INPUT naming the file and the field that is missing or wrong."""
    return EarlierStages(
        read_document(sfm / "scene.json", SceneJson),
        read_document(sfm / "photos.json", PhotosJson).root,
        read_document(train / "metrics.json", Metrics),
    )


def build_report(
    options: CompressOptions, earlier: EarlierStages, seconds: float, ply_bytes: int, sog_bytes: int, quality: Quality
) -> Report:
    """``seconds``: wall time of this stage so far.

    The cost is what the stages before spent plus this one's time at its hourly price.
    """
    scene, price = earlier.scene, options.price_usd_per_hour
    return Report(
        job_id=options.job_id,
        title=headline(options),
        created_at=created_at(options).isoformat(timespec="seconds"),
        photos=ReportPhotos(total=scene.photos, registered=scene.registered, rejected=rejected(earlier.photos)),
        sfm=ReportSfm(
            seconds=scene.seconds,
            points=scene.points,
            reprojection_error_px=scene.reprojection_error_px,
            georeferenced=scene.georeferenced,
            gps_residual_m=scene.gps_residual_m,
        ),
        training=report_training(earlier.metrics),
        compression=ReportCompression(
            seconds=round(seconds, 3),
            ply_bytes=ply_bytes,
            sog_bytes=sog_bytes,
            ratio=round(ply_bytes / sog_bytes, 3),
            psnr_vs_uncompressed=quality.psnr_vs_uncompressed,
            psnr=quality.psnr,
            ssim=quality.ssim,
        ),
        cost=ReportCost(
            estimated_usd=options.estimated_usd,
            actual_usd=round(options.spent_usd + seconds * price / 3600, 6),
            basis=options.cost_basis or default_basis(price),
        ),
        versions={**own_versions(), **scene.versions, **earlier.metrics.versions},
    )


def rejected(photos: list[PhotoRow]) -> list[RejectedPhoto]:
    return [
        RejectedPhoto(name=photo.name, reason=photo.reason or photo.code or NO_REASON)
        for photo in photos
        if not photo.registered
    ]


def report_training(metrics: Metrics) -> ReportTraining:
    return ReportTraining(
        seconds=metrics.seconds,
        iterations=metrics.iterations,
        stop_reason=metrics.stop_reason,
        saved_seconds=metrics.saved_seconds,
        rollbacks=metrics.rollbacks,
        device=metrics.device,
        gaussians=metrics.gaussians,
        sh_degree=metrics.sh_degree,
        background_rgb=metrics.background_rgb,
        psnr=finite(metrics.psnr),
        ssim=finite(metrics.ssim),
        train_psnr=finite(metrics.train_psnr),
        heldout_are=metrics.heldout_are,
        exposure=metrics.exposure,
        heldout_photos=len(metrics.heldout),
        stragglers=[
            ReportStraggler(name=one.name, below_db=one.below_db, reason=one.reason, detail=one.detail)
            for one in metrics.stragglers
        ],
    )


def finite(value: float) -> float | None:
    """JSON has neither infinity nor NaN, which the SSIM of a photo smaller than its window is."""
    return value if math.isfinite(value) else None


def default_basis(price_usd_per_hour: float) -> str:
    return (
        "Time of each stage at its hourly price." if price_usd_per_hour else "Run on your own machine: no cloud cost."
    )


def own_versions() -> dict[str, str]:
    """Versions of Python, the libraries and the viewer that made this stage's files."""
    packages = {name: version(name) for name in ("numpy", "pillow", "faiss-cpu")}
    return {"python": platform.python_version(), **packages, "supersplat-viewer": pinned_version()}
