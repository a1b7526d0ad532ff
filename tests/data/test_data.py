"""Data sets: digits as measures, batches, parts."""

import numpy as np
import pytest
import torch

from ddeq.data import MeasureDataset, load_digits
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


def test_data_sets_check_what_they_are_given():
    points, weights = torch.zeros(5, 2), torch.ones(5)
    for offsets, labels, message in (([0, 2], [0, 1], "offsets"), ([0, 3, 5], [0, 7], "labels"), ([0, 0, 5], [0, 1], "offsets")):
        with pytest.raises(ValueError, match=message):
            MeasureDataset(points, weights, torch.tensor(offsets), torch.tensor(labels), ["a", "b"])
    data = MeasureDataset(points, weights, torch.tensor([0, 3, 5]), torch.tensor([0, 1]), ["a", "b"])
    assert [label for _, label in data] == [0, 1]
    with pytest.raises(IndexError):
        data[2]


@pytest.mark.unchecked
def test_measures_are_chosen_by_number_or_by_mask():
    data = load_digits("test")
    mu, labels = data.batch([-1, 5])
    assert torch.equal(labels, data.labels[[-1, 5]])
    assert_close(mu[0].mean(), data[len(data) - 1][0].mean())
    zeros = data.subset(data.labels == 0)
    assert len(zeros) == int((data.labels == 0).sum())
    assert set(zeros.labels.tolist()) == {0}
    for index in ([], [360], [-361], [0.5], [[1]], torch.zeros(3, dtype=torch.bool), torch.zeros(360, dtype=torch.bool)):
        for choose in (data.batch, data.subset):
            with pytest.raises(IndexError, match="index: expected"):
                choose(index)
