"""MNIST in each of its formats: they give the same measures, and say what is wrong with a file."""

import gzip
import struct

import numpy as np
import pytest
import torch

from ddeq.data import load_mnist_pc
from ddeq.testing import assert_close

SIZES = np.arange(1, 13)
LABELS = (np.arange(12) * 7 % 10).astype(np.uint8)


def pixels(shuffled=False):
    """Atoms of 12 digits, in raster order as images give them or otherwise."""
    draw, clouds = np.random.default_rng(0), []
    for size in SIZES:
        place = np.sort(draw.choice(28 * 28, size, replace=False))
        cloud = np.stack([place % 28, 27 - place // 28, draw.integers(1, 256, size)], -1)
        clouds.append(draw.permutation(cloud) if shuffled else cloud)
    return clouds


def write_npz(path, n=12, **changes):
    clouds = pixels()[:n]
    arrays = {"points": np.concatenate(clouds).astype(np.uint8), "labels": LABELS[:n]}
    arrays["offsets"] = np.concatenate([[0], SIZES[:n].cumsum()])
    arrays |= changes
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})


def csv_rows(absent=-1):
    rows = []
    for cloud, label in zip(pixels(), LABELS, strict=True):
        padded = np.full((12, 3), absent)
        padded[: len(cloud)] = cloud
        rows.append([label, *padded.flatten()])
    return rows


HEADER = ["label", *(f"{letter}{i}" for i in range(12) for letter in "xyv")]


def write_csv(path, header=HEADER, rows=None, end="\n"):
    lines = ([] if header is None else [",".join(header)]) + [",".join(map(str, row)) for row in rows or csv_rows()]
    text = end.join(lines) + end
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def idx(array, magic):
    return struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.astype(np.uint8).tobytes()


def write_idx(folder, images="train-images-idx3-ubyte", labels="train-labels-idx1-ubyte", n=12):
    array = np.zeros((n, 28, 28), np.uint8)
    for image, cloud in zip(array, pixels(), strict=False):
        image[27 - cloud[:, 1], cloud[:, 0]] = cloud[:, 2]
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in ((images, idx(array, 0x803)), (labels, idx(LABELS[:n], 0x801))):
        (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)


def swapped(rows):
    """Columns by letter, the label last."""
    order = [i for k in range(3) for i in range(1 + k, 37, 3)] + [0]
    return [[row[i] for i in order] for row in rows]


FORMATS = {
    "npz": lambda folder: write_npz(folder / "train.npz"),
    "csv": lambda folder: write_csv(folder / "train.csv"),
    "csv, padded with 0": lambda folder: write_csv(folder / "train.csv", rows=csv_rows(0)),
    "csv, compressed": lambda folder: write_csv(folder / "train.csv.gz"),
    "csv, no header": lambda folder: write_csv(folder / "train.csv", None),
    "csv, other order": lambda folder: write_csv(folder / "train.csv", swapped([HEADER])[0], swapped(csv_rows())),
    "csv, other names": lambda folder: write_csv(
        folder / "train.csv", ["\ufeffClass", *(f'"{name[0].upper()}_{name[1:]}"' for name in HEADER[1:])], end="\r\n"
    ),
    "idx": lambda folder: write_idx(folder),
    "idx, compressed": lambda folder: write_idx(folder, "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "idx, dots": lambda folder: write_idx(folder, "train-images.idx3-ubyte", "train-labels.idx1-ubyte"),
    "idx, mixed": lambda folder: write_idx(folder, "train-images.idx3-ubyte.gz", "train-labels-idx1-ubyte"),
    "idx, torchvision": lambda folder: write_idx(folder / "MNIST" / "raw"),
}


@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS)
def test_all_formats_give_the_same_measures(tmp_path, write):
    write(tmp_path)
    file = next(file for file in tmp_path.rglob("*train*") if "labels" not in file.name)
    for path in (tmp_path, file, str(file)):
        data = load_mnist_pc(path)
        assert data.labels.tolist() == LABELS.tolist()
        for (mu, _), cloud in zip(data, pixels(), strict=True):
            cloud = torch.tensor(cloud, dtype=torch.float32)
            assert_close(mu.points, (cloud[:, :2] - 13.5) / 13.5)
            assert_close(mu.weights, cloud[:, 2] / cloud[:, 2].sum())


@pytest.mark.parametrize("write", ["npz", "csv", "idx"])
def test_splits(tmp_path, monkeypatch, write):
    FORMATS[write](tmp_path)
    monkeypatch.setattr("ddeq.data.mnist.VALIDATION", 5)
    assert load_mnist_pc(tmp_path, "train").labels.tolist() == LABELS[:7].tolist()
    assert load_mnist_pc(tmp_path, "validation").labels.tolist() == LABELS[7:].tolist()
    with pytest.raises(FileNotFoundError, match=r"test.npz, test.csv, .*t10k-images-idx3-ubyte"):
        load_mnist_pc(tmp_path, "test")
    write_idx(tmp_path, "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz", n=3)
    assert load_mnist_pc(tmp_path, "test").labels.tolist() == LABELS[:3].tolist()


def test_long_files_are_read_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("ddeq.data.mnist_files.LINES", 5)
    write_csv(tmp_path / "train.csv")
    assert load_mnist_pc(tmp_path).labels.tolist() == LABELS.tolist()
    write_csv(tmp_path / "train.csv", None, [*csv_rows()[:9], ["3", "?", *["-1"] * 35]], end="\n\n")
    with pytest.raises(ValueError, match=r"train.csv, line 19: expected whole numbers, got '\?'"):
        load_mnist_pc(tmp_path)


