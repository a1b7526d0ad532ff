"""What a map is like near a measure: how strongly it contracts, and how many different atoms are left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ddeq.autodiff import alias
from ddeq.measures import DiscreteMeasure

__all__ = ["effective_support", "jacobian_penalty", "spectral_radius"]

Map = Callable[..., DiscreteMeasure]


def spectral_radius(
    map: Map, mu: DiscreteMeasure, *args: Any, steps: int = 20, generator: torch.Generator | None = None
) -> Float[Tensor, "*batch"]:
    r"""Spectral radius of the Jacobian :math:`J = \partial\Phi/\partial z` at ``mu``, for each sample.

    Arnoldi's method on :math:`J^\top` with ``steps`` vector-Jacobian products: complex pairs of eigenvalues are seen, and
    the result is exact where ``steps`` reaches the number of coordinates. Picard's iteration converges near a fixed point
    iff it is below one.

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
    Arnoldi (1951), The principle of minimized iterations in the solution of the matrix eigenvalue problem.
    """
    transposed, v = _transposed_jacobian(map, mu, args, graph=False), _random_cotangent(mu, generator)
    steps = min(steps, mu.n * mu.dim)
    basis = [v / _norm(v)]
    hessenberg = v.new_zeros(*mu.batch_shape, steps, steps)
    for k in range(steps):
        w = transposed(basis[k])
        for _ in range(2):  # the second pass removes what rounding left of the first
            for i, q in enumerate(basis):
                h = (w * q).sum((-2, -1))
                hessenberg[..., i, k] += h
                w = w - h[..., None, None] * q
        if k + 1 < steps:
            norm = _norm(w)
            # An invariant subspace was found: what remains is rounding, and must not count as a new direction.
            exhausted = norm <= 10 * torch.finfo(v.dtype).eps * hessenberg[..., : k + 1, k].norm(dim=-1)[..., None, None]
            hessenberg[..., k + 1, k] = torch.where(exhausted, 0.0, norm)[..., 0, 0]
            basis.append(torch.where(exhausted, 0.0, w / torch.where(exhausted, 1.0, norm)))
    radius: Tensor = torch.linalg.eigvals(hessenberg).abs().amax(-1)
    return radius


def jacobian_penalty(
    map: Map,
    mu: DiscreteMeasure,
    *args: Any,
    kind: Literal["largest", "frobenius"] = "largest",
    steps: int = 1,
    target: float = 0.0,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*batch"]:
    r"""Penalty on the Jacobian :math:`J` of the map at ``mu``, differentiable in the map's parameters and arguments.

    ``"frobenius"``: :math:`|J^* v|^2 / |v|^2` for a random :math:`v`, an estimate of :math:`|J|_F^2` divided by the number
    of coordinates. ``"largest"``: :math:`\max(0, |J^* v| / |v| - \text{target})^2` for the direction :math:`v` that
    ``steps`` applications of :math:`J^*` have turned a random one to: with each step it comes closer to the direction in
    which the map contracts least. Norms and the adjoint :math:`J^*` are those of :math:`L^2(\mu)`: atoms of mass zero do
    not count.

    Parameters
    ----------
    map, mu, args
        The map, the measure at which to look (it is detached), and the map's other arguments.
    kind
        Which penalty.
    steps
        Applications of :math:`J^\top` that turn the direction, without a graph.
    target
        Growth that is allowed before the penalty sets in.
    generator
        Randomness of the direction.

    Raises
    ------
    ValueError
        If ``kind`` is neither of the two.
    """
    if kind not in ("largest", "frobenius"):
        raise ValueError(f"kind: expected 'largest' or 'frobenius', got {kind!r}")
    transposed, v = _transposed_jacobian(map, mu, args, graph=True), _random_cotangent(mu, generator)
    # Of a cotangent v = w * field, the norm of the field in L2(mu) is that of v with inverse masses.
    live = mu.weights.detach() > 0
    inverse = torch.where(live, 1.0 / torch.where(live, mu.weights.detach(), 1.0), 0.0).unsqueeze(-1)

    def squared(v: Tensor) -> Tensor:
        return (inverse * v.square()).sum((-2, -1))

    for _ in range(steps if kind == "largest" else 0):
        w = transposed(v).detach()
        norm = squared(w).sqrt()[..., None, None]
        v = torch.where(norm > 0, w / torch.where(norm > 0, norm, 1.0), v)
    square = squared(transposed(v)) / squared(v)
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
        The bandwidth of :math:`k` in units of the size of the points. Splitting an atom changes nothing (T1).
    """
    mu = mu.normalized()
    size = (mu.weights * mu.points.square().sum(-1)).sum(-1).sqrt()
    bandwidth = (resolution * torch.where(size > 0, size, 1.0))[..., None, None]
    distances = torch.cdist(mu.points, mu.points, compute_mode="donot_use_mm_for_euclid_dist")
    overlap = (-0.5 * (distances / bandwidth).square()).exp()
    return 1.0 / (mu.weights.unsqueeze(-2) @ overlap @ mu.weights.unsqueeze(-1)).squeeze((-2, -1))


def _transposed_jacobian(map: Map, mu: DiscreteMeasure, args: tuple[Any, ...], graph: bool) -> Callable[[Tensor], Tensor]:
    graph = graph and torch.is_grad_enabled()
    with torch.enable_grad():
        z = alias(mu.points, False)
        image = map(mu.detach().with_points(z), *args).points

    def transposed(v: Tensor) -> Tensor:
        (product,) = torch.autograd.grad(image, z, v, retain_graph=True, create_graph=graph, materialize_grads=True)
        return product

    return transposed


def _random_cotangent(mu: DiscreteMeasure, generator: torch.Generator | None) -> Tensor:
    """Gaussian on the atoms of positive mass, times the masses, as cotangents are."""
    drawn = torch.randn(mu.points.shape, generator=generator, dtype=mu.dtype, device=mu.device)
    return mu.weights.detach().unsqueeze(-1) * drawn


def _norm(v: Tensor) -> Tensor:
    return v.square().sum((-2, -1), keepdim=True).sqrt()
