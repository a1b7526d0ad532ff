"""Krylov methods against direct solves, for batches whose samples end at different times, and for singular equations."""

import pytest
import torch

from ddeq.iteration import krylov
from ddeq.iteration.krylov import conjugate_gradients, minimal_residual
from ddeq.testing import assert_close


def positive_definite(*batch, n=8, condition=100.0, dtype=torch.float64):
    q = torch.linalg.qr(torch.randn(*batch, n, n, dtype=torch.float64)).Q
    eigenvalues = torch.logspace(0, -float(torch.tensor(condition).log10()), n, dtype=torch.float64)
    return (q * eigenvalues @ q.mT).to(dtype)


def times(a):
    return lambda x: (a @ x.unsqueeze(-1)).squeeze(-1)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_against_a_direct_solve(batch, dtype):
    a, b = positive_definite(*batch, dtype=dtype), torch.randn(*batch, 8, dtype=dtype)
    rtol = 1e-12 if dtype == torch.float64 else 1e-6
    solution = conjugate_gradients(times(a), b, rtol=rtol)
    assert solution.converged.all()
    assert (solution.residual <= rtol).all()
    assert solution.residual.shape == solution.steps.shape == solution.converged.shape == batch
    assert_close(solution.x, torch.linalg.solve(a, b), rtol=2e3 * rtol)


def test_samples_stop_each_by_itself_and_stay_where_they_stopped():
    """A zero right-hand side, an eigenvector, a number of distinct eigenvalues, and a generic one; none changes another."""
    a = positive_definite(4)
    b = torch.randn(4, 8, dtype=torch.float64)
    b[0] = 0.0
    b[1] = torch.linalg.eigh(a[1]).eigenvectors[:, 3]
    a[2] = torch.diag(torch.tensor([1.0] * 4 + [3.0] * 4, dtype=torch.float64))
    together = conjugate_gradients(times(a), b, rtol=1e-12)
    assert together.steps[:3].tolist() == [0, 1, 2]
    assert together.steps[3] >= 8
    assert together.converged.all()
    assert_close(together.x, torch.linalg.solve(a, b))
    for i in range(4):
        alone = conjugate_gradients(times(a[i]), b[i], rtol=1e-12)
        assert_close(alone.x, together.x[i])
        assert alone.steps == together.steps[i]


def test_exact_convergence_does_not_break_down():
    b = torch.tensor([1.0, 0.0, 2.0])
    solution = conjugate_gradients(lambda x: 2 * x, b, rtol=0.0)
    assert torch.equal(solution.x, b / 2)
    assert solution.residual == 0
    assert solution.converged


def test_one_tolerance_for_each_sample():
    a, b = positive_definite(2), torch.randn(2, 8, dtype=torch.float64)
    solution = conjugate_gradients(times(a), b, rtol=torch.tensor([1e-2, 1e-12], dtype=torch.float64))
    assert solution.steps[0] < solution.steps[1]
    assert 1e-12 < solution.residual[0] <= 1e-2


def test_without_enough_steps_the_best_iterate_is_returned_and_said_not_to_be_a_solution():
    a, b = positive_definite(condition=1e6), torch.randn(8, dtype=torch.float64)
    solution = conjugate_gradients(times(a), b, rtol=1e-12, max_steps=3)
    assert not solution.converged
    assert solution.steps == 3
    assert_close((b - times(a)(solution.x)).norm() / b.norm(), solution.residual, rtol=1e-10)


