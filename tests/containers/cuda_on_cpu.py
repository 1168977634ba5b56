"""Compiles CUDA sources with g++ and cuda_on_cpu.h, and launches their kernels on numpy arrays like those on a GPU."""

from __future__ import annotations

import ctypes
import subprocess
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from train.gpu.nvrtc import Arguments, parameters_of

HEADER = Path(__file__).with_name("cuda_on_cpu.h")
GUARD = 64  # numbers before and after each array


class CpuKernel:
    """Called like ``nvrtc.Kernel``. ``falling``: threads run from the last to the first between barriers."""

    def __init__(self, function: Any, parameters: dict[str, str]) -> None:
        self._function, self._arguments, self.falling = function, Arguments(parameters), False

    def __call__(self, blocks: int | tuple[int, int], threads: int, **arguments: Any) -> None:
        across, down = blocks if isinstance(blocks, tuple) else (blocks, 1)
        if self._function(across, down, threads, self._arguments.filled(arguments), int(self.falling)):
            raise RuntimeError("a block hangs: not every thread comes to a barrier")


def compile_for_cpu(sources: Mapping[Path, Mapping[str, Any]], folder: Path) -> dict[str, CpuKernel]:
    """The kernels of all sources (with their macros) by name. What is in ``folder`` already is not compiled again."""
    building, kernels = [], {}
    for source, constants in sources.items():
        parameters = parameters_of(source.read_text())
        program = folder / f"{source.stem}-{zlib.crc32(repr(constants).encode()):x}.cpp"
        lines = [f'#include "{file}"' for file in (HEADER, source)] + [f"KERNEL({name})" for name in parameters]
        options = ["-std=c++17", "-O1", "-fPIC", "-shared", "-w", *(f"-D{k}={v}" for k, v in constants.items())]
        library, process = program.with_suffix(".so"), None
        if not library.exists():
            program.write_text("\n".join(lines) + "\n")
            process = subprocess.Popen(["g++", *options, str(program), "-o", str(library)])
        building.append((process, library, parameters))
    for process, library, parameters in building:
        if process and process.wait():
            raise RuntimeError(f"g++ could not compile {library.stem}")
        loaded = ctypes.CDLL(str(library))
        kernels |= {name: CpuKernel(loaded[f"run_{name}"], kinds) for name, kinds in parameters.items()}
    return kernels


class Arrays:
    """Arrays like those on a GPU, each between guards, which ``check`` finds unchanged or not."""

    def __init__(self) -> None:
        self._guards: list[tuple[np.ndarray, bytes]] = []

    def empty(self, *shape: int, kind: Any = np.float32) -> np.ndarray:
        """Not numbers (or 101 in each byte) until written."""
        kind, count = np.dtype(kind), int(np.prod(shape))
        raw = np.empty(count + 2 * GUARD + 256, kind)
        raw.view(np.uint8)[:] = 101
        if kind.kind == "f":
            raw[:] = np.nan
        start = GUARD + (-(raw.ctypes.data + GUARD * kind.itemsize) % 256) // kind.itemsize
        end = start + count
        self._guards += [(part, part.tobytes()) for part in (raw[:start], raw[end:])]
        return raw[start:end].reshape(shape)

    def copy(self, values: Any, kind: Any = np.float32) -> np.ndarray:
        values = np.asarray(values)
        array = self.empty(*values.shape, kind=kind)
        array[...] = values
        return array

    def zeros(self, *shape: int) -> np.ndarray:
        return self.copy(np.zeros(shape))

    def check(self) -> None:
        assert all(part.tobytes() == before for part, before in self._guards), "a kernel wrote outside an array"
