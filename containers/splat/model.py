"""The 3D Gaussian model in memory, and its standard PLY file."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from splat.ply import read_vertices, write_vertices

Array = NDArray[np.floating]  # always float32 after construction

# Factors of the real spherical harmonics, by band, as in the original 3DGS.
SH_C0 = 0.28209479177387814  # Y_0^0 = 1 / (2 sqrt(pi)): colour = 0.5 + SH_C0 * f_dc
SH_C1 = 0.48860251190291992
SH_C2 = (1.0925484305920792, 0.31539156525252005, 0.54627421529603959)
SH_C3 = (0.59004358992664352, 2.890611442640554, 0.45704579946446572, 0.3731763325901154, 1.4453057213202769)
MAX_SH_DEGREE = 3


@dataclass
class Gaussians:
    """N Gaussians in the scene frame (right-handed, +y down). All arrays are float32 and C-contiguous.

    The parameters are the raw ones that training optimises: ``exp(log_scales)`` are standard deviations in scene units,
    ``sigmoid(opacity_logits)`` is the peak opacity, colour seen from direction d is ``max(0, 0.5 + SH(d))``.
    """

    means: Array  # [N, 3] scene frame
    log_scales: Array  # [N, 3] ln(scale)
    quats: Array  # [N, 4] wxyz, need not be normalised
    opacity_logits: Array  # [N]
    sh: Array  # [N, K, 3], K = (degree + 1)^2, sh[:, 0] = f_dc

    def __post_init__(self) -> None:
        for field in fields(self):
            setattr(self, field.name, np.ascontiguousarray(getattr(self, field.name), np.float32))
        n = len(self.means)
        coefficients = self.sh.shape[1] if self.sh.ndim == 3 else 0
        wanted = {
            "means": (n, 3),
            "log_scales": (n, 3),
            "quats": (n, 4),
            "opacity_logits": (n,),
            "sh": (n, coefficients, 3),
        }
        for name, shape in wanted.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"Gaussians.{name} has shape {getattr(self, name).shape}, expected {shape}")
        if coefficients not in {(d + 1) ** 2 for d in range(MAX_SH_DEGREE + 1)}:
            raise ValueError(f"Gaussians.sh has {coefficients} coefficients per Gaussian, expected 1, 4, 9 or 16")

    def __len__(self) -> int:
        return len(self.means)

    @property
    def sh_degree(self) -> int:
        return round(self.sh.shape[1] ** 0.5) - 1

    def select(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> Gaussians:
        """The Gaussians of ``rows`` (indices or a mask), copied."""
        return Gaussians(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def read_ply(path: str | Path) -> Gaussians:
    """Read the 3DGS PLY layout (Kerbl et al. 2023): ``f_rest`` channel-major, ``rot`` as wxyz.

    Raises ValueError that names the file and what is missing or wrong.
    """
    path = Path(path)
    vertex = read_vertices(path)
    rest = sum(name.startswith("f_rest_") for name in vertex)
    missing = [name for name in _property_names(rest) if name not in vertex and name not in ("nx", "ny", "nz")]
    if missing:
        raise ValueError(f"{path} is not a 3DGS PLY file: it has no property {', '.join(missing)}")
    if rest % 3 or (rest // 3 + 1) not in {(d + 1) ** 2 for d in range(MAX_SH_DEGREE + 1)}:
        raise ValueError(f"{path} has {rest} f_rest properties; expected 0, 9, 24 or 45")

    def columns(*wanted: str) -> Array:
        return np.stack([vertex[name] for name in wanted], axis=-1)

    n = len(vertex["x"])
    dc = columns("f_dc_0", "f_dc_1", "f_dc_2").reshape(n, 1, 3)
    sh = dc
    if rest:
        channel_major = columns(*[f"f_rest_{i}" for i in range(rest)]).reshape(n, 3, rest // 3)
        sh = np.concatenate([dc, channel_major.transpose(0, 2, 1)], axis=1)
    return Gaussians(
        means=columns("x", "y", "z"),
        log_scales=columns("scale_0", "scale_1", "scale_2"),
        quats=columns("rot_0", "rot_1", "rot_2", "rot_3"),
        opacity_logits=vertex["opacity"],
        sh=sh,
    )


def write_ply(path: str | Path, gaussians: Gaussians) -> None:
    """Write the standard 3DGS PLY: binary little endian, normals zero, ``f_rest`` channel-major, ``rot`` as wxyz."""
    n, k = gaussians.sh.shape[:2]
    rest = gaussians.sh[:, 1:].transpose(0, 2, 1).reshape(n, 3 * (k - 1))
    table = np.concatenate(
        [
            gaussians.means,
            np.zeros((n, 3), np.float32),
            gaussians.sh[:, 0],
            rest,
            gaussians.opacity_logits[:, None],
            gaussians.log_scales,
            gaussians.quats,
        ],
        axis=1,
    )
    write_vertices(Path(path), _property_names(3 * (k - 1)), table)


def _property_names(rest: int) -> list[str]:
    return [
        *("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"),
        *[f"f_rest_{i}" for i in range(rest)],
        *("opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
    ]
