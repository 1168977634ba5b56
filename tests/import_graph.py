"""The import graph of the project, by reading it. `python -m tests.import_graph` prints rooms, floors and arrows."""

from __future__ import annotations

import ast
import graphlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
# The folder in which the import names of each package begin.
BEGINS = {"functions": "functions", "containers": "containers", "spaceport": "", "deploy": "", "benchmarks": ""}
Graph = dict[str, set[str]]


@dataclass(frozen=True)
class Module:
    name: str  # as it is imported
    package: str  # the top folder
    path: str  # from the root
    imports: frozenset[str]  # every name that it imports, in functions and under TYPE_CHECKING too

    @property
    def room(self) -> str:
        """The folder right below the package, or the module itself where it lies on top; all handlers are one room."""
        parts = Path(self.path).parts[1:]
        if self.package == "functions" and len(parts) == 1:
            return "handlers"
        return parts[0].removesuffix(".py")


def python_files(*folders: str) -> list[Path]:
    files = (file for folder in folders for file in (ROOT / folder).rglob("*.py"))
    return sorted(file for file in files if "node_modules" not in file.parts)


def imported(tree: ast.AST, package: str) -> Iterator[str]:
    """`from a import b` gives a.b, `import a.b` gives a.b. The package is the one that dots begin from."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            above = parts[: len(parts) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


@cache
def modules() -> dict[str, Module]:
    """The modules of the product and the benchmarks by import name; empty `__init__.py` files are left out."""
    found: dict[str, Module] = {}
    for package, begin in BEGINS.items():
        for file in python_files(package):
            text = file.read_text(encoding="utf-8")
            parts = file.relative_to(ROOT / begin).with_suffix("").parts
            above = ".".join(parts[:-1])
            name = above if parts[-1] == "__init__" else ".".join(parts)
            if text.strip():
                assert name not in found, f"two modules are imported as {name}"
                names = frozenset(imported(ast.parse(text), above))
                found[name] = Module(name, package, file.relative_to(ROOT).as_posix(), names)
    return found


@cache
def import_graph() -> Graph:
    """The project's own modules that each module imports: of `from a import b`, a.b where that is a module, else a."""
    known = modules()
    graph: Graph = {name: set() for name in known}
    for module in known.values():
        for name in module.imports:
            target = next((part for part in (name, name.rpartition(".")[0]) if part in known), None)
            if target and target != module.name:
                graph[module.name].add(target)
    return graph


def between_rooms(rooms: dict[str, str]) -> Graph:
    """Rooms that each room imports, given the room of each module; modules without a room are left out."""
    arrows: Graph = {room: set() for room in rooms.values()}
    for name, room in rooms.items():
        arrows[room] |= {rooms[target] for target in import_graph()[name] if target in rooms} - {room}
    return arrows


def floors(graph: Graph) -> list[list[str]]:
    """Lowest first, each entry as low as what it imports allows. Raises graphlib.CycleError on a circle."""
    height: dict[str, int] = {}
    for name in graphlib.TopologicalSorter(graph).static_order():
        height[name] = max((height[target] + 1 for target in graph[name]), default=0)
    return [sorted(name for name in height if height[name] == level) for level in range(max(height.values()) + 1)]


def main() -> None:
    for package in BEGINS:
        rooms = {module.name: module.room for module in modules().values() if module.package == package}
        arrows, sizes = between_rooms(rooms), Counter(rooms.values())
        print(f"{package}: {len(rooms)} modules in {len(arrows)} rooms, {sum(map(len, arrows.values()))} arrows")
        for level, names in reversed(list(enumerate(floors(arrows), 1))):
            print(f"  {level}  " + ", ".join(f"{name} ({sizes[name]})" if sizes[name] > 1 else name for name in names))


if __name__ == "__main__":
    main()
