"""Meshes: what is read, what is refused and where its fault is, and points on surfaces."""

import math

import numpy as np
import pytest
import torch
import trimesh

from ddeq.data import load_mesh, sample_mesh
from ddeq.testing import assert_close

VERTICES = ["0 0 0", "1 0 0", "1 1 0", "0 1 0", "0.5 0.5 7"]
FACES = ["3 0 1 2", "3 0 2 3"]
SQUARE = ["OFF", "5 2 0", *VERTICES, *FACES]


def write(path, lines):
    path.write_text("\n".join(lines))
    return path


def square(header, faces=FACES):
    return [*header, *VERTICES, *faces]


@pytest.mark.parametrize(
    "lines",
    [
        SQUARE,
        square(["OFF5 2 0"]),  # as in ModelNet40
        square(["OFF 5 2 0"]),
        square(["OFF", "5 2"]),
        square(["# a comment", "", "OFF # another", "", "  5 2 0  ", "", "# more"]),
        square(["OFF", "5 2 0"], [FACES[0] + " 255 0 0", FACES[1] + "  # red and not"]),
        square(["OFF", "5 1 0"], ["4 0 1 2 3"]),
        square(["OFF", "5 3 0"], ["3 0 1 1", *FACES]),
        [*SQUARE, "what follows is not read", ""],
        ["COFF", "5 2 0", *(v + " 255 255 0 255" for v in VERTICES), *FACES],
        [line + "\r" for line in SQUARE],
        square(["OFF", "5 2 0 # counts", "# vertices"], ["# faces", *FACES]),
        square(["\ufeffoff", "5 2 0"]),
        ["NOFF", "5 2 0", *(v + " 0 0 1" for v in VERTICES), *FACES],
    ],
)
def test_the_same_square_under_many_headers(tmp_path, lines):
    mesh = load_mesh(write(tmp_path / "square.off", lines))
    assert mesh.vertices.tolist() == [[float(x) for x in v.split()] for v in VERTICES]
    assert mesh.area == pytest.approx(1.0)
    assert mesh.area_faces[mesh.area_faces > 0].tolist() == pytest.approx([0.5, 0.5])
    points = sample_mesh(mesh, 200).points
    assert bool(((points >= 0) & (points <= 1)).all())
    assert bool((points[:, 2] == 0).all())


def test_polygons_are_cut_into_triangles(tmp_path):
    angles = [2 * math.pi * k / 7 for k in range(7)]
    lines = ["OFF", "7 1 0", *(f"{math.cos(a)} {math.sin(a)} 0" for a in angles), "7 0 1 2 3 4 5 6"]
    assert load_mesh(write(tmp_path / "heptagon.OFF", lines)).area == pytest.approx(3.5 * math.sin(2 * math.pi / 7))


def changed(number, line):
    """The square with one line changed, counted from one."""
    return [line if k == number else old for k, old in enumerate(SQUARE, 1)]


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "line 1: expected OFF, got ''"),
        (["# only a comment"], "line 1: expected OFF, got ''"),
        (["PLY", *SQUARE[1:]], "line 1: expected OFF, got 'PLY'"),
        (["", "# vertices", *VERTICES], "line 3: expected OFF, got '0 0 0'"),
        (["OFF"], "line 1: expected the numbers of vertices and faces, got ''"),
        (changed(2, "5"), "line 2: expected the numbers of vertices and faces, got '5'"),
        (changed(2, "five 2 0"), "line 2: expected the numbers of vertices and faces, got 'five 2 0'"),
        (changed(2, "0 2 0"), "line 2: expected at least one vertex and one face, got 0 and 2"),
        (changed(2, "5 0 0"), "line 2: expected at least one vertex and one face, got 5 and 0"),
        (SQUARE[:4], "line 4: the file ends before vertex 3 of 5"),
        (SQUARE[:7], "line 7: the file ends before face 1 of 2"),
        (SQUARE[:8], "line 8: the file ends before face 2 of 2"),
        (changed(4, "1 0"), "line 4: vertex 2 of 5: expected three coordinates, got '1 0'"),
        (changed(4, "1 zero 0"), "line 4: vertex 2 of 5: expected three coordinates, got '1 zero 0'"),
        (changed(5, "1 nan 0"), "line 5: vertex 3 of 5: expected finite coordinates, got '1 nan 0'"),
        (changed(5, "1 inf 0"), "line 5: vertex 3 of 5: expected finite coordinates"),
        (changed(8, "2 0 1"), "line 8: face 1 of 2: expected at least 3 vertices, got '2 0 1'"),
        (changed(9, "3 0 2"), "line 9: face 2 of 2: expected 3 indices, got '3 0 2'"),
        (changed(9, "3 0 2 5"), "line 9: face 2 of 2: expected indices from 0 to 4, got '3 0 2 5'"),
        (changed(9, "3 -1 2 3"), "line 9: face 2 of 2: expected indices from 0 to 4"),
        (changed(9, "3 0 2 three"), "line 9: face 2 of 2: expected whole numbers"),
        (["", "# moved by two", *changed(9, "1 0")], "line 11: face 2 of 2: expected at least 3 vertices"),
        (square(["OFF", "5 2 0"], ["3 0 0 1", "3 2 2 2"]), "line 8: .* expected faces with a positive finite area, got 0 in all"),
    ],
)
def test_broken_off_files_are_refused_with_the_line(tmp_path, lines, message):
    file = write(tmp_path / "broken.off", lines)
    for read in (load_mesh, sample_mesh):
        with pytest.raises(ValueError, match=f"path: .*broken.off, {message}"):
            read(file)


