"""The folder that holds template.yaml, statemachine/, functions/, containers/ and events/."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
_IN_WHEEL = _PACKAGE / "_stack"  # made by setup.py; the repository does not have it
ROOT = _IN_WHEEL if _IN_WHEEL.is_dir() else _PACKAGE.parent
TEMPLATE = ROOT / "template.yaml"
CONTAINERS = ROOT / "containers"
