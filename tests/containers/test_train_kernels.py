"""The GPU's own kernels without a GPU: compiled for every GPU generation; launches and loss against float64."""

import ctypes
import re
import shutil

import numpy as np
import pytest
from autograd import grad as autograd_grad

from tests.containers.cuda_on_cpu import compile_for_cpu
from tests.containers.kernel_step import (
    GAUSSIANS,
    reference_loss,
    relative,
)
from train.gpu import launches
from train.gpu.nvrtc import Arguments, compile_cubin, open_nvrtc, parameters_of

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90")  # T4, A100, A10G, L4 and L40S, H100


# ------------------------------------------------------------------ compiled by NVRTC, without a device


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("source", "views"),
    [*((source, 1) for source in launches.SOURCES), *((GAUSSIANS, views) for views in (2, 3, 8))],
    ids=lambda value: getattr(value, "name", value),
)
def test_kernels_compile_and_stay_in_registers(source, views, architecture):
    pytest.importorskip("nvidia.cuda_nvrtc", reason="no wheel nvidia-cuda-nvrtc-cu12")
    constants = launches.sources(views, views - 1)[source]
    binary, log = compile_cubin(open_nvrtc("12"), source, constants, architecture, ("--ptxas-options=--verbose",))
    assert binary[:4] == b"\x7fELF"
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    registers = [int(count) for count in re.findall(r"Used (\d+) registers", log)]
    assert len(registers) == len(frames) == len(parameters_of(source.read_text())), log
    assert set(frames) == {("0", "0", "0")}, log
    assert max(registers) <= 128, log  # four blocks of 128 threads on a multiprocessor


def test_an_error_of_the_compiler_is_told(tmp_path):
    pytest.importorskip("nvidia.cuda_nvrtc", reason="no wheel nvidia-cuda-nvrtc-cu12")
    broken = tmp_path / "broken.cu"
    broken.write_text('extern "C" __global__ void f(int n) { undeclared = n; }')
    with pytest.raises(RuntimeError, match=r"broken\.cu cannot be compiled for sm_75(.|\n)*undeclared"):
        compile_cubin(open_nvrtc("12"), broken, {}, "sm_75")


def test_a_missing_compiler_is_named():
    with pytest.raises(RuntimeError, match=r"libnvrtc\.so\.7, which comes with torch, is missing"):
        open_nvrtc("7.5")


# ------------------------------------------------------------------ launches


def test_arguments_must_be_those_of_the_kernel():
    kinds = parameters_of(
        'extern "C" __global__ void __launch_bounds__(32 * W)\n f(const float4 *a, int n,\n float x) {'
    )
    assert kinds == {"f": {"a": "pointer", "n": "int", "x": "float"}}
    array = np.zeros(4, np.float32)
    arguments = Arguments(kinds["f"])
    for second, third in ((3, 2), (-5, 0.5)):
        addresses = arguments.filled({"x": third, "a": array, "n": second})
        kept = [
            kind.from_address(at).value
            for kind, at in zip((ctypes.c_void_p, ctypes.c_int, ctypes.c_float), addresses, strict=True)
        ]
        assert kept == [array.ctypes.data, second, third]
    with pytest.raises(TypeError, match=r"missing, or too many, are \['x'\]"):
        arguments.filled({"a": array, "n": 3})
    with pytest.raises(TypeError, match=r"missing, or too many, are \['m', 'n'\]"):
        arguments.filled({"a": array, "m": 3, "x": 2.0})
    with pytest.raises(TypeError, match="argument n of a kernel is int, not float"):
        arguments.filled({"a": array, "n": 3.0, "x": 2.0})
    with pytest.raises(ValueError, match="contiguous"):
        arguments.filled({"a": np.zeros((4, 4))[:, 1:], "n": 3, "x": 2.0})


def test_a_barrier_that_a_thread_misses_is_found(tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("no g++ to run the kernels on the CPU with")
    source = tmp_path / "hang.cu"
    source.write_text('extern "C" __global__ void hang(int n) { if (threadIdx.x < n) __syncthreads(); }')
    hang = compile_for_cpu({source: {}}, tmp_path)["hang"]
    hang(1, 64, n=64)
    with pytest.raises(RuntimeError, match="hangs"):
        hang(1, 64, n=63)


def test_blocks_of_the_loss_cover_the_image_and_fill_the_device():
    assert launches.loss_blocks(3600, 900) == ((29, 21), 44)
    assert launches.loss_blocks(900, 225) == ((8, 15), 16)
    assert launches.loss_blocks(24_000, 6000) == ((188, 94), 64)


@pytest.mark.parametrize("blocks", [1, 600])
@pytest.mark.parametrize("size", [(97, 75), (11, 11), (60, 42), (9, 40), (40, 9)])
def test_loss_and_its_gradient(ordered, arrays, monkeypatch, size, blocks):
    monkeypatch.setattr(launches, "LOSS_BLOCKS", blocks)
    width, height = size
    rng = np.random.default_rng(width)
    photo = rng.integers(0, 256, (height, width, 3))
    image = (0.6 * photo / 255 + 0.3 * rng.random(photo.shape) - 0.05).astype(np.float32)
    grad, total = arrays.empty(height, width, 3), arrays.copy([0.25])
    slopes = arrays.empty(9 * height * width)
    given = {"image": arrays.copy(image), "photo": arrays.copy(photo, np.uint8)}
    launches.loss_gradient(ordered, width, height, **given, slopes=slopes, grad=grad, total=total)
    exact = image.astype(np.float64)
    assert float(total[0]) - 0.25 == pytest.approx(reference_loss(exact, photo / 255), abs=2e-6)
    assert relative(grad, autograd_grad(reference_loss)(exact, photo / 255)) < 2e-4
