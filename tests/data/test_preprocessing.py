"""Raw clouds become the measures that the loaders give."""

import numpy as np
import pytest
import torch

from ddeq import DiscreteMeasure
from ddeq.data import digit_measure, normalize, shape_measure
from ddeq.testing import assert_close

PIXELS = torch.tensor([[3.0, 20.0, 100.0], [14.0, 13.0, 300.0], [27.0, 0.0, 0.0], [-1.0, -1.0, -1.0]])


def test_pixels_become_a_probability_on_the_square():
    mu = digit_measure(PIXELS)
    assert_close(mu.weights, torch.tensor([0.25, 0.75, 0.0, 0.0]))
    assert_close(mu.points[:2], (PIXELS[:2, :2] - 13.5) / 13.5)


@pytest.mark.parametrize(
    "raw",
    [
        PIXELS.long(),
        PIXELS.numpy().astype(np.int16),
        DiscreteMeasure(PIXELS[:2, :2], torch.tensor([100.0, 300.0])),
        DiscreteMeasure((PIXELS[:2, :2] - 13.5) / 13.5, torch.tensor([1.0, 3.0])),
    ],
    ids=["integers", "array", "measure in pixels", "measure on the square"],
)
def test_digits_in_other_forms_are_the_same(raw):
    assert_close(digit_measure(raw).mean(), digit_measure(PIXELS).mean())
    assert_close(digit_measure(raw).covariance(), digit_measure(PIXELS).covariance())
    assert_close(digit_measure(raw).mass(), torch.tensor(1.0))


def test_clouds_of_different_sizes_become_a_batch():
    mu = digit_measure([PIXELS, PIXELS[:1]])
    assert mu.batch_shape == (2,)
    assert_close(mu[1].mean(), (PIXELS[0, :2] - 13.5) / 13.5)
    shapes = shape_measure([torch.randn(5, 3), torch.randn(9, 3)])
    assert shapes.batch_shape == (2,)
    assert int(shapes.support().sum()) == 14


def test_pixels_without_intensities_have_equal_masses():
    assert_close(digit_measure(PIXELS[:2, :2]).weights, torch.full((2,), 0.5))


def test_shapes_are_normalised_and_normals_not_used():
    x = torch.randn(4, 20, 6) * 50 + 1000
    mu = shape_measure(x)
    assert mu.batch_shape == (4,)
    assert_close(mu.points, normalize(DiscreteMeasure(x[..., :3].contiguous())).points)
    assert_close(shape_measure(x.numpy()).points, mu.points)
    assert_close(shape_measure(DiscreteMeasure(x[..., :3].contiguous())).points, mu.points)


@pytest.mark.unchecked
@pytest.mark.parametrize("function", [digit_measure, shape_measure])
@pytest.mark.parametrize("raw", [torch.zeros(4), torch.zeros(3, 5), torch.zeros(0, 3), DiscreteMeasure(torch.zeros(2, 5))])
def test_what_is_no_cloud_says_so(function, raw):
    with pytest.raises(ValueError, match="cloud: expected"):
        function(raw)


def test_a_digit_without_ink_has_no_mass():
    with pytest.raises(ValueError, match="mass"):
        digit_measure(PIXELS[2:])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_measures_of_any_precision_become_inputs_of_the_usual_one(dtype):
    g = torch.Generator().manual_seed(0)
    shape, digit = torch.rand(9, 3, generator=g).to(dtype), torch.rand(9, 2, generator=g).to(dtype)
    made = [shape_measure(shape), digit_measure(digit)]
    if dtype != torch.float16:  # there are no measures of half precision
        made += [shape_measure(DiscreteMeasure(shape)), digit_measure(DiscreteMeasure(digit))]
        assert_close(made[0].points, made[2].points)
    for mu in made:
        assert mu.dtype == torch.float32


def test_shapes_far_from_the_origin_keep_their_digits():
    points = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert_close(shape_measure(points + 1e6).points, shape_measure(points).points, units=1e3)
