"""Data sets: digits and clouds as measures, batches, augmentation, broken files."""

import numpy as np
import pytest
import torch

from ddeq.data import MeasureDataset, load_digits, load_mnist_pc
from ddeq.testing import assert_close


def test_digits_are_images_as_measures():
    from sklearn.datasets import load_digits as bundled

    data, images = load_digits(), bundled().images
    assert len(data) == 1797
    for i in (0, 7):
        mu, label = data[i]
        assert label == bundled().target[i]
        column, row = (((mu.points + 1) * 3.5).round().long()).unbind(-1)
        rebuilt = np.zeros((8, 8))
        rebuilt[7 - row, column] = mu.weights * images[i].sum()
        assert np.allclose(rebuilt, images[i], atol=1e-4)


@pytest.mark.unchecked
def test_digits_splits_are_fixed_disjoint_and_stratified():
    train, test, everything = load_digits("train"), load_digits("test"), load_digits()
    assert (len(train), len(test)) == (1437, 360)
    assert len(train.points) + len(test.points) == len(everything.points)
    assert torch.bincount(test.labels).min() >= 34
    assert torch.equal(load_digits("test").labels, test.labels)
    assert test.class_names == [str(i) for i in range(10)]
    with pytest.raises(ValueError, match="split"):
        load_digits("validation")


def test_batches_are_padded_with_mass_zero():
    data = load_digits("test")
    mu, labels = data.batch([3, 0, 11])
    assert mu.batch_shape == (3,)
    assert_close(mu.mass(), torch.ones(3))
    for k, i in enumerate((3, 0, 11)):
        single, label = data[i]
        assert label == labels[k]
        assert_close(mu[k].mean(), single.mean())
        assert int(mu.support()[k].sum()) == single.n
    sizes = [len(labels) for _, labels in data.loader(100)]
    assert sizes == [100, 100, 100, 60]
    assert torch.equal(data.subset([5, 2])[1][0].points, data[2][0].points)


def mnist_file(path, n=12, **changes):
    sizes = np.arange(1, n + 1)
    arrays = {
        "points": np.random.default_rng(0).integers(0, 28, (sizes.sum(), 3)).astype(np.uint8),
        "offsets": np.concatenate([[0], sizes.cumsum()]),
        "labels": (np.arange(n) % 10).astype(np.uint8),
    }
    arrays["points"][:, 2] += 1
    arrays |= changes
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    return arrays


def test_mnist_files_and_folders(tmp_path, monkeypatch):
    arrays = mnist_file(tmp_path / "train.npz")
    for path in (tmp_path, tmp_path / "train.npz"):
        data = load_mnist_pc(path)
        assert len(data) == 12
        mu, label = data[4]
        assert (mu.n, label) == (5, 4)
        cloud = arrays["points"][10:15].astype(float)
        assert_close(mu.points, torch.tensor((cloud[:, :2] - 13.5) / 13.5, dtype=torch.float32))
        assert_close(mu.weights, torch.tensor(cloud[:, 2] / cloud[:, 2].sum(), dtype=torch.float32))
    monkeypatch.setattr("ddeq.data.mnist.VALIDATION", 5)
    assert len(load_mnist_pc(tmp_path, "train")) == 7
    assert load_mnist_pc(tmp_path, "validation")[0][0].n == 8
    mnist_file(tmp_path / "test.npz", n=3)
    assert len(load_mnist_pc(tmp_path, "test")) == 3


@pytest.mark.unchecked
def test_broken_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="npz"):
        load_mnist_pc(tmp_path / "absent.npz")
    file = tmp_path / "broken.npz"
    mnist_file(file, labels=None)
    with pytest.raises(ValueError, match=r"lacks the arrays.*labels"):
        load_mnist_pc(file)
    mnist_file(file, points=np.zeros((78, 2), np.uint8))
    with pytest.raises(ValueError, match="points of shape"):
        load_mnist_pc(file)
    mnist_file(file, offsets=np.zeros(13))
    with pytest.raises(ValueError, match="offsets"):
        load_mnist_pc(file)
    mnist_file(file)
    with pytest.raises(ValueError, match="split"):
        load_mnist_pc(file, "all")
    with pytest.raises(ValueError, match="to split"):
        load_mnist_pc(file, "train")


def test_data_sets_check_what_they_are_given():
    points, weights = torch.zeros(5, 2), torch.ones(5)
    for offsets, labels, message in (([0, 2], [0, 1], "offsets"), ([0, 3, 5], [0, 7], "labels"), ([0, 0, 5], [0, 1], "offsets")):
        with pytest.raises(ValueError, match=message):
            MeasureDataset(points, weights, torch.tensor(offsets), torch.tensor(labels), ["a", "b"])
    data = MeasureDataset(points, weights, torch.tensor([0, 3, 5]), torch.tensor([0, 1]), ["a", "b"])
    assert [label for _, label in data] == [0, 1]
    with pytest.raises(IndexError):
        data[2]
