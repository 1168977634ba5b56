"""What containers/images/sbom.py finds inside wheels."""

from __future__ import annotations

import json
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any

from images.licences import is_refused
from images.sbom import libraries


def wheel(folder: Path, files: dict[str, bytes]) -> Distribution:
    """An installed wheel with these files."""
    info = folder / "toy-1.dist-info"
    for name, content in {"toy-1.dist-info/METADATA": b"Name: toy\nVersion: 1\n", **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in files))
    return Distribution.at(info)


def summary(found: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(part["name"], part.get("version", "")) for part in found]


def test_what_the_wheel_says(tmp_path: Path) -> None:
    """Its own bills are taken over, but for the wheel itself."""
    parts = [
        {"name": "toy", "version": "1"},
        {"name": "libgomp", "version": "8.5", "licenses": []},
        {"name": "quant", "version": "4", "scope": "optional", "licenses": [{"license": {"id": "GPL-3.0-only"}}]},
    ]
    bill = json.dumps({"components": parts}).encode()
    made = wheel(tmp_path, {"toy-1.dist-info/sboms/auditwheel.cdx.json": bill, "toy.libs/libgomp-1f.so.1": b""})
    openmp, quant = libraries(made, "ref")
    assert openmp["licenses"] == [{"license": {"name": "GPL-3.0-or-later WITH GCC-exception-3.1"}}]
    assert openmp["bom-ref"] == "ref#libgomp@8.5"
    assert (quant["scope"], quant["licenses"]) == ("optional", [{"license": {"id": "GPL-3.0-only"}}])


def test_what_the_files_betray(tmp_path: Path) -> None:
    source = b"\0/home/x/vcpkg/buildtrees/suitesparse-spqr/src/v7.13.0-0b6b08a336.clean/SPQR/Source/spqr.cpp\0"
    made = wheel(tmp_path, {"toy/_core.so": b"\x7fELF" + source * 2, "toy.libs/libgfortran-04-1e.so.5.0.0": b""})
    found = libraries(made, "ref")
    assert summary(found) == [("libgfortran", ""), ("suitesparse-spqr", "v7.13.0")]
    assert found[1]["licenses"] == [{"license": {"name": "GPL-2.0-or-later"}}]
    assert found[1]["properties"][0]["value"] == "names of source files in toy/_core.so"


def test_what_pycolmap_has() -> None:
    """The facts of docs/decisions/0006."""
    found = {part["name"]: part["licenses"][0]["license"]["name"] for part in libraries(distribution("pycolmap"), "p")}
    assert {name for name, licence in found.items() if is_refused(licence)} == {
        "suitesparse-cholmod",
        "suitesparse-spqr",
    }
