"""`check_functional`: is a functional one of measures, and are its derivatives right?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ddeq.functionals.base import Functional, Smoothness
from ddeq.functionals.discrepancy import Discrepancy
from ddeq.measures import DiscreteMeasure
from ddeq.testing.close import assert_close
from ddeq.testing.samples import changed_neighbour, dtype_of, same_measure, trial_measures

__all__ = ["check_functional"]


def check_functional(
    functional: Functional,
    measures: DiscreteMeasure | Sequence[DiscreteMeasure] | None = None,
    *,
    dim: int | None = None,
    first_variation: bool = True,
) -> None:
    """Hold a functional to T1 and T2 on some measures.

    Checked: the value is one finite number per measure, and does not change when atoms are permuted, split, or added with
    mass zero, nor when another measure of the batch changes (T1). The first variation and the Wasserstein gradient, as
    the functional gives them, are those of its `forward` (T2): against automatic differentiation, at atoms, at probes of
    mass zero and, in double precision, against finite differences; for smooth functionals also Hessian-vector products.

    Parameters
    ----------
    functional
        What to check.
    measures
        Measures to try; default: small ones with generic weights, dead and coincident atoms, and a single atom.
    dim
        Dimension of the default ones; default: that of the target, or 2.
    first_variation
        False for functionals that have none, such as suprema.

    Raises
    ------
    AssertionError
        Saying which law broke, with numbers.
    """
    if measures is None:
        own = functional.target if isinstance(functional, Discrepancy) else None
        batch_shape = own.batch_shape if own is not None and own.batch_shape else (2,)
        dim = dim or (own.dim if own is not None else 2)
        measures = trial_measures(dim, batch_shape=batch_shape, dtype=dtype_of(functional))
    for mu in [measures] if isinstance(measures, DiscreteMeasure) else measures:
        check_value(functional, mu)
        if first_variation:
            check_first_variation(functional, mu)
            check_gradient(functional, mu)


def check_value(functional: Functional, mu: DiscreteMeasure) -> None:
    """T1, and one finite number per measure."""
    value = functional(mu)
    if not bool(torch.isfinite(value).all()):
        raise AssertionError(f"the value is not finite: {value} on {mu}")
    size = 1e-3 * (1.0 + float(mu.points.detach().abs().max()))
    for change, same in same_measure(mu).items():
        assert_close(functional(same), value, f"T1 (measure consistency): {change} changes the value", scale=size)
    neighbour = changed_neighbour(mu)
    if neighbour is not None:
        law = "T1 (one measure at a time): the value depends on another measure of the batch"
        assert_close(functional(neighbour)[1:], value[1:], law, scale=size)


def check_first_variation(functional: Functional, mu: DiscreteMeasure) -> None:
    """T2: weights of atoms, weights of probes, and an override if there is one."""
    by_weights = Functional.first_variation(functional, mu)
    _assert_finite(by_weights, "the derivative in the weights", mu)
    size = by_weights.detach().abs().max() + 1e-3
    if not functional.reads_marks or mu.marks is None:
        probed = Functional.first_variation(functional, mu, mu.points)
        _assert_finite(probed, "the derivative in the weight of a probe of mass zero", mu)
        law = "T2 (first variation): a probe of mass zero at an atom differs from the derivative in the atom's weight"
        assert_close(probed, by_weights, law, scale=size)
        given = functional.first_variation(mu, mu.points)
        _assert_equal_up_to_a_constant(given, by_weights, mu, "`first_variation(mu, x)`", size)
    _assert_equal_up_to_a_constant(functional.first_variation(mu), by_weights, mu, "`first_variation(mu)`", size)


def _assert_finite(derivative: Tensor, name: str, mu: DiscreteMeasure) -> None:
    bad = int((~torch.isfinite(derivative)).sum())
    if bad:
        raise AssertionError(
            f"T2 (first variation): {name} is not finite, at {bad} of {derivative.numel()} atoms of {mu}: is there a logarithm "
            "or a root of a weight?"
        )


def _assert_equal_up_to_a_constant(a: Tensor, b: Tensor, mu: DiscreteMeasure, name: str, size: Tensor) -> None:
    if mu.n == 1:
        return
    law = f"T2 (first variation): {name} is not the derivative of the value in the weights"
    assert_close(a - a[..., :1], b - b[..., :1], law, scale=size)


def check_gradient(functional: Functional, mu: DiscreteMeasure) -> None:
    """T2: the Wasserstein gradient is the derivative in the points divided by the weights, and differentiable again."""
    gradient = functional.wasserstein_gradient(mu)
    by_forward = Functional.wasserstein_gradient(_Plain(functional), mu)
    law = "T2 (Wasserstein gradient): it is not (1/w_i) dF/dx_i"
    scale = 1e-3 + by_forward.detach().abs().max()
    assert_close(gradient, by_forward, law, scale=scale, units=2e4)
    if mu.dtype != torch.float64:
        return
    direction = torch.randn(mu.points.shape, generator=torch.Generator().manual_seed(1), dtype=mu.dtype).to(mu.points)
    step = 1e-5 * max(float(mu.points.abs().max()), 0.1)

    def along(t: float) -> DiscreteMeasure:
        return mu.with_points(mu.points + t * direction)

    if functional.smoothness is not Smoothness.ALMOST_EVERYWHERE and not _coincident(mu):
        slope = (functional(along(step)) - functional(along(-step))) / (2 * step)
        expected = (mu.weights.unsqueeze(-1) * gradient * direction).sum((-2, -1))
        law = "T2 (Wasserstein gradient): finite differences of the value disagree"
        assert_close(slope, expected, law, scale=scale * direction.norm(), rtol=1e-5)
    if functional.smoothness is Smoothness.SMOOTH:
        points = mu.points.detach().clone().requires_grad_()
        with torch.enable_grad():
            moved = functional.wasserstein_gradient(mu.with_points(points))
            (product,) = torch.autograd.grad((moved * direction).sum(), points, materialize_grads=True)
        h = 1e-5
        change = (functional.wasserstein_gradient(along(h)) - functional.wasserstein_gradient(along(-h))) / (2 * h)
        law = "second derivatives: the graph of the Wasserstein gradient disagrees with its finite differences"
        assert_close((product * direction).sum(), (change * direction).sum(), law, scale=scale, rtol=1e-5)


class _Plain(Functional):
    """A functional without its overrides."""

    def __init__(self, functional: Functional) -> None:
        super().__init__()
        self.functional = functional

    def forward(self, mu: DiscreteMeasure) -> Tensor:
        return self.functional(mu)


def _coincident(mu: DiscreteMeasure) -> bool:
    distances = torch.cdist(mu.points, mu.points) + torch.eye(mu.n, dtype=mu.dtype, device=mu.device)
    return bool((distances == 0).any())
