"""ModelNet in each of its formats."""

import h5py
import numpy as np
import pytest
import torch

from ddeq.data import load_modelnet, normalize, sample_mesh
from ddeq.testing import assert_close


def shapes(count, n=30, seed=0):
    return np.random.default_rng(seed).normal(size=(count, n, 3)) * [1, 2, 3] + 5


def write_npz(path, count=11, **changes):
    arrays = {"points": shapes(count).astype(np.float16), "labels": np.arange(count) % 2, "class_names": np.array(["a", "b"])}
    arrays |= changes
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})


def write_hdf5(folder, part="train", count=11, listed=False):
    """The same shapes in two files, as the HDF5 release has them: the second axis points up."""
    x, y, z = np.moveaxis(shapes(count).astype(np.float16).astype(np.float32), -1, 0)
    points, labels = np.stack([x, z, -y], -1), np.arange(count)[:, None] % 2
    for k, which in enumerate((slice(0, 6), slice(6, None))):
        with h5py.File(folder / f"ply_data_{part}{k}.h5", "w") as file:
            file["data"], file["label"] = points[which], labels[which].astype(np.uint8)
    (folder / "shape_names.txt").write_text("a\nb\n")
    if listed:
        (folder / f"{part}_files.txt").write_text(f"data/modelnet/ply_data_{part}0.h5\ndata/modelnet/ply_data_{part}1.h5\n")


def write_off(file, size=1.0):
    """A box whose three sides differ."""
    corners = [(x, 2 * y * size, 3 * z) for x in (0, 1) for y in (0, 1) for z in (0, 1)]
    quads = [(0, 1, 3, 2), (4, 5, 7, 6), (0, 1, 5, 4), (2, 3, 7, 6), (0, 2, 6, 4), (1, 3, 7, 5)]
    lines = ["OFF", "8 6 0", *(" ".join(map(str, c)) for c in corners), *("4 " + " ".join(map(str, q)) for q in quads)]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines))


@pytest.mark.parametrize("n_points", [30, 7])
@pytest.mark.parametrize("write", [lambda d: write_npz(d / "train.npz"), write_hdf5, lambda d: write_hdf5(d, listed=True)])
def test_shapes_are_centred_in_the_unit_ball(tmp_path, write, n_points):
    write(tmp_path)
    data = load_modelnet(tmp_path, n_points=n_points)
    assert (len(data), data.class_names) == (11, ["a", "b"])
    mu, labels = data.batch(range(11))
    assert (mu.n, mu.dim, mu.dtype) == (n_points, 3, torch.float32)
    assert torch.equal(labels, torch.arange(11) % 2)
    assert_close(mu.mass(), torch.ones(11))
    assert_close(mu.mean(), torch.zeros(11, 3), scale=1.0)
    assert_close(mu.points.norm(dim=-1).amax(-1), torch.ones(11))


def test_formats_agree(tmp_path):
    write_npz(tmp_path / "train.npz")
    expected = load_modelnet(tmp_path / "train.npz", n_points=9, seed=2)
    (tmp_path / "train.npz").unlink()
    write_hdf5(tmp_path)
    found = load_modelnet(tmp_path, n_points=9, seed=2)
    assert_close(found.points, expected.points, scale=1.0)
    assert torch.equal(found.labels, expected.labels)
    first = load_modelnet(tmp_path / "ply_data_train0.h5", n_points=30)
    assert len(first) == 6
    assert not torch.equal(load_modelnet(tmp_path, n_points=9, seed=3).points, found.points)


@pytest.mark.parametrize("write", [lambda d, part, n: write_npz(d / f"{part}.npz", n), write_hdf5])
def test_every_fifth_training_shape_is_for_validation(tmp_path, write):
    write(tmp_path, "train", 11)
    write(tmp_path, "test", 8)
    everything, train, validation = (load_modelnet(tmp_path, split, n_points=9) for split in (None, "train", "validation"))
    assert len(load_modelnet(tmp_path, "test", n_points=9)) == 8
    assert len(train) == 8
    for k, i in enumerate((0, 5, 10)):
        assert torch.equal(validation[k][0].points, everything[i][0].points)
    assert torch.equal(train[4][0].points, everything[6][0].points)


def test_trees_of_meshes(tmp_path):
    for part, names in (("train", ["bed_0001", "bed_0002", "night_stand_0001"]), ("test", ["bed_0003", "sofa_0009"])):
        for k, name in enumerate(names):
            write_off(tmp_path / name.rpartition("_")[0] / part / f"{name}.off", 1.0 + k)
    train, test = load_modelnet(tmp_path, n_points=50), load_modelnet(tmp_path, "test", n_points=50)
    assert train.class_names == test.class_names == ["bed", "night_stand", "sofa"]
    assert train.labels.tolist() == [0, 0, 1]
    assert test.labels.tolist() == [0, 2]
    mu, _ = train[1]
    expected = normalize(sample_mesh(tmp_path / "bed" / "train" / "bed_0002.off", 50))
    assert_close(mu.points, expected.points, scale=1.0)
    assert [len(load_modelnet(tmp_path, split, n_points=5)) for split in ("train", "validation")] == [2, 1]
    # The draws of a mesh do not depend on what else there is.
    (tmp_path / "bed" / "train" / "bed_0001.off").unlink()
    assert torch.equal(load_modelnet(tmp_path, n_points=50)[0][0].points, mu.points)
    assert not torch.equal(load_modelnet(tmp_path, n_points=50, seed=1)[0][0].points, mu.points)


