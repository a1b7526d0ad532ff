"""`check_geometry`: the library's geometries pass, and each wrong one fails with a message that names the law."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from ddeq.flows import Geometry, Stein, Wasserstein
from ddeq.functionals import KLDivergence
from ddeq.kernels import IMQ, Gaussian, Polynomial
from ddeq.testing import check_geometry


def log_density(x):
    return -0.5 * x.square().sum(-1)


@pytest.mark.theorem("T10")
@pytest.mark.parametrize(
    "geometry",
    [Wasserstein(), Stein(Gaussian(1.0)), Stein(), Stein(IMQ(1.0)), Stein(Gaussian([0.5, 2.0])), Stein(Polynomial(2))],
    ids=repr,
)
def test_geometries_of_the_library_pass(geometry):
    check_geometry(geometry)


def test_with_an_entropy_that_is_replaced():
    check_geometry(Stein(Gaussian(1.0)), KLDivergence(log_density, 0.7))
    check_geometry(Stein(), KLDivergence(log_density, 0.7))
    check_geometry(Wasserstein(), KLDivergence(log_density, 0.7))


@dataclass(frozen=True)
class Plain(Geometry):
    """A right one, to be made wrong."""

    factor: float = 2.0

    def mobility(self, mu):
        return lambda force: self.factor * force


@dataclass(frozen=True)
class SaysWasserstein(Plain):
    is_wasserstein: ClassVar[bool] = True


@dataclass(frozen=True)
class NotSelfAdjoint(Plain):
    def mobility(self, mu):
        matrix = torch.tensor([[1.0, 0.5], [0.0, 1.0]]).to(mu.points)
        return lambda force: force @ matrix


@dataclass(frozen=True)
class Indefinite(Plain):
    def mobility(self, mu):
        return lambda force: force * force.new_tensor([1.0, -1.0])


@dataclass(frozen=True)
class WeightsInFront(Plain):
    """Smoothed, with the masses at the wrong side."""

    def mobility(self, mu):
        distances = (mu.points.unsqueeze(-2) - mu.points.unsqueeze(-3)).square().sum(-1)
        return lambda force: mu.weights.unsqueeze(-1) * ((-distances).exp() @ force)


@dataclass(frozen=True)
class UnweightedKernel(Plain):
    def mobility(self, mu):
        distances = (mu.points.unsqueeze(-2) - mu.points.unsqueeze(-3)).square().sum(-1)
        return lambda force: (-distances).exp() @ force


@dataclass(frozen=True)
class NotLinear(Plain):
    def mobility(self, mu):
        return lambda force: force / (1.0 + force.norm(dim=-1, keepdim=True))


@dataclass(frozen=True)
class Uphill(Plain):
    def velocity(self, functional, mu, x=None):
        return self.mobility(mu)(functional.wasserstein_gradient(mu, x))


@dataclass(frozen=True)
class OtherVelocity(Plain):
    def velocity(self, functional, mu, x=None):
        return -functional.wasserstein_gradient(mu, x)


@dataclass(frozen=True)
class WrongElsewhere(Plain):
    def velocity(self, functional, mu, x=None):
        return (-self.factor if x is None else -1.0) * functional.wasserstein_gradient(mu, x)


@dataclass(frozen=True)
class WrongRate(Plain):
    def dissipation(self, functional, mu):
        return super().dissipation(functional, mu) / self.factor


@dataclass(frozen=True)
class OtherThere(Plain):
    def at(self, mu):
        return OtherThere(self.factor + 1.0)


@dataclass(frozen=True)
class WrongSlope(Plain):
    def slope(self, functional, mu, velocity):
        return super().slope(functional, mu, velocity) / self.factor


@dataclass(frozen=True)
class CountsAtoms(Plain):
    def mobility(self, mu):
        return lambda force: force / mu.n


@dataclass(frozen=True)
class LooksAtTheBatch(Plain):
    def mobility(self, mu):
        return lambda force: force * mu.mean()[0].square().sum()


@dataclass(frozen=True)
class WritesIntoTheField(Plain):
    def mobility(self, mu):
        return lambda force: force.mul_(self.factor)


@dataclass(frozen=True)
class DefaultDtype(Plain):
    def mobility(self, mu):
        return lambda force: (torch.ones(()) * 0.1).to(force) * force


class DuckTyped:
    mobility = Plain.mobility


@pytest.mark.parametrize(
    ("geometry", "message"),
    [
        (SaysWasserstein(), "is_wasserstein: SaysWasserstein"),
        (NotSelfAdjoint(), "mobility: it is not self-adjoint"),
        (Indefinite(), "mobility: it is not positive semidefinite"),
        (WeightsInFront(), "mobility: it is not self-adjoint"),
        (UnweightedKernel(), r"mobility: it is not self-adjoint|measure consistency \(T1\)"),
        (NotLinear(), "mobility: it is not linear"),
        (Uphill(), "velocity: it is not the mobility of minus"),
        (OtherVelocity(), "velocity: it is not the mobility of minus"),
        (WrongElsewhere(), "velocity: at points that are the atoms"),
        (WrongRate(), r"dissipation \(T10\)"),
        (OtherThere(), r"at: OtherThere.at\(mu\) is another geometry at mu than OtherThere: its velocity differs"),
        (WrongSlope(), "slope: it is not the dissipation where the velocity is known"),
        (CountsAtoms(), r"measure consistency \(T1\): splitting"),
        (LooksAtTheBatch(), "one measure at a time"),
        (WritesIntoTheField(), "purity: the mobility changes"),
        (DefaultDtype(), "default dtype"),
        (DuckTyped(), "typed capabilities: DuckTyped is not a subclass of Geometry"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
@pytest.mark.unchecked
def test_wrong_geometries_are_found(geometry, message):
    with pytest.raises(AssertionError, match=message):
        check_geometry(geometry)


def test_right_geometries_pass():
    check_geometry(Plain())
