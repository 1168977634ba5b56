"""For which processor kernels are compiled, and how an image's kernels come into the cache."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from splat.processor import adopt_kernels, level

CONTAINERS = Path(__file__).resolve().parents[2] / "containers"
# Flags as the kernels of these processors' machines list them, shortened to what matters and what misleads.
HASWELL = "fpu sse4_2 movbe popcnt avx f16c abm bmi1 avx2 bmi2 fma"
ICE_LAKE = HASWELL + " avx512f avx512dq avx512cd avx512bw avx512vl avx512_vnni"


@pytest.mark.parametrize(
    "flags, wanted",
    [
        (ICE_LAKE, "x86-64-v4"),
        (ICE_LAKE.replace("avx512vl", ""), "x86-64-v3"),  # Knights Landing lacks it
        (HASWELL, "x86-64-v3"),
        (HASWELL.replace("avx2 ", ""), None),
    ],
)
def test_level_of_a_processor(flags, wanted):
    assert level(f"processor\t: 0\nmodel name\t: x\nflags\t\t: {flags}\nbugs\t: avx512f\n") == wanted


def test_a_processor_that_is_no_x86_has_no_level():
    assert level("processor : 0\nFeatures : fp asimd crc32\n") is None


def test_kernels_of_the_image_fill_an_empty_cache_only(tmp_path):
    baked, cache = tmp_path / "baked", tmp_path / "deep/cache"
    adopt_kernels(baked, cache)
    assert not cache.exists()
    (baked / "splat").mkdir(parents=True)
    (baked / "splat/blend.nbc").write_bytes(b"new")
    adopt_kernels(baked, cache)
    assert (cache / "splat/blend.nbc").read_bytes() == b"new"
    (cache / "splat/blend.nbc").unlink()
    adopt_kernels(baked, cache)  # a kernel was declared: the folder is there, and empty
    assert (cache / "splat/blend.nbc").read_bytes() == b"new"
    (cache / "splat/blend.nbc").write_bytes(b"own")
    adopt_kernels(baked, cache)
    assert (cache / "splat/blend.nbc").read_bytes() == b"own"
    assert [path.name for path in cache.parent.iterdir()] == ["cache"]


@pytest.mark.parametrize("asked", [None, "haswell"])
@pytest.mark.parametrize("first", ["splat.simd", "compress.codebook"])
def test_kernels_are_compiled_for_the_level_or_for_what_was_asked(first, asked):
    """Whatever is imported first: what is compiled for another processor is not found among the image's kernels."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_CPU")} | {
        "PYTHONPATH": str(CONTAINERS)
    }
    if asked:
        environment |= {"NUMBA_CPU_NAME": asked, "NUMBA_CPU_FEATURES": ""}
    program = f"import {first}, splat.simd; from numba.core.registry import cpu_target as cpu; "
    program += "_, name, features = cpu.target_context.codegen().magic_tuple(); print(name, repr(features))"
    answer = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    wanted = asked or level(Path("/proc/cpuinfo").read_text())
    assert wanted is None or answer.stdout.split() == [wanted, "''"]


@pytest.mark.parametrize("module", ["compress.codebook", "compress.sog_encode", "splat.simd"])
def test_the_kernels_of_the_image_are_there_whatever_is_imported_first(module, tmp_path):
    """A kernel that is declared before they are copied makes the folder, and all are compiled anew in every job."""
    baked = tmp_path / "baked"
    (baked / "splat").mkdir(parents=True)
    (baked / "splat/of-the-image").touch()
    folders = {"SPACEPORT_KERNELS": str(baked), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    path = str(Path(__file__).parents[2] / "containers")
    environment = os.environ | folders | {"PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", f"import {module}, splat.simd"], env=environment, check=True)
    assert (tmp_path / "cache/splat/of-the-image").exists()
