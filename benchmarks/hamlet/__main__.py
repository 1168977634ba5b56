"""``python -m benchmarks.hamlet FOLDER [--photos N] [--quality Q]``: render a photo set of the hamlet."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.hamlet.photos import JPEG_QUALITY, render_photos


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hamlet", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--photos", type=int, default=24)
    parser.add_argument("--quality", type=int, default=JPEG_QUALITY, help="of the JPEG files; 100 is the best")
    arguments = parser.parse_args()
    render_photos(arguments.folder, arguments.photos, quality=arguments.quality)


if __name__ == "__main__":
    main()
