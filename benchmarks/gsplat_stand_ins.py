"""Opens the example trainer of gsplat with stand-ins for the packages that gsplat_runner.py lists."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from splat.cameras import View, read_scene

# SHA-256 of the files of v1.5.3 that do the work, below examples/.
UNCHANGED = {
    "simple_trainer.py": "79319e1cd7404e4d1ba0c425634235c39e6054f0643b904a01feea6179462c05",
    "utils.py": "44a38b236940706705c9351b365be6bd21d49efc57dd695ba5a7e70055b959e1",
    "datasets/colmap.py": "2aa364ecfd2d7dd715ede5192fccd533982edf3be68b98008440a5aedf3b3fed",
    "datasets/normalize.py": "019be99afb9cf947842b42c149fb5baecd840847795b0d63e6596d86aa7f79b3",
}
VERSION = "1.5.3"
NEVER_NEEDED = ("tyro", "viser", "nerfview", "torch.utils.tensorboard")
WHERE_MISSING = ("cv2", "matplotlib", "matplotlib.pyplot", "scipy", "scipy.interpolate")
PINHOLE = 1
WINDOW, SIGMA, C1, C2 = 11, 1.5, 0.01**2, 0.03**2  # of SSIM, as fused_ssim has them


class Names(types.ModuleType):
    """A module in which every name is a class that does nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Nothing,), {})


class Nothing:
    """Takes any arguments; each method does nothing."""

    def __init__(self, *arguments: Any, **options: Any) -> None: ...

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *arguments, **options: None


class SceneManager:
    """What the example's parser asks of the pycolmap fork, from the folder that baseline_gsplat.py wrote."""

    def __init__(self, colmap_dir: str) -> None:
        self._scene = read_scene(Path(colmap_dir).parent)

    def load_cameras(self) -> None:
        self.cameras = {i: self._camera(view) for i, view in enumerate(self._scene.views, start=1)}

    @staticmethod
    def _camera(view: View) -> types.SimpleNamespace:
        K = view.K
        return types.SimpleNamespace(
            camera_type=PINHOLE,
            width=view.width,
            height=view.height,
            fx=K[0, 0],
            fy=K[1, 1],
            cx=K[0, 2],
            cy=K[1, 2],
        )

    def load_images(self) -> None:
        self.images = {
            i: types.SimpleNamespace(
                name=view.name,
                camera_id=i,
                tvec=view.world_to_camera[:3, 3],
                R=lambda pose=view.world_to_camera: pose[:3, :3],
            )
            for i, view in enumerate(self._scene.views, start=1)
        }
        self.name_to_image_id = {image.name: i for i, image in self.images.items()}

    def load_points3D(self) -> None:
        """Without reprojection errors and tracks, which nothing in the recipe reads."""
        self.points3D, self.point3D_colors = self._scene.points_xyz, self._scene.points_rgb
        self.point3D_errors = np.zeros(len(self.points3D))
        self.point3D_id_to_images: dict[int, list[tuple[int, int]]] = {}
        self.point3D_id_to_point3D_idx: dict[int, int] = {}


