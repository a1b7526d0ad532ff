"""Several measures stored as one: round trips, inner products, gradients of systems and of measures of measures."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from landscapes import DOUBLE, FEW, cloud

from ddeq import DiscreteMeasure, Functional
from ddeq.functionals import MMD
from ddeq.functionals.packed import packed
from ddeq.functionals.packing import Outer, Species
from ddeq.iteration import InnerProduct
from ddeq.kernels import Gaussian
from ddeq.testing import assert_close
from ddeq.testing.strategies import measures, permutations


@st.composite
def systems(draw, *, batch_shapes=((), (2,), (2, 3)), marked=True):
    """Two or three species of any dimensions, numbers of atoms and marks."""
    batch = draw(st.sampled_from(batch_shapes))
    return {
        name: draw(measures(dim=draw(st.integers(1, 3)), batch_shapes=(batch,), mark_dim=draw(st.integers(0, 2 * marked))))
        for name in ("a", "b", "c")[: draw(st.integers(2, 3))]
    }


def same(mu, nu):
    marks = (mu.marks is None and nu.marks is None) or torch.equal(mu.marks, nu.marks)
    return torch.equal(mu.points, nu.points) and torch.equal(mu.weights, nu.weights) and marks


def fields(species, seed=0):
    g = torch.Generator().manual_seed(seed)
    return {name: torch.randn(mu.points.shape, generator=g, dtype=DOUBLE) for name, mu in species.items()}


class Chase(Functional):
    """Nonlinear in both species, of dimensions 2 and 1, with closed forms for none."""

    def forward(self, mu):
        a, b = mu["a"], mu["b"]
        apart = a.points[..., :1] - b.points[..., None, :, 0]
        meet = (a.weights.unsqueeze(-1) * b.weights.unsqueeze(-2) * torch.exp(-(apart**2))).sum((-2, -1))
        spread = 0.5 * (a.weights * a.points.square().sum(-1)).sum(-1) + 0.1 * (b.weights * b.points[..., 0] ** 4).sum(-1)
        return meet.square() + spread


class Spread(Functional):
    """Measures of measures: half the mean squared MMD between two of them, plus a potential of each."""

    couples_batch = True

    def __init__(self, outer_weights=None):
        super().__init__()
        self.outer_weights = outer_weights

    def forward(self, mu):
        count = mu.batch_shape[-1]
        outer = mu.points.new_full((count,), 1.0 / count) if self.outer_weights is None else self.outer_weights
        x, w = mu.points.flatten(-3, -2), (mu.weights * outer.unsqueeze(-1)).flatten(-2)
        gram = torch.exp(-(x.unsqueeze(-2) - x.unsqueeze(-3)).square().sum(-1) / 2)
        own = 0.5 * torch.einsum("...i,...ij,...j->...", w, gram, w)
        moment = (mu.weights * mu.points.square().sum(-1)).sum(-1)
        return own + (outer * moment.square()).sum(-1)


SPECIES = {"a": cloud(4, 2, seed=1), "b": cloud(3, 1, seed=2)}


@given(systems())
def test_species_come_back(species):
    packing = Species.of(species)
    flat = packing.pack(species)
    assert flat.n == sum(mu.n * mu.dim for mu in species.values())
    back = packing.unpack(flat)
    assert list(back) == list(species)
    assert all(same(back[name], mu) for name, mu in species.items())
    found = packing.unpack_field(packing.pack_field(fields(species)))
    assert all(torch.equal(found[name], field) for name, field in fields(species).items())


@given(measures(batch_shapes=((2,), (3,), (2, 3)), mark_dim=1), st.sampled_from([None, "some"]))
def test_measures_of_measures_come_back(mu, outer):
    count = mu.batch_shape[-1]
    weights = None if outer is None else torch.linspace(0.0, 1.0, count, dtype=DOUBLE)  # the first is zero
    packing = Outer(count, mu.n, weights)
    back = packing.unpack(packing.pack(mu))
    assert torch.equal(back.points, mu.points)
    assert_close(back.weights, mu.weights)
    assert torch.equal(back.marks, mu.marks)
    assert back.marks.shape == mu.marks.shape
    unmarked = packing.unpack(packing.pack(mu.with_marks(None)))
    assert unmarked.marks is None


@pytest.mark.theorem("T23")
@given(systems(marked=False))
def test_inner_products_are_those_of_all_species(species):
    packing = Species.of(species)
    a, b = fields(species), fields(species, 1)
    flat = packing.pack(species)
    packed_product = InnerProduct(flat.weights)(packing.pack_field(a), packing.pack_field(b))
    own = sum((mu.weights.unsqueeze(-1) * a[s] * b[s]).sum((-2, -1)) for s, mu in species.items())
    assert_close(packed_product, own, scale=10.0)


@pytest.mark.theorem("T23")
def test_gradients_of_the_packed_measure_are_those_of_the_species():
    """Against finite differences; an atom of mass zero has the gradient of the first variation."""
    F, h = Chase(), 1e-5
    species = {"a": SPECIES["a"].with_weights(torch.tensor([0.5, 0.2, 0.3, 0.0], dtype=DOUBLE)), "b": SPECIES["b"]}
    gradient, variation = F.wasserstein_gradient(species), F.first_variation(species)
    flat = Species.of(species)
    assert_close(packed(F, flat).wasserstein_gradient(flat.pack(species)), flat.pack_field(gradient))
    for name, mu in species.items():
        for i in range(mu.n):
            step = torch.zeros_like(mu.weights)
            step[i] = h
            up, down = (F({**species, name: mu.with_weights(mu.weights + s * step)}) for s in (1, -1))
            assert_close(variation[name][i], (up - down) / (2 * h), rtol=1e-8, scale=1.0)
            for a in range(mu.dim):
                move = torch.zeros_like(mu.points)
                move[i, a] = h
                if mu.weights[i] > 0:
                    up, down = (F({**species, name: mu.with_points(mu.points + s * move)}) for s in (1, -1))
                    slope = (up - down) / (2 * h) / mu.weights[i]
                else:
                    moved = ({**species, name: mu.with_points(mu.points + s * move)} for s in (1, -1))
                    up, down = (F.first_variation(there)[name][i] for there in moved)
                    slope = (up - down) / (2 * h)
                assert_close(gradient[name][i, a], slope, rtol=1e-8, scale=1.0)


def test_variations_elsewhere_are_those_of_a_new_atom():
    F, h = Chase(), 1e-6
    x = {"a": cloud(2, 2, seed=5).points, "b": cloud(3, 1, seed=6).points}
    found = F.first_variation(SPECIES, x)
    for name, mu in SPECIES.items():
        for j in range(len(x[name])):
            new = mu + h * DiscreteMeasure(x[name][j : j + 1], torch.ones(1, dtype=DOUBLE))
            assert_close(found[name][j], (F({**SPECIES, name: new}) - F(SPECIES)) / h, rtol=1e-5, scale=1.0)
    only = F.wasserstein_gradient(SPECIES, {"b": x["b"]})
    assert list(only) == ["b"]
    at_atoms = F.wasserstein_gradient(SPECIES, {"b": SPECIES["b"].points})["b"]
    assert_close(at_atoms, F.wasserstein_gradient(SPECIES)["b"])


def test_sums_and_multiples_of_functionals_of_systems():
    F = Chase() + 0.5 * Functional.of(lambda m: m["a"].normalized().mean().square().sum(-1))
    mean = SPECIES["a"].mean()
    gradient, own = F.wasserstein_gradient(SPECIES), Chase().wasserstein_gradient(SPECIES)
    assert_close(gradient["a"], own["a"] + mean)
    assert_close(gradient["b"], own["b"])
    assert_close(F.first_variation(SPECIES)["b"], Chase().first_variation(SPECIES)["b"])


def test_gradients_of_systems_are_differentiable():
    shift = torch.tensor(0.3, dtype=DOUBLE, requires_grad=True)
    F = Functional.of(lambda m: (m["a"].normalized().mean()[..., 0] * (m["b"].normalized().mean()[..., 0] - shift)) ** 2)

    def size(shift):
        F.function = lambda m: (m["a"].normalized().mean()[..., 0] * (m["b"].normalized().mean()[..., 0] - shift)) ** 2
        return sum(g.square().sum() for g in F.wasserstein_gradient(SPECIES).values())

    assert torch.autograd.gradcheck(size, shift)


@pytest.mark.theorem("T23")
@pytest.mark.parametrize("outer", [None, [0.5, 0.2, 0.3]])
def test_gradients_of_measures_of_measures_are_per_unit_of_both_weights(outer):
    outer = None if outer is None else torch.tensor(outer, dtype=DOUBLE)
    F, h, mu = Spread(outer), 1e-5, cloud(3, 2, seed=3, batch=(2, 3))
    mu = mu.with_weights(torch.tensor([0.5, 0.5, 0.0], dtype=DOUBLE).expand(2, 3, 3).clone())
    a = torch.full((3,), 1.0 / 3, dtype=DOUBLE) if outer is None else outer
    gradient, variation = F.wasserstein_gradient(mu), F.first_variation(mu)
    for k in range(3):
        step = torch.zeros_like(mu.weights)
        step[1, k, 0] = h
        up, down = (F(mu.with_weights(mu.weights + s * step))[1] for s in (1, -1))
        assert_close(variation[1, k, 0], (up - down) / (2 * h * a[k]), rtol=1e-8, scale=1.0)
        move = torch.zeros_like(mu.points)
        move[1, k, 0, 1] = h
        up, down = (F(mu.with_points(mu.points + s * move))[1] for s in (1, -1))
        assert_close(gradient[1, k, 0, 1], (up - down) / (2 * h * a[k] * 0.5), rtol=1e-8, scale=1.0)
        move = torch.zeros_like(mu.points)
        move[1, k, 2, 0] = h  # mass zero
        up, down = (F.first_variation(mu.with_points(mu.points + s * move))[1, k, 2] for s in (1, -1))
        assert_close(gradient[1, k, 2, 0], (up - down) / (2 * h), rtol=1e-8, scale=1.0)


@pytest.mark.theorem("T23")
@FEW
@given(measures(batch_shapes=((3,),), min_atoms=2, offsets=(0.0,), scales=(1.0,)), st.data())
def test_measures_of_measures_are_consistent_at_both_levels(mu, data):
    outer = torch.tensor([0.5, 0.2, 0.3], dtype=DOUBLE)
    F, value, gradient = Spread(outer), Spread(outer)(mu), Spread(outer).wasserstein_gradient(mu)
    order = data.draw(permutations(3))
    assert_close(Spread(outer[order])(mu[order]), value, scale=1.0)
    assert_close(Spread(outer[order]).wasserstein_gradient(mu[order]), gradient[order], scale=1.0)
    inner = data.draw(permutations(mu.n))
    assert_close(F.wasserstein_gradient(mu.permute_atoms(inner)), gradient[..., inner, :], scale=1.0)
    split = mu.split_atom(0, 0.3)
    assert_close(F(split), value, scale=1.0)
    assert_close(F.wasserstein_gradient(split)[:, : mu.n], gradient, scale=1.0)
    assert_close(F.wasserstein_gradient(split)[:, -1], gradient[:, 0], scale=1.0)
    twice = DiscreteMeasure.stack([mu[0], mu[1], mu[2], mu[0], mu[1]])  # the first is split, and the last does not count
    halves = Spread(torch.tensor([0.4, 0.2, 0.3, 0.1, 0.0], dtype=DOUBLE))
    assert_close(halves(twice), value, scale=1.0)
    found = halves.wasserstein_gradient(twice)
    assert_close(found[:4], gradient[[0, 1, 2, 0]], scale=1.0)
    assert (found[4] == 0).all()


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Chase()({}), "mu: expected measures by name"),
        (lambda: Chase()({"a": SPECIES["a"], "b": torch.zeros(2, 1)}), "mu: .*'b': Tensor"),
        (lambda: Chase()({"a": SPECIES["a"], "b.c": SPECIES["b"]}), "mu: expected names without dots"),
        (
            lambda: Chase()({"a": SPECIES["a"], "b": cloud(3, 1, batch=(2,))}),
            "mu: expected species that share batch shape.*b: \\(2,\\)",
        ),
        (lambda: Chase()({"a": SPECIES["a"], "b": SPECIES["b"].to(torch.float32)}), "mu: expected species that share .* dtype"),
        (lambda: Spread().wasserstein_gradient(cloud(3)), "mu: Spread couples the samples of a batch, expected one"),
        (lambda: Spread().wasserstein_gradient(cloud(3, batch=(2,)), cloud(3).points), "x: Spread couples the samples"),
        (lambda: Spread() + MMD(cloud(3), Gaussian(1.0)), "functional: expected parts that all couple"),
        (lambda: Spread()(cloud(3)), "mu: Spread couples the samples of a batch, expected one"),
        (lambda: Chase().wasserstein_gradient(SPECIES, {"c": SPECIES["a"].points}), "x: expected points of some of .*'c'"),
    ],
)
def test_what_makes_no_sense(call, message):
    with pytest.raises(ValueError, match=message):
        call()
