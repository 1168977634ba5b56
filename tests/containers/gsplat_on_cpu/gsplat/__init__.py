"""Stands in for gsplat where there is no GPU: the kernels that the engine takes from it, by the tests' reference."""

__version__ = "on the CPU"
