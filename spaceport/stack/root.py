"""The folder that holds template.yaml, statemachine/, functions/, containers/ and events/."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = ROOT / "template.yaml"
CONTAINERS = ROOT / "containers"
