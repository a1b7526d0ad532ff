"""Sums on the line by sorting: what dense sums give, in value and in every derivative, at any place and scale."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddeq.kernels import Riesz
from ddeq.reductions import sorted
from ddeq.reductions.sorted import self_energy, sum_distances, sum_signs
from ddeq.testing import assert_close
from ddeq.testing.strategies import measures
from proofs_checks.test_t12_one_dimension import energy_distance

line = measures(dim=1, max_atoms=6, batch_shapes=((), (2,), (2, 3)))


def sum_pairs(x, y, b):
    return sorted.Sorted().sum_pairs(Riesz(1.0), x, y, b)


def problem(dtype=torch.float64, batch=(2,), ties=True):
    x, y = torch.randn(*batch, 7, 1, dtype=dtype), torch.randn(*batch, 6, 1, dtype=dtype)
    if ties:
        y[..., :2, :], y[..., 3, :] = x[..., :2, :], x[..., 0, :]
        x[..., 2, :] = x[..., 0, :]
    return x, y, torch.randn(*batch, 6, 3, dtype=dtype)


def by_pairs(x, y, b):
    return Riesz(1.0)(x, y) @ b


def derivatives(function, *tensors):
    """A value, its gradients and Hessian-vector products."""
    tensors = [t.detach().clone().requires_grad_() for t in tensors]
    value = function(*tensors)
    gradients = torch.autograd.grad(value.square().sum(), tensors, create_graph=True)
    return value, *gradients, *torch.autograd.grad(sum((g * g.detach().cos()).sum() for g in gradients), tensors)


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_values_and_derivatives_are_those_of_dense_sums(batch):
    inputs = problem(batch=batch)
    for actual, expected in zip(derivatives(sum_pairs, *inputs), derivatives(by_pairs, *inputs), strict=True):
        assert_close(actual, expected)


def test_derivatives_by_finite_differences_and_in_forward_mode():
    inputs = [t.requires_grad_() for t in problem(ties=False)]
    assert torch.autograd.gradcheck(sum_pairs, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(sum_pairs, inputs)
    z, b = (
        torch.randn(2, 5, dtype=torch.float64, requires_grad=True),
        torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True),
    )
    assert torch.autograd.gradcheck(self_energy, (z, b), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(self_energy, (z, b))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
@given(mu=line, nu=line, signs=st.booleans())
def test_error_relative_to_the_sum_of_absolute_terms(dtype, tolerance, mu, nu, signs):
    """Far from the origin, at any scale: entry by entry, not relative to the largest."""
    x, nu = mu[(0,) * len(mu.batch_shape)] if mu.batch_shape else mu, nu.to(dtype)
    x = x.points.to(dtype).expand(*nu.batch_shape, -1, -1)
    b = nu.weights.unsqueeze(-1)
    if signs:
        b = b * torch.where(torch.arange(nu.n) % 2 == 0, 1.0, -1.0).to(dtype).unsqueeze(-1)
    distances = (x.double() - nu.points.double().mT).abs()
    error = (sum_pairs(x, nu.points, b).double() + distances @ b.double()).abs()
    assert (error <= tolerance * (distances @ b.double().abs())).all()


def test_scales_side_by_side():
    """A cluster of size 1e-9 next to a point at distance 1e9 keeps its digits."""
    y = torch.tensor([0.0, 1e-9, 3e-9, 1e9], dtype=torch.float64).unsqueeze(-1)
    b = torch.tensor([1.0, 2.0, 1.0, 0.0], dtype=torch.float64).unsqueeze(-1)
    expected = torch.tensor([5e-9, 3e-9, 7e-9, 4e9], dtype=torch.float64).unsqueeze(-1)
    assert ((sum_pairs(y, y, b) + expected).abs() <= 1e-14 * expected).all()


def test_ties_give_zero_to_each_other():
    z = torch.tensor([1.0, 0.0, 1.0, 2.0, 1.0], dtype=torch.float64)
    b = torch.tensor([[1.0, 2.0, 4.0, 8.0, 16.0]], dtype=torch.float64)
    assert sum_signs(z, b).tolist() == [[-6.0, -29.0, -6.0, 23.0, -6.0]]
    everywhere_the_same = torch.zeros(5, dtype=torch.float64)
    assert not sum_signs(everywhere_the_same, b).any()
    assert not sum_distances(everywhere_the_same, b).any()
    assert not sum_signs(z[:1], b[:, :1]).any()


@pytest.mark.theorem("T12")
@given(mu=measures(dim=1, batch_shapes=((),), offsets=(0.0,)), nu=measures(dim=1, batch_shapes=((),), offsets=(0.0,)))
def test_energy_of_a_difference_is_half_of_the_energy_distance(mu, nu):
    z, b = torch.cat([mu.points, nu.points]).mT, torch.cat([mu.weights, -nu.weights])
    a, c = (list(zip(m.weights.tolist(), m.points.squeeze(-1).tolist(), strict=True)) for m in (mu, nu))
    expected = torch.tensor(0.5 * float(energy_distance(a, c)), dtype=torch.float64)
    assert_close(self_energy(z, b.expand(1, 1, -1)).squeeze(), expected, scale=z.abs().max())


@given(mu=line)
def test_energy_is_half_of_the_integral_of_distances(mu):
    z, b = mu.points.squeeze(-1), torch.stack([mu.weights, -2 * mu.weights, mu.weights.roll(1, -1) - mu.weights], -2)
    scale = (z.amax(-1) - z.amin(-1)).max()
    assert_close(self_energy(z, b), 0.5 * (b * sum_distances(z, b)).sum(-1), scale=scale)


def test_small_energies_keep_their_digits():
    """Moving mass 1e-12 over the distance 1 leaves 1e-24, far below the rounding of the distances that cancel."""
    z = torch.tensor([[0.0, 1.0, 0.0, 1.0]], dtype=torch.float64)
    m = 2.0**-40
    b = torch.tensor([[[0.5 + m, 0.5 - m, -0.5, -0.5]]], dtype=torch.float64)
    assert self_energy(z, b).item() == pytest.approx(m**2, rel=1e-12)


def test_inside_function_transforms():
    x, y, b = problem(batch=(4,))
    assert_close(torch.vmap(sum_pairs)(x, y, b), sum_pairs(x, y, b))
    assert_close(torch.vmap(sum_pairs, (0, None, None))(x, y[0], b[0]), sum_pairs(x, y[:1].expand_as(y), b[:1].expand_as(b)))

    def gradient(function):
        return torch.vmap(torch.func.grad(lambda *t: function(*t).square().sum(), (0, 1, 2)))(x, y, b)

    for actual, expected in zip(gradient(sum_pairs), gradient(by_pairs), strict=True):
        assert_close(actual, expected)
    hessian = torch.func.hessian(lambda b: sum_pairs(x[0], y[0], b).square().sum())(b[0])
    assert_close(hessian, torch.func.hessian(lambda b: by_pairs(x[0], y[0], b).square().sum())(b[0]))


def test_many_points_without_pairs():
    z = torch.linspace(0, 1, 300_001, dtype=torch.float64)[torch.randperm(300_001)]
    b = torch.full((1, 300_001), 1 / 300_001, dtype=torch.float64)
    assert_close(self_energy(z, b), torch.tensor([-1 / 6], dtype=torch.float64), rtol=1e-5)  # half of E|X - Y| = 1/3
    assert_close(sum_signs(z, b), 2 * z.unsqueeze(0) - 1, rtol=1e-5)


def of_a_difference(n, batch=()):
    """Many points, some of which coincide, and masses of three values, the first zero."""
    z = torch.randn(*batch, n, dtype=torch.float64)
    ends = torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64).repeat_interleave(
        torch.tensor([n // 5, n // 2, n - n // 5 - n // 2])
    )
    return z, (ends / n).expand(*batch, 1, n)


@pytest.mark.parametrize("batch", [(), (3,), (2, 2)])
def test_masses_of_few_values_are_summed_as_others_are(batch):
    z, b = of_a_difference(9001, batch)
    for points in (z, z.round(decimals=2), torch.where(z > 1.5, z.round(decimals=1), z)):  # none, most, some coincide
        other = b + torch.linspace(0, 1e-300, z.shape[-1], dtype=torch.float64)  # the same numbers, in as many values
        assert_close(sum_signs(points, b), sum_signs(points, other.clone().requires_grad_()).detach())
        assert torch.equal(sum_signs(points, b, first=100), sum_signs(points, b)[..., :100])
        two = b[..., 2000:] + 1.0
        half = int((two == two[..., :1]).sum() // two[..., 0].numel())
        assert_close(sum_signs(points[..., 2000:], two, first=half), sum_signs(points[..., 2000:], two)[..., :half], rtol=1e-11)
        for masses in (b[..., 2000:], b[..., -3000:], b[..., :4000]):
            here = points[..., : masses.shape[-1]].repeat_interleave(3, -1)
            masses = masses.repeat_interleave(3, -1)
            assert_close(self_energy(here, masses), self_energy(here, masses.clone().requires_grad_()).detach(), rtol=1e-11)


def test_few_values_keep_small_energies_and_distant_places():
    n = 10_000
    x = torch.linspace(0, 1, n, dtype=torch.float64)
    b = torch.tensor([1 / n, -1 / n], dtype=torch.float64).repeat_interleave(n).unsqueeze(0)
    assert self_energy(torch.cat([x, x.flip(0)]), b).item() == 0.0
    assert_close(self_energy(torch.cat([x, x + 1e-6]), b), torch.tensor([1e-6 / n], dtype=torch.float64), rtol=1e-6)
    assert self_energy(torch.cat([x, x + torch.inf]), b).isfinite().logical_not()
