"""The bill of materials of an image, CycloneDX 1.6 JSON: Python, Debian and npm packages, and libraries inside wheels.

Runs in a builder stage of the Dockerfile; cyclonedx-py lists the Python packages, the rest is added here. What the
compiled files of a wheel were linked from is known as far as the wheel says it or the files betray it: that list can
miss some.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import TypedDict
from urllib.parse import quote

# Licences of libraries inside wheels where no file of the wheel names them, as the libraries' own sources state them.
# CHOLMOD: of its modules in pycolmap Check, Cholesky, Partition and Utility are under the LGPL, MatrixOps and
# Supernodal under the GPL (SuiteSparse, CHOLMOD/Doc/License.txt); SPQR/Doc/License.txt.
LIBRARY_LICENCES = {
    "ceres": "BSD-3-Clause",
    "curl": "curl",
    "gflags": "BSD-3-Clause",
    "glog": "BSD-3-Clause",
    "lapack-reference": "BSD-3-Clause",
    "libgfortran": "GPL-3.0-or-later WITH GCC-exception-3.1",
    "libgomp": "GPL-3.0-or-later WITH GCC-exception-3.1",
    "libquadmath": "LGPL-2.1-or-later",
    "libscipy_openblas64_": "BSD-3-Clause",
    "metis": "Apache-2.0",
    "openblas-openmp": "BSD-3-Clause",
    "openimageio": "Apache-2.0",
    "openjph": "BSD-2-Clause",
    "suitesparse-cholmod": "LGPL-2.1-or-later AND GPL-2.0-or-later",
    "suitesparse-spqr": "GPL-2.0-or-later",
    "tiff": "libtiff",
}
# Names of source files, which assertions leave in a compiled file: the library and its version.
VCPKG_SOURCE = re.compile(rb"vcpkg/buildtrees/([a-z0-9-]+)/src/([\w.-]+?)(?:-[0-9a-f]{10})?\.clean/")
DPKG_FORMAT = "${db:Status-Abbrev}\t${Package}\t${Version}\t${Architecture}\t${source:Package}\t${source:Version}\n"


class LicenceChoice(TypedDict):
    license: dict[str, str]  # {"name": …} or {"id": an SPDX identifier}


class NamedValue(TypedDict):
    name: str
    value: str


# What of a CycloneDX 1.6 component is read or written here.
Component = TypedDict(
    "Component",
    {
        "type": str,
        "bom-ref": str,
        "name": str,
        "version": str,
        "purl": str,
        "scope": str,
        "licenses": list[LicenceChoice],
        "properties": list[NamedValue],
        "components": "list[Component]",
    },
    total=False,
)


class Bill(TypedDict, total=False):
    metadata: dict[str, Component]
    components: list[Component]


def python_packages(python: Path) -> Bill:
    """Everything installed beside ``python``."""
    tool = Path(sys.executable).with_name("cyclonedx-py")
    command = ["environment", "--spec-version", "1.6", "--output-reproducible", "--output-format", "JSON", str(python)]
    document: Bill = json.loads(subprocess.run([str(tool), *command], check=True, stdout=subprocess.PIPE).stdout)
    (site,) = python.parent.parent.glob("lib/python*/site-packages")
    installed = {found.metadata["Name"]: found for found in distributions(path=[str(site)])}
    for component in document.get("components", []):
        if not component.get("licenses"):
            component["licenses"] = [named_licence(wheel_licence(installed[component["name"]]))]
        inside = libraries(installed[component["name"]], component["bom-ref"])
        if inside:
            component["components"] = inside
    return document


def named_licence(name: str) -> LicenceChoice:
    return {"license": {"name": name}}


def wheel_licence(wheel: Distribution) -> str:
    """What the tool does not read: the ``License`` field, or else the title of the licence file."""
    named = wheel.metadata.get_all("License") or [""]
    texts = [wheel.read_text(f"licenses/{name}") or "" for name in wheel.metadata.get_all("License-File") or []]
    lines = [line.strip() for text in texts for line in text.splitlines() if line.strip()]
    return named[0] or (lines[0] if lines else "unknown")


def libraries(wheel: Distribution, ref: str) -> list[Component]:
    """One component for each library that is known to be inside a wheel, with what tells of it as a property."""
    found: dict[str, Component] = {}

    def add(evidence: str, name: str, version: str, licences: list[LicenceChoice], scope: str) -> None:
        library: Component = {"type": "library", "bom-ref": f"{ref}#{name}@{version}", "name": name}
        library["properties"] = [{"name": "spaceport:evidence", "value": evidence}]
        if version:
            library["version"] = version
        if scope:
            library["scope"] = scope
        if licences or name in LIBRARY_LICENCES:
            library["licenses"] = licences or [named_licence(LIBRARY_LICENCES[name])]
        found.setdefault(f"{name}@{version}", library)

    own = normalized(wheel.metadata["Name"])
    files = wheel.files or []
    said = [file for file in files if file.parent.name == "sboms" and file.suffix == ".json"]
    for file in said:
        for part in json.loads(file.read_text()).get("components", []):
            if normalized(part["name"]) != own:
                version, licences = part.get("version") or "", part.get("licenses") or []
                add(str(file), part["name"], version, licences, part.get("scope") or "")
    for file in files:
        if ".so" not in file.suffixes:
            continue
        if file.parent.name.endswith(".libs") and not said:
            add(str(file), file.name.split(".")[0].split("-")[0], "", [], "")
        for name, version in sorted(set(VCPKG_SOURCE.findall(Path(str(file.locate())).read_bytes()))):
            add(f"names of source files in {file}", name.decode(), version.decode(), [], "")
    return [found[key] for key in sorted(found)]


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def debian_packages(root: Path) -> list[Component]:
    """One component for each package installed under ``root``, with the licences its copyright file names.

    The purl names the source package ("upstream") where it is another: Debian's advisories are about sources.
    """
    command = ["dpkg-query", f"--admindir={root}/var/lib/dpkg", "-W", f"-f={DPKG_FORMAT}"]
    listing = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    components = []
    for line in listing.splitlines():
        status, name, version, architecture, source, source_version = line.split("\t")
        if not status.startswith("ii"):
            continue
        purl = f"pkg:deb/debian/{quote(name)}@{quote(version)}?arch={architecture}&distro=debian-12"
        if (source, source_version) != (name, version):
            upstream = source if source_version == version else f"{source}@{source_version}"
            purl += f"&upstream={quote(upstream)}"
        licences = debian_licences(root / "usr/share/doc" / name / "copyright")
        components.append(package_component(purl, name, version, licences))
    return components


def package_component(purl: str, name: str, version: str, licences: list[str]) -> Component:
    component: Component = {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
    if licences:
        component["licenses"] = [named_licence(licence) for licence in licences]
    return component


def debian_licences(copyright_file: Path) -> list[str]:
    """Short names from the ``License:`` fields (Debian machine-readable copyright format 1.0)."""
    if not copyright_file.is_file():
        return []
    text = copyright_file.read_text(encoding="utf-8", errors="replace")
    return sorted({found.strip() for found in re.findall(r"^License:[ \t]*(\S.*)$", text, re.MULTILINE)})


def npm_packages(node_modules: Path) -> list[Component]:
    """One component for each package.json directly under ``node_modules`` or under a scope in it."""
    components = []
    for file in sorted([*node_modules.glob("*/package.json"), *node_modules.glob("@*/*/package.json")]):
        package = json.loads(file.read_text(encoding="utf-8"))
        purl = f"pkg:npm/{package['name'].replace('@', '%40')}@{package['version']}"
        licences = [package["license"]] if package.get("license") else []
        components.append(package_component(purl, package["name"], package["version"], licences))
    return components


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True, help="name of the image")
    parser.add_argument("--python", type=Path, default=Path("/opt/venv/bin/python"))
    parser.add_argument("--debian-root", type=Path, required=True, help="root file system of the final image's base")
    parser.add_argument("--node-modules", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    document = python_packages(arguments.python)
    document.setdefault("metadata", {})["component"] = {
        "type": "container",
        "bom-ref": arguments.name,
        "name": arguments.name,
    }
    document.setdefault("components", []).extend(debian_packages(arguments.debian_root))
    if arguments.node_modules:
        document["components"].extend(npm_packages(arguments.node_modules))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(f"{arguments.out}: {len(document['components'])} components")


if __name__ == "__main__":
    main()
