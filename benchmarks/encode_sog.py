"""The encoder of the compress stage alone, as a program whose processor time compression.py takes.

    PYTHONPATH=.:containers python -m benchmarks.encode_sog SCENE_PLY OUT_SOG PALETTE_ENTRIES

PALETTE_ENTRIES 0 is the default of the stage.
"""

from __future__ import annotations

import sys
from pathlib import Path

from compress.clean import clean
from compress.sog_encode import encode_sog
from splat.model import read_ply


def main(ply: str, sog: str, entries: str) -> None:
    Path(sog).write_bytes(encode_sog(clean(read_ply(ply)), int(entries) or None).data)


if __name__ == "__main__":
    main(*sys.argv[1:])
