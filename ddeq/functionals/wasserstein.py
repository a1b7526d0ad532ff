"""The exact Wasserstein distance, differentiable again, with its plans, potentials and maps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ddeq.functionals import exact_transport
from ddeq.functionals.base import Smoothness
from ddeq.functionals.directions import around
from ddeq.functionals.discrepancy import Discrepancy
from ddeq.functionals.exact_transport import Forest, Plan
from ddeq.functionals.masses import changes, mass_ratio, probabilities
from ddeq.functionals.variations import places
from ddeq.integers import whole
from ddeq.measures import DiscreteMeasure, middle
from ddeq.reductions.sorted import in_sum_precision
from ddeq.untraced import untraced

__all__ = ["Wasserstein"]


class Wasserstein(Discrepancy):
    r"""Half the squared Wasserstein distance from a target :math:`\nu`, exactly, by a linear program.

    .. math:: F(\mu) = \tfrac12 W_2^2(\mu, \nu) = \min_\pi \sum_{ij} \pi_{ij}\, \tfrac12 |x_i - y_j|^2 \quad
              \big(\textstyle\sum_j \pi_{ij} = w_i, \ \sum_i \pi_{ij} = v_j\big), \qquad
              \frac{\delta F}{\delta \mu} = \phi, \qquad \nabla_W F(\mu)(x_i) = x_i - T(x_i),

    with the Kantorovich potential :math:`\phi`, off the atoms its c-transform
    :math:`\phi(x) = \min_j \tfrac12 |x - y_j|^2 - \psi_j`, and the barycentric map
    :math:`T(x_i) = \sum_j \pi_{ij} y_j / w_i` of the mass that lies at :math:`x_i`. Masses must agree, and are
    transported as they are: twice the mass is twice the value, with the same potential and gradient. `plan`, `potentials` and
    `transport_map` give :math:`\pi`, :math:`(\phi, \psi)` and :math:`T`.

    Parameters
    ----------
    target
        Measure :math:`\nu`: one for all, or one for each measure of the batch.
    max_steps
        Most pivots of the network simplex.

    Raises
    ------
    ValueError
        If measures and targets do not fit, or their masses differ; or if ``max_steps`` is not a positive whole number.
    RuntimeError
        Under ``torch.vmap``, which cannot reach a linear program: measures are batched already.

    Warns
    -----
    InnerProblemWarning
        If the linear program is not solved to the optimum; with the duality gap.

    Notes
    -----
    The linear programs are solved on the CPU in double precision, one measure of the batch after the other: about
    :math:`O(N^3)` time and :math:`O(N^2)` memory. Where the plan is unique and no partial sums of weights of both measures
    agree, derivatives of first and second order in points and weights of both are right. Else, as always for equal weights
    and equal numbers, potentials are not unique, and those of the solver are taken (the catalogue, T3).
    Between Gaussians the distance is known in closed form (Gaussians, T13).

    References
    ----------
    :cite:t:`bonneel2011displacement`, the network simplex; :cite:t:`peyre2019computational`, chapter 3;
    :cite:t:`flamary2021pot`, the code that runs.

    Examples
    --------
    >>> mu, nu = (DiscreteMeasure(torch.tensor([[x]])) for x in (0.0, 3.0))
    >>> Wasserstein(nu)(mu)
    tensor(4.5000)
    """

    removable = True
    shardable = False
    smoothness = Smoothness.ALMOST_EVERYWHERE

    def __init__(self, target: DiscreteMeasure, *, max_steps: int = 1_000_000) -> None:
        super().__init__(target)
        self.max_steps = whole("max_steps", max_steps)

    def forward(self, mu: DiscreteMeasure) -> Float[Tensor, "*batch"]:
        sides: tuple[_Side, _Side] = self._sides(mu)
        source, target = sides
        costs = _costs(source, target) * source.flow.detach()
        value = costs.new_zeros(math.prod(mu.batch_shape)).index_add(0, source.arcs // mu.n, costs).reshape(mu.batch_shape)
        for side, other in ((source, target), (target, source)):
            change = changes(side.masses)
            if change is not None:
                value = value + (change * side.first_variation(side.points, other)).sum(-1)
        return (value * in_sum_precision(self.target.mass())).to(mu.dtype)

    def first_variation(self, mu: DiscreteMeasure, x: Float[Tensor, "*points m d"] | None = None) -> Float[Tensor, "*batch m"]:
        sides: tuple[_Side, _Side] = self._sides(mu)
        source, target = sides
        points = source.points if x is None else around(self._target_for(mu), places(mu, x))
        ratio = mass_ratio(mu, self.target).unsqueeze(-1)
        return (source.first_variation(points, target) * ratio).to(mu.dtype)

    def plan(self, mu: DiscreteMeasure) -> Float[Tensor, "*batch n m"]:
        r"""Optimal plan :math:`\pi`: the mass that goes from atom :math:`i` of ``mu`` to atom :math:`j` of the target.

        Rows add up to the weights of ``mu``, columns to those of the target. Coincident atoms share what leaves or reaches their
        place in proportion to their weights, so that the plan is one between measures (measure consistency, T1). Differentiable
        in the weights of both, where it is unique; constant in the points.

        Raises
        ------
        ValueError
            If measures and targets do not fit, or their masses differ.
        """
        sides: tuple[_Side, _Side] = self._sides(mu)
        source, target = sides
        n, m = source.masses.shape[-1], target.masses.shape[-1]
        between = source.flow.new_zeros(len(source.mass), m).index_put((source.arcs, target.arcs % m), source.flow)
        rows = (between[source.place] * source.shares().unsqueeze(-1)).reshape(-1, n, m)
        columns = (target.place % m).reshape(-1, 1, m).expand_as(rows)
        plan = (rows.gather(-1, columns) * target.shares().reshape(-1, 1, m)).reshape(*mu.batch_shape, n, m)
        return (plan * in_sum_precision(self.target.mass())[..., None, None]).to(mu.dtype)

    def potentials(self, mu: DiscreteMeasure) -> tuple[Float[Tensor, "*batch n"], Float[Tensor, "*batch m"]]:
        r"""Kantorovich potentials: :math:`\phi` at the atoms of ``mu`` and :math:`\psi` at those of the target.

        .. math:: \phi(x_i) + \psi(y_j) \le \tfrac12 |x_i - y_j|^2, \qquad
                  \sum_i w_i\, \phi(x_i) + \sum_j v_j\, \psi(y_j) = F(\mu) ,

        with equality where the `plan` has mass. At atoms of mass zero each is the c-transform of the other over the atoms
        with mass, so that the inequality holds unless both atoms have none. The constant is such that :math:`\phi` has mean zero
        under ``mu``; as a function of ``mu`` :math:`\phi` is the first variation, differentiable as that is.

        Raises
        ------
        ValueError
            If measures and targets do not fit, or their masses differ.
        """
        sides: tuple[_Side, _Side] = self._sides(mu)
        source, target = sides
        phi, psi = source.first_variation(source.points, target), target.first_variation(target.points, source)
        return phi.to(mu.dtype), psi.to(mu.dtype)

    def transport_map(self, mu: DiscreteMeasure, x: Float[Tensor, "*points k d"] | None = None) -> Float[Tensor, "*batch k d"]:
        r"""Transport map :math:`T`: where mass at each point goes, :math:`T = \mathrm{id} - \nabla\phi`.

        .. math:: T(x_i) = \frac1{w_i} \sum_j \pi_{ij}\, y_j, \qquad
                  T(x) = x - \nabla\phi(x) = y_{j(x)}, \quad j(x) = \arg\min_j \tfrac12 |x - y_j|^2 - \psi_j .

        At places of atoms with mass it is the barycentric map, the mean of where their mass goes; elsewhere, and at atoms of
        mass zero, it is the atom of the target at which the c-transform is attained, and jumps from one to the next. It is the
        point minus the Wasserstein gradient there. Differentiable in the points of the target and in the weights of both, where
        the plan is unique.

        Parameters
        ----------
        mu
            The measures.
        x
            Points ``(*batch, k, d)``; default: the atoms of ``mu``.

        Raises
        ------
        ValueError
            If measures, targets and points do not fit, or masses differ.
        """
        sides: tuple[_Side, _Side] = self._sides(mu)
        source, target = sides
        nu = self._target_for(mu)
        points = source.points if x is None else around(nu, places(mu, x))
        same, partner = _nearest(points, source, target)
        here, elsewhere = source.images(target)[same.clamp_min(0)], target.places[partner]
        images = torch.where((same >= 0).unsqueeze(-1), here, elsewhere).reshape(points.shape)
        return (images + in_sum_precision(middle(nu))).to(mu.dtype)

    @untraced  # linear programs cannot be traced
    def _sides(self, mu: DiscreteMeasure) -> tuple[_Side, _Side]:
        nu = self._target_for(mu)
        (a, b), x, y = probabilities(mu, nu), around(nu, mu.points), around(nu, nu.points)
        plans = _solve(x, a, y, b, self.max_steps)

        def joined(name: str, size: int = 0) -> Any:
            """The numbers of all plans, those of atoms counted through the batch."""
            return np.concatenate([getattr(plan, name) + k * size for k, plan in enumerate(plans)])

        def tensor(numbers: Any) -> Tensor:
            return torch.as_tensor(numbers, device=x.device)

        n, m = mu.n, nu.n
        rows, columns = joined("rows", n), joined("columns", m)
        forest = Forest(rows, columns, len(plans) * n, len(plans) * m)
        sides = []
        for points, masses, name, size, arcs in ((x, a, "source", n, rows), (y, b, "target", m, columns)):
            place, weight, where = tensor(joined(f"{name}_places", size)), masses.flatten(), points.detach().flatten(0, -2)
            mass = torch.zeros_like(weight).index_add(0, place, weight)
            share = (weight / torch.where(mass > 0, mass, 1.0)[place]).detach().unsqueeze(-1)
            at = where.index_add(0, place, share * (points.flatten(0, -2) - where))
            sides.append(_Side(points, masses, place, at, mass, tensor(arcs), tensor(joined("masses")), tensor(joined(name))))
        source, target = sides
        # As functions of weights and points: changes that are zero, through the maps that they would follow.
        marginals = torch.cat([source.mass, target.mass])
        flow = source.flow + _linear(marginals - marginals.detach(), forest.masses, forest.potentials)
        costs = _costs(source, target)
        change = _linear(costs - costs.detach(), forest.potentials, forest.masses).split([len(source.mass), len(target.mass)])
        return (
            replace(source, flow=flow, potential=source.potential + change[0]),
            replace(target, flow=flow, potential=target.potential + change[1]),
        )


@dataclass(frozen=True)
class _Side:
    """One of the two measures, after transport; the atoms of all measures of the batch are counted through."""

    points: Tensor
    """``(*batch, n, d)``"""
    masses: Tensor
    """``(*batch, n)``"""
    place: Tensor
    """Number of the place of each atom, ``(atoms,)``."""
    places: Tensor
    """Where the place of each atom lies, ``(atoms, d)``: the mean of the atoms that coincide there, weighted by mass."""
    mass: Tensor
    """Mass in each place."""
    arcs: Tensor
    """Places from or to which the arcs of the plan lead, ``(arcs,)``."""
    flow: Tensor
    """Masses of the arcs."""
    potential: Tensor
    """Potential in each place."""

    def first_variation(self, points: Tensor, other: _Side) -> Tensor:
        """Kantorovich potential at ``points``, ``(*batch, k, d)``: at the atoms with the slope to the barycentric map."""
        same, partner = _nearest(points, self, other)
        x = points.flatten(0, -2)
        y = other.places[partner]
        elsewhere = 0.5 * (x - y).square().sum(-1) - other.potential[partner]
        place = same.clamp_min(0)
        away = x - self.places[place]
        slope = self.places[place] - self.images(other)[place]
        here = self.potential[place] + (away * (slope + 0.5 * away)).sum(-1)
        return torch.where(same >= 0, here, elsewhere).reshape(points.shape[:-1])

    def images(self, other: _Side) -> Tensor:
        """Where the mass of each place goes on average, ``(atoms, d)``."""
        flow = self.flow.unsqueeze(-1)
        total = self.mass.new_zeros(len(self.mass), 1).index_add(0, self.arcs, flow)
        images = torch.zeros_like(self.places).index_add(0, self.arcs, flow * other.places[other.arcs])
        return images / torch.where(total > 0, total, 1.0)

    def shares(self) -> Tensor:
        """Share of each atom in the mass of its place, ``(atoms,)``."""
        mass = self.mass[self.place]
        return self.masses.flatten() / torch.where(mass > 0, mass, 1.0)


def _costs(source: _Side, target: _Side) -> Tensor:
    return 0.5 * (source.places[source.arcs] - target.places[target.arcs]).square().sum(-1)


def _solve(x: Tensor, a: Tensor, y: Tensor, b: Tensor, max_steps: int) -> list[Plan]:
    sets = (_numbers(t).reshape(-1, *t.shape[k:]) for t, k in ((x, -2), (a, -1), (y, -2), (b, -1)))
    return [exact_transport.solve(x, a, y, b, max_steps) for x, a, y, b in zip(*sets, strict=True)]


@untraced
def _nearest(points: Tensor, side: _Side, other: _Side) -> tuple[Tensor, Tensor]:
    """`exact_transport.nearest` for each measure of the batch, the numbers counted through it."""
    queries, potential = _numbers(points), _numbers(other.potential)
    queries = queries.reshape(-1, *queries.shape[-2:])
    (x, i), (y, j) = ((_numbers(s.places), np.unique(_numbers(s.arcs).astype(np.intp))) for s in (side, other))
    n, m = (len(places) // len(queries) for places in (x, y))
    found = []
    for k, q in enumerate(queries):
        own, theirs = i[i // n == k], j[j // m == k]
        here, there = exact_transport.nearest(q, x[own], y[theirs], potential[theirs])
        found.append(np.stack([np.where(here < 0, -1, own[here]), theirs[there]]))
    same, partner = torch.as_tensor(np.concatenate(found, -1), device=points.device)
    return same, partner


def _numbers(t: Tensor) -> Any:
    """``t`` as an array of NumPy, out of what `torch.func.grad` wraps around it."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(t):
        if functorch.is_batchedtensor(t):
            raise RuntimeError(
                "Wasserstein: torch.vmap cannot reach its linear programs; measures are batched already: "
                "call it on a DiscreteMeasure with points of shape (*batch, n, d)"
            )
        t = functorch.get_unwrapped(t)
    with torch._C._DisableFuncTorch():  # else what is computed from it is wrapped again
        return t.detach().to("cpu", torch.float64).numpy()


def _linear(x: Tensor, map: Callable[[Any], Any], transposed: Callable[[Any], Any]) -> Tensor:
    """A constant linear ``map`` of vectors, given with its transpose as functions of arrays."""
    image: Tensor = _Linear.apply(x, map, transposed)  # type: ignore[no-untyped-call]
    return image


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, map: Callable[[Any], Any], transposed: Callable[[Any], Any]) -> Tensor:
        return torch.as_tensor(map(x.detach().numpy(force=True)), dtype=x.dtype, device=x.device)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.map, ctx.transposed = inputs

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None, None]:
        return _linear(cotangent, ctx.transposed, ctx.map), None, None

    @staticmethod
    def jvp(ctx: Any, change: Tensor, *_: None) -> Tensor:
        return _linear(change, ctx.map, ctx.transposed)

    @staticmethod
    def vmap(info: Any, dims: tuple[int, None, None], x: Tensor, map: Any, transposed: Any) -> tuple[Tensor, int]:
        return torch.stack([_linear(row, map, transposed) for row in x.unbind(dims[0])]), 0