@pytest.mark.theorem("T16")
def test_the_solution_of_least_norm_of_a_singular_equation_in_an_inner_product():
    """An operator that is self-adjoint in L2(mu) and does not see a common shift, as the Hessian of an interaction."""
    n, d = 5, 2
    w = torch.rand(n, dtype=torch.float64) + 0.1
    c = torch.randn(n, n, dtype=torch.float64).square()
    c = c + c.T
    laplacian = torch.diag(c.sum(1)) - c  # symmetric; divided by the weights it is self-adjoint in L2
    right = torch.randn(n, d, dtype=torch.float64)
    right = right - (w[:, None] * right).sum(0) / w.sum()  # orthogonal to shifts, in L2: consistent

    def operator(x):
        return laplacian @ x / w[:, None]

    solution = conjugate_gradients(operator, right, weights=w[:, None], dims=2, rtol=1e-13)
    assert solution.converged
    assert solution.x.shape == right.shape
    assert_close(operator(solution.x), right)
    assert_close((w[:, None] * solution.x).sum(0), torch.zeros(d, dtype=torch.float64), scale=1.0)
    root = w.sqrt()[:, None]
    pseudo = torch.linalg.pinv(laplacian / root / root.T, hermitian=True)  # T16: W^-1/2 (W^1/2 H W^-1/2)^+ W^1/2
    assert_close(solution.x, pseudo @ (root * right) / root)


def test_what_has_weight_zero_is_left_alone():
    a, b = positive_definite(), torch.randn(8, dtype=torch.float64)
    weights = torch.ones(8, dtype=torch.float64)
    weights[-2:] = 0.0
    mask = weights > 0
    solution = conjugate_gradients(lambda x: torch.where(mask, times(a)(torch.where(mask, x, 0.0)), 0.0), b, weights=weights)
    assert_close(solution.x[:6], torch.linalg.solve(a[:6, :6], b[:6]), rtol=1e-5)


def test_inconsistent_and_indefinite_equations_end_and_say_so():
    b = torch.tensor([1.0, 1.0], dtype=torch.float64)
    for diagonal in ([1.0, 0.0], [1.0, -1.0]):
        solution = conjugate_gradients(lambda x, d=diagonal: torch.tensor(d, dtype=torch.float64) * x, b)
        assert not solution.converged
        assert torch.isfinite(solution.x).all()


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_tiny_and_huge_right_hand_sides_in_single_precision(scale):
    """Their squares are not numbers of the type."""
    a, b = positive_definite(dtype=torch.float32), torch.randn(8)
    expected = torch.linalg.solve(a, b)
    solution = conjugate_gradients(times(a), b * scale, rtol=1e-6)
    assert solution.converged
    assert_close(solution.x / scale, expected, rtol=1e-3)


def test_a_sample_that_is_not_finite_disturbs_no_other():
    a, b = positive_definite(2), torch.randn(2, 8, dtype=torch.float64)
    b[0, 0] = torch.nan
    solution = conjugate_gradients(times(a), b)
    assert solution.converged.tolist() == [False, True]
    assert_close(solution.x[1], torch.linalg.solve(a[1], b[1]), rtol=1e-5)


# --- minimal residuals ---


def indefinite(*batch, n=8, condition=100.0, singular=0, dtype=torch.float64):
    """Eigenvalues of both signs, the first ``singular`` of them zero; also gives the eigenvectors."""
    q = torch.linalg.qr(torch.randn(*batch, n, n, dtype=torch.float64)).Q
    values = torch.logspace(0, -float(torch.tensor(condition).log10()), n, dtype=torch.float64)
    values = values * torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(n)[:n]
    values = values.flip(0) if singular else values
    values[:singular] = 0.0
    return (q * values @ q.mT).to(dtype), q.to(dtype)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_minimal_residual_of_indefinite_equations(batch, dtype):
    a, _ = indefinite(*batch, dtype=dtype)
    b = torch.randn(*batch, 8, dtype=dtype)
    rtol = 1e-12 if dtype == torch.float64 else 1e-6
    solution = minimal_residual(times(a), b, rtol=rtol)
    assert solution.converged.all()
    assert not solution.flat.any()
    assert (solution.steps <= 9).all()
    assert solution.residual.shape == solution.steps.shape == solution.flat.shape == solution.norm.shape == batch
    assert_close(solution.x, torch.linalg.solve(a, b), rtol=2e3 * rtol)


