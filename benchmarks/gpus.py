"""GPUs by their data sheets, and the newest result that was measured on one of them."""

from __future__ import annotations

from typing import Any, NamedTuple

from benchmarks.recording import RESULTS, read_result


class Gpu(NamedTuple):
    flops: float  # FP32 operations a second, without matrix units
    bandwidth: float  # bytes a second of its memory


GPUS = {
    "H200": Gpu(67.0e12, 4.80e12),
    "H100": Gpu(67.0e12, 3.35e12),
    "L4": Gpu(30.3e12, 0.300e12),
    "T4": Gpu(8.1e12, 0.320e12),
}
MAKER = ("NVIDIA", "Tesla")


def model_of(device: str) -> str:
    """ "H100" for "NVIDIA H100 80GB HBM3": the first word that is not the maker's."""
    words = [word for word in device.split() if word not in MAKER]
    return words[0] if words else "unknown"


def result_name(device: str) -> str:
    """Of the file in benchmarks/results with what training_gpu.py measured on this device."""
    return f"training-{model_of(device).lower()}"


def newest() -> tuple[str, dict[str, Any]]:
    """(model, result) of the newest of these files. Raises SystemExit where there is none."""
    found = [(model, read_result(f"training-{model.lower()}", RESULTS)) for model in GPUS]
    found = [(model, result) for model, result in found if result]
    if not found:
        raise SystemExit("error: no GPU was measured yet: python -m benchmarks training_gpu")
    return max(found, key=lambda pair: str(pair[1]["date"]))
