"""Spaces keep the laws that flows rely on, and say what they do not admit."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ddeq.flows import BoxEntropy, Mirror, PositiveEntropy, Preconditioned, SimplexEntropy
from ddeq.measures import DiscreteMeasure
from ddeq.spaces import Box, Euclidean, HalfSpace, Manifold, Product, Simplex, Space, Sphere, Torus
from ddeq.testing import assert_close, check_space

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import geoopt

D = torch.float64


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=D)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=D)


SPACES = [
    Euclidean(),
    Box(-0.5, 0.5),
    Box(vector(0.0, -torch.inf, -1.0), vector(torch.inf, 0.2, 1.0)),
    HalfSpace(vector(1.0, -2.0, 0.5), 0.3),
    Simplex(),
    Sphere(),
    Torus(vector(1.0, 2.0, 0.7)),
    Product((Sphere(), 2), (Box(0.0, 1.0), 1)),
    Product((Torus(2.0), 1), (Sphere(), 2)),
]


@pytest.mark.theorem(22)
@pytest.mark.parametrize("space", SPACES, ids=repr)
def test_laws(space: Space) -> None:
    check_space(space)


def orthonormal() -> Tensor:
    return torch.linalg.qr(normal(2, 3, 4, 2))[0].reshape(2, 3, 8)


def positive_definite() -> Tensor:
    a = normal(2, 3, 3, 3)
    return (a @ a.mT + 0.3 * torch.eye(3, dtype=D)).reshape(2, 3, 9)


def hyperboloid() -> Tensor:
    x = normal(2, 3, 3)
    return torch.cat([(1.0 + x.square().sum(-1, keepdim=True)).sqrt(), x], -1)


MANIFOLDS = {
    "Poincare": (Manifold(geoopt.PoincareBall()), 0.2 * normal(2, 3, 3)),
    "SPD": (Manifold(geoopt.SymmetricPositiveDefinite(), (3, 3)), positive_definite()),
    "Stiefel": (Manifold(geoopt.EuclideanStiefel(), (4, 2)), orthonormal()),
    "Lorentz": (Manifold(geoopt.Lorentz()), hyperboloid()),
    "product": (Product((Manifold(geoopt.PoincareBall()), 2), (Sphere(), 2)), None),
}


@pytest.mark.theorem(22)
@pytest.mark.parametrize("name", MANIFOLDS)
def test_laws_of_manifolds_of_geoopt(name: str) -> None:
    space, points = MANIFOLDS[name]
    if points is None:
        points = torch.cat([0.3 * normal(2, 3, 2), Sphere().project(normal(2, 3, 2))], -1)
    check_space(space, points, rtol=1e-7)
    assert space.second_order_at(points)


def matrix_at(x: Tensor) -> Tensor:
    return torch.eye(x.shape[-1], dtype=x.dtype) + 0.5 * x.unsqueeze(-1) * x.unsqueeze(-2)


GEOMETRIES = {
    "matrix": (Preconditioned(matrix_at), normal(2, 4, 3)),
    "diagonal": (Preconditioned(lambda x: 1.0 + x.square()), normal(2, 4, 3)),
    "constant": (Preconditioned(vector(1.0, 0.1, 3.0)), normal(2, 4, 3)),
    "simplex": (Mirror(SimplexEntropy()), normal(2, 4, 3).softmax(-1)),
    "box": (Mirror(BoxEntropy(-1.0, 2.0)), 3.0 * normal(2, 4, 3).sigmoid() - 1.0),
    "positive": (Mirror(PositiveEntropy()), normal(2, 4, 3).exp()),
    "function": (Mirror(lambda x: (x * x.log() - x).sum(-1)), normal(2, 4, 3).exp()),
}


@pytest.mark.theorem(22)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_laws_of_the_spaces_of_geometries(name: str) -> None:
    geometry, points = GEOMETRIES[name]
    assert geometry.space is not None
    if name == "function":  # in single precision its inverse is not found to 1e-6
        check_space(geometry.space, points, rtol=1e-6)
    else:
        check_space(geometry.space, points, rtol=1e-7)


def test_the_distance_of_geoopts_sphere_is_told_to_be_off() -> None:
    with pytest.raises(AssertionError, match="distance: of a point to itself it is not zero"):
        check_space(Manifold(geoopt.Sphere()), Sphere().project(normal(2, 3, 3)))


class FirstOrder(Manifold):
    """Steps along geoopt's retraction, which is of first order on the Poincare ball."""

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        return self._flat(self.manifold.retr(x, v), x)