@pytest.mark.theorem("T16")
@pytest.mark.parametrize(("n", "condition"), [(8, 1e2), (40, 1e4), (40, 1e6)])
def test_minimal_residual_of_singular_equations(n, condition):
    """Inconsistent: the solution of least squares and least norm, and the part in the kernel, which is said to be there."""
    a, q = indefinite(n=n, condition=condition, singular=2)
    b = torch.randn(n, dtype=torch.float64)
    solution = minimal_residual(times(a), b, rtol=1e-10, max_steps=5 * n)
    kernel = q[:, :2] @ (q[:, :2].mT @ b)
    assert solution.flat
    assert not solution.converged
    assert solution.steps <= n + 1
    assert_close(solution.x, torch.linalg.pinv(a, rtol=1e-12, hermitian=True) @ b, rtol=max(1e-8, 1e-11 * condition))
    assert_close(b - a @ solution.x, kernel, rtol=max(1e-8, 1e-11 * condition))
    assert_close(solution.residual, kernel.norm() / b.norm(), rtol=1e-8)
    consistent = minimal_residual(times(a), b - kernel, rtol=1e-10, max_steps=5 * n)
    assert consistent.converged
    assert_close(consistent.x, solution.x, rtol=max(1e-8, 1e-11 * condition))


@pytest.mark.theorem("T16")
def test_minimal_residual_in_an_inner_product():
    """Self-adjoint in L2 and indefinite, blind to a common shift; against T16's pseudo-inverse."""
    n, d = 5, 2
    w = torch.rand(n, dtype=torch.float64) + 0.1
    c = torch.randn(n, n, dtype=torch.float64)
    c = c + c.T
    matrix = torch.diag(c.sum(1)) - c
    right = torch.randn(n, d, dtype=torch.float64)
    solution = minimal_residual(lambda x: matrix @ x / w[:, None], right, weights=w[:, None], dims=2, rtol=1e-12)
    mean = (w[:, None] * right).sum(0) / w.sum()
    root = w.sqrt()[:, None]
    pseudo = torch.linalg.pinv(matrix / root / root.T, rtol=1e-12, hermitian=True)
    assert solution.flat
    assert_close(solution.x, pseudo @ (root * right) / root, rtol=1e-9)
    assert_close(right - matrix @ solution.x / w[:, None], mean.expand(n, d), rtol=1e-9)


def test_minimal_residual_samples_do_not_influence_each_other():
    a, q = indefinite(5)
    a[1] = 0.0
    b = torch.randn(5, 8, dtype=torch.float64)
    b[0] = 0.0
    b[2] = q[2, :, 3]
    b[4, 0] = torch.nan
    together = minimal_residual(times(a), b, rtol=1e-12)
    assert together.steps[:3].tolist() == [0, 1, 1]
    assert together.flat.tolist() == [False, True, False, False, False]
    assert together.converged.tolist() == [True, False, True, True, False]
    assert (together.x[1] == 0).all()
    for i in range(4):
        alone = minimal_residual(times(a[i]), b[i], rtol=1e-12)
        assert_close(alone.x, together.x[i])
        assert alone.steps == together.steps[i]


def test_an_operator_that_should_be_zero_is_taken_for_it():
    noise = 1e-17 * indefinite()[0]
    b = torch.randn(8, dtype=torch.float64)
    assert minimal_residual(times(noise), b).converged
    assert minimal_residual(times(noise), b, scale=torch.tensor(1.0, dtype=torch.float64)).flat


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_minimal_residual_of_tiny_and_huge_right_hand_sides(scale):
    a, b = indefinite(dtype=torch.float32)[0], torch.randn(8)
    solution = minimal_residual(times(a), b * scale, rtol=1e-6)
    assert solution.converged
    assert_close(solution.x / scale, torch.linalg.solve(a, b), rtol=1e-3)


def test_without_room_for_its_vectors_it_takes_longer_and_arrives(monkeypatch):
    monkeypatch.setattr(krylov, "REMEMBERED", 10 * 40)
    a, b = indefinite(n=40, condition=1e3)[0], torch.randn(40, dtype=torch.float64)
    solution = minimal_residual(times(a), b, rtol=1e-10, max_steps=400)
    assert solution.converged
    assert_close(solution.x, torch.linalg.solve(a, b), rtol=1e-6)
