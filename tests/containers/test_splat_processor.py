"""For which processor kernels are compiled, and how an image's kernels come into the cache."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from splat import processor
from splat.processor import adopt_kernels, cache_folder, level

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


@pytest.fixture
def installation(tmp_path, monkeypatch):
    """(folder of the sources, home, folder for temporary files) of a program that has no cache folder yet."""
    sources, home, temporary = (tmp_path / name for name in ("installed/splat", "home", "tmp"))
    for folder in (sources, home, temporary):
        folder.mkdir(parents=True)
    monkeypatch.setattr(processor, "__file__", str(sources / "processor.py"))
    monkeypatch.setattr(processor.tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("HOME", str(home))
    for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    return sources, home, temporary


def read_only(folder):
    """Even root cannot write below it: it is a file."""
    folder.rmdir()
    folder.write_text("")


def test_kernels_lie_beside_their_sources_where_these_can_be_written(installation):
    assert cache_folder() is None


def test_a_cache_folder_that_is_named_wins(installation, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/tmp/numba")
    assert cache_folder() == Path("/tmp/numba")


def test_kernels_of_a_read_only_installation_lie_in_the_users_cache(installation, monkeypatch, tmp_path):
    sources, home, _ = installation
    read_only(sources)
    assert cache_folder() == home / ".cache/spaceport"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg/spaceport"


def test_kernels_lie_in_a_temporary_folder_of_the_user_where_there_is_no_home(installation):
    sources, home, temporary = installation
    read_only(sources)
    read_only(home)
    own = temporary / f"spaceport-{os.getuid()}"
    assert cache_folder() == own and own.stat().st_mode & 0o777 == 0o700
    assert cache_folder() == own  # found again


@pytest.mark.parametrize("taken", ["open to others", "a link", "a file", "someone else's"])
def test_kernels_are_not_taken_from_a_folder_that_others_may_write(installation, tmp_path, taken):
    sources, home, temporary = installation
    read_only(sources)
    read_only(home)
    own = temporary / f"spaceport-{os.getuid()}"
    if taken == "a link":
        own.symlink_to(tmp_path)
    elif taken == "a file":
        own.write_text("")
    else:
        own.mkdir(mode=0o700)
        if taken == "open to others":
            own.chmod(0o777)
        elif os.getuid() == 0:
            os.chown(own, 65534, 65534)
        else:
            pytest.skip("only root can make a folder of someone else")
    found = cache_folder()
    assert found and found != own and found.parent == temporary and found.stat().st_mode & 0o777 == 0o700


def test_a_kernel_is_compiled_where_neither_the_installation_nor_home_can_be_written(tmp_path):
    package = tmp_path / "splat"
    package.mkdir()
    (package / "__pycache__").write_text("")  # not even root can make this folder
    package.joinpath("processor.py").write_text(Path(processor.__file__).read_text(encoding="utf-8"))
    lines = ["import numba", "", "@numba.njit(cache=True)", "def one():", "    return 1", "", "assert one() == 1"]
    package.joinpath("kernel.py").write_text("\n".join(lines))
    program = "from splat import processor; processor.prepare(); import splat.kernel"
    environment = {"HOME": str(package / "__pycache__"), "PYTHONPATH": str(tmp_path), "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=60)
    assert [*(tmp_path / f"spaceport-{os.getuid()}").glob("*/kernel.one*.nbc")]
