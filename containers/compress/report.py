"""report.json: what went in, what came out, how good it is and what it cost, as numbers."""

from __future__ import annotations

import json
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema

from compress.evaluate import Quality
from compress.fetch_viewer import pinned_version
from job import StageError

SCHEMA_FILE = Path(__file__).parent / "report.schema.json"
SFM_KEYS = ("seconds", "points", "reprojection_error_px", "georeferenced", "gps_residual_m")
TRAINING_KEYS = (
    *("seconds", "iterations", "stop_reason", "saved_seconds", "rollbacks", "device", "gaussians", "sh_degree"),
    *("psnr", "ssim", "train_psnr", "heldout_are", "exposure"),
)
STRAGGLER_KEYS = ("name", "below_db", "reason", "detail")
NO_REASON = "Not registered: too little in common with the other photos."


def read_input(path: Path, keys: tuple[str, ...]) -> Any:
    """A JSON file of an earlier stage. Raises StageError BAD_INPUT naming the file and the key that is missing."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StageError("BAD_INPUT", f"The stage before left no {path.name}. Run it again.") from None
    except ValueError as error:
        raise StageError("BAD_INPUT", f"{path.name} of the stage before is not JSON ({error}). Run it again.") from None
    require(path.name, value if isinstance(value, list) else [value], keys)
    return value


def require(name: str, rows: list[dict[str, Any]], keys: tuple[str, ...]) -> None:
    missing = sorted({key for row in rows for key in keys if key not in row})
    if missing:
        raise StageError("BAD_INPUT", f"{name} of the stage before has no {', '.join(missing)}. Run it again.")


def read_number(options: dict[str, str], name: str) -> float | None:
    """An option that is a number of at least 0, None when it is absent or empty. Raises StageError BAD_OPTION."""
    text = options.get(name, "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise StageError("BAD_OPTION", f"Option '{name}' is {text!r}; it must be a number of at least 0.")
    return value


def read_scene_json(sfm: Path) -> dict[str, Any]:
    value: dict[str, Any] = read_input(sfm / "scene.json", ("photos", "registered", "versions", *SFM_KEYS))
    return value


def read_metrics(train: Path) -> dict[str, Any]:
    more = ("heldout", "stragglers", "curve", "image_width", "image_height", "versions")
    value: dict[str, Any] = read_input(train / "metrics.json", TRAINING_KEYS + more)
    require("metrics.json", value["stragglers"], STRAGGLER_KEYS)
    return value


def build_report(
    options: dict[str, str],
    sfm: Path,
    metrics: dict[str, Any],
    seconds: float,
    sizes: tuple[int, int],
    quality: Quality,
) -> dict[str, Any]:
    """report.json as its schema wants it.

    ``metrics`` is what ``read_metrics`` returns, ``seconds`` the wall time of this stage so far, ``sizes`` are the
    bytes of scene.ply and scene.sog. The cost is what the stages before spent plus this one's time at the option
    ``price_usd_per_hour``.
    """
    scene = read_scene_json(sfm)
    photos = read_input(sfm / "photos.json", ("name", "registered", "code", "reason"))
    ply_bytes, sog_bytes = sizes
    spent = read_number(options, "spent_usd") or 0.0
    price = read_number(options, "price_usd_per_hour") or 0.0
    report = {
        "job_id": options.get("job_id") or "local",
        "title": read_title(options),
        "created_at": read_created_at(options),
        "photos": {
            "total": scene["photos"],
            "registered": scene["registered"],
            "rejected": [
                {"name": photo["name"], "reason": photo["reason"] or photo["code"] or NO_REASON}
                for photo in photos
                if not photo["registered"]
            ],
        },
        "sfm": {key: scene[key] for key in SFM_KEYS},
        "training": {
            **{key: metrics[key] for key in TRAINING_KEYS},
            "heldout_photos": len(metrics["heldout"]),
            "stragglers": [{key: one[key] for key in STRAGGLER_KEYS} for one in metrics["stragglers"]],
        },
        "compression": {
            "seconds": round(seconds, 3),
            "ply_bytes": ply_bytes,
            "sog_bytes": sog_bytes,
            "ratio": round(ply_bytes / sog_bytes, 3),
            "psnr_vs_uncompressed": quality.psnr_vs_uncompressed,
            "psnr": quality.psnr,
            "ssim": quality.ssim,
        },
        "cost": {
            "estimated_usd": read_number(options, "estimated_usd"),
            "actual_usd": round(spent + seconds * price / 3600, 6),
            "basis": options.get("cost_basis") or default_basis(price),
        },
        "versions": {**own_versions(), **text_values(scene["versions"]), **text_values(metrics["versions"])},
    }
    check_report(report)
    return report


def check_report(report: dict[str, Any]) -> None:
    """Raises StageError BAD_REPORT naming the field that the schema refuses."""
    schema = json.loads(SCHEMA_FILE.read_text())
    try:
        jsonschema.validate(report, schema, format_checker=jsonschema.FormatChecker())
    except jsonschema.ValidationError as error:
        where = "/".join(str(part) for part in error.absolute_path) or "the report"
        raise StageError("BAD_REPORT", f"report.json would be wrong at {where}: {error.message}.") from error


def read_title(options: dict[str, str]) -> str:
    return options.get("title", "").strip() or options.get("scene", "").strip() or "Scene"


def read_created_at(options: dict[str, str]) -> str:
    """ISO 8601 with a time zone; now when the option is absent. Raises StageError BAD_OPTION."""
    text = options.get("created_at", "").strip()
    try:
        when = datetime.fromisoformat(text) if text else datetime.now(UTC)
    except ValueError:
        raise StageError("BAD_OPTION", f"Option 'created_at' is {text!r}; it must be an ISO 8601 time.") from None
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).isoformat(timespec="seconds")


def default_basis(price_usd_per_hour: float) -> str:
    return (
        "Time of each stage at its hourly price." if price_usd_per_hour else "Run on your own machine: no cloud cost."
    )


def own_versions() -> dict[str, str]:
    """What made the files of this stage."""
    packages = {name: version(name) for name in ("numpy", "pillow", "faiss-cpu")}
    return {"python": platform.python_version(), **packages, "supersplat-viewer": pinned_version()}


def text_values(values: dict[str, Any]) -> dict[str, str]:
    return {str(key): str(value) for key, value in values.items()}
