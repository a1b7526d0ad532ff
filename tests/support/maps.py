"""Maps on measures with known fixed points, for the tests of solvers and adjoints."""

import torch

from ddeq import DiscreteMeasure
from ddeq.solvers import Anderson, Auto, Broyden, NewtonKrylov, Picard, Stop

TIGHT = Stop(rtol=1e-12, atol=1e-14, max_steps=500)
EXTRAPOLATING = [
    Anderson(),
    Anderson(kind="I"),
    Anderson(5, damping=0.3),
    Broyden(),
    Broyden(4, damping=0.2),
    NewtonKrylov(),
    Auto(),
]
SOLVERS = [Picard(), Picard(0.2), Anderson(2), *EXTRAPOLATING]


def point(*x, dtype=torch.float64):
    """A unit mass at ``x``."""
    return DiscreteMeasure(torch.tensor([x], dtype=dtype))


def affine(mu, a, b):
    """z -> a z + b on every atom; ``a`` and ``b`` are numbers or one for each sample."""
    a, b = (t[..., None, None] if isinstance(t, torch.Tensor) and t.ndim else t for t in (a, b))
    return mu.with_points(a * mu.points + b)


def linear(mu, matrix, shift):
    """All coordinates of all atoms together: z -> A z + b."""
    return mu.with_points((mu.points.flatten(-2) @ matrix.mT + shift).reshape(mu.points.shape))


def mean_field(mu, weight, shift):
    """Atoms see their marks, themselves and the mean: a contraction for small weights."""
    mean = mu.normalized().mean().unsqueeze(-2)
    drive = shift if mu.marks is None else shift + mu.marks
    return mu.with_points(torch.tanh(weight * mu.points + 0.2 * mean + drive))


def random_matrix(radius, n=200, *, symmetric=False, seed=0, dtype=torch.float64):
    """A matrix of the given spectral radius."""
    a = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    a = a + a.mT if symmetric else a
    return (a * radius / torch.linalg.eigvals(a).abs().max()).to(dtype)
