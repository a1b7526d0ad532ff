"""ModelNet in each of its formats."""

import numpy as np
import pytest
import torch

from ddeq.data import load_modelnet
from ddeq.testing import assert_close


def shapes(count, n=30, seed=0):
    return np.random.default_rng(seed).normal(size=(count, n, 3)) * [1, 2, 3] + 5


def write_npz(path, count=11, **changes):
    arrays = {"points": shapes(count).astype(np.float16), "labels": np.arange(count) % 2, "class_names": np.array(["a", "b"])}
    arrays |= changes
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    return arrays


@pytest.mark.parametrize("n_points", [30, 7])
def test_shapes_are_centred_in_the_unit_ball(tmp_path, n_points):
    write_npz(tmp_path / "train.npz")
    data = load_modelnet(tmp_path, n_points=n_points)
    assert (len(data), data.class_names) == (11, ["a", "b"])
    mu, labels = data.batch(range(11))
    assert (mu.n, mu.dim, mu.dtype) == (n_points, 3, torch.float32)
    assert torch.equal(labels, torch.arange(11) % 2)
    assert_close(mu.mass(), torch.ones(11))
    assert_close(mu.mean(), torch.zeros(11, 3), scale=1.0)
    assert_close(mu.points.norm(dim=-1).amax(-1), torch.ones(11))


def test_every_fifth_training_shape_is_for_validation(tmp_path):
    write_npz(tmp_path / "train.npz")
    write_npz(tmp_path / "test.npz", 3)
    everything, train, validation = (load_modelnet(tmp_path, split, n_points=9) for split in (None, "train", "validation"))
    assert len(load_modelnet(tmp_path, "test", n_points=9)) == 3
    assert len(train) == 8
    for k, i in enumerate((0, 5, 10)):
        assert torch.equal(validation[k][0].points, everything[i][0].points)
    assert torch.equal(train[4][0].points, everything[6][0].points)
