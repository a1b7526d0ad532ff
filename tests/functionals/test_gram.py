"""The two systems of a regularised kernel matrix, factorised and by conjugate gradients, against direct solves."""

import pytest
import torch

from ddeq.functionals import gram
from ddeq.functionals.gram import Gram, RegularizedSystem
from ddeq.iteration import InnerProblemWarning
from ddeq.kernels import Gaussian, RadialKernel
from ddeq.reductions import block_size
from ddeq.testing import assert_close

STORED, NOT_STORED = 2**24, 64


def system(size, regularization=0.05, batch=(2,), m=9, dtype=torch.float64):
    """Masses that span many scales, one of them zero, and two coincident points."""
    g = torch.Generator().manual_seed(0)
    points = torch.randn(*batch, m, 2, generator=g, dtype=torch.float64).to(dtype)
    points[..., -1, :] = points[..., 0, :]
    density = (torch.rand(*batch, m, generator=g, dtype=torch.float64) ** 6).to(dtype)
    density[..., 1] = 0.0
    kernel = Gaussian(1.0)
    with block_size(size):
        operator = Gram.of(kernel, points)
    assert (operator.matrix is None) == (size == NOT_STORED)
    return kernel(points, points), density, RegularizedSystem(operator, density, density.new_full((*batch, 1), regularization))


@pytest.mark.theorem("T3")
@pytest.mark.parametrize("size", [STORED, NOT_STORED])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("batch", [(), (2,), (2, 1)])
def test_against_direct_solves(size, transposed, batch):
    matrix, density, solver = system(size, batch=batch)
    right = torch.randn(*batch, 9, dtype=torch.float64)
    scaled = matrix * density.unsqueeze(-1 if transposed else -2)
    expected = torch.linalg.solve(0.05 * torch.eye(9, dtype=torch.float64) + scaled, right)
    assert_close(solver.solve(right, transposed=transposed), expected)
    assert_close(solver.gram.product(right), (matrix @ right.unsqueeze(-1)).squeeze(-1))


@pytest.mark.parametrize("transposed", [False, True])
def test_a_small_regularisation_costs_no_digits(transposed):
    """The formula divides a difference by it; a second solve with what is left gives back what that loses."""
    matrix, density, solver = system(STORED, regularization=1e-8, batch=())
    right = torch.randn(9, dtype=torch.float64)
    scaled = matrix * density.unsqueeze(-1 if transposed else -2)
    x = solver.solve(right, transposed=transposed)
    defect = 1e-8 * x + scaled @ x - right
    size = right.abs() + 1e-8 * x.abs() + scaled.abs() @ x.abs()
    assert defect.abs().max() <= 1e-13 * size.max()


def test_zero_right_hand_sides_and_zero_masses():
    _, density, solver = system(STORED)
    assert torch.equal(solver.solve(torch.zeros_like(density)), torch.zeros_like(density))
    nothing = RegularizedSystem(solver.gram, torch.zeros_like(density), solver.regularization)
    right = torch.randn_like(density)
    for transposed in (False, True):
        assert_close(nothing.solve(right, transposed=transposed), right / 0.05)


def test_without_enough_products_it_warns_with_the_residual_and_a_remedy(monkeypatch):
    monkeypatch.setattr(gram, "MOST_PRODUCTS", 1)
    _, density, solver = system(NOT_STORED)
    with pytest.warns(InnerProblemWarning, match=r"larger regularization.*block_size") as caught:
        assert torch.isfinite(solver.solve(torch.randn_like(density))).all()
    assert caught[0].message.total == 2
    assert caught[0].message.residual > caught[0].message.wanted > 0


class Negative(RadialKernel):
    def profile(self, s):
        return -(-s).exp()


def test_a_kernel_that_is_not_positive_definite_is_found_out():
    points = torch.randn(4, 2)
    solver = RegularizedSystem(Gram.of(Negative(), points), torch.ones(4), torch.tensor([0.01]))
    with pytest.raises(ValueError, match=r"regularization: 1.0e-02 .* not positive definite"):
        solver.solve(torch.ones(4))


def test_selected_samples():
    matrix, _, solver = system(STORED)
    assert_close(solver.gram.select(torch.tensor([1])).matrix, matrix[1:])
