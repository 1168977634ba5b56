"""Runs the example trainer of gsplat 1.5.3 as it is, on a machine without network. Started by baseline_gsplat.py.

Nothing in its files is changed and nothing is copied from them. Around it:

* **Photos** lie on the device as bytes (its own loader decodes one per step on the CPU), and the progress bar, which it
  redraws at each step, is off. Both make it faster.
* **Stand-ins** for packages of which the `default` recipe on COLMAP data needs nothing, or little; the result says
  which ones stood in:

  | package | wheel for Python 3.12 on PyPI | stand-in |
  |---|---|---|
  | tyro, viser, nerfview (a git revision), tensorboard's writer | pure, but with many others | always: names only |
  | weights of LPIPS (torchvision downloads them) | none | always: LPIPS is no number |
  | pycolmap with SceneManager (a fork, a git revision) | none; today's pycolmap has none | always: our reader |
  | fused_ssim (a git revision, CUDA sources) | none | where missing: the same SSIM in torch; its time is measured |
  | opencv-python-headless, matplotlib, scipy | yes | where missing: names only |
  | torchmetrics, lightning-utilities, imageio, scikit-learn, joblib, threadpoolctl, tqdm, pyyaml | yes | none: needed |

* **Time** is that of its loop: evaluation, checkpoints and PLY files are outside the clock.
* **Judge**: beside its own figures its renders of the test photos are measured by ``train.evaluate``, as ours are.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import json
import os
import sys
import time
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from benchmarks.recording import write_json
from splat.cameras import View, read_scene
from splat.images import load_photo
from train.engine import Photo
from train.evaluate import score

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
EARLY = 7_000  # steps after which its recipe evaluates for the first time
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


class OnDevice:
    """The example's dataset, each item read once, with the photo's bytes on the device."""

    def __init__(self, dataset: Any, device: str) -> None:
        import torch

        self._items = []
        for item in (dataset[i] for i in range(len(dataset))):
            found = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in item.items()}
            self._items.append(found | {"image": found["image"].to(torch.uint8)})

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._items[index]


def loader_in_process(loader: Any) -> Callable[..., Any]:
    """torch's DataLoader without workers and pinned memory: what lies on the device needs neither."""

    def open_loader(dataset: Any, **options: Any) -> Any:
        kept = {k: v for k, v in options.items() if k not in ("num_workers", "persistent_workers", "pin_memory")}
        return loader(dataset, **kept)

    return open_loader


