"""`DiscreteMeasure`: what it says of itself, what leaves it as it is, and what it refuses."""

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddeq import DiscreteMeasure
from ddeq.testing import assert_close
from ddeq.testing.samples import same_measure
from ddeq.testing.strategies import measures, permutations


def moments(mu):
    return mu.mass(), mu.mean(), mu.covariance()


@pytest.mark.theorem("T1")
@given(mu=measures(mark_dim=1))
def test_moments_depend_on_the_measure_alone(mu):
    size = mu.points.abs().max().square()
    for name, same in same_measure(mu).items():
        for a, b in zip(moments(same), moments(mu), strict=True):
            assert_close(a, b, name, scale=size)


@given(mu=measures(offsets=(0.0,), scales=(1.0,)))
def test_moments_by_hand(mu):
    mean = (mu.weights[..., None] * mu.points).sum(-2) / mu.mass()[..., None]
    second = torch.einsum("...n,...ni,...nj->...ij", mu.weights, mu.points, mu.points) / mu.mass()[..., None, None]
    assert_close(mu.mean(), mean, scale=1.0)
    assert_close(mu.covariance(), second - mean[..., :, None] * mean[..., None, :], scale=1.0)


def test_moments_far_from_the_origin_in_single_precision():
    near = DiscreteMeasure(torch.randn(100, 2))
    far = near.push_forward(lambda x: x + 1e4)
    assert_close(far.covariance(), near.covariance(), rtol=2e-3)  # the points themselves are rounded to 1e-3


@given(mu=measures(), data=st.data())
def test_permuting_back(mu, data):
    order = data.draw(permutations(mu.n))
    assert torch.equal(mu.permute_atoms(order).permute_atoms(order.argsort()).points, mu.points)


def test_permuting_each_measure_by_itself():
    mu = DiscreteMeasure(torch.arange(6.0).reshape(2, 3, 1))
    permuted = mu.permute_atoms(torch.tensor([[2, 1, 0], [0, 2, 1]]))
    assert permuted.points.squeeze(-1).tolist() == [[2, 1, 0], [3, 5, 4]]


def test_ragged_clouds_are_padded_with_mass_zero():
    clouds = [torch.randn(2, 3), torch.randn(5, 3)]
    mu = DiscreteMeasure.from_clouds(clouds)
    assert (mu.batch_shape, mu.n, mu.dim) == ((2,), 5, 3)
    assert mu.support().sum(-1).tolist() == [2, 5]
    for i, cloud in enumerate(clouds):
        assert_close(mu[i].mean(), cloud.mean(0))
    weighted = DiscreteMeasure.from_clouds(clouds, weights=[torch.ones(2), torch.ones(5)])
    assert weighted.mass().tolist() == [2, 5]


def test_mixture_and_multiples():
    mu, nu = DiscreteMeasure(torch.randn(3, 4, 2)), DiscreteMeasure(torch.randn(5, 2))
    mixture = 0.25 * mu + nu * 0.75
    assert mixture.points.shape == (3, 9, 2)
    assert_close(mixture.mass(), torch.ones(3))
    assert_close(mixture.mean(), 0.25 * mu.mean() + 0.75 * nu.mean())
    assert (torch.tensor([1.0, 2.0, 3.0]) * mu).mass().tolist() == pytest.approx([1, 2, 3])


def test_push_forward_changes_dimension_and_keeps_the_rest():
    mu = DiscreteMeasure(torch.randn(4, 2), marks=torch.randn(4, 3))
    image = mu.push_forward(lambda x: x.norm(dim=-1, keepdim=True))
    assert image.dim == 1
    assert image.weights is mu.weights
    assert image.marks is mu.marks


