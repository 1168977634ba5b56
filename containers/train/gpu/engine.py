"""Training on a CUDA device: gsplat's projection and our own kernels, without autograd.

All photos lie on the device as bytes, at every resolution, or in pinned memory of the host where they don't fit
(train.memory); a step waits for the device once, inside gsplat (the number of tile intersections).
"""

from __future__ import annotations

import platform
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import gsplat
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from splat.cameras import View
from splat.model import Gaussians
from train.engine import LEVELS, Photo, Rates
from train.gpu import launches
from train.gpu.raster import Camera, Model, Rasterizer
from train.memory import OutOfDeviceMemory, most_opaque

DEVICE = "cuda"
COLOR = 6  # where a colour's gradient begins in a row of the rasterizer's sums
COLUMNS = 32  # a row of numbers by component is a multiple of this: rows begin at whole memory transactions


class GpuEngine:
    """See ``train.engine.Engine``. Parameters and moments lie in buffers for ``capacity`` Gaussians; the first N are
    in use. SH and all moments are by component, [components, stride].

    Raises OutOfDeviceMemory here and in ``step``, ``render`` and ``restore``.
    """

    name = "gpu"
    views = 1

    def __init__(
        self,
        photos: list[Photo],
        capacity: int,
        sh_degree: int,
        seed: int,
        pinned_photos: bool = False,
        device: str = DEVICE,
    ) -> None:
        self._on = torch.device(device)
        self.device = torch.cuda.get_device_name(self._on)
        self.capacity = capacity
        self._stride = -(-capacity // COLUMNS) * COLUMNS
        self._seed = seed
        self._count = self._steps = self._loss_count = 0  # steps: photos, as Adam counts them
        torch.cuda.empty_cache()  # of an engine before this one, which found too little room
        with self._memory(f"{len(photos)} photos and {capacity} Gaussians"):
            self._allocate((sh_degree + 1) ** 2)
            store = PinnedPhotos if pinned_photos else DevicePhotos
            self._photos = store(photos, self._on)
            self._open_rasterizer()

    def _open_rasterizer(self) -> None:
        self._rasterizer = Rasterizer(self._on, self.capacity, launches.SOURCES)

    @contextmanager
    def _memory(self, what: str) -> Iterator[None]:
        """Give up with OutOfDeviceMemory, which says what there was no room for."""
        try:
            yield
        except torch.cuda.OutOfMemoryError as error:
            raise OutOfDeviceMemory(f"The memory of {self.device} is not enough for {what}") from error
        except MemoryError as error:
            raise OutOfDeviceMemory(str(error)) from error

    def _allocate(self, coefficients: int) -> None:
        n = self.capacity
        shapes = {
            "means": (n, 3),
            "log_scales": (n, 3),
            "quats": (n, 4),
            "opacity_logits": (n,),
            "sh": (3 * coefficients, self._stride),
        }
        self._values = {name: torch.zeros(shape, device=self._on) for name, shape in shapes.items()}
        self._geometry, self._colors = (
            [torch.zeros((rows, self._stride), device=self._on) for _ in range(2)]
            for rows in (launches.GEOMETRY, 3 * coefficients)
        )
        self._directions = torch.empty((n, 3), device=self._on)
        self._loss = torch.zeros(1, device=self._on)

    def load(self, gaussians: Gaussians) -> None:
        gaussians = gaussians.select(most_opaque(gaussians.opacity_logits, self.capacity))
        n = len(gaussians)
        rows = min(3 * gaussians.sh.shape[1], len(self._values["sh"]))
        for name in ("means", "log_scales", "quats", "opacity_logits"):
            self._values[name][:n] = torch.from_numpy(getattr(gaussians, name)).to(self._on)
        self._values["sh"].zero_()
        self._values["sh"][:rows, :n] = torch.from_numpy(by_component(gaussians.sh)[:rows]).to(self._on)
        for moments in (*self._geometry, *self._colors):
            moments.zero_()
        self._steps = 0
        self._bind(n)

    def _bind(self, n: int) -> None:
        """Take the first ``n`` Gaussians into use."""
        self._count, values = n, self._values
        values["opacity_logits"][:n].clamp_(max=launches.LOGIT_MAX)  # blending would divide by 0 above it
        self._model = Model(
            means=values["means"][:n],
            log_scales=values["log_scales"][:n],
            quats=values["quats"][:n],
            logits=values["opacity_logits"][:n],
            sh=values["sh"],
            stride=self._stride,
        )

    @torch.no_grad()
    def step(self, photos: Sequence[int], level: int, sh_degree: int, rates: Rates) -> None:
        (photo,) = photos
        camera = self._photos.cameras[level][photo]
        with self._memory(f"{self._count} Gaussians at {camera.width}x{camera.height} pixels"):
            self._photos.ask(photo, level)
            self._rasterizer.forward(self._model, camera, sh_degree)
            grad = self._rasterizer.loss(self._photos.get(), self._loss)
            gradients = self._rasterizer.backward(grad)
        self._loss_count += 1
        self._steps += 1
        self._optimise(camera.center, gradients, sh_degree, rates)

    def _optimise(self, center: Tensor, gradients: tuple[Tensor, Tensor, Tensor], sh_degree: int, rates: Rates) -> None:
        raster, model, n = self._rasterizer, self._model, self._count
        by_means, by_scales, by_quats = gradients
        by_directions = self._directions[:n]
        launches.update_colors(
            raster.kernels,
            model.means,
            center,
            raster.records,
            raster.sums,
            model.sh,
            self._colors,
            by_directions,
            n,
            self._stride,
            sh_degree,
            self._steps,
            rates,
        )
        launches.update_geometry(
            raster.kernels,
            (model.means, model.log_scales, model.quats, model.logits),
            self._geometry,
            raster.scales,
            raster.opacities,
            (by_means, by_directions, by_scales, by_quats),
            raster.sums,
            n,
            self._stride,
            self._steps,
            rates,
            self._seed,
        )

    @torch.no_grad()
    def blame(self, photo: int, level: int, sh_degree: int) -> NDArray[np.float32]:
        # With the error as dL/dimage, the gradient by a colour is the error weighted as the colour is.
        camera = self._photos.cameras[level][photo]
        with self._memory(f"{self._count} Gaussians at {camera.width}x{camera.height} pixels"):
            self._photos.ask(photo, level)
            image = self._rasterizer.forward(self._model, camera, sh_degree)
            self._rasterizer.backward(self._error(image))
        return self._rasterizer.sums[:, COLOR : COLOR + 3].mean(dim=1).cpu().numpy()

    def _error(self, image: Tensor) -> Tensor:
        """[H, W, 3] |image - the photo that was asked for|, its mean over channels in each."""
        return (image - self._photos.get() / 255).abs().mean(dim=2, keepdim=True).expand(-1, -1, 3).contiguous()

    def mean_loss(self) -> float:
        mean = float(self._loss) / self._loss_count if self._loss_count else float("nan")
        self._loss.zero_()
        self._loss_count = 0
        return mean

    def is_finite(self) -> bool:
        checks = [torch.isfinite(values).all() for values in self._used().values()]
        return bool(torch.stack(checks).all())

    def _used(self) -> dict[str, Tensor]:
        """The parameters in use; sh is [3 K, N]."""
        n = self._count
        return {name: values[:, :n] if name == "sh" else values[:n] for name, values in self._values.items()}

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
        self._place(target, self._rows(source))
        self._set(np.concatenate([sources, targets]), np.tile(logits, 2), np.tile(log_scales, (2, 1)))
        self._rest(torch.cat([source, target]) if rest_sources else target)
        self._grow(int(targets.max(initial=-1)) + 1)

    def _rows(self, index: Tensor) -> dict[str, Tensor]:
        """The parameters of some Gaussians, [k, ...] each."""
        return {name: values[:, index].T if name == "sh" else values[index] for name, values in self._values.items()}

    def _place(self, index: Tensor, rows: dict[str, Tensor]) -> None:
        for name, values in rows.items():
            if name == "sh":
                self._values[name][:, index] = values.T
            else:
                self._values[name][index] = values

    def _set(self, index: NDArray[np.int64], logits: NDArray[np.float32], log_scales: NDArray[np.float32]) -> None:
        touched = torch.from_numpy(index).to(self._on)
        self._values["opacity_logits"][touched] = torch.from_numpy(logits).to(self._on)
        self._values["log_scales"][touched] = torch.from_numpy(log_scales).to(self._on)

    def _rest(self, index: Tensor) -> None:
        """The optimiser's moments of these become zero."""
        for moments in (*self._geometry, *self._colors):
            moments[:, index] = 0

    def _grow(self, count: int) -> None:
        if count > self._count:
            self._bind(count)

    @torch.no_grad()
    def render(self, view: View, sh_degree: int) -> NDArray[np.float32]:
        with self._memory(f"{self._count} Gaussians at {view.width}x{view.height} pixels"):
            return self._rasterizer.forward(self._model, Camera.of(view, self._on), sh_degree).cpu().numpy()

    def gaussians(self) -> Gaussians:
        used = {name: values.cpu().numpy() for name, values in self._used().items()}
        return Gaussians(**(used | {"sh": by_gaussian(used["sh"])}))

    def state(self) -> dict[str, NDArray[Any]]:
        n = self._count
        saved: dict[str, NDArray[Any]] = {"steps": np.array(self._steps)}
        saved |= {f"value_{name}": values.cpu().numpy() for name, values in self._used().items()}
        for moment in range(2):
            saved[f"geometry_{moment}"] = self._geometry[moment][:, :n].cpu().numpy()
            saved[f"colors_{moment}"] = self._colors[moment][:, :n].cpu().numpy()
        return saved

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Of more Gaussians than there is room for (after out-of-memory) the most opaque are kept."""
        keep = most_opaque(state["value_opacity_logits"], self.capacity)
        n, self._steps = len(keep), int(state["steps"])
        for name, values in self._values.items():
            saved = state[f"value_{name}"]
            if name == "sh":
                values[:, :n] = torch.from_numpy(saved[:, keep]).to(self._on)
            else:
                values[:n] = torch.from_numpy(saved[keep]).to(self._on)
        for moment in range(2):
            self._geometry[moment][:, :n] = torch.from_numpy(state[f"geometry_{moment}"][:, keep]).to(self._on)
            self._colors[moment][:, :n] = torch.from_numpy(state[f"colors_{moment}"][:, keep]).to(self._on)
        self._bind(n)

    def versions(self) -> dict[str, str]:
        return {
            "torch": torch.__version__,
            "cuda": str(torch.version.cuda),
            "gsplat": gsplat.__version__,
            "python": platform.python_version(),
        }


class DevicePhotos:
    """Every photo at every level on the device, as bytes."""

    def __init__(self, photos: list[Photo], device: torch.device) -> None:
        self._device = device
        self.cameras: dict[int, list[Camera]] = {level: [] for level in LEVELS}
        self._pixels: dict[int, list[Tensor]] = {level: [] for level in LEVELS}
        for photo in photos:
            for level in LEVELS:
                small = photo.shrunk(level)
                self.cameras[level].append(Camera.of(small.view, device))
                self._pixels[level].append(self._keep(torch.from_numpy(np.array(small.pixels))))

    def _keep(self, pixels: Tensor) -> Tensor:
        return pixels.to(self._device)

    def ask(self, photo: int, level: int) -> None:
        """Begin to fetch the bytes of a photo."""
        self._asked = self._pixels[level][photo]

    def get(self) -> Tensor:
        """[H, W, 3] bytes on the device: the photo that was asked for, until the next one is."""
        return self._asked


class PinnedPhotos(DevicePhotos):
    """The same in pinned memory of the host. A photo is copied while its view is drawn."""

    def __init__(self, photos: list[Photo], device: torch.device) -> None:
        sizes = [[(photo.view.width // k or 1) * (photo.view.height // k or 1) for k in LEVELS] for photo in photos]
        self._host, self._used = torch.empty(3 * sum(map(sum, sizes)), dtype=torch.uint8), 0
        pin(self._host)
        weakref.finalize(self, unpin, self._host)
        super().__init__(photos, device)
        self._copying = torch.cuda.Stream(device)
        self._room = torch.empty(3 * max(map(max, sizes), default=0), dtype=torch.uint8, device=device)

    def _keep(self, pixels: Tensor) -> Tensor:
        kept = self._host[self._used : self._used + pixels.numel()].view(pixels.shape)
        self._used += pixels.numel()
        return kept.copy_(pixels)

    def ask(self, photo: int, level: int) -> None:
        pixels = self._pixels[level][photo]
        self._asked = self._room[: pixels.numel()].view(pixels.shape)
        self._copying.wait_stream(torch.cuda.current_stream())  # the step before may still read the room
        with torch.cuda.stream(self._copying):
            self._asked.copy_(pixels, non_blocking=True)

    def get(self) -> Tensor:
        torch.cuda.current_stream().wait_stream(self._copying)
        return self._asked


def pin(host: Tensor) -> None:
    """Let the device read ``host`` by itself. Raises MemoryError.

    torch's own pinned tensors take up to twice their size: the next power of two.
    """
    cudart = torch.cuda.cudart()
    if host.numel() and cudart.cudaHostRegister(host.data_ptr(), host.numel(), 0) != cudart.cudaError.success:
        raise MemoryError(f"{host.numel()} bytes of the host's memory cannot be pinned")


def unpin(host: Tensor) -> None:
    torch.cuda.synchronize()  # a copy may be under way
    if host.numel():
        torch.cuda.cudart().cudaHostUnregister(host.data_ptr())


def by_component(sh: NDArray[np.float32]) -> NDArray[np.float32]:
    """[N, K, 3] to [3 K, N]."""
    return np.ascontiguousarray(sh.reshape(len(sh), -1).T)


def by_gaussian(sh: NDArray[np.float32]) -> NDArray[np.float32]:
    """[3 K, N] to [N, K, 3]."""
    return np.ascontiguousarray(sh.T).reshape(sh.shape[1], -1, 3)
