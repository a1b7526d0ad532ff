"""OFF files read line by line, so that what is wrong has a line: readers of meshes pass over most of it in silence."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

__all__ = ["plain_off"]


def plain_off(text: str, name: str) -> tuple[str, int]:
    """The text of an OFF file without all that may stand in one besides a surface, and the line of its first face.

    Parameters
    ----------
    text
        Contents of the file: the word ``OFF`` (or one like ``COFF``, for files with colours, normals or textures too), with the
        counts behind it or on the next line; a line for each vertex and for each face. Comments may stand anywhere.
    name
        How messages call the file.

    Raises
    ------
    ValueError
        With the line of the first thing that makes it no surface.
    """
    lines = _contents(text.removeprefix("\ufeff"))
    number, header = next(lines, (1, ""))
    word = re.match(r"(ST)?C?N?OFF", header, re.IGNORECASE)
    if word is None:
        raise ValueError(f"{name}, line {number}: expected OFF, got {header[:40]!r}")
    counts = header[word.end() :].strip()  # many files have them on the first line, even without a blank between
    if not counts:
        number, counts = next(lines, (number, ""))
    try:
        vertices, faces = (int(field) for field in counts.split()[:2])
    except ValueError:
        raise ValueError(f"{name}, line {number}: expected the numbers of vertices and faces, got {counts[:40]!r}") from None
    if vertices < 1 or faces < 1:
        raise ValueError(f"{name}, line {number}: expected at least one vertex and one face, got {vertices} and {faces}")
    first, plain = number, ["OFF", f"{vertices} {faces} 0"]
    for kind, count in (("vertex", vertices), ("face", faces)):
        for i in range(count):
            number, line = next(lines, (number, None))
            if line is None:
                raise ValueError(f"{name}, line {number}: the file ends before {kind} {i + 1} of {count}")
            first = number if (kind, i) == ("face", 0) else first
            problem = _vertex_problem(line) if kind == "vertex" else _face_problem(line, vertices)
            if problem:
                raise ValueError(f"{name}, line {number}: {kind} {i + 1} of {count}: {problem}, got {line[:60]!r}")
            fields = line.split()
            plain.append(" ".join(fields[:3] if kind == "vertex" else fields[: int(fields[0]) + 1]))
    return "\n".join([*plain, ""]), first


def _contents(text: str) -> Iterator[tuple[int, str]]:
    """Lines that say something, with their numbers from one on."""
    for number, line in enumerate(text.splitlines(), 1):
        content = line.partition("#")[0].strip()
        if content:
            yield number, content


def _vertex_problem(line: str) -> str:
    try:
        x, y, z = (float(field) for field in line.split()[:3])
    except ValueError:
        return "expected three coordinates"
    return "" if math.isfinite(x + y + z) else "expected finite coordinates"


def _face_problem(line: str, vertices: int) -> str:
    fields = line.split()
    try:
        corners = int(fields[0])
        indices = [int(field) for field in fields[1 : corners + 1]]  # colours may follow
    except ValueError:
        return "expected whole numbers"
    if corners < 3:
        return "expected at least 3 vertices"
    if len(indices) < corners:
        return f"expected {corners} indices"
    return "" if min(indices) >= 0 and max(indices) < vertices else f"expected indices from 0 to {vertices - 1}"
