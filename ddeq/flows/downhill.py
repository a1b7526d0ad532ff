"""Whether the velocity of a geometry leads downhill, as that of a descent does."""

from __future__ import annotations

import torch
from torch import Tensor

from ddeq.flows.descent import FunctionalDescent
from ddeq.flows.steppers import Stepper
from ddeq.flows.symmetries import Place, generic_field
from ddeq.iteration import NoDescentWarning, Outcome, Status
from ddeq.messages import warn

__all__ = ["leads_downhill", "warn_of_ascent"]

GENERIC = 3
"""Fields without structure on which a mobility is tried."""
FEW = 6
"""Up to this dimension constant fields along each axis are tried too."""


@torch.no_grad()
def leads_downhill(equation: FunctionalDescent, points: Tensor, force: Tensor) -> Tensor:
    r"""Whether the geometry of a flow is that of a descent, ``(*batch,)``.

    It is not if the mobility :math:`C` has :math:`\langle a, C a\rangle_{L^2(\mu)} < 0` for some field :math:`a` of those tried,
    or zero for all of them, as rotations have; or if the velocity has a part along the gradient. The fields are the force, its
    image, fields without structure and constant ones: what is found is a property of the measure (measure consistency, T1).

    Parameters
    ----------
    equation
        The descent.
    points
        The atoms, ``(*batch, n, d)``.
    force
        Minus the Wasserstein gradient there.
    """
    inner, geometry = equation.inner, equation.geometry
    downhill = torch.ones_like(inner.norm(force), dtype=torch.bool)
    if geometry.is_gradient:
        return downhill
    mu = equation.measure(points)
    place = Place.of(points, mu.weights, points)
    alive = mu.support().unsqueeze(-1)
    mobility, velocity = geometry.mobility(mu), equation.residual(points)
    d = points.shape[-1]
    axes = torch.eye(d, dtype=points.dtype, device=points.device)[: d if d <= FEW else 0]
    fields = [force, mobility(force), *(generic_field(place, k) for k in range(GENERIC)), *(a.expand_as(points) for a in axes)]
    fields = [_unit(equation, torch.where(alive, field, 0.0)) for field in fields]
    images = [torch.where(alive, mobility(field), 0.0) for field in fields]
    products = torch.stack([torch.stack([inner(a, b) for b in images], -1) for a in fields], -2)
    usable = torch.isfinite(products).all(-1).all(-1)
    products = torch.where(usable[..., None, None], products, 0.0)
    values = torch.linalg.eigvalsh(0.5 * (products + products.mT))
    tolerance = torch.finfo(points.dtype).eps ** 0.5
    least = tolerance * products.abs().amax((-2, -1))
    descends = (values[..., 0] >= -least) & ((values[..., -1] > least) | (least == 0))
    along = inner(force, velocity)
    follows = ~(along < -tolerance * inner.norm(force) * inner.norm(velocity))
    found: Tensor = downhill & ~(usable & ~(descends & follows))
    return found


def _unit(equation: FunctionalDescent, field: Tensor) -> Tensor:
    norm = equation.inner.norm(field)[..., None, None]
    known = (norm > 0) & torch.isfinite(norm)
    return torch.where(known, field / torch.where(known, norm, 1.0), 0.0)


def warn_of_ascent(outcome: Outcome, way: Stepper, descent: FunctionalDescent) -> None:
    """Warn of samples whose velocity leads uphill, for which Newton's method was not used."""
    if "uphill" not in way.parts or descent.geometry.is_gradient:
        return
    uphill = outcome.note[..., way.parts.index("uphill")] > 0
    stuck = outcome.status == Status.STAGNATED.value
    if bool(stuck.any()):  # a step that moves nothing leaves no note
        z = outcome.value.detach()
        uphill = uphill | (stuck & ~leads_downhill(descent, z, descent.force(z)))
    if bool(uphill.any()):
        text = (
            "equilibrium: the velocity of some samples leads uphill, as in a game: the mobility of the geometry is not positive "
            "semidefinite. Newton's method, which lowers the energy, would leave the equilibria of such a flow and is not used; "
            "the flow alone goes to the end. Take finish=False"
        )
        if way.descends:
            text += ", and a stepper that does not go by energies, Euler or Heun"
        warn(NoDescentWarning(text, failed=uphill, residual=outcome.residual))
