"""Photos to page on this machine: `python -m benchmarks local_run demo`, or `plush-draft PHOTOS`.

Prints and writes the wall time of a whole `spaceport run`, its split by stage, and the quality of the result. Nothing
else should run beside it. The kernels are compiled before, as `make install` does.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

from benchmarks.recording import write_result
from spaceport import local_run
from spaceport.sample import copy_sample


def measure(photos: Path, preset: str) -> dict[str, float]:
    """Figures of one run; raises SystemExit when it fails. Times in seconds, PSNR in dB on the held-out photos."""
    with tempfile.TemporaryDirectory() as folder:
        options = {"preset": preset, "test_photos": True}
        outcome = local_run.run(photos, Path(folder) / "out", options, listener=lambda event: None)
        if outcome.status != "SUCCEEDED":
            raise SystemExit(f"the run ended {outcome.status}: {outcome.error_code}: {outcome.reason}")
        report = json.loads((Path(folder) / "out" / "report.json").read_text())
    return {
        "wall_s": outcome.seconds,
        "sfm_s": outcome.seconds_by_state["SfM"],
        "train_s": outcome.seconds_by_state["Train"],
        "compress_s": outcome.seconds_by_state["Compress"],
        "control_plane_s": outcome.control_plane_s,
        "psnr": report["training"]["psnr"],
        "ssim": report["training"]["ssim"],
        "gaussians": report["training"]["gaussians"],
        "iterations": report["training"]["iterations"],
        "registered": report["photos"]["registered"],
        "photos": report["photos"]["total"],
        "ply_bytes": report["compression"]["ply_bytes"],
        "sog_bytes": report["compression"]["sog_bytes"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", help="demo, or the name of the result file")
    parser.add_argument("photos", nargs="?", type=Path, help="folder of photos; demo renders its own")
    parser.add_argument("--preset", default="draft")
    options = parser.parse_args()
    if (options.photos is None) != (options.name == "demo"):
        parser.error("name a folder of photos, or give only the name `demo`")
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"note: the load average is {load:.1f}; wall times will be too long")
    with tempfile.TemporaryDirectory() as folder:
        photos = options.photos
        if photos is None:
            photos = Path(folder) / "sample"
            copy_sample(photos)
        figures = measure(photos, options.preset)
    shown = "" if options.photos is None else f" PHOTOS --preset {options.preset}"
    write_result(options.name, figures, f"python -m benchmarks local_run {options.name}{shown}")


if __name__ == "__main__":
    main()
