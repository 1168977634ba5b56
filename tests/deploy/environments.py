"""Tools of the deployment tests, each in an environment of its own under build/deploy: their pins contradict."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "deploy"
REQUIREMENTS = (Path(__file__).parent / "requirements", ROOT / "deploy" / "requirements")


class ToolMissing(Exception):
    """A tool could not be installed; the text is the end of the output of pip or uv."""


def tool(name: str, program: str) -> Path:
    """Path of ``program`` in the environment of requirements/<name>.txt, which is made when it is not there yet."""
    (requirements,) = (file for folder in REQUIREMENTS if (file := folder / f"{name}.txt").is_file())
    folder = BUILD / name
    stamp, wanted = folder / "requirements.sha256", hashlib.sha256(requirements.read_bytes()).hexdigest()
    if not stamp.is_file() or stamp.read_text() != wanted:
        uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        python = str(folder / "bin" / "python")
        if uv is None:
            _run([sys.executable, "-m", "venv", "--clear", str(folder)])
            _run([python, "-m", "pip", "install", "--quiet", "--no-deps", "-r", str(requirements)])
        else:
            _run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)])
            _run([uv, "pip", "sync", "--quiet", "--python", python, str(requirements)])
        stamp.write_text(wanted)
    return folder / "bin" / program


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ToolMissing(f"{' '.join(command)}: {done.stderr[-1500:]}")


def run(
    command: list[str | Path], *, env: dict[str, str] | None = None, cwd: Path = ROOT, timeout_s: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run a command that must succeed; AssertionError with the end of its output otherwise."""
    done = subprocess.run(
        [str(part) for part in command],
        env=clean_environment() if env is None else env,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, (
        f"{command} ended with {done.returncode}:\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
    )
    return done


def clean_environment(**more: str) -> dict[str, str]:
    """The environment without anything of AWS, so that no test ever reaches an account."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    none = {
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    return {**kept, **none, "AWS_DEFAULT_REGION": "us-east-1", "SAM_CLI_TELEMETRY": "0", **more}
