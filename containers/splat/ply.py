"""A table of 32-bit floats as a PLY file, which is how 3DGS models travel (Turk, "The PLY Polygon File Format", 1994).

The libraries for PLY at hand are under the GPL, which an image that other people get should not depend on.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

HEADER_LIMIT_BYTES = 64 * 1024
TYPES = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
}
BYTE_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">"}


def write_vertices(path: Path, names: list[str], table: NDArray[np.float32]) -> None:
    """Write ``table`` [N, len(names)] as the element ``vertex``: binary little endian, every property a float."""
    if table.ndim != 2 or table.shape[1] != len(names):
        raise ValueError(f"a table of shape {table.shape} does not fit {len(names)} properties")
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(table)}"]
    lines += [f"property float {name}" for name in names]
    header = "\n".join([*lines, "end_header", ""]).encode("ascii")
    with path.open("wb") as file:
        file.write(header)
        file.write(np.ascontiguousarray(table, "<f4").data)


def read_vertices(path: Path) -> dict[str, NDArray[np.float32]]:
    """The scalar properties [N] of the element ``vertex`` of a binary PLY file, which must be its first element.

    Raises ValueError that names the file and what is wrong with it.
    """
    with path.open("rb") as file:
        header = _header_lines(path, file.read(HEADER_LIMIT_BYTES))
        order, count, layout = _parse(path, header)
        file.seek(sum(len(line) + 1 for line in header))
        dtype = np.dtype([(name, order + kind) for name, kind in layout])
        data = file.read(count * dtype.itemsize)
    if len(data) < count * dtype.itemsize:
        raise ValueError(f"{path} is cut short: {count} vertices need {count * dtype.itemsize} bytes, not {len(data)}")
    rows = np.frombuffer(data, dtype, count)
    return {name: rows[name].astype(np.float32) for name, _ in layout}


def _header_lines(path: Path, start: bytes) -> list[bytes]:
    """The lines of the header, each without its newline (a carriage return stays, it counts for the length)."""
    if not start.startswith(b"ply"):
        raise ValueError(f"{path} is not a PLY file")
    lines: list[bytes] = []
    for line in start.split(b"\n"):
        lines.append(line)
        if line.strip() == b"end_header":
            return lines
    raise ValueError(f"{path} has no end of header")


def _parse(path: Path, header: list[bytes]) -> tuple[str, int, list[tuple[str, str]]]:
    """(byte order, number of vertices, [(property, numpy type)])."""
    order, count, element = "", -1, ""
    layout: list[tuple[str, str]] = []
    for words in (line.decode("ascii", "replace").split() for line in header):
        match words:
            case ["format", name, _]:
                order = BYTE_ORDERS.get(name, "")
            case ["element", "vertex", number] if not element and number.isdigit():
                element, count = "vertex", int(number)
            case ["element", name, *_]:
                element = element and name
                if not element:
                    raise ValueError(f"{path} begins with the element '{name}'; expected 'vertex'")
            case ["property", kind, name] if element == "vertex" and kind in TYPES:
                layout.append((name, TYPES[kind]))
            case ["property", *_] if element == "vertex":
                raise ValueError(f"{path} has a property that is no number: {' '.join(words)}")
    if not order:
        raise ValueError(f"{path} is not a binary PLY file")
    if count < 0 or not layout:
        raise ValueError(f"{path} has no vertices")
    return order, count, layout
