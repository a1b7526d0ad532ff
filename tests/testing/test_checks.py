"""The testers tested: each wrong functional, map or solution fails with a message that names the law."""

from dataclasses import replace

import pytest
import torch
from maps import affine, mean_field, point
from torch import nn

from ddeq import DiscreteMeasure, Functional, fixed_point
from ddeq.flows import Euler
from ddeq.functionals import MMD, PotentialEnergy
from ddeq.iteration import Stop
from ddeq.kernels import Gaussian
from ddeq.nn import EquilibriumCell, InducedSetEncoder
from ddeq.solvers import OneStep, Picard
from ddeq.testing import assert_close, check_flow, check_functional, check_implicit_gradient, check_map, check_solution


def V(x):
    return 0.5 * x.square().sum(-1) + x[..., 0].sin()


class UnweightedSum(Functional):
    def forward(self, mu):
        return V(mu.points).sum(-1)


class UStatistic(Functional):
    def forward(self, mu):
        distances = (mu.points.unsqueeze(-2) - mu.points.unsqueeze(-3)).square().sum(-1)
        pairs = mu.weights.unsqueeze(-1) * mu.weights.unsqueeze(-2) * (1 - torch.eye(mu.n, dtype=mu.dtype))
        return (pairs * (-distances).exp()).sum((-2, -1))


class ScaledVariation(PotentialEnergy):
    def first_variation(self, mu, x=None):
        return 2.0 * super().first_variation(mu, x)

    def forward(self, mu):
        return (mu.weights * V(mu.points)).sum(-1)


class ForceInsteadOfGradient(PotentialEnergy):
    def wasserstein_gradient(self, mu, x=None):
        gradient = super().wasserstein_gradient(mu, x)
        return gradient * mu.weights.unsqueeze(-1) if x is None else gradient


class LivingAtomsOnly(Functional):
    def forward(self, mu):
        return torch.where(mu.weights > 0, mu.weights * V(mu.points), 0.0).sum(-1)


class LogarithmInSoftmax(Functional):
    def forward(self, mu):
        return (torch.softmax(V(mu.points) + mu.weights.log(), -1) * mu.points[..., 0]).sum(-1)


class LooksAtItsNeighbours(Functional):
    def forward(self, mu):
        return (mu.weights * V(mu.points)).sum(-1) + mu.points.mean()


class Supremum(Functional):
    def forward(self, mu):
        return mu.points.amax((-2, -1))


class SupremumOverTheSupport(Functional):
    def forward(self, mu):
        return torch.where(mu.support(), mu.points.norm(dim=-1), 0.0).amax(-1)


class Detached(Functional):
    def forward(self, mu):
        return (mu.weights * V(mu.points - 3 * mu.points.detach())).sum(-1)


class DetachedGradient(MMD):
    def wasserstein_gradient(self, mu, x=None):
        return super().wasserstein_gradient(mu.detach(), mu.points if x is None else x)


class IgnoresTheProbe(PotentialEnergy):
    def first_variation(self, mu, x=None):
        return V(mu.points) if x is None or x.shape == mu.points.shape else V(x) * 7

    def forward(self, mu):
        return (mu.weights * V(mu.points)).sum(-1)


class WrongElsewhere(PotentialEnergy):
    def wasserstein_gradient(self, mu, x=None):
        return super().wasserstein_gradient(mu, x) * (1 if x is None else 7)


class NotANumber(Functional):
    def forward(self, mu):
        return mu.mass() * torch.nan


