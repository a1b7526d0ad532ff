"""`check_functional`: is a functional one of measures, and are its derivatives right?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ddeq.functionals.base import Functional, Smoothness
from ddeq.measures import DiscreteMeasure
from ddeq.testing.close import assert_close
from ddeq.testing.memories import check_memory
from ddeq.testing.purity import assert_unchanged, copied
from ddeq.testing.samples import HINTS, changed_neighbour, same_measure, trial_measures_for

__all__ = ["check_functional"]


def check_functional(
    functional: Functional,
    measures: DiscreteMeasure | Sequence[DiscreteMeasure] | None = None,
    *,
    dim: int | None = None,
    first_variation: bool = True,
) -> None:
    """Hold a functional to measure consistency (T1), and its derivatives to its value (first variation, T2), on some measures.

    Checked: the value is one finite number per measure, and does not change when atoms are permuted, split, or added with
    mass zero, nor when another measure of the batch changes. The first variation (up to a constant, unless it is declared an
    `exact_variation <ddeq.Functional.exact_variation>`) and the Wasserstein gradient, as the functional gives them, are those
    of its `forward`: against automatic differentiation, at atoms, at probes of mass zero and, in double precision and where no
    atoms coincide, against finite differences; Hessian-vector products likewise, unless the functional declares itself smooth
    almost everywhere only. One that has a `prepare <ddeq.Functional.prepare>` is held to `check_memory` too.

    Parameters
    ----------
    functional
        What to check.
    measures
        Measures to try; default: small ones with generic weights, with coincident atoms and some of mass zero, and a single atom.
    dim
        Dimension of the default ones; default: that of the target, or 2.
    first_variation
        False for functionals that have none, such as suprema.

    Raises
    ------
    AssertionError
        Saying which law broke, with numbers.
    """
    tried = trial_measures_for(functional, dim)
    measures = tried if measures is None else measures
    for mu in [measures] if isinstance(measures, DiscreteMeasure) else measures:
        check_value(functional, mu)
        if first_variation:
            check_first_variation(functional, mu)
            check_gradient(functional, mu)
    if functional.remembers and first_variation:
        check_memory(functional, measures)


def check_value(functional: Functional, mu: DiscreteMeasure) -> None:
    """Measure consistency (T1), one finite number per measure, and nothing changed in place."""
    before = copied(mu=mu)
    value = functional(mu)
    assert_unchanged("purity: the functional changes its argument in place", before, mu=mu)
    if not bool(torch.isfinite(value).all()):
        raise AssertionError(f"the value is not finite: {value} on {mu}")
    size = 1e-3 * (1.0 + float(mu.points.detach().abs().max()))
    for change, same in same_measure(mu).items():
        law = f"T1 (measure consistency): {change} changes the value"
        assert_close(functional(same), value, law, scale=size, units=_units(functional, mu), hint=HINTS[change])
    neighbour = changed_neighbour(mu)
    if neighbour is not None:
        law = "T1 (one measure at a time): the value depends on another measure of the batch"
        units = _units(functional, mu)
        assert_close(functional(neighbour)[1:], value[1:], law, scale=size, units=units, hint=HINTS["another measure"])


def _units(functional: Functional, mu: DiscreteMeasure, units: float = 2e3) -> float:
    """Rounding units that are allowed, with what inner solves may leave."""
    return units + 100.0 * functional.tolerance / torch.finfo(mu.dtype).eps


def check_first_variation(functional: Functional, mu: DiscreteMeasure) -> None:
    """First variation (T2): weights of atoms, weights of probes at atoms and elsewhere, and an override if there is one."""
    by_weights = Functional.first_variation(functional, mu)
    _assert_finite(by_weights, "the derivative in the weights", mu)
    size, units = by_weights.detach().abs().max() + 1e-3, _units(functional, mu)
    _assert_equal_variations(functional, functional.first_variation(mu), by_weights, "`first_variation(mu)`", size, units)
    if functional.reads_marks and mu.marks is not None:
        return
    probed = Functional.first_variation(functional, mu, mu.points)
    _assert_finite(probed, "the derivative in the weight of a probe of mass zero", mu)
    law = "T2 (first variation): a probe of mass zero at an atom differs from the derivative in the atom's weight"
    assert_close(probed, by_weights, law, scale=size, units=units)
    for x in (mu.points, _elsewhere(mu)):
        given, probed = functional.first_variation(mu, x), Functional.first_variation(functional, mu, x)
        largest = size + probed.detach().abs().max()
        _assert_equal_variations(functional, given, probed, "`first_variation(mu, x)`", largest, units)
    if mu.dtype == torch.float64:
        _check_little_mass(functional, mu, by_weights.detach())


def _check_little_mass(functional: Functional, mu: DiscreteMeasure, variation: Tensor) -> None:
    """Moves a little of the mass to a place outside of the support; what autograd cannot see, such as a supremum, sees that."""
    share, mean = 1e-9, mu.mean().unsqueeze(-2)
    spread = mu.points - mean
    farthest = spread.norm(dim=-1, keepdim=True).argsort(-2)[..., -2:, :]
    places = mean + 1.3 * spread.gather(-2, farthest.expand(*farthest.shape[:-1], mu.dim))
    before, law = functional(mu), "T2 (first variation): the value jumps where a billionth of the mass moves to a new place"
    for place in places.detach().split(1, -2):
        probe = DiscreteMeasure(place, share * mu.mass().unsqueeze(-1))
        after = functional((1 - share) * mu.with_marks(None) + probe)
        at_probe = Functional.first_variation(functional, mu, place)
        size = mu.mass().max() * (variation.abs().max() + at_probe.detach().abs().max()) + 1e-6
        size = size + 1e4 * functional.tolerance * before.detach().abs().max()
        assert_close(after, before, law, scale=size, rtol=1e-3, hint=HINTS["a little mass"])


def _elsewhere(mu: DiscreteMeasure) -> Tensor:
    """Three points among the atoms of each measure, and none of them."""
    g = torch.Generator().manual_seed(2)
    drawn = torch.randn(*mu.batch_shape, 3, mu.dim, generator=g, dtype=mu.dtype).to(mu.device)
    spread = mu.points.detach().std() if mu.points.numel() > 1 else torch.ones(())
    return mu.points.detach()[..., :1, :] + drawn * (spread + 0.1)


def _assert_finite(derivative: Tensor, name: str, mu: DiscreteMeasure) -> None:
    bad = int((~torch.isfinite(derivative)).sum())
    if bad:
        raise AssertionError(
            f"T2 (first variation): {name} is not finite, at {bad} of {derivative.numel()} atoms of {mu}: is there a logarithm "
            "or a root of a weight?"
        )


def _assert_equal_variations(functional: Functional, a: Tensor, b: Tensor, name: str, size: Tensor, units: float) -> None:
    """Equal up to a constant, and with it if it is declared to be right."""
    law = f"T2 (first variation): {name} is not the derivative of the value in the weights"
    assert_close(a - a[..., :1], b - b[..., :1], law, scale=size, units=units)
    if functional.exact_variation:
        hint = "Declare exact_variation = False where the constant means nothing."
        assert_close(a, b, f"{law}: the constant differs", scale=size, units=units, hint=hint)


def check_gradient(functional: Functional, mu: DiscreteMeasure) -> None:
    """Wasserstein gradient (T2): it is the derivative in the points divided by the weights, and differentiable again."""
    gradient, plain = functional.wasserstein_gradient(mu), _Plain(functional)
    by_forward = plain.wasserstein_gradient(mu)
    scale, units = 1e-3 + by_forward.detach().abs().max(), _units(functional, mu, 2e4)
    law = "T2 (Wasserstein gradient): it is not (1/w_i) dF/dx_i"
    assert_close(gradient, by_forward, law, scale=scale, units=units)
    if not (functional.reads_marks and mu.marks is not None):
        x = _elsewhere(mu)
        law = "T2 (Wasserstein gradient): at other points it is not the gradient of the first variation"
        expected = plain.wasserstein_gradient(mu, x)
        assert_close(
            functional.wasserstein_gradient(mu, x), expected, law, scale=scale + expected.detach().abs().max(), units=units
        )
    if mu.dtype != torch.float64 or _coincident(mu):
        return
    g = torch.Generator().manual_seed(1)
    direction = torch.randn(mu.points.shape, generator=g, dtype=mu.dtype).to(mu.device)
    # Where kinks may lie anywhere, a short step rarely meets one.
    step = 1e-7 if functional.smoothness is Smoothness.ALMOST_EVERYWHERE else 1e-5
    step *= max(float(mu.points.detach().abs().max()), 0.1)

    def along(t: float) -> DiscreteMeasure:
        return mu.with_points(mu.points + t * direction)

    slope = (functional(along(step)) - functional(along(-step))) / (2 * step)
    expected = (mu.weights.unsqueeze(-1) * gradient * direction).sum((-2, -1))
    law = "T2 (Wasserstein gradient): finite differences of the value disagree; is something detached?"
    assert_close(slope, expected, law, scale=scale * direction.norm(), rtol=1e-5)
    if functional.smoothness is not Smoothness.ALMOST_EVERYWHERE:
        _check_second_order(functional, mu, direction, step, scale)


def _check_second_order(functional: Functional, mu: DiscreteMeasure, direction: Tensor, step: float, scale: Tensor) -> None:
    def gradient(points: Tensor) -> Tensor:
        found: Tensor = functional.wasserstein_gradient(mu.with_points(points))
        return found

    points = mu.points.detach().clone().requires_grad_()
    with torch.enable_grad():
        moved = (gradient(points) * direction).sum()
        product = torch.zeros_like(points)
        if moved.requires_grad:
            (product,) = torch.autograd.grad(moved, points, materialize_grads=True)
    change = (gradient(mu.points + step * direction) - gradient(mu.points - step * direction)) / (2 * step)
    law = (
        "second derivatives: the graph of the Wasserstein gradient disagrees with its finite differences; is something detached?"
    )
    assert_close((product * direction).sum(), (change * direction).sum(), law, scale=scale * direction.norm(), rtol=1e-4)


class _Plain(Functional):
    """A functional without its overrides."""

    def __init__(self, functional: Functional) -> None:
        super().__init__()
        self.functional = functional

    def forward(self, mu: DiscreteMeasure) -> Tensor:
        return self.functional(mu)


def _coincident(mu: DiscreteMeasure) -> bool:
    """Whether atoms lie in one place, where differences are not derivatives."""
    distances = torch.cdist(mu.points, mu.points) + torch.eye(mu.n, dtype=mu.dtype, device=mu.device)
    return bool((distances == 0).any())