def test_resample_is_reproducible_and_takes_only_atoms_of_mass():
    mu = DiscreteMeasure(torch.arange(4.0).reshape(4, 1), torch.tensor([1.0, 0.0, 2.0, 0.0]), torch.arange(4.0).reshape(4, 1))
    a, b = (mu.resample(500, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a.points, b.points)
    assert torch.equal(a.points, a.marks)
    assert set(a.points.flatten().tolist()) == {0.0, 2.0}
    assert_close(a.mass(), mu.mass())
    assert abs(a.mean().item() - mu.mean().item()) < 0.2


def test_batch_index():
    mu = DiscreteMeasure(torch.randn(3, 4, 5, 2))
    assert torch.equal(mu[1].points, mu.points[1])
    assert torch.equal(mu[1, 2].points, mu.points[1, 2])
    assert torch.equal(mu[..., 0].points, mu.points[:, 0])
    assert torch.equal(mu[torch.tensor([True, False, True])].points, mu.points[[0, 2]])
    assert len(mu) == 3
    assert [m.batch_shape for m in mu] == [(4,)] * 3
    with pytest.raises(IndexError):
        mu[0, 0, 0]
    with pytest.raises(IndexError, match="no batch"):
        mu[0, 0][0]


def test_immutable():
    mu = DiscreteMeasure(torch.zeros(1, 1))
    with pytest.raises(AttributeError, match="with_points"):
        mu.points = torch.ones(1, 1)
    with pytest.raises(AttributeError):
        del mu.weights


@pytest.mark.parametrize("marks", [None, torch.randn(3, 1)])
def test_copies_and_files(tmp_path, marks):
    mu = DiscreteMeasure(torch.randn(3, 2), torch.rand(3), marks)
    mu.save(tmp_path / "mu.safetensors")
    for other in (copy.deepcopy(mu), pickle.loads(pickle.dumps(mu)), DiscreteMeasure.load(tmp_path / "mu.safetensors")):
        assert torch.equal(other.points, mu.points)
        assert torch.equal(other.weights, mu.weights)
        assert (other.marks is None) == (mu.marks is None)
    assert mu.to(torch.float64).weights.dtype == torch.float64


def test_gradients_reach_points_weights_and_marks():
    tensors = [torch.randn(3, 2, requires_grad=True), torch.rand(3, requires_grad=True), torch.randn(3, 1, requires_grad=True)]
    mu = DiscreteMeasure(*tensors)
    changed = (mu.split_atom(0, 0.5) + mu).pad_atoms(1).permute_atoms(torch.arange(8).flip(0)).normalized()
    (changed.mean().sum() + changed.marks.sum()).backward()
    assert all(t.grad is not None for t in tensors)
    assert not mu.detach().points.requires_grad


@pytest.mark.unchecked  # transforms pass placeholders around
def test_function_transforms():
    def second_moment(mu):
        return (mu.normalized().weights * mu.push_forward(torch.sin).points.square().sum(-1)).sum(-1)

    mu = DiscreteMeasure(torch.randn(3, 4, 2), torch.rand(3, 4))
    assert_close(torch.vmap(second_moment)(mu), second_moment(mu))
    made_inside = torch.vmap(lambda p, w: second_moment(DiscreteMeasure(p, w)))(mu.points, mu.weights)
    assert_close(made_inside, second_moment(mu))
    gradient = torch.func.grad(second_moment)(mu[0])
    assert isinstance(gradient, DiscreteMeasure)
    points = mu[0].points.clone().requires_grad_()
    (expected,) = torch.autograd.grad(second_moment(mu[0].with_points(points)), points)
    assert_close(gradient.points, expected)


PROGRAM = """
import torch
from ddeq import DiscreteMeasure

def program(points, weights):
    mu = DiscreteMeasure(points, weights)
    return (0.5 * mu.push_forward(torch.sin) + mu.pad_atoms(2)).split_atom(0, 0.5).covariance()

points, weights = torch.randn(3, 4, 2), torch.rand(3, 4)
torch.testing.assert_close(torch.compile(program, fullgraph=True)(points, weights), program(points, weights))
"""


@pytest.mark.slow
def test_compiles_without_a_graph_break():
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)  # apart from the shape checks, which do not compile


