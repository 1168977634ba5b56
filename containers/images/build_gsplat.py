"""Compile gsplat's CUDA extension ahead of time, from the sources in its wheel, to ``gsplat/csrc.so``.

gsplat imports that module if it is there, and otherwise compiles at run time, which the images neither can nor should.
The flags are gsplat's own (gsplat/cuda/_backend.py, version 1.5.3). No GPU is needed. Environment: CUDA_HOME, a toolkit
of torch's own CUDA release; TORCH_CUDA_ARCH_LIST; MAX_JOBS.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import sys
import sysconfig
import tempfile
import time
from pathlib import Path


def package_folder(name: str) -> Path:
    """The folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"error: the package {name} is not installed for {sys.executable}")
    return Path(next(iter(spec.submodule_search_locations)))


def compile_extension(gsplat: Path, work: Path) -> Path:
    """The compiled module ``csrc``; raises what torch raises when a compiler fails."""
    from torch.utils.cpp_extension import load

    cuda = gsplat / "cuda"
    sources = [*sorted(cuda.glob("csrc/*.cu")), *sorted(cuda.glob("csrc/*.cpp")), cuda / "ext.cpp"]
    if len(sources) < 20:
        sys.exit(f"error: only {len(sources)} sources in {cuda}; is this the wheel with CUDA sources?")
    load(
        name="csrc",
        sources=[str(source) for source in sources],
        extra_include_paths=[str(cuda / "include"), str(cuda / "csrc/third_party/glm")],
        extra_cflags=["-O3", "-Wno-attributes"],
        extra_cuda_cflags=["-O3", "-use_fast_math"],
        build_directory=str(work),
        verbose=True,
    )
    return work / "csrc.so"


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
    nvcc = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin" / "nvcc"
    if not nvcc.is_file():
        sys.exit(f"error: there is no CUDA compiler {nvcc}; set CUDA_HOME")
    # ninja is a console script of this environment
    os.environ["PATH"] = f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}"
    gsplat = package_folder("gsplat")
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as work:
        built = compile_extension(gsplat, Path(work))
        target = (arguments.out or gsplat) / "csrc.so"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(built, target)
    if arguments.strip_sources:
        strip_sources(gsplat)
    size = target.stat().st_size / 1e6
    seconds = time.monotonic() - started
    print(f"{target}: {size:.1f} MB for {os.environ['TORCH_CUDA_ARCH_LIST']} in {seconds:.0f} s")


if __name__ == "__main__":
    main()
