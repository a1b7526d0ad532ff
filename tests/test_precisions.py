"""Half precision is refused wherever a measure is made, and nowhere later."""

import numpy as np
import pytest
import torch

from ddeq import DiscreteMeasure
from ddeq.data import MeasureDataset, shape_measure

pytestmark = pytest.mark.unchecked
HALF = [torch.float16, torch.bfloat16]
MU = DiscreteMeasure(torch.randn(4, 3))


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize(
    "make",
    [
        lambda t: DiscreteMeasure(t),
        lambda t: DiscreteMeasure.from_clouds([t, t]),
        lambda t: MU.to(t.dtype),
        lambda t: MU.with_points(t),
        lambda t: MU.push_forward(lambda x: x.to(t.dtype)),
        lambda t: MU.with_weights(MU.weights.to(t.dtype)),
        lambda t: MU.with_marks(t),
        lambda t: MeasureDataset(t, t[:, 0].abs(), torch.tensor([0, 4]), torch.tensor([0]), ["a"]),
    ],
)
def test_half_precision_is_refused_with_a_remedy(dtype, make):
    with pytest.raises(
        ValueError, match=r"expected float32 or float64, got torch\.\w*float16 \(half precision .*use \.float\(\)"
    ):
        make(torch.randn(4, 3).to(dtype))


def test_arrays_of_half_precision_are_read():
    assert shape_measure(np.random.default_rng(0).normal(size=(9, 3)).astype(np.float16)).dtype == torch.float32
