"""CUDA C++ compiled when the program starts, by NVRTC, which comes with torch: no compiler is needed on the machine."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class Kernel:
    """One ``extern "C"`` kernel; called with tensors (their addresses), ints (32 bits) and floats."""

    def __init__(self, driver: Any, function: ctypes.c_void_p) -> None:
        self._driver, self._function = driver, function

    def __call__(self, blocks: int, threads: int, *arguments: Tensor | int | float) -> None:
        """Launch on the current stream. Raises RuntimeError when the launch is refused."""
        if blocks == 0:
            return
        values = [as_c(value) for value in arguments]
        pointers = (ctypes.c_void_p * len(values))(*[ctypes.addressof(value) for value in values])
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        status = self._driver.cuLaunchKernel(self._function, blocks, 1, 1, threads, 1, 1, 0, stream, pointers, None)
        if status:
            raise RuntimeError(f"CUDA refused to launch a kernel with {blocks} blocks of {threads} threads: {status}")


def as_c(value: Tensor | int | float) -> Any:
    if isinstance(value, Tensor):
        if not value.is_contiguous():
            raise ValueError(f"a kernel wants contiguous tensors, got strides {value.stride()} of {tuple(value.shape)}")
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.c_int(value) if isinstance(value, int) else ctypes.c_float(value)


def compile_kernels(
    source: Path, names: list[str], constants: dict[str, int], device: torch.device
) -> dict[str, Kernel]:
    """The kernels ``names`` of the file ``source`` with these macros, for this device.

    Raises RuntimeError with the compiler's log.
    """
    torch.zeros(1, device=device)  # makes torch's context current
    nvrtc, driver = open_nvrtc(), ctypes.CDLL("libcuda.so.1")
    major, minor = torch.cuda.get_device_capability(device)
    program = ctypes.c_void_p()
    check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.read_bytes(), source.name.encode(), 0, None, None))
    options = [f"--gpu-architecture=sm_{major}{minor}".encode(), b"--use_fast_math"]
    options += [f"-D{name}={value}".encode() for name, value in constants.items()]
    status = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    size = ctypes.c_size_t()
    if status:
        check(nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size)))
        log = ctypes.create_string_buffer(size.value)
        check(nvrtc.nvrtcGetProgramLog(program, log))
        raise RuntimeError(f"{source.name} cannot be compiled for sm_{major}{minor}:\n{log.value.decode()}")
    check(nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)))
    binary = ctypes.create_string_buffer(size.value)
    check(nvrtc.nvrtcGetCUBIN(program, binary))
    module = ctypes.c_void_p()
    check(driver.cuModuleLoadData(ctypes.byref(module), binary))
    kernels = {}
    for name in names:
        function = ctypes.c_void_p()
        check(driver.cuModuleGetFunction(ctypes.byref(function), module, name.encode()))
        kernels[name] = Kernel(driver, function)
    return kernels


def open_nvrtc() -> Any:
    """NVRTC of torch's own CUDA release: from its wheel, else wherever the loader finds it."""
    release = str(torch.version.cuda).split(".", maxsplit=1)[0]
    name = f"libnvrtc.so.{release}"
    wheels = [Path(folder) / "nvidia" for folder in sys.path]
    found = [file for folder in wheels if folder.is_dir() for file in sorted(folder.glob(f"*/lib/{name}"))]
    try:
        return ctypes.CDLL(str(found[0]) if found else name)
    except OSError as error:
        raise RuntimeError(f"{name}, which comes with torch, is missing: install torch again ({error})") from error


def check(status: int) -> None:
    if status:
        raise RuntimeError(f"CUDA answered with error {status} while kernels were compiled or loaded")
