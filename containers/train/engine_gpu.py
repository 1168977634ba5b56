"""Training on a CUDA device: torch and gsplat 1.5.3.

All photos lie on the device as bytes, at every resolution; a step has no copy to or from the device and no wait for it
except gsplat's own (the number of tile intersections).
"""

from __future__ import annotations

import platform
from typing import Any

import gsplat
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import conv2d, pad

from job import StageError
from splat.cameras import View
from splat.metrics import C1, C2, WINDOW, gaussian_window
from splat.model import Gaussians
from train.engine import LEVELS, Photo, Rates

SSIM_WEIGHT = 0.2
NEAR = 0.01  # as in the CPU rasterizer
NOISE_STEEPNESS, NOISE_CENTER = 100.0, 0.995  # Kheradmand et al. 2024, eq. 10
BETAS, EPSILON = (0.9, 0.999), 1e-15
RATE_OF = {
    "means": "means",
    "log_scales": "scales",
    "quats": "quats",
    "opacity_logits": "opacities",
    "sh0": "sh0",
    "sh_rest": "sh_rest",
}


class GpuEngine:
    """See ``train.engine.Engine``. Parameters and moments lie in buffers of ``capacity`` rows; the first N are in
    use.
    """

    name = "gpu"

    def __init__(self, photos: list[Photo], capacity: int, sh_degree: int, seed: int) -> None:
        self._on = torch.device("cuda")
        torch.backends.cudnn.allow_tf32 = False  # SSIM takes small differences of blurred squares
        self.device = torch.cuda.get_device_name(self._on)
        self.capacity = capacity
        rest = (sh_degree + 1) ** 2 - 1
        shapes = {
            "means": (3,),
            "log_scales": (3,),
            "quats": (4,),
            "opacity_logits": (),
            "sh0": (1, 3),
            "sh_rest": (rest, 3),
        }
        self._values, self._first, self._second = (
            {name: torch.zeros((capacity, *shape), device=self._on) for name, shape in shapes.items()} for _ in range(3)
        )
        self._random = torch.Generator(device=self._on)
        self._random.manual_seed(seed)
        self._photos = {level: [self._upload(photo.shrunk(level)) for photo in photos] for level in LEVELS}
        self._window = torch.tensor(gaussian_window(), dtype=torch.float32, device=self._on)
        self._loss_sum = torch.zeros((), device=self._on)
        self._loss_count = self._count = self._steps = 0

    def _upload(self, photo: Photo) -> tuple[View, Tensor, Tensor, Tensor]:
        pixels = torch.from_numpy(np.array(photo.pixels)).to(self._on)
        return photo.view, *self._camera(photo.view), pixels

    def _camera(self, view: View) -> tuple[Tensor, Tensor]:
        """[1, 4, 4] world to camera and [1, 3, 3] intrinsics."""
        pose = torch.tensor(view.world_to_camera[None], dtype=torch.float32, device=self._on)
        return pose, torch.tensor(view.K[None], dtype=torch.float32, device=self._on)

    def load(self, gaussians: Gaussians) -> None:
        n = len(gaussians)
        k = min(gaussians.sh.shape[1] - 1, self._values["sh_rest"].shape[1])
        for name in ("means", "log_scales", "quats", "opacity_logits"):
            self._values[name][:n] = torch.from_numpy(getattr(gaussians, name)).to(self._on)
        self._values["sh0"][:n] = torch.from_numpy(gaussians.sh[:, :1]).to(self._on)
        self._values["sh_rest"].zero_()
        self._values["sh_rest"][:n, :k] = torch.from_numpy(gaussians.sh[:, 1 : 1 + k]).to(self._on)
        for moments in (self._first, self._second):
            for buffer in moments.values():
                buffer.zero_()
        self._count, self._steps = n, 0
        self._bind()

    def _bind(self) -> None:
        """Parameters and optimiser state are views of the buffers' first N rows; renewed when N changes."""
        n = self._count
        self._parameters = {name: torch.nn.Parameter(buffer[:n]) for name, buffer in self._values.items()}
        groups = [
            {"params": [parameter], "name": name} for name, parameter in self._parameters.items() if parameter.numel()
        ]
        self._adam = torch.optim.Adam(groups, lr=0.0, betas=BETAS, eps=EPSILON, fused=True)
        for group in groups:
            name = str(group["name"])
            self._adam.state[self._parameters[name]] = {
                "step": torch.tensor(float(self._steps), device=self._on),
                "exp_avg": self._first[name][:n],
                "exp_avg_sq": self._second[name][:n],
            }

    def step(self, photo: int, level: int, sh_degree: int, rates: Rates) -> None:
        view, pose, intrinsics, pixels = self._photos[level][photo]
        try:
            image, opacities, scales = self._rasterize(view, pose, intrinsics, sh_degree)
            loss = PhotoLoss.apply(image, pixels, self._window)
            pull = rates.opacity_pull * opacities.mean() + rates.scale_pull * scales.mean()
            (loss + pull).backward()
        except torch.cuda.OutOfMemoryError as error:
            raise StageError(
                "OUT_OF_GPU_MEMORY",
                f"The memory of {self.device} is not enough for {self._count} Gaussians at "
                f"{view.width}x{view.height} pixels. "
                "Lower max_gaussians or max_image_long_side, or choose a larger GPU.",
            ) from error
        self._loss_sum += loss.detach()
        self._loss_count += 1
        for group in self._adam.param_groups:
            group["lr"] = getattr(rates, RATE_OF[group["name"]])
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        self._steps += 1
        if rates.noise > 0:
            self._add_noise(rates.noise)

    def _rasterize(self, view: View, pose: Tensor, intrinsics: Tensor, sh_degree: int) -> tuple[Tensor, Tensor, Tensor]:
        """Image [H, W, 3] on black, opacities [N] and scales [N, 3]."""
        p = self._parameters
        opacities, scales = torch.sigmoid(p["opacity_logits"]), torch.exp(p["log_scales"])
        active = (sh_degree + 1) ** 2 - 1
        colors = torch.cat([p["sh0"], p["sh_rest"][:, :active]], dim=1) if active else p["sh0"]
        image, _alpha, _info = gsplat.rasterization(
            means=p["means"],
            quats=p["quats"],
            scales=scales,
            opacities=opacities,
            colors=colors,
            viewmats=pose,
            Ks=intrinsics,
            width=view.width,
            height=view.height,
            near_plane=NEAR,
            sh_degree=sh_degree,
            packed=False,
            rasterize_mode="classic",
        )
        return image[0], opacities, scales

    @torch.no_grad()
    def _add_noise(self, amount: float) -> None:
        """Move nearly transparent Gaussians at random (Kheradmand et al. 2024)."""
        p = self._parameters
        transparent = 1 - torch.sigmoid(p["opacity_logits"])
        factor = amount * torch.sigmoid(NOISE_STEEPNESS * (transparent - NOISE_CENTER))
        covariance, _ = gsplat.quat_scale_to_covar_preci(
            p["quats"].detach(), torch.exp(p["log_scales"].detach()), compute_preci=False
        )
        normal = torch.randn(p["means"].shape, generator=self._random, device=self._on)
        p["means"].add_(torch.einsum("nij,nj->ni", covariance, normal) * factor[:, None])

    def mean_loss(self) -> float:
        mean = float(self._loss_sum) / self._loss_count if self._loss_count else float("nan")
        self._loss_sum.zero_()
        self._loss_count = 0
        return mean

    def is_finite(self) -> bool:
        checks = [torch.isfinite(buffer[: self._count]).all() for buffer in self._values.values()]
        return bool(torch.stack(checks).all())

    def count(self) -> int:
        return self._count

    def opacities(self) -> NDArray[np.float32]:
        return torch.sigmoid(self._values["opacity_logits"][: self._count]).cpu().numpy()

    def log_scales(self) -> NDArray[np.float32]:
        return self._values["log_scales"][: self._count].cpu().numpy()

    @torch.no_grad()
    def adopt(
        self,
        sources: NDArray[np.int64],
        targets: NDArray[np.int64],
        logits: NDArray[np.float32],
        log_scales: NDArray[np.float32],
        rest_sources: bool,
    ) -> None:
        source, target = torch.from_numpy(sources).to(self._on), torch.from_numpy(targets).to(self._on)
        for buffer in self._values.values():
            buffer[target] = buffer[source]
        touched = torch.cat([source, target])
        self._values["opacity_logits"][touched] = torch.from_numpy(np.tile(logits, 2)).to(self._on)
        self._values["log_scales"][touched] = torch.from_numpy(np.tile(log_scales, (2, 1))).to(self._on)
        for moments in (self._first, self._second):
            for buffer in moments.values():
                buffer[touched if rest_sources else target] = 0
        count = max(self._count, int(targets.max(initial=-1)) + 1)
        if count != self._count:
            self._count = count
            self._bind()

    @torch.no_grad()
    def render(self, view: View, sh_degree: int) -> NDArray[np.float32]:
        image, _, _ = self._rasterize(view, *self._camera(view), sh_degree)
        return image.cpu().numpy()

    def gaussians(self) -> Gaussians:
        values = {name: buffer[: self._count].cpu().numpy() for name, buffer in self._values.items()}
        sh = np.concatenate([values.pop("sh0"), values.pop("sh_rest")], axis=1)
        return Gaussians(**values, sh=sh)

    def state(self) -> dict[str, NDArray[Any]]:
        saved: dict[str, NDArray[Any]] = {"steps": np.array(self._steps), "random": self._random.get_state().numpy()}
        for kind, buffers in (("value", self._values), ("first", self._first), ("second", self._second)):
            for name, buffer in buffers.items():
                saved[f"{kind}_{name}"] = buffer[: self._count].cpu().numpy()
        return saved

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        self._count, self._steps = len(state["value_means"]), int(state["steps"])
        self._random.set_state(torch.from_numpy(state["random"]))
        for kind, buffers in (("value", self._values), ("first", self._first), ("second", self._second)):
            for name, buffer in buffers.items():
                buffer[: self._count] = torch.from_numpy(state[f"{kind}_{name}"]).to(self._on)
        self._bind()

    def versions(self) -> dict[str, str]:
        return {
            "torch": torch.__version__,
            "cuda": str(torch.version.cuda),
            "gsplat": gsplat.__version__,
            "python": platform.python_version(),
        }


