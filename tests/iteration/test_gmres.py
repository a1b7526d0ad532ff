"""GMRES against direct solves, for batches whose samples end at different times, in inner products of measures."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddeq.iteration import gmres
from ddeq.testing import assert_close
from ddeq.testing.samples import same_measure
from ddeq.testing.strategies import measures


def times(a):
    return lambda x: (a @ x.unsqueeze(-1)).squeeze(-1)


def regular(*batch, n=8, dtype=torch.float64):
    """Not symmetric, eigenvalues around one."""
    return (torch.eye(n, dtype=torch.float64) + 0.7 * torch.randn(*batch, n, n, dtype=torch.float64) / n**0.5).to(dtype)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_against_a_direct_solve(batch, dtype):
    a, b = regular(*batch, dtype=dtype), torch.randn(*batch, 8, dtype=dtype)
    rtol = 1e-12 if dtype == torch.float64 else 1e-5
    solution = gmres(times(a), b, rtol=rtol)
    assert solution.converged.all()
    assert solution.residual.shape == solution.steps.shape == solution.converged.shape == batch
    assert (solution.steps <= 8).all()
    assert_close((b - times(a)(solution.x)).norm(dim=-1), torch.zeros(batch, dtype=dtype), scale=b.norm(), rtol=5 * rtol)


def test_restarts_forget_the_basis_and_count_the_residual_they_take():
    a, b = regular(n=40), torch.randn(40, dtype=torch.float64)
    products = []

    def operator(x):
        products.append(x)
        return times(a)(x)

    solution = gmres(operator, b, rtol=1e-10, restart=7, max_steps=300)
    assert solution.converged
    assert solution.steps == len(products) > 40
    assert_close(solution.x, torch.linalg.solve(a, b), rtol=1e-8)


def test_the_residual_that_it_says_is_the_one_that_there_is():
    a, b = regular(5, n=20), torch.randn(5, 20, dtype=torch.float64)
    for steps in (1, 4, 11):
        solution = gmres(times(a), b, rtol=1e-12, max_steps=steps, restart=6)
        assert_close((b - times(a)(solution.x)).norm(dim=-1) / b.norm(dim=-1), solution.residual, rtol=1e-9)


def test_samples_stop_each_by_itself_and_get_what_they_get_alone():
    """Zero, an eigenvector, a NaN, one with its own tolerance; none changes another."""
    a, b = regular(5, n=12), torch.randn(5, 12, dtype=torch.float64)
    b[0], b[2, 3] = 0.0, torch.nan
    a[1] = torch.diag(torch.arange(1.0, 13.0, dtype=torch.float64))
    b[1] = torch.eye(12, dtype=torch.float64)[4]
    rtol = torch.tensor([1e-10, 1e-10, 1e-10, 1e-2, 1e-10], dtype=torch.float64)
    together = gmres(times(a), b, rtol=rtol, restart=5)
    assert together.steps[:2].tolist() == [0, 1]
    assert together.converged.tolist() == [True, True, False, True, True]
    assert 1e-10 < together.residual[3] <= 1e-2
    assert not together.x[2].any()  # it never left the start
    for i in (0, 1, 3, 4):
        alone = gmres(times(a[i]), b[i], rtol=rtol[i], restart=5)
        assert alone.steps == together.steps[i]
        assert_close(alone.x, together.x[i], scale=1.0)


def test_singular_equations():
    """Consistent: solved. Inconsistent: what can be had, and no step of a length that rounding decides."""
    a = torch.diag(torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64))
    solution = gmres(times(a), torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))
    assert solution.converged
    assert_close(solution.x, torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64))
    q = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    solution = gmres(times(q @ a @ q.mT), q @ torch.ones(3, dtype=torch.float64))
    assert not solution.converged
    assert solution.residual == pytest.approx(3**-0.5)
    assert solution.x.norm() < 10
    nothing = gmres(torch.zeros_like, torch.ones(2, 3))
    assert not nothing.converged.any()
    assert not nothing.x.any()


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_tiny_and_huge_right_hand_sides_in_single_precision(scale):
    a, b = regular(dtype=torch.float32), torch.randn(8)
    solution = gmres(times(a), b * scale, rtol=1e-5)
    assert solution.converged
    assert_close(solution.x / scale, torch.linalg.solve(a, b), rtol=1e-3)


@pytest.mark.theorem("T9")
@given(mu=measures(offsets=(0.0,), scales=(1.0,)), gain=st.sampled_from([0.3, 1.5]))
def test_iterates_depend_on_the_measure_alone(mu, gain):
    """Two steps only, so that it is the iterates that are compared. Unweighted, splitting an atom would change them."""

    def iterate(mu):
        def operator(v):
            mean = (mu.weights.unsqueeze(-1) * v).sum(-2, keepdim=True)
            return v - gain * torch.tanh(mu.points) * v + 0.4 * mean.flip(-1)

        return gmres(operator, mu.points + 1.0, weights=mu.weights.unsqueeze(-1), dims=2, max_steps=2, rtol=1e-6).x

    expected = mu.with_points(iterate(mu))
    for (name, same), wanted in zip(same_measure(mu).items(), same_measure(expected).values(), strict=True):
        live = same.support().unsqueeze(-1)
        assert_close(torch.where(live, iterate(same), 0.0), torch.where(live, wanted.points, 0.0), name, scale=1.0, rtol=1e-9)


@pytest.mark.parametrize(("options", "message"), [({"restart": 0}, "restart"), ({"max_steps": 1.5}, "max_steps")])
@pytest.mark.unchecked
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        gmres(lambda x: x, torch.ones(3), **options)
