"""CUDA C++ compiled when the program starts, by NVRTC, which comes with torch: no compiler is needed on the machine."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

OPTIONS = ("--use_fast_math", "--restrict", "--std=c++17")  # no two arrays of a launch overlap


class Kernel:
    """One ``extern "C"`` kernel, called by the names of its parameters.

    Arguments are arrays (their addresses), ints (32 bits) and floats.
    """

    def __init__(
        self, driver: Any, function: ctypes.c_void_p, parameters: dict[str, str], stream: Callable[[], int]
    ) -> None:
        self._launch, self._function, self._stream = driver.cuLaunchKernel, function, stream
        self._launch.argtypes = [ctypes.c_void_p, *[ctypes.c_uint] * 7, *[ctypes.c_void_p] * 3]
        self._arguments = Arguments(parameters)

    def __call__(self, blocks: int | tuple[int, int], threads: int, **arguments: Any) -> None:
        """Launch on the current stream. Raises TypeError for other arguments than the kernel's, RuntimeError when the
        launch is refused.
        """
        across, down = blocks if isinstance(blocks, tuple) else (blocks, 1)
        if across * down == 0:
            return
        pointers = self._arguments.filled(arguments)  # the launch copies them
        status = self._launch(self._function, across, down, 1, threads, 1, 1, 0, self._stream(), pointers, None)
        if status:
            raise RuntimeError(f"CUDA refused to launch a kernel with {blocks} blocks of {threads} threads: {status}")


def parameters_of(source: str) -> dict[str, dict[str, str]]:
    """The kernels of a source and of each its parameters by name, in order: "pointer", "int" or "float"."""
    kernels = {}
    for head, name, listed in re.findall(
        r'extern "C" __global__ void\s+(__launch_bounds__\(.*\)\s+)?(\w+)\(([^)]*)\)', source
    ):
        del head
        kernels[name] = {parameter.split()[-1].lstrip("*"): kind_of(parameter) for parameter in listed.split(",")}
    return kernels


def kind_of(parameter: str) -> str:
    if "*" in parameter:
        return "pointer"
    kind = parameter.split(maxsplit=1)[0]
    if kind not in ("int", "float"):
        raise ValueError(f"a kernel's parameter is a pointer, an int or a float, not '{parameter.strip()}'")
    return kind


class Arguments:
    """Room for the arguments of a kernel, filled anew for each launch: quickly, as the device may be waiting for it."""

    def __init__(self, parameters: dict[str, str]) -> None:
        self._parameters, count = parameters, len(parameters)
        self._room = (ctypes.c_uint64 * count)()
        self._ints, self._floats = (
            (kind * (2 * count)).from_buffer(self._room) for kind in (ctypes.c_int, ctypes.c_float)
        )
        begin = ctypes.addressof(self._room)
        self._pointers = (ctypes.c_void_p * count)(*range(begin, begin + 8 * count, 8))

    def filled(self, arguments: Mapping[str, Any]) -> Any:
        """An array of the addresses of the values. Raises TypeError where they do not fit the parameters."""
        if self._parameters.keys() != arguments.keys():
            wrong = sorted(self._parameters.keys() ^ arguments.keys())
            raise TypeError(f"a kernel's arguments are not its parameters: missing, or too many, are {wrong}")
        for number, (name, kind) in enumerate(self._parameters.items()):
            value = arguments[name]
            if kind == "pointer":
                self._room[number] = address_of(value)
            elif kind == "float" and isinstance(value, float | int):
                self._floats[2 * number] = value
            elif isinstance(value, int):
                self._ints[2 * number] = value
            else:
                raise TypeError(f"argument {name} of a kernel is {kind}, not {type(value).__name__}")
        return self._pointers


def address_of(array: Any) -> int:
    """Of a contiguous torch tensor, or of a numpy array (where the kernels run on the CPU, in tests)."""
    if hasattr(array, "data_ptr"):
        if not array.is_contiguous():
            raise ValueError(f"a kernel wants contiguous tensors, got strides {array.stride()} of {tuple(array.shape)}")
        address: int = array.data_ptr()
        return address
    if not array.flags.c_contiguous:
        raise ValueError(f"a kernel wants contiguous arrays, got strides {array.strides} of {array.shape}")
    return int(array.ctypes.data)


def load_kernels(source: Path, constants: Mapping[str, float], device: Any) -> dict[str, Kernel]:
    """The kernels of the file ``source`` with these macros, compiled for this CUDA device of torch.

    Raises RuntimeError with the compiler's log.
    """
    import torch

    torch.zeros(1, device=device)  # makes torch's context current
    driver = ctypes.CDLL("libcuda.so.1")
    number = torch.cuda.current_device() if device.index is None else device.index

    def stream() -> int:
        raw: int = torch._C._cuda_getCurrentRawStream(number)  # a twentieth of the time of torch.cuda.current_stream()
        return raw

    major, minor = torch.cuda.get_device_capability(device)
    binary, _ = compile_cubin(open_nvrtc(torch.version.cuda), source, constants, f"sm_{major}{minor}")
    module = ctypes.c_void_p()
    check(driver.cuModuleLoadData(ctypes.byref(module), binary))
    kernels = {}
    for name, parameters in parameters_of(source.read_text()).items():
        function = ctypes.c_void_p()
        check(driver.cuModuleGetFunction(ctypes.byref(function), module, name.encode()))
        kernels[name] = Kernel(driver, function, parameters, stream)
    return kernels


def compile_cubin(
    nvrtc: Any, source: Path, constants: Mapping[str, float], architecture: str, options: tuple[str, ...] = ()
) -> tuple[bytes, str]:
    """(machine code, log) of a source for an ``architecture`` like sm_75. No device is needed.

    Raises RuntimeError with the compiler's log.
    """
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.read_bytes(), source.name.encode(), 0, None, None))
    words = [f"--gpu-architecture={architecture}", *OPTIONS, *options]
    words += [f"-D{name}={value}" for name, value in constants.items()]
    status = nvrtc.nvrtcCompileProgram(program, len(words), (ctypes.c_char_p * len(words))(*map(str.encode, words)))
    check(nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size)))
    log = ctypes.create_string_buffer(size.value)
    check(nvrtc.nvrtcGetProgramLog(program, log))
    if status:
        raise RuntimeError(f"{source.name} cannot be compiled for {architecture}:\n{log.value.decode()}")
    check(nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)))
    binary = ctypes.create_string_buffer(size.value)
    check(nvrtc.nvrtcGetCUBIN(program, binary))
    check(nvrtc.nvrtcDestroyProgram(ctypes.byref(program)))
    return binary.raw, log.value.decode()


def open_nvrtc(cuda: str) -> Any:
    """NVRTC of a CUDA release ("12.8"): from its wheel, else wherever the loader finds it."""
    name = f"libnvrtc.so.{cuda.split('.', maxsplit=1)[0]}"
    wheels = [Path(folder) / "nvidia" for folder in sys.path]
    found = [file for folder in wheels if folder.is_dir() for file in sorted(folder.glob(f"*/lib/{name}"))]
    try:
        return ctypes.CDLL(str(found[0]) if found else name)
    except OSError as error:
        raise RuntimeError(f"{name}, which comes with torch, is missing: install torch again ({error})") from error


def check(status: int) -> None:
    if status:
        raise RuntimeError(f"CUDA answered with error {status} while kernels were compiled or loaded")