class Stopwatch:
    """Seconds of the loop; stops while something else is done."""

    def __init__(self, wait: Callable[[], None]) -> None:
        self._wait, self._seconds, self._since = wait, 0.0, 0.0

    def start(self) -> None:
        self._wait()
        self._since = time.perf_counter()

    def stop(self) -> float:
        self._wait()
        self._seconds += time.perf_counter() - self._since
        return self._seconds

    def outside(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, off the clock."""

        def timed(*arguments: Any, **options: Any) -> Any:
            self.stop()
            try:
                return function(*arguments, **options)
            finally:
                self.start()

        return timed


class Renders:
    """The renders of the example's test photos, for ``train.evaluate.score``."""

    def __init__(self, runner: Any, names: list[str]) -> None:
        self._runner, self._index = runner, {name: i for i, name in enumerate(names)}

    def render(self, view: View, sh_degree: int) -> NDArray[np.float32]:
        import torch

        item, cfg = self._runner.valset[self._index[view.name]], self._runner.cfg
        with torch.no_grad():
            images, _, _ = self._runner.rasterize_splats(
                camtoworlds=item["camtoworld"][None],
                Ks=item["K"][None],
                width=view.width,
                height=view.height,
                sh_degree=sh_degree,
                near_plane=cfg.near_plane,
                far_plane=cfg.far_plane,
            )
        return images[0].cpu().numpy()


def train(
    trainer: Any, data: Path, out: Path, steps: int, device: str, ssim: Ssim | None, report: Path
) -> dict[str, Any]:
    """One training by the `default` recipe; the result by the number of steps, written to ``report`` as it grows."""
    import torch

    scene = read_scene(data)
    photos = [Photo(view, load_photo(scene.photo_path(view), view.width, view.height)) for view in scene.views[::8]]
    wait = torch.cuda.synchronize if device != "cpu" else lambda: None
    watch = Stopwatch(wait)
    found: dict[str, Any] = {}

    def renders(runner: Any) -> Any:
        return Renders(runner, [photo.view.name for photo in photos])

    class Runner(trainer.Runner):
        device = property(lambda self: device, lambda self, value: None)  # it would be cuda:0

        def eval(self, step: int, stage: str = "val") -> None:
            seconds, ssim_s = watch.stop(), ssim.seconds() if ssim else 0.0
            super().eval(step, stage)
            scores = score(renders(self), photos, self.cfg.sh_degree)
            found[str(step + 1)] = figures(self, step, scores, seconds, ssim_s)
            write_json(report, {"steps": found})
            watch.start()

        def train(self) -> None:
            for part in ("trainset", "valset"):
                setattr(self, part, OnDevice(getattr(self, part), device))
            watch.start()
            super().train()

    stops = sorted({min(EARLY, steps), steps})
    config = trainer.Config(  # as the example's own entry "default"
        strategy=trainer.DefaultStrategy(verbose=True),
        disable_viewer=True,
        disable_video=True,
        data_dir=str(data),
        data_factor=1,
        result_dir=str(out),
        max_steps=steps,
        eval_steps=stops,
        save_steps=stops,
        ply_steps=stops,
        save_ply=True,
    )
    with ExitStack() as patches:
        loader = loader_in_process(torch.utils.data.DataLoader)
        patches.enter_context(mock.patch.object(torch.utils.data, "DataLoader", loader))
        for module, name in ((torch, "save"), (trainer, "export_splats")):
            patches.enter_context(mock.patch.object(module, name, watch.outside(getattr(module, name))))
        runner = Runner(0, 0, 1, config)
        runner.train()
    return found


def figures(runner: Any, step: int, scores: list[Any], seconds: float, ssim_s: float) -> dict[str, Any]:
    """Of the model after ``step`` + 1 steps: ``own_*`` by the example itself, the others by our judge."""
    own = json.loads(Path(runner.stats_dir, f"val_step{step:04d}.json").read_text())
    psnr = [photo["psnr"] for photo in scores]
    return {
        "loop_s": round(seconds, 3),
        "ssim_stand_in_s": round(ssim_s, 3),
        "own_psnr": round(own["psnr"], 3),
        "own_ssim": round(own["ssim"], 4),
        "psnr": round(float(np.mean(psnr)), 3),
        "psnr_median": round(float(np.median(psnr)), 3),
        "psnr_lowest": round(min(psnr), 3),
        "psnr_fitted": round(float(np.mean([photo["psnr_fitted"] for photo in scores])), 3),
        "ssim": round(float(np.mean([photo["ssim"] for photo in scores])), 4),
        "gaussians": int(own["num_GS"]),
        "ply_bytes": Path(runner.ply_dir, f"point_cloud_{step}.ply").stat().st_size,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gsplat", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="COLMAP folder that baseline_gsplat.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder for what the example writes")
    parser.add_argument("--report", type=Path, required=True, help="JSON with the figures")
    parser.add_argument("--steps", type=int, default=30_000)
    arguments = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"
    import gsplat
    import torch

    if gsplat.__version__ != VERSION:
        sys.exit(f"error: gsplat {gsplat.__version__} is installed, not {VERSION}")
    if not torch.cuda.is_available():
        sys.exit("error: no CUDA device")
    with example(arguments.gsplat) as (trainer, absent, ssim):
        found = train(trainer, arguments.data, arguments.out, arguments.steps, "cuda:0", ssim, arguments.report)
    versions = {"torch": torch.__version__, "cuda": str(torch.version.cuda), "gsplat": gsplat.__version__}
    device = torch.cuda.get_device_name(0)
    write_json(arguments.report, {"steps": found, "stand_ins": absent, "device": device, "versions": versions})


if __name__ == "__main__":
    main()
