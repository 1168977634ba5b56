"""For which processor kernels are compiled, and where kernels that were compiled before are found.

Numba compiles for the very processor it runs on, so that what one machine compiled is of no use on the next. Kernels
are compiled for the instruction set level of the processor instead: on the machine measured (Zen 4) they are not slower
than with everything it has, and those of an image serve every machine it is started on:

    python -m splat.processor train.cpu.engine     compiles the kernels of a module into $SPACEPORT_KERNELS
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

BAKED_VARIABLE = "SPACEPORT_KERNELS"  # a folder of compiled kernels, for both levels, that is only read
# What of a level LLVM may use and an older processor may lack, by its names in /proc/cpuinfo; the best level first.
_V3 = {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"}
LEVELS = {
    "x86-64-v4": _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "x86-64-v3": _V3,
}


def level(cpuinfo: str) -> str | None:
    """The highest level that the processor of this /proc/cpuinfo reaches; None when it is below v3 or no x86."""
    for line in cpuinfo.splitlines():
        name, _, flags = line.partition(":")
        if name.strip() == "flags":
            return next((level for level, needed in LEVELS.items() if needed <= set(flags.split())), None)
    return None


def adopt_kernels(baked: Path, cache: Path) -> None:
    """Copy compiled kernels to ``cache``, package by package, unless a package has some there already.

    Declaring a kernel makes the folder of its package, still empty.
    """
    if not baked.is_dir():
        return
    cache.mkdir(parents=True, exist_ok=True)
    for package in baked.iterdir():
        own = cache / package.name
        if any(own.glob("*")):
            continue
        with tempfile.TemporaryDirectory(dir=cache, ignore_cleanup_errors=True) as folder:
            copy = Path(shutil.copytree(package, Path(folder) / package.name))
            with contextlib.suppress(OSError):  # another process was faster; its kernels are the same
                copy.rename(own)


def cache_folder() -> Path | None:
    """The folder that compiled kernels go to; None where they go beside their sources, into __pycache__.

    ``$NUMBA_CACHE_DIR``, when it is set, has the last word. An installation may be read-only and a home missing:
    numba by itself ends the program there.
    """
    if "NUMBA_CACHE_DIR" in os.environ:
        return Path(os.environ["NUMBA_CACHE_DIR"])
    if _writable(Path(__file__).parent / "__pycache__"):
        return None
    home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))  # noqa: PTH111 - never raises
    if home.is_absolute() and _writable(home / "spaceport"):
        return home / "spaceport"
    own = Path(tempfile.gettempdir(), f"spaceport-{os.getuid()}")
    with contextlib.suppress(OSError):
        own.mkdir(mode=0o700)
    # Kernels are machine code: none are taken from a folder that someone else made or may write to.
    found = own.lstat() if own.exists() or own.is_symlink() else None
    if found and stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
        return own
    return Path(tempfile.mkdtemp(prefix="spaceport-"))


def _writable(folder: Path) -> bool:
    """A file can be written to the folder, which is made where it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def prepare() -> None:
    """To be called before the first kernel is compiled. ``$NUMBA_CPU_NAME``, when it is set, has the last word."""
    from numba import config

    folder = cache_folder()
    if folder:
        os.environ["NUMBA_CACHE_DIR"] = str(folder)
        config.reload_config()
    cpuinfo = Path("/proc/cpuinfo")
    found = level(cpuinfo.read_text()) if cpuinfo.is_file() else None
    if found and "NUMBA_CPU_NAME" not in os.environ:
        os.environ["NUMBA_CPU_NAME"], os.environ["NUMBA_CPU_FEATURES"] = found, ""
        config.reload_config()
    if BAKED_VARIABLE in os.environ and config.CACHE_DIR:
        adopt_kernels(Path(os.environ[BAKED_VARIABLE]), Path(config.CACHE_DIR))


def bake(module: str, folder: Path) -> None:
    """Compile what ``module`` imports, once per level (of other processors than x86: for this one), into ``folder``.

    Kernels are compiled, not run, so this machine need not reach the level. Raises CalledProcessError.
    """
    x86 = level(Path("/proc/cpuinfo").read_text()) is not None
    for name in LEVELS if x86 else [""]:
        target = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": ""} if name else {}
        environment = {**os.environ, **target, "NUMBA_CACHE_DIR": str(folder)}
        subprocess.run([sys.executable, "-c", f"import {module}"], env=environment, check=True)


if __name__ == "__main__":
    bake(sys.argv[1], Path(os.environ[BAKED_VARIABLE]))