@pytest.mark.parametrize(
    ("functional", "message"),
    [
        (UnweightedSum(), "T1 .*splitting|T1 .*mass zero"),
        (UStatistic(), "T1 .*splitting"),
        (ScaledVariation(V), "T2 .*first variation"),
        (ForceInsteadOfGradient(V), r"T2 .*\(1/w_i\)"),
        (LivingAtomsOnly(), "T2 .*probe"),
        (LogarithmInSoftmax(), "T2 .*not finite.*logarithm"),
        (LooksAtItsNeighbours(), "T1 .*another measure of the batch|T1 "),
        (Detached(), "finite differences"),
        (DetachedGradient(DiscreteMeasure(torch.randn(3, 2, dtype=torch.float64)), Gaussian(1.0)), "second derivatives"),
        (IgnoresTheProbe(V), "T2 .*first_variation"),
        (WrongElsewhere(V), "T2 .*at other points"),
        (SupremumOverTheSupport(), "T2 .*a billionth of the mass.*supremum"),
        (NotANumber(), "not finite"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_wrong_functionals_are_found(functional, message):
    with pytest.raises(AssertionError, match=message):
        check_functional(functional)


def test_suprema_over_stored_atoms_are_found():
    with pytest.raises(AssertionError, match=r"T1 .*mass zero"):
        check_functional(Supremum(), first_variation=False)
    check_functional(SupremumOverTheSupport(), first_variation=False)
    with pytest.raises(AssertionError, match=r"T1 .*mass zero"):
        check_map(moves(lambda mu: mu.points + mu.points.amax(-2, keepdim=True)))
    with pytest.raises(AssertionError, match="the image is not finite"):
        check_map(moves(lambda mu: mu.points.sqrt() * torch.nan))


def test_right_functionals_pass():
    check_functional(PotentialEnergy(V))
    check_functional(MMD(DiscreteMeasure(torch.randn(3, 3)), Gaussian(1.0)))  # single precision, dimension of the target


def moves(f):
    return lambda mu: mu.with_points(f(mu))


@pytest.mark.parametrize(
    ("map", "message"),
    [
        (moves(lambda mu: mu.points + mu.points.mean(-2, keepdim=True)), "T1 .*(splitting|mass zero)"),
        (moves(lambda mu: mu.points.cumsum(-2)), "T1 .*permuting"),
        (moves(lambda mu: mu.points + mu.weights.unsqueeze(-1)), "T1 .*splitting"),
        (moves(lambda mu: mu.points + mu.mean().mean()), "T1 .*batch"),
        (moves(lambda mu: mu.points + torch.rand(())), "randomness"),
        (moves(lambda mu: mu.points - mu.points.amax(-2, keepdim=True) * (mu.weights == 0).any()), "T1 .*mass zero"),
        (lambda mu: mu.pad_atoms(1), "number of atoms"),
        (lambda mu: 2 * mu, "weights"),
        (lambda mu: mu.points, "Tensor"),
    ],
)
def test_wrong_maps_are_found(map, message):
    with pytest.raises(AssertionError, match=message):
        check_map(map)


def test_right_maps_pass():
    check_map(moves(lambda mu: mu.points + mu.normalized().mean().unsqueeze(-2)), dim=3)
    check_map(mean_field, None, 0.3, 0.1, mark_dim=2)
    norm = nn.LayerNorm(2)
    check_map(moves(lambda mu: norm.double()(mu.points)))


class Layer(nn.Module):
    """A map that takes points of dimension 5 with marks of dimension 3, and says nothing of its own about it."""

    def __init__(self):
        super().__init__()
        self.point, self.mark = nn.Linear(5, 5).double(), nn.Linear(3, 5).double()

    def forward(self, mu, shift):
        return mu.with_points(torch.tanh(self.point(mu.points) + self.mark(mu.marks)) + shift)


def test_a_map_of_another_width_is_told_which_one_to_give():
    check_map(Layer(), None, 0.1, dim=5, mark_dim=3)
    with pytest.raises(ValueError, match=r"^dim, mark_dim: .*dimension 2 .*; give dim=5\. It says: "):
        check_map(Layer(), None, 0.1, mark_dim=3)
    with pytest.raises(ValueError, match=r"; give dim=5, mark_dim=3\. "):
        check_map(Layer(), None, 0.1, mark_dim=8)
    with pytest.raises(ValueError, match=r"; give the dimensions that it is made for"):
        check_map(moves(lambda mu: mu.points @ torch.ones(3, 3, dtype=torch.float64)))
    torch.manual_seed(0)
    encoder, cell = InducedSetEncoder(2, 16, heads=2, inducing=3).double(), EquilibriumCell(16, 8, heads=2).double()
    context = encoder(DiscreteMeasure(torch.randn(2, 5, 2, dtype=torch.float64)))
    with pytest.raises(ValueError, match=r"; give dim=16\. "):
        check_map(cell, None, context, mark_dim=8)
    check_map(cell, None, context, mark_dim=8, dim=16)


def test_wrong_solutions_are_found():
    solution = fixed_point(affine, point(0.0), 0.5, 1.0)
    check_solution(affine, solution, 0.5, 1.0)
    with pytest.raises(AssertionError, match="residual"):
        check_solution(affine, replace(solution, residual=solution.residual * 0), 0.5, 1.2)
    unfinished = replace(solution, measure=point(1.0), residual=torch.tensor(1 / 3, dtype=torch.float64) / (1 + 1e-4 / 1.5))
    with pytest.raises(AssertionError, match=r"converged|residual"):
        check_solution(affine, unfinished, 0.5, 1.0)


def test_solutions_are_judged_by_the_metric_that_stopped_them():
    mirror, stop = moves(lambda mu: -mu.points), Stop(metric=MMD)
    solution = fixed_point(mirror, DiscreteMeasure(torch.tensor([[-1.0], [1.0]], dtype=torch.float64)), stop=stop)
    check_solution(mirror, solution, stop=stop)
    with pytest.raises(AssertionError, match="residual"):
        check_solution(mirror, solution)


def test_wrong_gradients_are_found():
    mu = DiscreteMeasure(torch.zeros(2, 1, dtype=torch.float64))
    check_implicit_gradient(affine, mu, torch.tensor(0.5).double(), torch.tensor(1.0).double(), solver=Picard())
    with pytest.raises(AssertionError, match="T7"):
        check_implicit_gradient(affine, mu, torch.tensor(0.5).double(), torch.tensor(1.0).double(), adjoint=OneStep())
    with pytest.raises(ValueError, match="float64"):
        check_implicit_gradient(affine, mu.to(torch.float32))


def test_wrong_flows_are_found():
    mu = DiscreteMeasure(torch.randn(3, 2, dtype=torch.float64))
    check_flow(PotentialEnergy(V), mu, stepper=Euler(0.1), steps=5)
    with pytest.raises(AssertionError, match="T10"):
        check_flow(PotentialEnergy(V), mu, stepper=Euler(5.0), steps=5)
    with pytest.raises(AssertionError, match="T1"):
        check_flow(UnweightedSum(), mu, stepper=Euler(0.01), steps=3)


def test_closeness():
    assert_close(torch.ones(2), torch.ones(2) + 1e-6)
    assert_close(torch.tensor(1e-9), torch.tensor(0.0), scale=1.0)
    for other, message in (
        (torch.ones(2) + 1e-2, "law: .*difference"),
        (torch.ones(3), "shape"),
        (torch.ones(2).double(), "float64"),
        (torch.tensor([1.0, torch.nan]), "not finite"),
    ):
        with pytest.raises(AssertionError, match=message):
            assert_close(torch.ones(2), other, "law")