CLOUD = torch.zeros(3, 2)
MU = DiscreteMeasure(CLOUD)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DiscreteMeasure(torch.zeros(0, 2)), "points: .*n >= 1"),
        (lambda: DiscreteMeasure(torch.zeros(3, 0)), "points"),
        (lambda: DiscreteMeasure(torch.zeros(3)), "points: .*shape"),
        (lambda: DiscreteMeasure([[0.0, 1.0]]), "points: .*list"),
        (lambda: DiscreteMeasure(torch.zeros(3, 2, dtype=torch.int64)), "points: .*int64.*float"),
        (lambda: DiscreteMeasure(CLOUD * torch.nan), "points: .*finite"),
        (lambda: DiscreteMeasure(CLOUD + torch.inf), "points: .*finite"),
        (lambda: DiscreteMeasure(CLOUD, torch.tensor([1.0, -0.5, 1.0])), "weights: .*-0.5"),
        (lambda: DiscreteMeasure(CLOUD, torch.tensor([1.0, torch.nan, 1.0])), "weights: .*finite"),
        (lambda: DiscreteMeasure(CLOUD, torch.tensor([1.0, torch.inf, 1.0])), "weights: .*finite"),
        (lambda: DiscreteMeasure(CLOUD, torch.ones(4)), r"weights: .*\(3,\).*\(4,\)"),
        (lambda: DiscreteMeasure(CLOUD, torch.ones(3, dtype=torch.float64)), "weights: .*float64"),
        (lambda: DiscreteMeasure(CLOUD, torch.ones(3, dtype=torch.int64)), "weights: .*int64"),
        (lambda: DiscreteMeasure(CLOUD, marks=torch.ones(2, 1)), "marks: "),
        (lambda: DiscreteMeasure(CLOUD, marks=torch.full((3, 1), torch.nan)), "marks: .*finite"),
        (lambda: DiscreteMeasure.from_clouds([]), "at least one"),
        (lambda: DiscreteMeasure.from_clouds([CLOUD, torch.zeros(0, 2)]), r"clouds\[1\]"),
        (lambda: DiscreteMeasure.from_clouds([CLOUD, torch.zeros(3, 3)]), r"\[1\].*dimension 2, got 3"),
        (lambda: DiscreteMeasure.from_clouds([CLOUD], weights=[]), "weights: .*one tensor per cloud"),
        (lambda: MU.with_points(torch.zeros(4, 2)), "points: "),
        (lambda: MU.push_forward(lambda x: x.sum(-1)), "points: "),
        (lambda: MU.with_weights(torch.zeros(4)), "weights: "),
        (lambda: MU.split_atom(3, 0.5), "i: "),
        (lambda: MU.split_atom(0, 1.5), "fraction: "),
        (lambda: MU.pad_atoms(-1), "k: "),
        (lambda: MU.permute_atoms(torch.arange(4)), "index: "),
        (lambda: MU + DiscreteMeasure(torch.zeros(3, 3)), "dimension 2, got 3"),
        (lambda: MU + DiscreteMeasure(CLOUD.double()), "float32.*float64"),
        (lambda: MU + DiscreteMeasure(CLOUD, marks=CLOUD), "marks"),
        (lambda: -1.0 * MU, "c >= 0"),
        (lambda: MU.with_weights(torch.zeros(3)).mean(), "positive total mass"),
        (lambda: MU.with_weights(torch.zeros(3)).normalized(), "positive total mass"),
        (lambda: MU.with_weights(torch.zeros(3)).resample(3), "positive total mass"),
        (lambda: MU.to(torch.int64), "int64"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_numbers_of_numpy_and_tensors_as_factors():
    mu = DiscreteMeasure(torch.randn(2, 3, 1))
    for c in (np.float64(2.0), np.float32(2.0), np.int64(2)):
        assert (c * mu).mass().tolist() == pytest.approx([2.0, 2.0])
        assert (mu * c).mass().tolist() == pytest.approx([2.0, 2.0])
    with pytest.raises(ValueError, match="c >= 0"):
        mu * torch.tensor(-1.0)


def test_saving_parts_that_share_memory(tmp_path):
    points = torch.randn(3, 2)
    DiscreteMeasure(points, marks=points).save(tmp_path / "mu.safetensors")
    assert torch.equal(DiscreteMeasure.load(tmp_path / "mu.safetensors").marks, points)


def test_clouds_are_blamed_for_clouds():
    with pytest.raises(ValueError, match=r"clouds\[1\]: .*dimension"):
        DiscreteMeasure.from_clouds([torch.zeros(2, 2), torch.zeros(2, 3)])
    with pytest.raises(ValueError, match=r"clouds: .*at least one"):
        DiscreteMeasure.from_clouds([])


def test_all_parts_are_pinned(monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda t: pinned.append(t) or t + 0)  # needs an accelerator
    mu = DiscreteMeasure(torch.randn(2, 3, 1), marks=torch.randn(2, 3, 2))
    copied = mu.pin_memory()
    assert [t.shape for t in pinned] == [(2, 3, 1), (2, 3), (2, 3, 2)]
    assert torch.equal(copied.points, mu.points)
    assert copied.points is not mu.points


@pytest.mark.theorem("T1")
def test_moments_do_not_ask_which_atom_is_the_first_one():
    mu = DiscreteMeasure(torch.tensor([[1e8], [0.1], [0.3]]), torch.tensor([0.0, 0.5, 0.5]))
    for same in (mu, mu.permute_atoms(torch.tensor([1, 2, 0]))):
        assert_close(same.mean(), torch.tensor([0.2]))
        assert_close(same.covariance(), torch.tensor([[0.01]]))
