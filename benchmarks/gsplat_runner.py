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
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from benchmarks.gsplat_stand_ins import VERSION, Ssim, example
from benchmarks.recording import write_json
from splat.cameras import View, read_scene
from splat.images import load_photo
from train.engine import TrainingPhoto
from train.evaluate import score

EARLY = 7_000  # steps after which its recipe evaluates for the first time


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


class LoopTimer:
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
    views = scene.views[::8]
    photos = [TrainingPhoto(view, load_photo(scene.photo_path(view), view.width, view.height)) for view in views]
    wait = torch.cuda.synchronize if device != "cpu" else lambda: None
    watch = LoopTimer(wait)
    found: dict[str, Any] = {}

    def renders(runner: Any) -> Any:
        return Renders(runner, [photo.view.name for photo in photos])

    class MeasuredRunner(trainer.Runner):
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
        runner = MeasuredRunner(0, 0, 1, config)
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
