"""Reads the worked examples of docs/extending.md and makes their changes on a copy of the tree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.import_graph import ROOT

PAGE = ROOT / "docs/extending.md"
NEW_FILE = re.compile(r"^\*\*`([^`]+)`\*\*\n\n```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PATCH = re.compile(r"^```diff\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PATCHED = re.compile(r"^\+\+\+ b/(.+)$", re.MULTILINE)
# Installed by npm and ignored by git.
VIEWER = "containers/compress/viewer/node_modules"


@dataclass(frozen=True)
class Example:
    new_files: dict[str, str]  # by path
    patches: tuple[str, ...]

    @property
    def touched(self) -> set[str]:
        """Paths of all files that are written by hand."""
        return self.new_files.keys() | {path for patch in self.patches for path in PATCHED.findall(patch)}


def read_example(heading: str, page: str) -> Example:
    """The blocks of one section. Raises KeyError where there is no such heading."""
    sections = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    return Example(dict(NEW_FILE.findall(sections[heading])), tuple(PATCH.findall(sections[heading])))


@dataclass(frozen=True)
class Tree:
    """A copy of what git knows of the working tree."""

    root: Path

    @classmethod
    def copied(cls, target: Path) -> Tree:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        for path in filter(None, listed.stdout.split("\0")):
            if (ROOT / path).is_file():
                (target / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / path, target / path)
        if (ROOT / VIEWER).is_dir():
            (target / VIEWER).symlink_to(ROOT / VIEWER)
        return cls(target)

    def change(self, example: Example) -> None:
        """Write the new files and apply the patches, as a reader of the page would."""
        for path, text in example.new_files.items():
            assert not (self.root / path).exists(), f"{path} is there already"
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            (self.root / path).write_text(text, encoding="utf-8")
        for patch in example.patches:
            applied = subprocess.run(
                ["git", "apply", "--recount", "-"],
                cwd=self.root, input=patch, capture_output=True, text=True, check=False,
                env=os.environ | {"GIT_CEILING_DIRECTORIES": str(self.root.parent)},
            )  # fmt: skip
            assert applied.returncode == 0, f"docs/extending.md is out of date: {applied.stderr}{patch}"

    def python(self, *arguments: str) -> str:
        """What a program of the copy prints; its end with an error is one."""
        folders = [self.root, self.root / "functions", self.root / "containers"]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))}
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.root, env=environment, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{arguments}: {done.stdout[-6000:]}{done.stderr[-3000:]}"
        return done.stdout

    def test(self, *arguments: str) -> str:
        return self.python("-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", *arguments)
