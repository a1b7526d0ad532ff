"""`check_space`: does a space keep to what flows rely on?"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ddeq.measures import unchecked
from ddeq.spaces import Space
from ddeq.spaces.space import length, matrix_of
from ddeq.testing.close import assert_close
from ddeq.testing.purity import assert_unchanged, check_declarations, check_precision, copied, stated

__all__ = ["check_space"]

LONG = 20.0
"""Length of long steps, which must stay in the space too."""


def check_space(space: Space, points: Float[Tensor, "*batch n d"] | None = None, *, dim: int = 3, rtol: float = 1e-8) -> None:
    r"""Hold a space to what flows, equilibria and fixed points rely on (spaces, T22).

    The laws: `project <ddeq.spaces.Space.project>` leads into the space and leaves its points; `tangent` is a projection, and
    `velocity` a symmetric positive semidefinite linear map into the tangent space, the inverse of the metric `inner`, with
    :math:`\langle v(f), a\rangle_x = f \cdot a` (at a boundary: of the cone of vectors into the space); `retract` stays in the
    space, however long the step, and starts along its vector; `transport` is linear and gives tangent vectors; `frame` is a
    root of the inverse metric; `chart` is a retraction that autograd differentiates at zero; `kick` stays in the space;
    `distance`, where there is one, is symmetric and the length of a short step; all act at each point by itself, change
    nothing that they are given, and keep float32 and float64.

    Parameters
    ----------
    space
        What to check.
    points
        Points of the space in double precision, some of them on the boundary; default: projections of normal ones.
    dim
        Dimension of the default points.
    rtol
        Allowed relative difference where two ways of computing differ by rounding.

    Raises
    ------
    AssertionError
        Saying which law broke, with numbers.
    """
    check_declarations(space, Space, "Space", ("has_boundary", "is_flat", "is_periodic"))
    g = torch.Generator().manual_seed(20231)

    def draw(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=g, dtype=torch.float64).to(like.device)

    with torch.no_grad():
        if points is None:
            points = _projected(space, draw(torch.empty(2, 6, dim)))
        if not bool(space.contains(points).all()):
            raise AssertionError(f"contains: it says no to {int((~space.contains(points)).sum())} of the points")
        f, a, b = draw(points), draw(points), draw(points)
        before = copied(points=points, fields=[f, a, b])
        _check_tangent(space, points, f, a, rtol)
        _check_steps(space, points, a, b, rtol)
        _check_frame(space, points, f, rtol)
        _check_kicks(space, points, a)
        _check_distance(space, points, a)
        _check_each_alone(space, points, a, rtol)
        assert_unchanged("purity: the space changes what it was given", before, points=points, fields=[f, a, b])
        weights = torch.full(points.shape[:-1], 1.0 / points.shape[-2], dtype=points.dtype, device=points.device)
        mu = unchecked(points, weights)
        check_precision(lambda nu: space.retract(nu.points, 0.1 * space.tangent(nu.points, a.to(nu.points))), mu, "a step")
        check_precision(lambda nu: space.velocity(nu.points, f.to(nu.points)), mu, "the velocity")
    _check_chart(space, points, a)


def _projected(space: Space, x: Tensor) -> Tensor:
    with stated("project"):
        points = space.project(x)
    if not bool(space.contains(points).all()):
        raise AssertionError("project: it leads out of the space, as `contains` sees it")
    law = "project: it moves points of the space"
    assert_close(space.project(points), points, law, rtol=1e-6, scale=1.0)
    return points


def _check_tangent(space: Space, x: Tensor, f: Tensor, a: Tensor, rtol: float) -> None:
    with stated("tangent"):
        v = space.tangent(x, a)
    assert_close(space.tangent(x, v), v, "tangent: it is not a projection, twice is not once", rtol=rtol, scale=1e-3)
    with stated("velocity"):
        velocity = space.velocity(x, f)
    law = "velocity: it is not tangent"
    assert_close(space.tangent(x, velocity), velocity, law, rtol=1e2 * rtol, scale=1e-3)
    rate = (f * velocity).sum(-1)
    size = length(f) * length(velocity)
    assert_close(
        space.inner(x, velocity, velocity), rate, "velocity: its square in the metric is not f . v", rtol=rtol, scale=size
    )
    if bool((rate < -rtol * size).any()):
        raise AssertionError("velocity: it leads uphill, f . v < 0 for a force f")
    if space.has_boundary:
        left = f - velocity  # the force of the boundary
        worst = ((left * v).sum(-1) / (1.0 + length(left) * length(v))).max()
        if float(worst) > rtol:
            raise AssertionError(f"velocity: what the boundary takes off does not point out of the space, by {float(worst):.1e}")
        return
    assert_close(space.inner(x, velocity, v), (f * v).sum(-1), "inner: it is not the metric of `velocity`", rtol=rtol, scale=size)
    both = space.velocity(x, f + 2.0 * a)
    assert_close(both, velocity + 2.0 * space.velocity(x, a), "velocity: it is not linear", rtol=rtol)


def _check_steps(space: Space, x: Tensor, a: Tensor, b: Tensor, rtol: float) -> None:
    v = space.tangent(x, a)
    speed = space.inner(x, v, v).clamp_min(torch.finfo(x.dtype).tiny).sqrt().unsqueeze(-1)
    v = v / speed
    with stated("retract"):
        for size in (1e-3, 0.1, 1.0, LONG if space.has_boundary or space.is_flat else 1.0):
            if not bool(space.contains(space.retract(x, size * v)).all()):
                raise AssertionError(f"retract: a step of length {size} leads out of the space")
        if space.has_boundary:
            found = (space.near(x, space.retract(x, 1e-6 * v)) - x) / 1e-6
        else:
            h = 1e-4
            found = (space.near(x, space.retract(x, h * v)) - space.near(x, space.retract(x, -h * v))) / (2.0 * h)
    assert_close(space.retract(x, torch.zeros_like(v)), x, "retract: a step of length zero moves points", rtol=1e-7, scale=1.0)
    assert_close(found, v, "retract: a short step does not follow its vector", rtol=1e-4, scale=1.0)
    u, w, step = space.tangent(x, b), space.tangent(x, a + b), 0.1 * v
    y = space.retract(x, step)
    with stated("transport"):
        (carried,) = space.transport(x, step, u)
        both = space.transport(x, step, u + 2.0 * w, w)
    if not space.has_boundary:
        law = "transport: it gives vectors that are not tangent"
        assert_close(space.tangent(y, carried), carried, law, rtol=1e3 * rtol, scale=1e-3)
    assert_close(both[0], carried + 2.0 * both[1], "transport: it is not linear", rtol=1e2 * rtol)
    law = "travelled: of a short step it is another vector than the step"
    short = 1e-6 * v
    assert_close(space.travelled(x, short, space.retract(x, short)), short, law, rtol=1e-3, scale=1e-6)


def _check_frame(space: Space, x: Tensor, f: Tensor, rtol: float) -> None:
    zero = torch.zeros_like(x)
    with stated("frame"):
        e = matrix_of(space.frame(x, zero), x)
        moving = matrix_of(space.moving(x, zero), x)
    law = "moving: it is not the projection to what the frame sees"
    assert_close(e @ moving, e, law, rtol=1e2 * rtol)
    assert_close(moving @ moving, moving, law, rtol=1e2 * rtol)
    if not space.has_boundary:
        m = matrix_of(lambda c: space.velocity(x, c), x)
        assert_close(m, m.mT, "velocity: its matrix is not symmetric", rtol=1e2 * rtol)
        assert_close(e @ e.mT, m, "frame: it is not a root of the inverse metric, E E^T and M differ", rtol=1e2 * rtol)
        return
    held = matrix_of(space.frame(x, f), x)
    velocity = space.velocity(x, f)
    law = "frame: the velocity leaves the face that it says"
    assert_close(
        (held @ torch.linalg.pinv(held) @ velocity.unsqueeze(-1)).squeeze(-1), velocity, law, rtol=1e2 * rtol, scale=1e-3
    )


def _check_kicks(space: Space, x: Tensor, a: Tensor) -> None:
    with stated("kick"):
        for size in (1e-3, 0.3, 3.0):
            if not bool(space.contains(space.kick(x, size * a, size**2)).all()):
                raise AssertionError(f"kick: a random move of size {size} leads out of the space")


def _check_distance(space: Space, x: Tensor, a: Tensor) -> None:
    try:
        itself = space.distance(x, x)
    except ValueError:  # none in closed form
        return
    if itself.shape != x.shape[:-1]:
        raise AssertionError(f"distance: expected one number for each point, {tuple(x.shape[:-1])}, got {tuple(itself.shape)}")
    assert_close(itself, torch.zeros_like(itself), "distance: of a point to itself it is not zero", rtol=1e-6, scale=1.0)
    v = space.tangent(x, a)
    v = v / space.inner(x, v, v).clamp_min(1e-12).sqrt().unsqueeze(-1)
    step = 1e-3 * v
    y = space.retract(x, step)
    moved = space.travelled(x, step, y)
    expected = space.inner(y, moved, moved).clamp_min(0.0).sqrt()
    assert_close(space.distance(x, y), expected, "distance: of a short step it is not its length", rtol=1e-2)
    far = space.retract(x, v)
    assert_close(space.distance(x, far), space.distance(far, x), "distance: it is not symmetric", rtol=1e-6)


def _check_each_alone(space: Space, x: Tensor, a: Tensor, rtol: float) -> None:
    v = 0.1 * space.tangent(x, a)
    alone = torch.cat([space.retract(p, q) for p, q in zip(x.split(1, -2), v.split(1, -2), strict=True)], -2)
    assert_close(space.retract(x, v), alone, "one point at a time: a step depends on the other points", rtol=rtol)


def _check_chart(space: Space, x: Tensor, a: Tensor) -> None:
    """The derivative of the chart at zero, by autograd, is the identity on tangent vectors."""
    if space.has_boundary:
        return
    with torch.no_grad():
        v, other = space.tangent(x, a), space.tangent(x, a.flip(-1))
    with torch.enable_grad(), stated("chart"):
        t = torch.zeros(*x.shape[:-1], 1, dtype=x.dtype, device=x.device, requires_grad=True)
        (slope,) = torch.autograd.grad((space.chart(x, t * v) * other).sum(), t, create_graph=True)
        law = "chart: autograd's derivative at zero is not the identity on tangent vectors"
        assert_close(slope.squeeze(-1), (v * other).sum(-1), law, rtol=1e-6, scale=1.0)
        if slope.requires_grad:
            (curvature,) = torch.autograd.grad(slope.sum(), t)
            if not bool(torch.isfinite(curvature).all()):
                raise AssertionError("chart: autograd's second derivative at zero is not finite")
