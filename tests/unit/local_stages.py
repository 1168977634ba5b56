"""Stand-in stage programs, photos, and what a local run has left."""

import email
from email.policy import default
from pathlib import Path

import pytest

from base.stages import STAGES

SFM = """
import os, pathlib, time
root = pathlib.Path(os.environ["SPACEPORT_ML_ROOT"])
photos = sorted(p for p in (root / "processing/input/photos").rglob("*") if p.is_file())
progress = root / "processing/progress/progress.json"
progress.write_text('{"stage": "sfm", "step": 1, "total": 2, "unit": "photos", "message": "", "eta_s": 1.0}')
mode = os.environ.get("SPACEPORT_OPTION_MATCHER")
while mode == "spatial" and not os.path.exists(os.environ["GO_ON"]):
    time.sleep(0.02)
if mode == "sequential":
    (root / "output/message").write_text("TOO_FEW_MATCHES: The photos do not overlap. Take more photos.")
    raise SystemExit(1)
out = root / "processing/output"
(out / "images").mkdir()
for photo in photos:
    (out / "images" / photo.name).write_bytes(photo.read_bytes())
(out / "scene.json").write_text('{"photos": %d}' % len(photos))
"""

TRAIN = """
import json, os, pathlib, signal, sys, time
root = pathlib.Path(os.environ["SPACEPORT_ML_ROOT"])
options = json.loads((root / "input/config/hyperparameters.json").read_text())
assert json.loads((root / "input/data/sfm/scene.json").read_text())["photos"] > 0
checkpoint = root / "checkpoints/checkpoint.json"
first = json.loads(checkpoint.read_text())["step"] if checkpoint.is_file() else 0
total = int(options.get("max_iterations") or 1)
stopping = []
signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))

def replace(path, value):
    temporary = path.with_name("." + path.name)
    temporary.write_text(json.dumps(value))
    temporary.replace(path)

for step in range(first, total):
    time.sleep(0.01 if total > 100 else 0)
    replace(checkpoint, {"step": step + 1})
    progress = {"stage": "train", "step": step + 1, "total": total, "unit": "iterations", "message": "", "eta_s": None}
    replace(root / "checkpoints/progress.json", progress)
    if stopping:
        sys.exit(143)
(root / "model/scene.ply").write_text(json.dumps({"first": first, "total": total}))
"""

COMPRESS = """
import os, pathlib
root = pathlib.Path(os.environ["SPACEPORT_ML_ROOT"])
out = root / "processing/output"
(out / "viewer").mkdir()
(out / "viewer/viewer.js").write_text("// viewer")
(out / "report.json").write_text('{"title": "stand-in"}')
(out / "scene.sog").write_bytes((root / "processing/input/train/scene.ply").read_bytes())
(out / "index.html").write_text("<html></html>")
"""

ANY = """
import os, pathlib
for name in {files}:
    (pathlib.Path(os.environ["SPACEPORT_ML_ROOT"]) / "processing/output" / name).write_text("{{}}")
"""
PROGRAMS = {"sfm": SFM, "train": TRAIN, "compress": COMPRESS}


def write_stages(folder: Path) -> Path:
    """A folder that can be PYTHONPATH in place of containers/."""
    for stage in STAGES:
        (folder / stage.name).mkdir(parents=True)
        (folder / stage.name / "__main__.py").write_text(PROGRAMS.get(stage.name, ANY.format(files=stage.writes)))
    return folder


def write_photos(folder: Path, count: int = 9, size_bytes: int = 2000) -> Path:
    """Files that begin as a JPEG does, some in a folder, beside a hidden one."""
    (folder / "more").mkdir(parents=True)
    for index in range(count):
        name = folder / ("more" if index % 3 == 0 else ".") / f"IMG {index:03d}.jpg"
        name.write_bytes(b"\xff\xd8\xff\xe0" + bytes([index % 256]) * size_bytes)
    (folder / ".DS_Store").write_text("hidden")
    return folder


def mails(out):
    return [email.message_from_bytes(f.read_bytes(), policy=default) for f in sorted((out / "outbox").glob("*.eml"))]


def states(events, kind="state_exited"):
    return [event["state"] for event in events if event["type"] == kind]


@pytest.fixture
def stages(tmp_path):
    return write_stages(tmp_path / "stages")


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "My House")
