"""Compile gsplat's CUDA extension ahead of time, from the sources in its wheel, to ``gsplat/csrc.so``.

gsplat imports that module if it is there, and otherwise compiles at run time, which the images neither can nor should.
The flags are gsplat's own (gsplat/cuda/_backend.py, version 1.5.3). No GPU is needed. Environment: CUDA_HOME, with a
compiler of torch's CUDA release or an earlier one of the same major version; TORCH_CUDA_ARCH_LIST; MAX_JOBS.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from pathlib import Path

# What torch's headers include beyond the CUDA runtime's; torch's own wheels have them.
MATH_LIBRARIES = ("cublas", "cusolver", "cusparse")
# gsplat makes every rasterizer for 19 numbers of channels, up to 513: most of its compile time and size. Training
# blends with kernels of its own; depth, colour and both stay for measurements. Other numbers are refused at run time.
CHANNELS = ("1", "3", "4")
PER_CHANNELS = re.compile(r"^ *__(?:INS|LAUNCH_KERNEL)__\((\d+)\)\n", re.MULTILINE)


def package_folder(name: str) -> Path:
    """The folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"error: the package {name} is not installed for {sys.executable}")
    return Path(next(iter(spec.submodule_search_locations)))


def keep_channels(cuda: Path) -> None:
    """Remove from the sources the rasterizers for numbers of channels that are not in CHANNELS."""
    files = [*cuda.glob("csrc/RasterizeToPixels*.cu"), cuda / "csrc/Rasterization.cpp"]
    for file in files:
        text = file.read_text(encoding="utf-8")
        if not set(CHANNELS) <= set(PER_CHANNELS.findall(text)):
            sys.exit(f"error: {file.name} does not list its numbers of channels as gsplat 1.5.3 does")
        kept = PER_CHANNELS.sub(lambda found: found[0] if found[1] in CHANNELS else "", text)
        file.write_text(kept, encoding="utf-8")


def compile_extension(cuda: Path, work: Path) -> Path:
    """The module ``csrc`` of the sources in ``cuda``; raises what torch raises when a compiler fails."""
    from torch.utils.cpp_extension import load

    wheels = package_folder("nvidia")
    sources = [*sorted(cuda.glob("csrc/*.cu")), *sorted(cuda.glob("csrc/*.cpp")), cuda / "ext.cpp"]
    if len(sources) < 20:
        sys.exit(f"error: only {len(sources)} sources in {cuda}; is this the wheel with CUDA sources?")
    load(
        name="csrc",
        sources=[str(source) for source in sources],
        extra_include_paths=[
            str(cuda / "include"),
            str(cuda / "csrc/third_party/glm"),
            *(str(wheels / name / "include") for name in MATH_LIBRARIES),
        ],
        extra_cflags=["-O3", "-Wno-attributes"],
        extra_cuda_cflags=["-O3", "-use_fast_math"],
        build_directory=str(work),
        verbose=True,
    )
    return work / "csrc.so"


def check_machine_code(library: Path, cuda_home: Path) -> str:
    """Which GPUs the library has machine code for, as text; ends the program unless it is exactly those asked for.

    Machine code runs with the driver of any CUDA 12; PTX would need a driver as new as the compiler.
    """
    listings = {}
    for kind in ("elf", "ptx"):
        command = [str(cuda_home / "bin/cuobjdump"), f"--list-{kind}", str(library)]
        listings[kind] = subprocess.run(command, capture_output=True, text=True, check=kind == "elf").stdout
    found = Counter(re.findall(r"\.sm_(\d+)\.cubin", listings["elf"]))
    wanted = {name.replace(".", "") for name in re.split(r"[;\s]+", os.environ["TORCH_CUDA_ARCH_LIST"])}
    if set(found) != wanted or len(set(found.values())) != 1 or ".ptx" in listings["ptx"]:
        sys.exit(f"error: machine code for {dict(found)}, wanted for each of {wanted}, no PTX: {listings['ptx']}")
    return ", ".join(f"sm_{name}: {number} cubins" for name, number in sorted(found.items()))


def strip_sources(gsplat: Path) -> None:
    """Remove what only the compiler needs."""
    for folder in ("csrc", "include"):
        shutil.rmtree(gsplat / "cuda" / folder)
    (gsplat / "cuda/ext.cpp").unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="where csrc.so goes; else into the installed gsplat")
    parser.add_argument("--strip-sources", action="store_true", help="remove gsplat's sources afterwards")
    arguments = parser.parse_args()
    if not os.environ.get("TORCH_CUDA_ARCH_LIST"):
        sys.exit('error: set TORCH_CUDA_ARCH_LIST, such as "7.5;8.6;9.0": a builder has no GPU to ask')
    if not os.environ.get("MAX_JOBS"):
        os.environ.pop("MAX_JOBS", None)  # empty is not a number
    cuda_home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    if not (cuda_home / "bin/nvcc").is_file():
        sys.exit(f"error: there is no CUDA compiler in {cuda_home / 'bin'}; set CUDA_HOME")
    # ninja is a console script of this environment
    os.environ["PATH"] = f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}"
    gsplat = package_folder("gsplat")
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        cuda = shutil.copytree(gsplat / "cuda", work / "cuda")
        keep_channels(cuda)
        built = compile_extension(cuda, work)
        machine_code = check_machine_code(built, cuda_home)
        target = (arguments.out or gsplat) / "csrc.so"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(built, target)
    if arguments.strip_sources:
        strip_sources(gsplat)
    size = target.stat().st_size / 1e6
    seconds = time.monotonic() - started
    print(f"{target}: {size:.1f} MB in {seconds:.0f} s; {machine_code}")


if __name__ == "__main__":
    main()
