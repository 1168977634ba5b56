"""The rooms of the code and who may import whom. `python -m tests.import_graph` prints how it is."""

from __future__ import annotations

import ast
import graphlib
from collections import defaultdict

import pytest

from base.stages import STAGE_NAMES
from tests.import_graph import ROOT, between_rooms, import_graph, modules, python_files

# Lowest floor first. A room imports from lower floors only, never from its own. A new room needs a place here.
FLOORS = {
    "functions": ["base", "uploads table", "stages", "notifications", "handlers"],
    "containers": ["images job splat", " ".join(STAGE_NAMES)],
    "spaceport": [
        "base sample stack",
        "asl aws",
        "jobs out_folder",
        "local_cloud",
        "local_run machine progress view",
        "cli",
    ],
}
# Inside the training stage; its other modules may lie anywhere as long as there is no circle.
TRAIN_FLOORS = ["engine", "cpu gpu", "gpus", "engines", "trainer", "stage", "__main__"]
# What a package imports besides itself. The functions run in Lambda, the stages in their images, spaceport/ plays both.
IMPORTS = {
    "functions": set(),
    "containers": set(),
    "spaceport": set(),
    "deploy": {"functions", "containers", "spaceport"},
    "benchmarks": {"functions", "containers", "spaceport", "deploy"},
}
ROOMS_ON_TOP, FLOORS_AT_MOST = 13, 6  # of spaceport/
# The two that run a Lambda's code, whose folder comes first on the path there.
CHANGE_SYS_PATH = ("spaceport/aws/", "tests/state_machine/simulator/")
# "ClassName": "why there are two".
TWO_CLASSES: dict[str, str] = {}
LONGEST = 400
REASON = f"# Longer than {LONGEST} lines: "


def rooms_of(package: str) -> dict[str, str]:
    return {module.name: module.room for module in modules().values() if module.package == package}


def arrows_up(arrows: dict[str, set[str]], floors: list[str]) -> list[str]:
    height = {room: level for level, names in enumerate(floors) for room in names.split()}
    return [
        f"{room} -> {target}"
        for room, targets in arrows.items()
        for target in targets
        if room in height and target in height and height[target] >= height[room]
    ]


def test_no_circle_of_imports() -> None:
    try:
        graphlib.TopologicalSorter(import_graph()).prepare()
    except graphlib.CycleError as circle:
        pytest.fail("modules import each other: " + " <- ".join(circle.args[1]))


@pytest.mark.parametrize("package", FLOORS)
def test_rooms_import_from_lower_floors_only(package: str) -> None:
    arrows = between_rooms(rooms_of(package))
    known = {room for names in FLOORS[package] for room in names.split()}
    assert not arrows.keys() - known, "these rooms have no place in FLOORS"
    assert not known - arrows.keys(), "these rooms of FLOORS are not there"
    assert not set(arrows_up(arrows, FLOORS[package])), "imported from the own or a higher floor"


def test_spaceport_has_few_rooms_and_floors() -> None:
    assert len(set(rooms_of("spaceport").values())) <= ROOMS_ON_TOP
    assert len(FLOORS["spaceport"]) <= FLOORS_AT_MOST


def test_floors_of_the_training_stage() -> None:
    rooms = {name: name.split(".")[1] for name in modules() if name.startswith("train.")}
    missing = {room for names in TRAIN_FLOORS for room in names.split()} - set(rooms.values())
    assert not missing, "these modules of TRAIN_FLOORS are not there"
    assert not set(arrows_up(between_rooms(rooms), TRAIN_FLOORS))


@pytest.mark.parametrize("package", IMPORTS)
def test_packages_import_only_what_they_may(package: str) -> None:
    known, graph = modules(), import_graph()
    others = {
        f"{name} -> {target}"
        for name, targets in graph.items()
        for target in targets
        if known[name].package == package and known[target].package not in {package, *IMPORTS[package]}
    }
    assert not others


def test_no_two_classes_have_one_name() -> None:
    places = defaultdict(list)
    for file in python_files("functions", "containers", "spaceport", "deploy", "benchmarks"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(f"{file.relative_to(ROOT)}:{node.lineno}")
    doubled = {name: where for name, where in places.items() if len(where) > 1}
    assert not doubled.keys() - TWO_CLASSES.keys(), doubled
    assert TWO_CLASSES.keys() <= doubled.keys(), "an exception that is not needed any more"


def test_long_files_say_why() -> None:
    long = {}
    for file in python_files("functions", "containers", "spaceport", "deploy", "benchmarks", "tests"):
        lines = file.read_text(encoding="utf-8").splitlines()
        if len(lines) > LONGEST and not any(line.startswith(REASON) for line in lines[:10]):
            long[file.relative_to(ROOT).as_posix()] = len(lines)
    assert not long.keys(), long


def changes_sys_path(tree: ast.AST) -> bool:
    """An assignment to sys.path or a part of it, or a call of a method of it."""
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign | ast.Delete) else [getattr(node, "target", None)]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            targets = [node.func.value]
        for target in targets:
            place = target.value if isinstance(target, ast.Subscript) else target
            if isinstance(place, ast.Attribute) and ast.unparse(place) == "sys.path":
                return True
    return False


def test_the_search_path_is_changed_in_two_places() -> None:
    changing = {
        file.relative_to(ROOT).as_posix()
        for file in python_files("functions", "containers", "spaceport", "deploy", "benchmarks", "tests")
        if changes_sys_path(ast.parse(file.read_text(encoding="utf-8")))
    }
    assert not {path for path in changing if not path.startswith(CHANGE_SYS_PATH)}
    for place in CHANGE_SYS_PATH:
        assert any(path.startswith(place) for path in changing), f"{place} does not change it any more"


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        ("import sys\nsys.path.insert(0, 'a')", True),
        ("import sys\nsys.path[:0] = ['a']", True),
        ("import sys\nsys.path += ['a']", True),
        ("import sys\ndef f():\n    del sys.path[0]", True),
        ("import sys\nprint([*sys.path, 'a'])", False),
    ],
)
def test_changes_of_the_search_path_are_seen(text: str, changes: bool) -> None:
    assert changes_sys_path(ast.parse(text)) == changes


def test_imports_in_functions_and_under_type_checking_are_read() -> None:
    from tests.import_graph import imported

    text = "if TYPE_CHECKING:\n    from a.b import c\ndef f():\n    import d.e\n    from .g import h\n"
    assert set(imported(ast.parse(text), "x.y")) == {"a.b.c", "d.e", "x.y.g.h"}
