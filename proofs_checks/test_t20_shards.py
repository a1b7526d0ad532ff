"""T20 Shards: derivatives of a sum over pairs whose atoms are divided among ranks, put together by transposes.

Each rank has its rows x_i, w_i and a copy of all atoms; the value is the sum of the ranks' values. A cotangent of rows belongs to
them; cotangents of the copies are added up over ranks and each rank takes its part (the transpose of gathering); a number that
all ranks have and use for different rows, such as a bandwidth, has the sum of their cotangents.

Verified: for F = 1/2 sum_ij w_i w_j k(x_i, x_j; h) with an unknown symmetric function k, on two ranks of two atoms and three of
one, that the gradient in points, weights and h put together in this way is that of F; that doing the same once more with the
squared gradient gives its gradient, so that derivatives of second order are right; that the ring, in which shards arrive one
after the other, has the same sums; that gathering and scattering a sum are transposes of each other.
Wrong variant: if cotangents of the copies are not added up over ranks, half of the gradient is lost.
Assumed: nothing but the chain rule.
"""

import pytest
import sympy as sp

pytestmark = pytest.mark.theorem("T20")

h = sp.Symbol("h", positive=True)
kernel = sp.Function("kappa")


def k(x, y):
    """An unknown function of the squared distance and of h: symmetric."""
    return kernel((x - y) ** 2, h)


class Ranks:
    """Atoms on ranks: rows of each rank, and copies of all atoms that each rank has for itself."""

    def __init__(self, ranks, each):
        self.ranks, self.each, n = ranks, each, ranks * each
        self.rows = [*sp.symbols(f"x0:{n}", real=True), *sp.symbols(f"w0:{n}", positive=True)]
        self.copies = [[sp.Symbol(f"c{r}_{i}", real=True) for i in range(2 * n)] for r in range(ranks)]
        self.bandwidths = [sp.Symbol(f"h{r}", positive=True) for r in range(ranks)]

    def own(self, r):
        """Places of a rank's atoms."""
        return range(r * self.each, (r + 1) * self.each)

    def whole(self, value):
        """An expression in rows, copies and bandwidths once all of them are what they stand for."""
        same = {c: x for copies in self.copies for c, x in zip(copies, self.rows, strict=True)}
        return value.subs(same | dict.fromkeys(self.bandwidths, h), simultaneous=True)

    def energy(self):
        """F as one process computes it."""
        n = self.ranks * self.each
        x, w = self.rows[:n], self.rows[n:]
        return sum(w[i] * w[j] * k(x[i], x[j]) for i in range(n) for j in range(n)) / 2

    def energy_of(self, r):
        """The part of F that rank r computes, from its rows, its copies and its bandwidth."""
        n = self.ranks * self.each
        x, w, c = self.rows[:n], self.rows[n:], self.copies[r]
        terms = (w[i] * c[n + j] * k(x[i], c[j]) for i in self.own(r) for j in range(n))
        return (sum(terms) / 2).subs(h, self.bandwidths[r])

    def gradient(self, values, summed=True):
        """Cotangents of all rows and of h, put together from those of the ranks' values."""
        found = []
        for p, row in enumerate(self.rows):
            home = (p % (self.ranks * self.each)) // self.each
            among = range(self.ranks) if summed else [home]
            of_copies = sum(sp.diff(values[r], self.copies[r][p]) for r in among)
            found.append(self.whole(sum(sp.diff(v, row) for v in values) + of_copies))
        return found, self.whole(sum(sp.diff(v, b) for v, b in zip(values, self.bandwidths, strict=True)))


SHAPES = [Ranks(2, 2), Ranks(3, 1)]
IDS = ["two ranks", "three ranks"]


def equal(a, b):
    return sp.expand((a - b).doit()) == 0


@pytest.mark.parametrize("some", SHAPES, ids=IDS)
def test_ranks_values_add_up_to_the_energy(some):
    assert equal(some.whole(sum(some.energy_of(r) for r in range(some.ranks))), some.energy())


@pytest.mark.parametrize("some", SHAPES, ids=IDS)
def test_the_gradient_is_that_of_one_process(some):
    gradient, of_bandwidth = some.gradient([some.energy_of(r) for r in range(some.ranks)])
    for part, row in zip(gradient, some.rows, strict=True):
        assert equal(part, sp.diff(some.energy(), row))
    assert equal(of_bandwidth, sp.diff(some.energy(), h))


def test_without_the_sum_over_ranks_half_of_the_gradient_is_lost():
    some = SHAPES[1]  # one atom on each rank: the kernel's derivative at the atom itself is zero
    gradient, _ = some.gradient([some.energy_of(r) for r in range(some.ranks)], summed=False)
    x0 = some.rows[0]
    lost = sp.diff(some.energy(), x0) - gradient[0]
    assert equal(lost, sp.diff(some.energy(), x0) / 2)
    assert not equal(lost, sp.Integer(0))


def test_second_derivatives_by_the_same_rules():
    some = Ranks(2, 1)
    n = some.ranks * some.each
    whole = some.energy()
    square = sum(sp.diff(whole, x) ** 2 for x in some.rows[:n])
    parts = []
    for r in range(some.ranks):  # the gradient at its own rows, as each rank finds it: by symmetry twice that in the rows
        (i,) = some.own(r)
        parts.append((2 * sp.diff(some.energy_of(r), some.rows[i])) ** 2)
    assert equal(some.whole(sum(parts)), square)
    gradient, of_bandwidth = some.gradient(parts)
    for part, row in zip(gradient, some.rows, strict=True):
        assert equal(part, sp.diff(square, row))
    assert equal(of_bandwidth, sp.diff(square, h))


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_a_ring_meets_every_shard_once(ranks):
    for r in range(ranks):
        met = [(r - step) % ranks for step in range(ranks)]  # what was sent ahead by one rank in each step
        assert sorted(met) == list(range(ranks))


def test_gathering_and_scattering_a_sum_are_transposes():
    ranks, each = 3, 2
    n = ranks * each
    gather = sp.Matrix.vstack(*[sp.eye(n)] * ranks)  # shards, one after the other, to a copy on each rank
    scatter_sum = sp.Matrix.hstack(*[sp.eye(n)] * ranks)  # terms of all ranks added up, each rank's part of the sum
    assert scatter_sum == gather.T
    all_sum = sp.ones(ranks, 1)  # a number that all have, to the copies that they use
    assert sp.ones(1, ranks) == all_sum.T  # its derivative: the sum of theirs
