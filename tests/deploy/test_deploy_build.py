"""`sam build` for python3.13 on arm64, on a machine that has neither that Python nor a container engine."""

from __future__ import annotations

import ast
import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.deploy.environments import BUILD, ROOT, clean_environment, run
from tests.unit.cloud import load_template

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
TOOLS = (
    "make",
    "sh",
    "cp",
    "env",
    "find",
    "mkdir",
    "rm",
    "uname",
)  # all that the build may find on its PATH beside Python
ELF_MACHINE_AARCH64 = 0xB7
LAYER_LIMIT_BYTES = 250_000_000  # unzipped, function and layers together


@pytest.fixture(scope="module")
def built(sam, tmp_path_factory) -> Path:
    programs = tmp_path_factory.mktemp("bin")
    for name in TOOLS:
        found = shutil.which(name)
        assert found, f"{name} is not installed"
        (programs / name).symlink_to(found)
    (programs / "python3").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (programs / "python3").chmod(0o755)
    env = clean_environment(PATH=str(programs), DOCKER_HOST="unix:///nonexistent")
    for name in ("python3.13", "docker", "podman", "finch"):
        assert shutil.which(name, path=env["PATH"]) is None
    folder = BUILD / "arm64"
    done = run([sam, "build", "--no-cached", "--build-dir", folder], env=env)
    assert "Build Succeeded" in done.stdout + done.stderr
    return folder


def test_compiled_packages_are_for_the_functions_runtime(built):
    libraries = list((built / "Dependencies").rglob("*.so"))
    assert libraries
    for library in libraries:
        head = library.read_bytes()[:20]
        assert head[:4] == b"\x7fELF"
        assert int.from_bytes(head[18:20], "little") == ELF_MACHINE_AARCH64, library.name
        assert ".cpython-313-" in library.name or ".abi3." in library.name, library.name


def test_everything_that_is_imported_is_there(built):
    """Packages in the layer, modules in each function, the rest comes with the runtime."""
    packages = {path.name.partition(".")[0] for path in (built / "Dependencies/python").iterdir()}
    from_runtime = {"boto3", "botocore"}
    for name, resource in load_template()["Resources"].items():
        if resource["Type"] != "AWS::Serverless::Function":
            continue
        own = {path.stem for path in (built / name).iterdir()}
        assert resource["Properties"]["Handler"].partition(".")[0] in own
        assert (built / name / "notifications/templates").is_dir()
        assert not list((built / name).rglob("__pycache__"))
        for file in (built / name).rglob("*.py"):
            tree = ast.parse(file.read_text())
            typing_only = {
                node.lineno
                for block in ast.walk(tree)
                if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
                for node in ast.walk(block)
                if isinstance(node, ast.ImportFrom | ast.Import)
            }
            for node in ast.walk(tree):
                modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                for module in modules if getattr(node, "lineno", 0) not in typing_only else []:
                    top = module.partition(".")[0]
                    assert top in own | packages | from_runtime | sys.stdlib_module_names, f"{file.name}: {module}"


def test_sizes(built):
    sizes = {
        folder.name: sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        for folder in built.iterdir()
        if folder.is_dir()
    }
    assert len(sizes) == 7
    assert max(sizes.values()) < LAYER_LIMIT_BYTES / 5
    assert not (built / "Dependencies/python/botocore").exists(), "the runtime brings it"
    assert all(size < 1_000_000 for name, size in sizes.items() if name != "Dependencies")


def test_lock_names_what_the_functions_require():
    locked = (ROOT / "functions/requirements.lock").read_text().lower()
    for line in (ROOT / "functions/requirements.txt").read_text().split():
        assert f"\n{line.partition('[')[0]}==" in "\n" + locked
    assert os.environ.get("RUNTIME") is None, "RUNTIME in the environment would change what sam build fetches"