class PhotoLoss(torch.autograd.Function):
    """0.8 L1 + 0.2 (1 - SSIM) of an image [H, W, 3] and a photo of bytes; see ``splat.loss`` for the formulas.

    The gradient is computed with the value: two blurs forward, no graph.
    """

    @staticmethod
    def forward(ctx: Any, image: Tensor, pixels: Tensor, window: Tensor) -> Tensor:
        x = image.permute(2, 0, 1)
        y = pixels.permute(2, 0, 1).to(torch.float32) / 255
        difference = x - y
        value = difference.abs().mean()
        grad = torch.sign(difference) / difference.numel()
        if min(x.shape[1:]) >= WINDOW:
            similarity, by_x = similarity_and_gradient(x, y, window)
            value = (1 - SSIM_WEIGHT) * value + SSIM_WEIGHT * (1 - similarity)
            grad = (1 - SSIM_WEIGHT) * grad - SSIM_WEIGHT * by_x
        ctx.save_for_backward(grad)
        return value

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = ctx.saved_tensors
        return (upstream * grad).permute(1, 2, 0), None, None


def similarity_and_gradient(x: Tensor, y: Tensor, window: Tensor) -> tuple[Tensor, Tensor]:
    """Mean SSIM over whole windows, and its gradient by x; both images [3, H, W]."""
    a, b, aa, bb, ab = blur(torch.cat([x, y, x * x, y * y, x * y]), window).split(3)
    a1, a2 = 2 * a * b + C1, 2 * (ab - a * b) + C2
    b1, b2 = a * a + b * b + C1, (aa - a * a) + (bb - b * b) + C2
    inverse = 1 / (b1 * b2)
    similarity = a1 * a2 * inverse
    by_aa, by_ab = -similarity / b2, 2 * a1 * inverse
    by_a = 2 * b * a2 * inverse - 2 * a * similarity / b1 - 2 * a * by_aa - b * by_ab
    margin = WINDOW - 1
    maps = blur(pad(torch.cat([by_a, by_aa, by_ab]), (margin, margin, margin, margin)), window)
    from_a, from_aa, from_ab = maps.split(3)
    return similarity.mean(), (from_a + 2 * x * from_aa + y * from_ab) / similarity.numel()


def blur(planes: Tensor, window: Tensor) -> Tensor:
    """Separable blur over whole windows: [P, H, W] -> [P, H - 10, W - 10]."""
    one = planes[:, None]
    return conv2d(conv2d(one, window.view(1, 1, WINDOW, 1)), window.view(1, 1, 1, WINDOW))[:, 0]
