"""The Chamfer distance: how far each of two measures is from the support of the other."""

from __future__ import annotations

from typing import NoReturn

import torch
from jaxtyping import Float
from torch import Tensor

from ddeq.autodiff import gradient
from ddeq.functionals.base import Smoothness
from ddeq.functionals.discrepancy import Discrepancy
from ddeq.measures import DiscreteMeasure, check_mass
from ddeq.reductions import integrate, nearest_squared_distance

__all__ = ["Chamfer"]


class Chamfer(Discrepancy):
    r"""Half the squared Chamfer distance from a target :math:`\nu`.

    .. math:: F(\mu) = \frac1{|\mu|} \int \min_{y \in \operatorname{supp}\nu} \tfrac12 |x - y|^2 \,\mathrm d\mu(x)
              + \frac1{|\nu|} \int \min_{x \in \operatorname{supp}\mu} \tfrac12 |x - y|^2 \,\mathrm d\nu(y)

    with the masses :math:`|\mu|` and :math:`|\nu|`. Papers on completion report :math:`2F`, the sum of both mean squared
    distances ("CD-l2"), or half the sum of both mean distances, which are not squared ("CD-l1"; so does PCN); usually times 1000.

    Parameters
    ----------
    target
        Measure :math:`\nu`: one for all, or one for each measure of the batch.

    Raises
    ------
    ValueError
        If a mass is zero; if measures and targets differ in dimension, dtype or device, or their batch shapes do not fit; or if
        a first variation is asked for.

    Notes
    -----
    A function of the measure (measure consistency, T1), smooth almost everywhere, but not one that is continuous in it: the
    second integral sees the support of :math:`\mu` alone, which any mass at a new place changes, however small it is. Hence
    there is no first variation, and no Wasserstein gradient but the derivative in the places of the atoms of :math:`\mu`,
    divided by their masses. That one is a function of the measure too, but it grows without bound where an atom loses its mass.
    To flow a measure, take `MMD`, `SinkhornDivergence` or `Wasserstein`.

    Where several atoms are nearest, derivatives are the mean over them, weighted by mass; see `nearest_squared_distance`.
    There is no derivative in the weights that decide which atoms there are; the one in those of the integrals is right.

    References
    ----------
    :cite:t:`fan2017point`; :cite:t:`yuan2018pcn`.

    Examples
    --------
    >>> mu, nu = DiscreteMeasure(torch.tensor([[0.0], [1.0]])), DiscreteMeasure(torch.tensor([[3.0]]))
    >>> Chamfer(nu)(mu)  # half of (9 + 4) / 2 + 4
    tensor(5.2500)
    """

    removable = True
    smoothness = Smoothness.ALMOST_EVERYWHERE

    def forward(self, mu: DiscreteMeasure) -> Float[Tensor, "*batch"]:
        nu = self._target_for(mu)
        check_mass("mu", mu)
        check_mass("target", nu)
        to_target = integrate(nearest_squared_distance(mu.points, nu), mu) / mu.mass()
        to_measure = integrate(nearest_squared_distance(nu.points, mu), nu) / nu.mass()
        return 0.5 * (to_target + to_measure)

    def first_variation(self, mu: DiscreteMeasure, x: Float[Tensor, "*points m d"] | None = None) -> NoReturn:
        """There is none, at no ``mu`` and ``x``: always a `ValueError`."""
        raise ValueError(
            "first_variation: Chamfer has none, since any mass at a new place changes the support; "
            "wasserstein_gradient(mu) is the derivative in the atoms, and MMD(target) has both"
        )

    def wasserstein_gradient(
        self, mu: DiscreteMeasure, x: Float[Tensor, "*points m d"] | None = None
    ) -> Float[Tensor, "*batch m d"]:
        r"""The derivative :math:`\frac1{w_i}\frac{\partial F}{\partial x_i}` at the atoms of ``mu``, zero at those of mass zero.

        Raises
        ------
        ValueError
            If ``x`` is given: what is not in the support has no gradient.
        """
        if x is not None:
            raise ValueError("x: expected None, since Chamfer has a gradient at the atoms of the measure only")
        force = gradient(lambda p: self(mu.with_points(p)), mu.points)
        return force / torch.where(mu.support(), mu.weights, 1.0).unsqueeze(-1)
