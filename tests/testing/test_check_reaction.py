"""`check_reaction`: the library's reactions pass, and each wrong one fails with a message that names the law."""

from dataclasses import dataclass

import pytest
import torch

from ddeq.flows import FisherRao, Reaction
from ddeq.testing import check_reaction
from ddeq.testing.problems import Bowl

EACH = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)


@pytest.mark.theorem("T17")
@pytest.mark.parametrize(
    "reaction",
    [
        FisherRao(),
        FisherRao(EACH),
        FisherRao(lambda k: 0.5**k),
        FisherRao(birth_death=True),
        FisherRao(functional=Bowl(2.0)),
        FisherRao(conserve=False),
        FisherRao(EACH, conserve=False, functional=Bowl(2.0)),
    ],
    ids=["number", "each", "schedule", "births and deaths", "own functional", "growth", "growth of each"],
)
def test_reactions_of_the_library_pass(reaction):
    check_reaction(reaction)


def test_with_a_target_for_each_sample():
    check_reaction(FisherRao(functional=EACH * Bowl()))


@dataclass(frozen=True)
class Plain(FisherRao):
    """A right one, to be made wrong."""


@dataclass(frozen=True)
class ExplicitEuler(Plain):
    def react(self, equation, mu, duration, step):
        variation = torch.where(mu.support(), self.energy(equation).first_variation(mu), 0.0)
        centred = variation - ((mu.weights * variation).sum(-1) / mu.mass()).unsqueeze(-1)
        duration = duration.unsqueeze(-1) if isinstance(duration, torch.Tensor) else duration
        return mu.weights * (1.0 - duration * centred)


@dataclass(frozen=True)
class LosesMass(Plain):
    def react(self, equation, mu, duration, step):
        return super().react(equation, mu, duration, step) * (1.0 - 1e-3)


@dataclass(frozen=True)
class ADecayingMass(Reaction):
    """Right, and not conserving: mass decays, and with it an energy that is a potential and not below zero."""

    @property
    def conserves(self):
        return False

    def react(self, equation, mu, duration, step):
        variation = torch.where(mu.support(), self.energy(equation).first_variation(mu), 0.0)
        duration = duration.unsqueeze(-1) if isinstance(duration, torch.Tensor) else duration
        return mu.weights * (-duration * variation).exp()

    def dissipation(self, equation, mu, step):
        variation = torch.where(mu.support(), self.energy(equation).first_variation(mu), 0.0)
        return (mu.weights * variation.square()).sum(-1)


@dataclass(frozen=True)
class RaisesTheDead(Plain):
    def react(self, equation, mu, duration, step):
        weights = super().react(equation, mu, duration, step) + 1e-6
        return weights * (mu.mass() / weights.sum(-1)).unsqueeze(-1)


@dataclass(frozen=True)
class Uphill(Plain):
    def react(self, equation, mu, duration, step):
        variation = torch.where(mu.support(), self.energy(equation).first_variation(mu), -torch.inf)
        duration = duration.unsqueeze(-1) if isinstance(duration, torch.Tensor) else duration
        over = torch.where(mu.support(), variation - variation.amax(-1, keepdim=True), 0.0)
        grown = mu.weights * (duration * over).exp()
        return grown * (mu.mass() / grown.sum(-1)).unsqueeze(-1)


@dataclass(frozen=True)
class MeanOfStoredAtoms(Plain):
    def dissipation(self, equation, mu, step):
        variation = self.energy(equation).first_variation(mu)
        return (mu.weights * (variation - variation.mean(-1, keepdim=True)).square()).sum(-1)


@dataclass(frozen=True)
class WrongRate(Plain):
    def dissipation(self, equation, mu, step):
        return 2.0 * super().dissipation(equation, mu, step)


@dataclass(frozen=True)
class IgnoresTheTime(Plain):
    def react(self, equation, mu, duration, step):
        return super().react(equation, mu, 0.1, step)


@dataclass(frozen=True)
class LooksAtTheBatch(Plain):
    def react(self, equation, mu, duration, step):
        return super().react(equation, mu, duration * (1.0 + mu.mean()[0].square().sum()), step)


@dataclass(frozen=True)
class CountsAtoms(Plain):
    def react(self, equation, mu, duration, step):
        return super().react(equation, mu, duration / mu.n, step)


@dataclass(frozen=True)
class ForgetsRows(Plain):
    def rows(self, keep, batch_shape):
        return self


@dataclass(frozen=True)
class Random(Plain):
    def react(self, equation, mu, duration, step):
        return super().react(equation, mu, duration * torch.rand((), dtype=mu.dtype), step)


@dataclass(frozen=True)
class DefaultDtype(Plain):
    def react(self, equation, mu, duration, step):
        return super().react(equation, mu, duration * float(torch.ones(()) * 0.1) * 10.0, step)


class DuckTyped:
    react = Plain.react


@pytest.mark.parametrize(
    ("reaction", "message"),
    [
        (ExplicitEuler(), "non-negative weights: after a very long time"),
        (LosesMass(), "mass: after a short time it is another"),
        (RaisesTheDead(), "atoms of mass zero: one has the mass"),
        (Uphill(), r"dissipation \(T17\): .*Is the sign right"),
        (MeanOfStoredAtoms(), r"measure consistency \(T1\): .*changes the dissipation"),
        (WrongRate(), r"dissipation \(T17\): it is not the rate"),
        (IgnoresTheTime(), "no time|react: weights are others"),
        (LooksAtTheBatch(), "one measure at a time"),
        (CountsAtoms(), r"measure consistency \(T1\): splitting an atom changes the weights"),
        (ForgetsRows(functional=EACH * Bowl()), "rows: the reaction of some samples"),
        (Random(), "purity: `react` gives other weights"),
        (DefaultDtype(), "default dtype"),
        (DuckTyped(), "typed capabilities: DuckTyped is not a subclass of Reaction"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
@pytest.mark.unchecked
def test_wrong_reactions_are_found(reaction, message):
    with pytest.raises(AssertionError, match=message):
        check_reaction(reaction)


def test_mass_may_change_where_that_is_meant():
    class Positive(Bowl):
        def forward(self, mu):
            return super().forward(mu) + 3.0 * mu.mass()

    check_reaction(ADecayingMass(), Positive())
    with pytest.raises(AssertionError, match="mass: after a short time"):
        check_reaction(ADecayingMass(), Positive(), conserves=True)
