"""`check_geometry`: is a geometry a metric on measures?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ddeq.flows import Geometry
from ddeq.functionals.base import Functional
from ddeq.functionals.entropy import entropy_share
from ddeq.iteration import InnerProduct
from ddeq.measures import DiscreteMeasure, unchecked
from ddeq.testing.close import assert_close
from ddeq.testing.problems import Bowl, trial_batch
from ddeq.testing.purity import assert_unchanged, check_consistency, check_declarations, check_precision, copied, in_dtype, stated
from ddeq.testing.samples import HINTS, changed_neighbour, trial_measures

__all__ = ["check_geometry"]

FIELDS = 16
"""Fields on whose combinations a mobility is held to be positive semidefinite."""


def check_geometry(
    geometry: Geometry,
    functional: Functional | None = None,
    measures: DiscreteMeasure | Sequence[DiscreteMeasure] | None = None,
    *,
    rtol: float = 1e-8,
) -> None:
    r"""Hold a geometry to what `ddeq.flow` relies on.

    The laws: the `mobility <ddeq.flows.Geometry.mobility>` is linear, self-adjoint and positive semidefinite in
    :math:`L^2(\mu)`; velocities are the mobility of minus the Wasserstein gradient, the same whether they are asked for at the
    atoms or at points that are the atoms, and at other points those of an atom of mass zero there; the dissipation is the rate
    at which the energy falls along them, minus the numerical derivative of the energy, and so not negative (dissipation, T10);
    velocities depend on the measure alone (measure consistency, T1) and on no other measure of a batch; float32 and float64
    stay what they are. Only where the mobility is the identity, ``is_wasserstein`` may be true. Where the entropy in the
    functional is replaced (``replaces_entropy``) less is asked of velocities.

    Parameters
    ----------
    geometry
        What to check.
    functional
        A smooth energy; default: a bowl, without entropy.
    measures
        Measures in double precision to try; default: batches with coincident atoms and some of mass zero.
    rtol
        Allowed relative difference where two ways of computing differ by rounding.

    Raises
    ------
    AssertionError
        Saying which law broke, with numbers.
    """
    check_declarations(geometry, Geometry, "Geometry", ("is_wasserstein", "replaces_entropy"))
    functional = Bowl() if functional is None else functional
    if measures is None:
        measures = [trial_batch(), *trial_measures(2)]
    share = entropy_share(functional) if geometry.replaces_entropy else 0.0
    plain = not isinstance(share, Tensor) and share == 0.0
    for mu in [measures] if isinstance(measures, DiscreteMeasure) else measures:
        with torch.no_grad():
            _check_mobility(geometry, mu, rtol)
            _check_velocity(geometry, functional, mu, plain, rtol)
            _check_dissipation(geometry, functional, mu, plain)
            _check_at(geometry, functional, mu, rtol)


def _check_mobility(geometry: Geometry, mu: DiscreteMeasure, rtol: float) -> None:
    """Linear, self-adjoint, positive semidefinite; blind to atoms of mass zero; the identity for Wasserstein."""
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(mu.points.shape, generator=g, dtype=mu.dtype).to(mu.device) for _ in range(2))
    inner, before = InnerProduct.of(mu.points, mu.weights), copied(mu=mu, fields=[a, b])
    with stated("mobility"):
        mobility = geometry.mobility(mu)
    if not callable(mobility):
        raise AssertionError(f"mobility: expected a function of fields, got {type(mobility).__name__}; return a function")
    with stated("mobility"):
        of_a, of_b, of_sum = mobility(a), mobility(b), mobility(a + 2.0 * b)
    assert_unchanged("purity: the mobility changes what it was given", before, mu=mu, fields=[a, b])
    assert_close(of_sum, of_a + 2.0 * of_b, "mobility: it is not linear", rtol=rtol)
    size = inner.norm(a) * inner.norm(of_b) + inner.norm(b) * inner.norm(of_a)
    assert_close(
        inner(a, of_b),
        inner(of_a, b),
        "mobility: it is not self-adjoint in L2(mu), <a, C b> and <C a, b> differ",
        scale=size,
        rtol=rtol,
        hint="Is a matrix symmetric, and a kernel? In a sum over atoms, has each term the weight of its own atom?",
    )
    fields = [torch.randn(mu.points.shape, generator=g, dtype=mu.dtype).to(mu.device) for _ in range(FIELDS)]
    images = [mobility(field) for field in fields]
    products = torch.stack([torch.stack([inner(u, v) for v in images], -1) for u in fields], -2)
    least = torch.linalg.eigvalsh(0.5 * (products + products.mT))[..., 0]
    if bool((least < -rtol * products.abs().amax((-2, -1))).any()):
        raise AssertionError(
            f"mobility: it is not positive semidefinite, <a, C a> = {least.tolist()} for some fields a of norm one"
        )
    live = mu.support().unsqueeze(-1)
    if not bool(live.all()):
        elsewhere = torch.where(live, a, 7.0 * b)
        law = "measure consistency (T1): the mobility at an atom depends on the field at atoms of mass zero"
        assert_close(torch.where(live, mobility(elsewhere), 0.0), torch.where(live, of_a, 0.0), law, rtol=rtol)
    if geometry.is_wasserstein:
        law = f"is_wasserstein: {type(geometry).__name__} says so, and its mobility is not the identity"
        assert_close(of_a, a, law, rtol=rtol)


def _check_velocity(geometry: Geometry, functional: Functional, mu: DiscreteMeasure, plain: bool, rtol: float) -> None:
    before = copied(mu=mu, functional=functional)
    with stated("velocity"):
        velocity = geometry.velocity(functional, mu)
    assert_unchanged("purity: the velocity changes what it was given", before, mu=mu, functional=functional)
    if (velocity.shape, velocity.dtype) != (mu.points.shape, mu.dtype):
        raise AssertionError(f"velocity: expected {tuple(mu.points.shape)}, {mu.dtype}; got {velocity.shape}, {velocity.dtype}")
    assert_close(geometry.velocity(functional, mu), velocity, "purity: two evaluations of the velocity differ", units=0.0)
    if plain:
        law = "velocity: it is not the mobility of minus the Wasserstein gradient"
        expected = geometry.mobility(mu)(-functional.wasserstein_gradient(mu))
        assert_close(velocity, expected, law, rtol=rtol, scale=1e-3, hint="Is the sign right?")
    try:
        at_atoms = geometry.velocity(functional, mu, mu.points)
        geometry.velocity(functional, mu, mu.points[..., :1, :] + 0.3)
    except ValueError:  # the geometry knows velocities at the atoms alone
        at_atoms = None
    if at_atoms is not None:
        law = "velocity: at points that are the atoms it is another than at the atoms"
        assert_close(at_atoms, velocity, law, rtol=rtol, scale=1e-3)
        _check_elsewhere(geometry, functional, mu, rtol)
    check_consistency(lambda nu: geometry.velocity(functional, nu), mu, "the velocity", rtol=1e2 * rtol)
    neighbour = changed_neighbour(mu)
    if neighbour is not None:
        law = "one measure at a time: the velocity depends on another measure of the batch"
        actual = geometry.velocity(functional, neighbour)[1:]
        assert_close(actual, velocity[1:], law, rtol=rtol, hint=HINTS["another measure"])
    check_precision(lambda nu: geometry.velocity(in_dtype(functional, nu.dtype), nu), mu, "the velocity")


def _check_elsewhere(geometry: Geometry, functional: Functional, mu: DiscreteMeasure, rtol: float) -> None:
    """At points that are no atoms, other in number: each point by itself, and as an atom of mass zero there."""
    mu = mu.with_marks(None)
    x = torch.cat([mu.points[..., :1, :] + 0.3, mu.points[..., :1, :] - 0.7, mu.mean().unsqueeze(-2) + 0.1], -2)
    with stated("velocity"):
        velocity = geometry.velocity(functional, mu, x)
        alone = torch.cat([geometry.velocity(functional, mu, point) for point in x.split(1, -2)], -2)
    law = "velocity: at one of several points it depends on the other points"
    assert_close(velocity, alone, law, rtol=rtol, scale=1e-3)
    probed = mu + unchecked(x, x.new_zeros(x.shape[:-1]))
    law = "velocity: at a point it is another than at an atom of mass zero that lies there"
    hint = "Is everything that depends on the place taken at x, and not at the atoms?"
    assert_close(velocity, geometry.velocity(functional, probed)[..., mu.n :, :], law, rtol=rtol, scale=1e-3, hint=hint)


def _check_dissipation(geometry: Geometry, functional: Functional, mu: DiscreteMeasure, plain: bool) -> None:
    """The rate at which the energy falls, against its numerical derivative along the velocity."""
    with stated("dissipation"):
        rate, velocity = geometry.dissipation(functional, mu), geometry.velocity(functional, mu)
    if rate.shape != mu.batch_shape:
        raise AssertionError(f"dissipation: expected one number for each measure, {mu.batch_shape}, got {tuple(rate.shape)}")
    gradient = functional.wasserstein_gradient(mu)
    inner = InnerProduct.of(mu.points, mu.weights)
    size = inner.norm(gradient) * inner.norm(velocity)
    if bool((rate < -1e-6 * size).any()):
        raise AssertionError(f"dissipation (T10): it is negative, {rate.tolist()}: the energy would rise along the flow")
    if not plain:
        return
    law = "dissipation (T10): it is not minus the product of gradient and velocity in L2(mu)"
    assert_close(rate, -inner(gradient, velocity), law, rtol=1e-8, scale=size)
    h = 1e-5 / max(1.0, float(velocity.abs().max()))
    up, down = (functional(mu.with_points(mu.points + s * velocity)) for s in (h, -h))
    law = "dissipation (T10): it is not the rate at which the energy falls along the velocity"
    assert_close(rate, (down - up) / (2 * h), law, rtol=1e-5, scale=size + 1e-3)


def _check_at(geometry: Geometry, functional: Functional, mu: DiscreteMeasure, rtol: float) -> None:
    """The geometry that is prepared for a measure is the same there, and a known velocity gives the same rate."""
    with stated("at"):
        here = geometry.at(mu)
    if not isinstance(here, Geometry):
        raise AssertionError(f"at: expected a Geometry, got {type(here).__name__}")
    velocity, field = geometry.velocity(functional, mu), functional.wasserstein_gradient(mu)
    law = f"at: {type(geometry).__name__}.at(mu) is another geometry at mu than {type(geometry).__name__}: "
    assert_close(here.velocity(functional, mu), velocity, law + "its velocity differs", rtol=rtol)
    assert_close(here.mobility(mu)(field), geometry.mobility(mu)(field), law + "its mobility differs", rtol=rtol)
    rate = geometry.dissipation(functional, mu)
    assert_close(here.dissipation(functional, mu), rate, law + "its dissipation differs", rtol=rtol)
    with stated("slope"):
        slope = geometry.slope(functional, mu, velocity)
    inner = InnerProduct.of(mu.points, mu.weights)
    size = inner.norm(field) * inner.norm(velocity)
    assert_close(slope, rate, "slope: it is not the dissipation where the velocity is known", scale=size, rtol=rtol)
