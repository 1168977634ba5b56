"""The sample photos: a hamlet as a drone photographs it, and the true poses of the cameras.

`benchmarks/hamlet` rendered them: ``python -m benchmarks.hamlet FOLDER --quality 81``.
"""

from __future__ import annotations

import importlib.resources
import shutil
from pathlib import Path

TRUTH_FILE = "truth.json"


def copy_sample(folder: Path) -> int:
    """Copy the photos and ``truth.json`` to ``folder``; return how many photos there are.

    ``truth.json`` is not a photo, so the pipeline passes it by. ``{"cameras": [{name, width, height, fx, fy, cx, cy,
    world_to_camera}], "origin", "scene_radius_m", "frame"}``: poses are 4x4, world in ENU metres, camera x right,
    y down, z forward, pixel centres at +0.5.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with importlib.resources.as_file(importlib.resources.files("spaceport.sample")) as package:
        photos = sorted((package / "photos").glob("*.jpg"))
        for file in (*photos, package / TRUTH_FILE):
            shutil.copyfile(file, folder / file.name)
    return len(photos)
