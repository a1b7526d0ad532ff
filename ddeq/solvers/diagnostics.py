"""What a map is like near a measure: how strongly it contracts, and how many different atoms are left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ddeq.autodiff import alias, check_recordable, reusable_graphs, without_autocast
from ddeq.draws import normal
from ddeq.measures import DiscreteMeasure

__all__ = ["effective_support", "jacobian_penalty", "spectral_radius"]

Map = Callable[..., DiscreteMeasure]


@reusable_graphs()
def spectral_radius(
    map: Map, mu: DiscreteMeasure, *args: Any, steps: int = 20, generator: torch.Generator | None = None
) -> Float[Tensor, "*batch"]:
    r"""Spectral radius of the derivative :math:`J` of the map at ``mu``, as an operator on :math:`L^2(\mu)`, for each sample.

    Arnoldi's method on the adjoint of :math:`J` with ``steps`` vector-Jacobian products, in the inner product of
    :math:`L^2(\mu)`: complex pairs of eigenvalues are seen, and the result is exact where ``steps`` reaches the number of
    coordinates; before that it is an estimate, good where few eigenvalues stand out, and possibly too large where
    :math:`J` is far from normal. Picard's iteration converges near a fixed point iff the radius is below one.

    A field in :math:`L^2(\mu)` has one value in each place: atoms of the same mark that coincide count as one, those of
    mass zero do not count, and what is found depends on the measure alone (measure consistency, T1), but for the random first
    direction.

    Parameters
    ----------
    map, mu, args
        The map, the measure at which to look (a solution, usually), and the map's other arguments.
    steps
        Number of products.
    generator
        Randomness of the first direction.

    References
    ----------
    :cite:t:`arnoldi1951principle`.
    """
    mu = mu.detach()
    transposed, places = _transposed_jacobian(map, mu, args, graph=False), _Places(mu)
    v = places.random(generator)
    steps = min(steps, mu.n * mu.dim)
    rounding = 100 * torch.finfo(v.dtype).eps
    with without_autocast(mu.device):
        basis = [v / places.norm(v)]
        hessenberg = v.new_zeros(*mu.batch_shape, steps, steps)
        for k in range(steps):
            w = places.project(transposed(basis[k]))
            size = places.norm(w)
            for _ in range(2):  # the second pass removes what rounding left of the first
                for i, q in enumerate(basis):
                    h = (places.inverse * w * q).sum((-2, -1))
                    hessenberg[..., i, k] += h
                    w = w - h[..., None, None] * q
            if k + 1 < steps:
                norm = places.norm(w)
                # An invariant subspace was found: what remains is rounding, and must not count as a new direction.
                exhausted = norm <= rounding * size
                hessenberg[..., k + 1, k] = torch.where(exhausted, 0.0, norm)[..., 0, 0]
                basis.append(torch.where(exhausted, 0.0, w / torch.where(exhausted, 1.0, norm)))
        finite = torch.isfinite(hessenberg).flatten(-2).all(-1)
        radius = torch.linalg.eigvals(torch.where(finite[..., None, None], hessenberg, 0.0)).abs().amax(-1)
    return torch.where(finite, radius, torch.nan)


@reusable_graphs()
def jacobian_penalty(
    map: Map,
    mu: DiscreteMeasure,
    *args: Any,
    kind: Literal["largest", "frobenius"] = "largest",
    steps: int = 1,
    target: float = 0.0,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*batch"]:
    r"""Penalty on the derivative :math:`J` of the map at ``mu``, differentiable in the map's parameters and arguments.

    ``"frobenius"``: Hutchinson's estimate :math:`|J^* v|^2 / |v|^2` for a random :math:`v`, which for equal masses is on
    average :math:`|J|_F^2` divided by the number of coordinates. ``"largest"``:
    :math:`\max(0, |J^* v| / |v| - \text{target})^2` for the direction :math:`v` that ``steps`` applications of :math:`J^*`
    have turned a random one to: with each step it comes closer to the direction in which the map contracts least. Norms and
    the adjoint :math:`J^*` are those of :math:`L^2(\mu)`: atoms of mass zero do not count, and coincident ones count as one.

    Parameters
    ----------
    map, mu, args
        The map, the measure at which to look (it is detached), and the map's other arguments.
    kind
        Which penalty.
    steps
        Applications of :math:`J^*` that turn the direction, without a graph.
    target
        Growth that is allowed before the penalty sets in.
    generator
        Randomness of the direction.

    Raises
    ------
    ValueError
        If ``kind`` is neither of the two.

    References
    ----------
    :cite:t:`hutchinson1989stochastic`; :cite:t:`bai2021stabilizing`.
    """
    if kind not in ("largest", "frobenius"):
        raise ValueError(f"kind: expected 'largest' or 'frobenius', got {kind!r}")
    mu = mu.detach()
    transposed, places = _transposed_jacobian(map, mu, args, graph=True), _Places(mu)
    v = places.random(generator)
    for _ in range(steps if kind == "largest" else 0):
        w = transposed(v).detach()
        norm = places.norm(w)
        v = torch.where(norm > 0, w / torch.where(norm > 0, norm, 1.0), v)
    square = (places.square(transposed(v)) / places.square(v))[..., 0, 0]
    if kind == "frobenius":
        return square
    excess = square > target**2
    return (torch.where(excess, torch.where(excess, square, 1.0).sqrt(), target) - target).square()


def effective_support(mu: DiscreteMeasure, resolution: float = 1e-3) -> Float[Tensor, "*batch"]:
    r"""How many different atoms a measure has, in effect: :math:`1 / \iint k \,\mathrm d\mu \,\mathrm d\mu` for the
    probability proportional to :math:`\mu` and a Gaussian :math:`k`.

    Between 1, all atoms in one place, and the number of atoms, all of equal mass and apart. Two atoms count as one where
    their distance is well below ``resolution`` times the root mean square of the points.

    Parameters
    ----------
    mu
        The measures.
    resolution
        The bandwidth of :math:`k` in units of the size of the points. Splitting an atom changes nothing (measure consistency,
        T1).

    References
    ----------
    :cite:t:`leinster2012measuring`, the diversity of order two.
    """
    mu = mu.normalized()
    size = (mu.weights * mu.points.square().sum(-1)).sum(-1).sqrt()
    bandwidth = (resolution * torch.where(size > 0, size, 1.0))[..., None, None]
    distances = torch.cdist(mu.points, mu.points, compute_mode="donot_use_mm_for_euclid_dist")
    overlap = (-0.5 * (distances / bandwidth).square()).exp()
    return 1.0 / (mu.weights.unsqueeze(-2) @ overlap @ mu.weights.unsqueeze(-1)).squeeze((-2, -1))


def _transposed_jacobian(map: Map, mu: DiscreteMeasure, args: tuple[Any, ...], graph: bool) -> Callable[[Tensor], Tensor]:
    check_recordable("the derivative of a map")
    graph = graph and torch.is_grad_enabled()
    with torch.enable_grad():
        z = alias(mu.points, False)
        image = map(mu.with_points(z), *args).points

    def transposed(v: Tensor) -> Tensor:
        if not image.requires_grad:  # the same image whatever the measure
            return torch.zeros_like(v)
        (product,) = torch.autograd.grad(image, z, v, retain_graph=True, create_graph=graph, materialize_grads=True)
        return product

    return transposed


class _Places:
    """Atoms of one mark and place, for cotangents that are functions of the measure: a field of one value in each place,
    times the masses."""

    def __init__(self, mu: DiscreteMeasure) -> None:
        where = mu.points if mu.marks is None else torch.cat([mu.points, mu.marks], -1)
        sample = torch.arange(mu.weights.numel() // mu.n, device=mu.device).repeat_interleave(mu.n)
        rows = torch.cat([sample.to(where).unsqueeze(-1), where.reshape(-1, where.shape[-1])], -1)
        _, self._place = torch.unique(rows, dim=0, return_inverse=True)
        masses = torch.zeros(len(rows), dtype=mu.dtype, device=mu.device).index_add(0, self._place, mu.weights.flatten())
        there = masses[self._place].reshape(mu.weights.shape)
        self._share = torch.where(mu.weights > 0, mu.weights / torch.where(there > 0, there, 1.0), 0.0).unsqueeze(-1)
        self._mu = mu
        self.inverse = torch.where(mu.support(), 1.0 / torch.where(mu.support(), mu.weights, 1.0), 0.0).unsqueeze(-1)
        """Of a cotangent the norm in these weights is that of the field in L2(mu); ``(*batch, n, 1)``."""

    def random(self, generator: torch.Generator | None) -> Tensor:
        """A field that is Gaussian and independent in each place, times the masses."""
        mu = self._mu
        drawn = normal(mu.points.shape, mu.points, generator)
        atom = torch.arange(len(self._place), device=mu.device)
        first = torch.zeros_like(atom).scatter_reduce(0, self._place, atom, "amin", include_self=False)
        shared = drawn.reshape(-1, mu.dim)[first[self._place]].reshape(drawn.shape)
        return mu.weights.unsqueeze(-1) * shared

    def project(self, v: Tensor) -> Tensor:
        """What comes to a place, shared in proportion to the masses there: removes what rounding has told apart."""
        total = torch.zeros_like(v.reshape(-1, v.shape[-1])).index_add(0, self._place, v.reshape(-1, v.shape[-1]))
        return self._share * total[self._place].reshape(v.shape)

    def norm(self, v: Tensor) -> Tensor:
        return self.square(v).sqrt()

    def square(self, v: Tensor) -> Tensor:
        square: Tensor = (self.inverse * v.square()).sum((-2, -1), keepdim=True)
        return square
