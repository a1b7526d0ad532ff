"""Old public names: they give the new ones, with a warning at the user's line."""

import pytest
import torch

import ddeq.flows
import ddeq.iteration
import ddeq.solvers
from ddeq import DiscreteMeasure, Functional
from ddeq.functionals import MMD, PotentialEnergy


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        (ddeq.solvers, "FixedPoint", ddeq.solvers.MapEquation),
        (ddeq.flows, "Descent", ddeq.flows.FunctionalDescent),
        (ddeq.iteration, "Process", ddeq.iteration.Method),
        (ddeq.iteration, "Evaluation", ddeq.iteration.Iterate),
        (ddeq.iteration, "implicit_function", ddeq.iteration.Implicit),
    ],
)
def test_old_names_of_modules(module, old, new):
    with pytest.warns(DeprecationWarning, match=rf"{module.__name__}\.{old} is now .*goes away in version 0\.2") as caught:
        assert getattr(module, old) is new
    assert caught[0].filename == __file__


def test_names_that_never_were_are_attribute_errors():
    with pytest.raises(AttributeError, match=r"module 'ddeq\.solvers' has no attribute 'Newton'"):
        _ = ddeq.solvers.Newton


def test_old_names_of_attributes():
    F = PotentialEnergy(lambda x: x.sum(-1))
    with pytest.warns(DeprecationWarning, match=r"PotentialEnergy\.selectable is now PotentialEnergy\.removable"):
        assert F.selectable is False
    with pytest.warns(DeprecationWarning, match="removable"):
        F.selectable = True
    assert F.removable
    target = DiscreteMeasure(torch.tensor([[[0.0]], [[3.0]]]))
    with pytest.warns(DeprecationWarning, match="rows"):
        chosen = MMD(target).select(torch.tensor([1]), (2,))
    assert chosen.target.points.item() == 3.0


def test_an_old_declaration_of_a_users_class_still_counts():
    with pytest.warns(DeprecationWarning, match=r"Mine\.selectable is now Mine\.removable") as caught:

        class Mine(Functional):
            selectable = True

            def forward(self, mu):
                return mu.mass()

    assert caught[0].filename == __file__
    assert Mine().removable
