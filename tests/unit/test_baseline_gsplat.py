"""gsplat's own trainer is given our photos, cameras and points.

Where a checkout of gsplat v1.5.3 is in SPACEPORT_GSPLAT, and torch, gsplat and what its examples import are installed,
its own code reads them and trains on the CPU.
"""

import importlib
import math
import os
from pathlib import Path

import numpy as np
import pytest

from benchmarks import baseline_gsplat, gsplat_runner, gsplat_stand_ins
from splat.cameras import read_scene
from splat.images import load_photo
from splat.metrics import ssim
from tests.synthetic import make_gaussians, make_views, write_stage_inputs
from train.dataset import load_dataset

LONG_SIDE = 56
FOLDER = os.environ.get("SPACEPORT_GSPLAT", "")
needs_gsplat = pytest.mark.skipif(not FOLDER, reason="no checkout of gsplat v1.5.3 in SPACEPORT_GSPLAT")


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    sfm, _ = write_stage_inputs(tmp_path_factory.mktemp("scene"), make_gaussians(), make_views(10, arc_deg=340.0))
    return read_scene(sfm)


@pytest.fixture(scope="module")
def data(scene, tmp_path_factory):
    folder = tmp_path_factory.mktemp("colmap")
    baseline_gsplat.write_colmap(scene, LONG_SIDE, folder)
    return folder


def test_the_folder_has_what_training_has(scene, data):
    """The same cameras, pixels, points and order, through the reader of the stages."""
    written, ours = read_scene(data), load_dataset(scene, LONG_SIDE, with_validation=False)
    assert [view.name for view in written.views] == [f"{i:05d}.png" for i in range(10)]
    for photo, view in zip(ours.test, written.views[::8], strict=True):
        np.testing.assert_allclose(view.world_to_camera, photo.view.world_to_camera, atol=1e-12)
        np.testing.assert_allclose(view.K, photo.view.K, rtol=1e-12)
        assert (load_photo(written.photo_path(view), view.width, view.height) == photo.pixels).all()
    np.testing.assert_array_equal(written.points_xyz, scene.points_xyz)
    np.testing.assert_array_equal(written.points_rgb, scene.points_rgb)


def test_files_of_another_version_are_refused(tmp_path):
    (tmp_path / "simple_trainer.py").write_text("print('mine')\n")
    with pytest.raises(SystemExit, match=r"not that of gsplat v1\.5\.3"):
        gsplat_stand_ins.check_unchanged(tmp_path)


def test_ssim_in_torch_is_that_of_the_judge():
    """Its gradient against differences of the judge's SSIM."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    x, y = rng.uniform(size=(2, 17, 23, 3))
    image, photo = (torch.tensor(a.transpose(2, 0, 1)[None]) for a in (x, y))
    image.requires_grad_()
    measured = gsplat_stand_ins.Ssim()
    value = measured(image, photo, padding="valid")
    value.backward()
    assert value.item() == pytest.approx(ssim(x, y), abs=1e-9)
    assert measured.seconds() > 0
    for row, column, channel in ((0, 0, 0), (8, 11, 1), (16, 5, 2)):
        moved = x.copy()
        moved[row, column, channel] += 1e-6
        slope = (ssim(moved, y) - ssim(x, y)) / 1e-6
        assert float(image.grad[0, channel, row, column]) == pytest.approx(slope, abs=1e-6)


@needs_gsplat
def test_its_parser_reads_our_cameras(scene, data):
    ours = load_dataset(scene, LONG_SIDE, with_validation=False)
    with gsplat_stand_ins.example(Path(FOLDER)) as (_, absent, _):
        colmap = importlib.import_module("datasets.colmap")
        parser = colmap.Parser(str(data), factor=1, normalize=False, test_every=8)
        assert "pycolmap" in absent
        for split, photos in (("train", ours.train), ("val", ours.test)):
            theirs = colmap.Dataset(parser, split)
            assert len(theirs) == len(photos)
            for item, photo in zip((theirs[i] for i in range(len(theirs))), photos, strict=True):
                pose = np.linalg.inv(item["camtoworld"].double().numpy())
                np.testing.assert_allclose(pose, photo.view.world_to_camera, atol=2e-6)
                np.testing.assert_allclose(item["K"].numpy(), photo.view.K, rtol=1e-6)
                assert (item["image"].numpy() == photo.pixels).all()
        np.testing.assert_allclose(parser.points, scene.points_xyz, rtol=1e-6)


@needs_gsplat
def test_its_loop_trains_and_is_judged(data, tmp_path, monkeypatch):
    """Through its first densification, with gsplat's reference projection and a dense blend in place of its kernels."""
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    torch.set_num_threads(1)
    with gsplat_stand_ins.example(Path(FOLDER)) as (trainer, _, measured):
        monkeypatch.setattr(trainer, "rasterization", dense_rasterization)
        report = tmp_path / "report.json"
        found = gsplat_runner.train(trainer, data, tmp_path / "out", 620, "cpu", measured, report)
    assert list(found) == ["620"] and report.is_file()
    last = found["620"]
    assert last["psnr"] == pytest.approx(last["own_psnr"], abs=0.02)  # one judge says what the other says
    assert last["ssim"] == pytest.approx(last["own_ssim"], abs=0.05)  # theirs pads: black borders are alike
    assert last["psnr"] > 20
    assert last["gaussians"] != 150  # it has densified
    assert 59 * 4 * last["gaussians"] < last["ply_bytes"] < 59 * 4 * last["gaussians"] + 4096
    assert last["loop_s"] > 0
    assert measured is None or 0 < last["ssim_stand_in_s"] < last["loop_s"]


def dense_rasterization(
    means, quats, scales, opacities, colors, viewmats, Ks, width, height, sh_degree, near_plane, far_plane, **_
):
    """gsplat.rasterization for one tiny image: every Gaussian at every pixel."""
    import torch
    from gsplat.cuda import _torch_impl as reference

    covariances, _ = reference._quat_scale_to_covar_preci(quats, scales, True, False)
    radii, means2d, depths, conics, _ = reference._fully_fused_projection(
        means, covariances, viewmats, Ks, width, height, 0.3, near_plane, far_plane
    )
    center = torch.linalg.inv(viewmats)[0, :3, 3]
    rgb = reference._spherical_harmonics(sh_degree, means - center, colors)
    rgb = torch.clamp_min(rgb + 0.5, 0.0)
    seen = torch.nonzero((radii[0] > 0).all(-1))[:, 0]
    order = seen[depths[0, seen].argsort()]
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    dx, dy = x.reshape(-1, 1) - means2d[0, order, 0], y.reshape(-1, 1) - means2d[0, order, 1]
    a, b, c = conics[0, order].unbind(-1)
    alpha = opacities[order] * torch.exp(-0.5 * (a * dx * dx + c * dy * dy) - b * dx * dy)
    alpha = torch.where(alpha < 1 / 255, torch.zeros_like(alpha), alpha.clamp(max=0.999))
    left = torch.cumprod(torch.cat([torch.ones(len(alpha), 1), 1 - alpha], dim=1), dim=1)
    image = ((alpha * left[:, :-1]) @ rgb[order]).reshape(1, height, width, 3)
    assert math.isfinite(float(image.sum()))
    info = {"means2d": means2d, "radii": radii, "width": width, "height": height, "n_cameras": 1, "gaussian_ids": None}
    return image, 1 - left[:, -1].reshape(1, height, width, 1), info