class Ssim:
    """``fused_ssim`` in plain torch. ``seconds``: what it took with its gradient, all of it in the forward call."""

    def __init__(self) -> None:
        self._seconds, self._pairs = 0.0, []  # type: ignore[var-annotated]
        self._weights: Any = None

    def __call__(self, image: Any, photo: Any, padding: str = "same", train: bool = True) -> Any:
        """Mean SSIM over whole windows of two [1, 3, H, W]; only what the trainer asks for: padding "valid"."""
        import torch

        if padding != "valid":
            raise ValueError(f"this stand-in has no padding {padding}")
        if not train or not image.requires_grad:
            return self._mean(image, photo)
        with self._clock(image.is_cuda), torch.enable_grad():
            leaf = image.detach().requires_grad_()
            value = self._mean(leaf, photo)
            (slope,) = torch.autograd.grad(value, leaf)
        # The same value and gradient: image - image.detach() is zero.
        return value.detach() + (slope * (image - image.detach())).sum()

    def _mean(self, image: Any, photo: Any) -> Any:
        import torch

        x, y = image, photo
        maps = torch.cat([x, y, x * x, y * y, x * y], dim=1)
        mx, my, xx, yy, xy = self._blur(maps).chunk(5, dim=1)
        vx, vy, cxy = xx - mx * mx, yy - my * my, xy - mx * my
        similarity = (2 * mx * my + C1) * (2 * cxy + C2) / ((mx * mx + my * my + C1) * (vx + vy + C2))
        return similarity.mean()

    def _blur(self, maps: Any) -> Any:
        import torch

        channels = maps.shape[1]
        if self._weights is None:
            offsets = torch.arange(WINDOW, device=maps.device, dtype=maps.dtype) - WINDOW // 2
            weights = torch.exp(-(offsets**2) / (2 * SIGMA**2))
            self._weights = (weights / weights.sum()).repeat(channels, 1)
        rows = torch.nn.functional.conv2d(maps, self._weights[:, None, :, None], groups=channels)
        return torch.nn.functional.conv2d(rows, self._weights[:, None, None, :], groups=channels)

    @contextmanager
    def _clock(self, on_device: bool) -> Iterator[None]:
        if not on_device:
            started = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - started
            return
        import torch

        pair = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        pair[0].record()
        yield
        pair[1].record()
        self._pairs.append(pair)
        if len(self._pairs) >= 500:
            self.seconds()

    def seconds(self) -> float:
        """So far. Waits for the device."""
        if self._pairs:
            self._pairs[-1][1].synchronize()
        self._seconds += sum(begin.elapsed_time(end) for begin, end in self._pairs) / 1e3
        self._pairs = []
        return self._seconds


def stand_ins() -> tuple[dict[str, types.ModuleType], Ssim | None]:
    """Modules to put into ``sys.modules``, and the SSIM among them when fused_ssim is missing."""
    names = [*NEVER_NEEDED, *(name for name in WHERE_MISSING if missing(name))]
    modules: dict[str, types.ModuleType] = {name: Names(name) for name in names}
    modules["pycolmap"] = types.ModuleType("pycolmap")
    modules["pycolmap"].SceneManager = SceneManager  # type: ignore[attr-defined]
    ssim = Ssim() if missing("fused_ssim") else None
    if ssim:
        modules["fused_ssim"] = types.ModuleType("fused_ssim")
        modules["fused_ssim"].fused_ssim = ssim  # type: ignore[attr-defined]
    return modules, ssim


def missing(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is None
    except ModuleNotFoundError:  # the package that it would be in
        return True


def no_lpips(*arguments: Any, **options: Any) -> Any:
    import torch

    class NoWeights(torch.nn.Module):
        """In place of LPIPS."""

        def forward(self, image: Any, photo: Any) -> Any:
            return torch.full((), float("nan"), device=image.device)

    return NoWeights()


def check_unchanged(examples: Path) -> None:
    """Raises SystemExit unless these are the files of the release."""
    for name, digest in UNCHANGED.items():
        file = examples / name
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            raise SystemExit(f"error: {file} is not that of gsplat v{VERSION}: give a checkout of this tag")


@contextmanager
def example(folder: Path) -> Iterator[tuple[Any, list[str], Ssim | None]]:
    """The module simple_trainer of the repository in ``folder``, the stand-ins it was imported with, and the SSIM."""
    check_unchanged(folder / "examples")
    lpips = "torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity"
    importlib.import_module("torchmetrics.image.lpip")  # before the stand-ins: it asks which packages are there
    modules, ssim = stand_ins()
    absent = sorted([*modules, "weights of LPIPS"])
    modules["datasets"] = types.ModuleType("datasets")  # its folder has no __init__: another package would go first
    modules["datasets"].__path__ = [str(folder / "examples" / "datasets")]
    path = [str(folder / "examples"), *sys.path]
    with mock.patch.dict(sys.modules, modules), mock.patch.object(sys, "path", path), mock.patch(lpips, no_lpips):
        trainer = importlib.import_module("simple_trainer")
        yield trainer, absent, ssim
