"""Renders photo sets of a hamlet seen from a drone, with their true camera poses.

The 24 photos of `spaceport sample` are from here; benchmarks and tests render more, or others.
"""

from benchmarks.hamlet.photos import TRUTH_FILE, render_photos

__all__ = ["TRUTH_FILE", "render_photos"]