def test_one_folder_of_meshes(tmp_path):
    for name in ("night_stand_0002", "bed_0010", "cup"):
        write_off(tmp_path / f"{name}.off")
    data = load_modelnet(tmp_path, n_points=4)
    assert data.class_names == ["bed", "cup", "night_stand"]
    assert data.labels.tolist() == [0, 1, 2]


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda d: write_npz(d / "train.npz", class_names=None), r"train.npz lacks the arrays \['class_names'\]"),
        (lambda d: write_npz(d / "train.npz", points=np.zeros((11, 3))), r"points of shape \(N, n, 3\)"),
        (lambda d: write_npz(d / "train.npz", points=np.full((11, 30, 3), np.nan)), "finite coordinates .* in cloud 0"),
        (lambda d: write_npz(d / "train.npz", labels=np.zeros(4)), r"labels of shape \(N,\)"),
        (lambda d: write_npz(d / "train.npz", labels=np.full(11, 7)), "labels from 0 to 1 in .*, got 7, label 0"),
        (lambda d: write_npz(d / "train.npz", labels=np.full(11, 0.5)), "whole numbers of shape"),
        (lambda d: write_npz(d / "train.npz", labels=np.array(["a"] * 11)), "whole numbers of shape"),
        (lambda d: (d / "ply_data_train0.h5").write_text("no HDF5"), "ply_data_train0.h5 cannot be read as HDF5"),
        (lambda d: (d / "train_files.txt").write_text("a/b.h5"), "expected b.h5 in .* as train_files.txt lists it"),
        (lambda d: None, r"train.npz, train_files.txt, ply_data_train\*.h5, <class>/train/\*.off or \*.off"),
        (lambda d: (d / "bed_0001.off").write_text("OFF\n1 1 0\n"), "bed_0001.off, line 2: the file ends before vertex 1 of 1"),
    ],
)
def test_broken_files_are_described(tmp_path, write, message):
    write(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_modelnet(tmp_path, n_points=30)


@pytest.mark.unchecked
def test_broken_hdf5_files_are_described(tmp_path):
    with h5py.File(tmp_path / "ply_data_train0.h5", "w") as file:
        file["data"] = np.zeros((2, 3, 3))
    with pytest.raises(ValueError, match=r"lacks the data sets \['label'\]; it has \['data'\]"):
        load_modelnet(tmp_path)
    write_hdf5(tmp_path)
    with h5py.File(tmp_path / "ply_data_train1.h5", "w") as file:
        file["data"], file["label"] = np.zeros((2, 31, 3)), np.zeros((2, 1))
    with pytest.raises(ValueError, match=r"the same n in all files, got \(2, 31, 3\)"):
        load_modelnet(tmp_path)


@pytest.mark.unchecked
def test_bad_arguments_are_named(tmp_path):
    write_npz(tmp_path / "train.npz")
    with pytest.raises(FileNotFoundError, match="absent"):
        load_modelnet(tmp_path / "absent")
    with pytest.raises(ValueError, match="split: expected"):
        load_modelnet(tmp_path, "all")
    for n_points, message in ((0, "whole number >= 1, got 0"), (31, "at most 30, the points of each cloud in .*, got 31")):
        with pytest.raises(ValueError, match=f"n_points: expected {'a ' if n_points == 0 else ''}{message}"):
            load_modelnet(tmp_path, n_points=n_points)
    write_off(tmp_path / "bed.off")
    with pytest.raises(ValueError, match="single meshes are read by load_mesh"):
        load_modelnet(tmp_path / "bed.off")


def test_as_many_points_as_there_are(tmp_path):
    write_npz(tmp_path / "train.npz")
    assert load_modelnet(tmp_path)[0][0].n == 30
    write_npz(tmp_path / "train.npz", points=np.random.default_rng(0).normal(size=(11, 1500, 3)))
    assert load_modelnet(tmp_path)[0][0].n == 1024


@pytest.mark.parametrize("labels", [np.arange(11)[:, None] % 2, (np.arange(11) % 2).astype(np.float32)])
def test_labels_of_other_kinds(tmp_path, labels):
    write_npz(tmp_path / "train.npz", labels=labels, class_names=np.array([b"a", b"b"]))
    data = load_modelnet(tmp_path)
    assert data.labels.tolist() == (np.arange(11) % 2).tolist()
    assert data.class_names == ["a", "b"]


def test_names_in_capitals_and_hidden_files(tmp_path):
    for name in ("bed/train/bed_0001.off", "bed/train/bed_0002.OFF", "desk/train/desk_0001.off"):
        write_off(tmp_path / name)
    (tmp_path / "bed/train/._bed_0001.off").write_text("of another system")
    assert load_modelnet(tmp_path, n_points=5).labels.tolist() == [0, 0, 1]
    (tmp_path / "npz").mkdir()
    write_npz(tmp_path / "npz" / "some.npz")
    (tmp_path / "npz" / "some.npz").rename(tmp_path / "npz" / "TRAIN.NPZ")
    assert len(load_modelnet(tmp_path / "npz")) == 11


def test_a_list_of_files_says_where_they_are(tmp_path):
    (tmp_path / "shards").mkdir()
    write_hdf5(tmp_path / "shards")
    (tmp_path / "train_files.txt").write_text("shards/ply_data_train0.h5\n")
    for path in (tmp_path, tmp_path / "train_files.txt"):
        data = load_modelnet(path)
        assert (len(data), data.class_names) == (6, ["a", "b"])


def test_a_split_of_nothing(tmp_path):
    write_npz(tmp_path / "train.npz", count=1)
    with pytest.raises(ValueError, match="at least one shape for the split 'train'"):
        load_modelnet(tmp_path, "train")