EMPTY = [4, *[-1] * 36]


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda d: write_npz(d / "train.npz", labels=None), r"train.npz lacks the arrays \['labels'\]"),
        (lambda d: write_npz(d / "train.npz", points=np.zeros((78, 2), np.uint8)), r"points of shape \(total, 3\)"),
        (lambda d: write_npz(d / "train.npz", points=np.full((78, 3), 28)), "pixels from 0 to 27"),
        (lambda d: write_npz(d / "train.npz", points=np.zeros((78, 3))), "positive intensities"),
        (lambda d: write_npz(d / "train.npz", offsets=np.zeros(13)), "offsets"),
        (lambda d: (d / "train.npz").write_text("no zip"), "train.npz cannot be read as an .npz file"),
        (lambda d: (d / "train.csv").write_text(""), "train.csv, line 1: expected columns label, x0, y0, v0"),
        (lambda d: write_csv(d / "train.csv", HEADER[1:]), "line 1: expected columns label"),
        (lambda d: write_csv(d / "train.csv", [*HEADER[:-1], "pixel"]), "line 1: expected columns label"),
        (lambda d: write_csv(d / "train.csv", rows=[[3]]), "line 2: expected 37 columns, got 1"),
        (lambda d: write_csv(d / "train.csv", rows=[*csv_rows(), [1, 2, 3]]), "line 14: expected 37 columns, got 3"),
        (lambda d: write_csv(d / "train.csv", rows=[*csv_rows(), [1, 2, 2.5, *EMPTY[3:]]]), "line 14: .* got '2.5'"),
        (lambda d: write_csv(d / "train.csv", rows=[*csv_rows(), EMPTY]), "line 14: expected at least one point"),
        (lambda d: write_csv(d / "train.csv", rows=[[1, 28, 0, 5, *EMPTY[4:]]]), "pixels from 0 to 27"),
        (lambda d: (d / "train.csv").write_text(",".join(HEADER)), "no digits"),
        (lambda d: (d / "train-images-idx3-ubyte").write_bytes(b"1234"), "labels of train-images-idx3-ubyte beside it"),
    ],
)
def test_broken_files_are_described(tmp_path, write, message):
    write(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_mnist_pc(tmp_path)


@pytest.mark.unchecked
def test_broken_idx_files_are_described(tmp_path):
    write_idx(tmp_path)
    images, labels = tmp_path / "train-images-idx3-ubyte", tmp_path / "train-labels-idx1-ubyte"
    whole = images.read_bytes()
    for content, message in (
        (b"1234" + whole[4:], "to begin with the bytes 00000803, got 31323334"),
        (whole[:-1], "expected 9408 bytes of data in .*, got 9407"),
        (gzip.compress(whole)[:-9], "cannot be read"),
        (idx(np.ones((12, 8, 8)), 0x803), r"images of shape \(N, 28, 28\)"),
        (idx(np.ones((11, 28, 28)), 0x803), "N labels in train-labels-idx1-ubyte"),
    ):
        images.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load_mnist_pc(tmp_path)
    with pytest.raises(ValueError, match="the file of images"):
        load_mnist_pc(labels)


@pytest.mark.unchecked
def test_absent_files_and_unknown_splits(tmp_path):
    with pytest.raises(FileNotFoundError, match="npz"):
        load_mnist_pc(tmp_path / "absent.npz")
    with pytest.raises(FileNotFoundError, match=r"train.npz, train.csv, .*train-images.idx3-ubyte.gz in"):
        load_mnist_pc(tmp_path)
    write_npz(tmp_path / "train.npz")
    with pytest.raises(ValueError, match="split: expected"):
        load_mnist_pc(tmp_path, "all")
    with pytest.raises(ValueError, match="to split"):
        load_mnist_pc(tmp_path, "train")
    (tmp_path / "digits.txt").touch()
    with pytest.raises(ValueError, match="a file named"):
        load_mnist_pc(tmp_path / "digits.txt")


def test_labels_in_a_column(tmp_path):
    write_npz(tmp_path / "train.npz", labels=LABELS[:, None].astype(float))
    assert load_mnist_pc(tmp_path).labels.tolist() == LABELS.tolist()


def test_names_in_capitals(tmp_path):
    write_csv(tmp_path / "TRAIN.CSV")
    assert len(load_mnist_pc(tmp_path)) == len(load_mnist_pc(tmp_path / "TRAIN.CSV")) == 12


@pytest.mark.unchecked
@pytest.mark.parametrize(("column", "value"), [(1, 260), (2, 28), (3, 300), (0, 12), (0, -1)])
def test_numbers_that_are_out_of_range_are_found_in_their_line(tmp_path, column, value):
    rows = csv_rows()
    rows[5][column] = value
    write_csv(tmp_path / "train.csv", rows=rows)
    with pytest.raises(ValueError, match=r"train\.csv, line 7: expected (pixels|a label)"):
        load_mnist_pc(tmp_path)


@pytest.mark.unchecked
def test_images_without_pixels_and_files_cut_short(tmp_path):
    write_npz(tmp_path / "train.npz", offsets=np.concatenate([[0], SIZES.cumsum()]) * (np.arange(13) != 3))
    with pytest.raises(ValueError, match=r"train\.npz, got none in image 2"):
        load_mnist_pc(tmp_path)
    (tmp_path / "train.npz").unlink()
    write_csv(tmp_path / "train.csv.gz")
    whole = (tmp_path / "train.csv.gz").read_bytes()
    for broken in (whole[:-20], whole[:30] + bytes(20) + whole[50:]):
        (tmp_path / "train.csv.gz").write_bytes(broken)
        with pytest.raises(ValueError, match=r"train\.csv\.gz"):
            load_mnist_pc(tmp_path)
