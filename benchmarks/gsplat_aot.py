"""200 training steps with gsplat's rasterizer, as compiled ahead of time into the GPU variant of the training image.

    docker run --rm --gpus all --network none --read-only --tmpfs /tmp -v "$PWD/benchmarks:/benchmarks:ro" \\
        --entrypoint python3 spaceport-train:gpu /benchmarks/gsplat_aot.py

Gaussians of random places learn the colours of a made-up photo. Ends with an error where there is no CUDA device, where
gsplat would compile or where the loss does not fall; prints one JSON line with times and versions.
"""

from __future__ import annotations

import json
import sys
import time

import gsplat
import torch

STEPS, GAUSSIANS, WIDTH, HEIGHT = 200, 100_000, 1200, 800


def photo(device: torch.device) -> torch.Tensor:
    """[H, W, 3] in 0..1: soft stripes."""
    y, x = torch.meshgrid(torch.arange(HEIGHT, device=device), torch.arange(WIDTH, device=device), indexing="ij")
    return torch.stack([torch.sin(x / 40), torch.sin(y / 30), torch.sin((x + y) / 50)], dim=-1) / 2 + 0.5


def parameters(device: torch.device) -> dict[str, torch.Tensor]:
    """Grey Gaussians in front of a camera at the origin that looks along z."""
    torch.manual_seed(1)
    places = torch.rand((GAUSSIANS, 3), device=device)
    values = {
        "means": places * torch.tensor([3.0, 2.0, 1.0], device=device) - torch.tensor([1.5, 1.0, -2.0], device=device),
        "scales": torch.full((GAUSSIANS, 3), -4.5, device=device),
        "quats": torch.tensor([1.0, 0, 0, 0], device=device).repeat(GAUSSIANS, 1),
        "opacities": torch.zeros(GAUSSIANS, device=device),
        "colors": torch.zeros((GAUSSIANS, 3), device=device),
    }
    return {name: value.requires_grad_() for name, value in values.items()}


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("error: no CUDA device")
    from gsplat import csrc
    from gsplat.cuda._backend import _C

    if _C is not csrc:
        sys.exit(f"error: gsplat does not use its compiled module {csrc.__file__}")
    device = torch.device("cuda")
    wanted, values = photo(device), parameters(device)
    optimizer = torch.optim.Adam(values.values(), lr=0.01)
    view = torch.eye(4, device=device)[None]
    camera = torch.tensor([[[WIDTH, 0, WIDTH / 2], [0, WIDTH, HEIGHT / 2], [0, 0, 1]]], device=device)
    losses, started = [], 0.0
    for step in range(STEPS + 1):
        if step == 1:  # the first loads the kernels
            torch.cuda.synchronize()
            started = time.perf_counter()
        image, _, _ = gsplat.rasterization(
            values["means"],
            values["quats"],
            values["scales"].exp(),
            values["opacities"].sigmoid(),
            values["colors"].sigmoid(),
            view,
            camera,
            WIDTH,
            HEIGHT,
        )
        loss = (image[0] - wanted).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    first, last = float(losses[0]), float(losses[-1])
    report = {
        "device": torch.cuda.get_device_name(device),
        "capability": ".".join(map(str, torch.cuda.get_device_capability(device))),
        "versions": {"gsplat": gsplat.__version__, "torch": torch.__version__, "cuda": torch.version.cuda},
        "extension": csrc.__file__,
        "steps": STEPS,
        "gaussians": GAUSSIANS,
        "pixels": [WIDTH, HEIGHT],
        "ms_per_step": round(1000 * seconds / STEPS, 3),
        "loss": [round(first, 4), round(last, 4)],
    }
    print(json.dumps(report))
    if not last < 0.8 * first:
        sys.exit(f"error: the loss went from {first} to {last}")


if __name__ == "__main__":
    main()
