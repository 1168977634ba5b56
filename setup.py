"""Puts what is deployed and what runs, which lies outside the package, into the wheel as spaceport/_stack."""

import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from spaceport.stack.deploy_files import deploy_sources  # noqa: E402 - a build does not have the repository on its path

VIEWER = HERE / "containers" / "compress" / "viewer" / "node_modules"


class BuildWithStack(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:  # the repository's own files are used
            return
        if not VIEWER.is_dir():
            raise SystemExit("The page's viewer is not here: `make wheel` fetches it first.")
        for source in [*deploy_sources(), *(file for file in VIEWER.rglob("*") if file.is_file())]:
            target = Path(self.build_lib, "spaceport", "_stack", source.relative_to(HERE))
            self.mkpath(str(target.parent))
            self.copy_file(str(source), str(target))


setup(cmdclass={"build_py": BuildWithStack})