@pytest.mark.unchecked
def test_other_formats_and_absent_files(tmp_path):
    trimesh.creation.box().export(tmp_path / "box.ply")
    assert load_mesh(str(tmp_path / "box.ply")).area == pytest.approx(6.0)
    write(tmp_path / "point.obj", ["v 0 0 0"])
    write(tmp_path / "nan.obj", ["v 0 0 nan", "v 1 0 0", "v 0 1 0", "f 1 2 3"])
    write(tmp_path / "notes.txt", ["nothing"])
    for name in ("point.obj", "nan.obj", "notes.txt"):
        with pytest.raises(ValueError, match=f"path: .*{name}: no surface that can be read"):
            load_mesh(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="a file with a mesh"):
        load_mesh(tmp_path / "absent.off")
    with pytest.raises(FileNotFoundError, match="a file with a mesh"):
        load_mesh(tmp_path)


def test_points_are_uniform_on_the_surface():
    lengths = (1.0, 2.0, 4.0)
    mu = sample_mesh(trimesh.creation.box(lengths), 20_000, seed=3)
    assert (mu.n, mu.dim, mu.dtype) == (20_000, 3, torch.float32)
    assert_close(mu.mass(), torch.ones(()))
    on = (mu.points.abs() - torch.tensor(lengths) / 2).abs() < 1e-5
    assert bool(on.any(-1).all())
    assert_close(on.float().mean(0), torch.tensor([8.0, 4.0, 2.0]) / 14, rtol=0.04)
    assert float(mu.mean().abs().max()) < 0.05


def test_draws_depend_on_seed_and_name(tmp_path):
    a, b = (write(tmp_path / name, SQUARE) for name in ("a.off", "b.off"))
    copied = write(tmp_path / "c.off", SQUARE)
    first = sample_mesh(a, 10).points
    sample_mesh(b, 10)
    assert torch.equal(sample_mesh(a, 10).points, first)
    assert not torch.equal(sample_mesh(b, 10).points, first)
    assert not torch.equal(sample_mesh(a, 10, seed=1).points, first)
    (tmp_path / "moved").mkdir()
    assert torch.equal(sample_mesh(copied.rename(tmp_path / "moved" / "a.off"), 10).points, first)


@pytest.mark.unchecked
def test_meshes_of_ones_own_are_checked():
    with pytest.raises(ValueError, match="n_points: expected a whole number >= 1, got 0"):
        sample_mesh(trimesh.creation.box(), 0)
    for vertices, faces, message in (
        (np.eye(3), np.zeros((0, 3), int), "mesh: it has no faces"),
        (np.zeros((3, 3)), [[0, 1, 2]], "mesh: expected faces with a positive finite area"),
        (np.full((3, 3), np.inf), [[0, 1, 2]], "mesh: vertex 1 has coordinates that are not finite"),
        (np.eye(3), [[0, 1, 3]], "mesh: a face has a vertex 3 of 3"),
    ):
        with pytest.raises(ValueError, match=message):
            sample_mesh(trimesh.Trimesh(vertices, faces, process=False))