@pytest.mark.theorem(22)
def test_a_first_order_retraction_is_told() -> None:
    points = 0.3 * normal(4, 3)
    assert not FirstOrder(geoopt.PoincareBall()).second_order_at(points)
    assert Manifold(geoopt.PoincareBall()).second_order_at(points)


@pytest.mark.parametrize("batch", [(), (2,)])
def test_starts_off_a_space_are_refused_and_atoms_of_mass_zero_are_moved(batch: tuple[int, ...]) -> None:
    sphere = Sphere()
    points = sphere.project(normal(*batch, 3, 3))
    with pytest.raises(ValueError, match=r"mu0: expected atoms of positive mass in Sphere\(\), got .* elsewhere"):
        sphere.admitted(DiscreteMeasure(1.01 * points))
    padded = DiscreteMeasure(points).pad_atoms(1)
    padded = padded.with_points(torch.cat([points, torch.zeros_like(points[..., :1, :])], -2))
    admitted = sphere.admitted(padded)
    assert bool(sphere.contains(admitted.points).all())
    assert_close(admitted.points[..., :3, :], points)
    with pytest.raises(ValueError, match="dimension"):
        Box(vector(0.0, 0.0), vector(1.0, 1.0)).admitted(DiscreteMeasure(points))


@pytest.mark.unchecked
def test_bad_options() -> None:
    for make, text in (
        (lambda: Box(1.0, 0.0), "low < high"),
        (lambda: Box(torch.nan, 1.0), "NaN"),
        (lambda: Box(torch.tensor([0.0], requires_grad=True), 1.0), "requires grad"),
        (lambda: HalfSpace(torch.zeros(2)), "different from zero"),
        (lambda: Torus(-1.0), "positive"),
        (lambda: Product(Sphere()), "factors"),
        (lambda: Product(), "factors"),
        (lambda: Manifold("ball"), "one of geoopt"),
        (lambda: Manifold(geoopt.SymmetricPositiveDefinite()), "shape"),
        (lambda: Manifold(geoopt.PoincareBall(learnable=True)), "requires grad"),
        (lambda: Preconditioned(vector(1.0, -1.0)), "positive definite"),
        (lambda: Preconditioned(torch.tensor([[1.0, 0.5], [0.0, 1.0]])), "symmetric"),
        (lambda: Mirror(3), "potential"),
        (lambda: BoxEntropy(0.0, torch.inf), "finite"),
    ):
        with pytest.raises(ValueError, match=text):
            make()


def test_geoopts_canonical_stiefel_is_refused() -> None:
    space = Manifold(geoopt.CanonicalStiefel(), (4, 2))
    with pytest.raises(ValueError, match="does not start along the vector"):
        space.admitted(DiscreteMeasure(orthonormal()))


@given(st.integers(0, 10**6), st.integers(2, 6))
def test_projection_to_the_simplex_is_the_nearest_point(seed: int, d: int) -> None:
    x = 2.0 * normal(5, d, seed=seed)
    p = Simplex().project(x)
    assert bool(Simplex().contains(p).all())
    others = normal(7, d, seed=seed + 1).softmax(-1)
    # What is left points away from all other points of the set.
    products = ((x - p).unsqueeze(-2) * (others - p.unsqueeze(-2))).sum(-1)
    assert float(products.max()) <= 1e-12


@given(st.integers(0, 10**6), st.floats(1e-3, 1e3))
def test_reflections_keep_the_length_of_short_paths_and_the_set(seed: int, size: float) -> None:
    for space in (Box(-0.5, 0.5), Simplex(), HalfSpace(vector(1.0, 1.0, 1.0))):
        x = space.project(normal(6, 3, seed=seed))
        moved = space.kick(x, min(size, 30.0) * normal(6, 3, seed=seed + 1), 1.0)
        assert bool(space.contains(moved).all())


def test_distances_on_the_sphere_resolve_small_and_large_angles() -> None:
    angle = vector(1e-12, 1e-6, 1.0, torch.pi - 1e-6, torch.pi)
    x = vector(1.0, 0.0).expand(5, 2)
    y = torch.stack([angle.cos(), angle.sin()], -1)
    assert_close(Sphere().distance(x, y), angle, rtol=1e-15, scale=1.0)
    assert_close(Sphere().distance(x, y)[:2], angle[:2], rtol=1e-9)
