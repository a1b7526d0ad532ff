"""Anderson's and Broyden's steps against what they are in dense matrices, and what they keep."""

import pytest
import torch
import torch.utils._pytree as pytree
from maps import mean_field, random_matrix

from ddeq import DiscreteMeasure, fixed_point
from ddeq.iteration import Iterate
from ddeq.solvers import Anderson, Broyden, MapEquation, Status, Stop
from ddeq.testing import assert_close

WEIGHTS = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)


def image(z, seed=0):
    """A map of six coordinates in three atoms."""
    return torch.tanh(z.flatten(-2) @ random_matrix(0.9, 6, seed=seed).mT + 0.3).reshape(z.shape)


def problem(weights=WEIGHTS, dim=2):
    points = torch.zeros(len(weights), dim, dtype=torch.float64)
    return MapEquation(lambda mu: mu.push_forward(image), DiscreteMeasure(points, weights))


def at(equation, z, residual, step=0, previous=None):
    norm = equation.inner.norm(residual)
    return Iterate(z, residual, norm, torch.ones_like(norm), step, previous=previous)


def iterates(solver, steps):
    equation, z = problem(), torch.zeros(3, 2, dtype=torch.float64)
    here = at(equation, z, equation.residual(z))
    state, path = solver.init(equation, here), [z]
    for step in range(steps):
        taken = solver.step(equation, here, state)
        z, state = taken.z, taken.state
        here = at(equation, z, equation.residual(z), step + 1, here)
        path.append(z)
    return torch.stack(path).flatten(-2), state


METRIC = torch.diag(WEIGHTS.repeat_interleave(2))


def residuals(path):
    return torch.stack([image(z.reshape(3, 2)).flatten() for z in path]) - path


@pytest.mark.theorem("T9")
@pytest.mark.parametrize("damping", [0.0, 0.3])
@torch.no_grad()
def test_broyden_in_compact_form_is_broyden(damping):
    """The good update with transposes in L2(mu), one after the other, as everyone knows it."""
    path, _ = iterates(Broyden(20, damping=damping), 7)
    r = residuals(path)
    matrix, z = -torch.eye(6, dtype=torch.float64) / (1 - damping), path[0]
    for k in range(7):
        z = z - torch.linalg.solve(matrix, r[k])
        assert_close(path[k + 1], z, f"step {k}", rtol=1e-7)
        s, y = path[k + 1] - path[k], r[k + 1] - r[k]
        matrix = matrix + torch.outer(y - matrix @ s, s @ METRIC) / (s @ METRIC @ s)


@pytest.mark.theorem("T9")
@pytest.mark.parametrize("kind", ["II", "I"])
@pytest.mark.parametrize("damping", [0.0, 0.3])
@torch.no_grad()
def test_anderson_is_anderson(kind, damping):
    """With the last two differences, after the first ones were dropped."""
    path, _ = iterates(Anderson(2, damping=damping, kind=kind, ridge=0.0), 6)
    r, beta = residuals(path), 1 - damping
    for k in range(2, 6):
        s, y = (torch.stack([a[k - 1] - a[k - 2], a[k] - a[k - 1]], -1) for a in (path, r))
        test = y if kind == "II" else s
        gamma = torch.linalg.solve(test.mT @ METRIC @ y, test.mT @ METRIC @ r[k])
        assert_close(path[k + 1], path[k] + beta * r[k] - (s + beta * y) @ gamma, f"step {k}", rtol=1e-6)


@pytest.mark.parametrize("solver", [Anderson(4), Anderson(4, kind="I"), Broyden(4)], ids=repr)
@torch.no_grad()
def test_what_is_kept_does_not_grow_with_the_steps(solver):
    def size(state):
        return sum(t.numel() for t in pytree.tree_leaves(state) if isinstance(t, torch.Tensor))

    few, *full = (size(iterates(solver, steps)[1]) for steps in (1, 5, 23, 60))
    assert few < full[0]
    assert len(set(full)) == 1


@pytest.mark.parametrize("solver", [Anderson(3), Anderson(3, kind="I"), Broyden(3)], ids=repr)
@torch.no_grad()
def test_a_step_repeated_from_an_earlier_state_gives_the_same(solver):
    """A history is never written over: not by the steps that follow, not by other steps from the same state."""
    equation, z = problem(), torch.zeros(3, 2, dtype=torch.float64)
    here = at(equation, z, equation.residual(z))
    state, steps = solver.init(equation, here), []
    for step in range(12):
        before = [t.clone() for t in pytree.tree_leaves(state) if isinstance(t, torch.Tensor)]
        taken = solver.step(equation, here, state)
        steps.append((here, state, before, taken.z))
        state = taken.state
        here = at(equation, taken.z, equation.residual(taken.z), step + 1, here)
    for here, state, before, z in steps:
        elsewhere = at(equation, here.z + 1.0, here.residual - 0.3)
        solver.step(equation, elsewhere, state)
        assert torch.equal(solver.step(equation, here, state).z, z)
        after = [t for t in pytree.tree_leaves(state) if isinstance(t, torch.Tensor)]
        assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_derivatives_of_the_steps_are_recorded():
    """In place or not: autograd sees the same steps."""
    from ddeq.solvers import Unrolled

    marks = torch.randn(4, 2, dtype=torch.float64)
    mu = DiscreteMeasure(torch.zeros(4, 2, dtype=torch.float64), marks=marks)
    weight = torch.tensor(0.5, dtype=torch.float64)
    for solver in (Anderson(3), Anderson(3, kind="I"), Broyden(3)):

        def end(w, solver=solver):
            stop = Stop(rtol=1e-15, max_steps=6)
            return fixed_point(mean_field, mu, w, 0.1, solver=solver, stop=stop, adjoint=Unrolled()).measure.points.sum()

        assert_close(end(weight.clone().requires_grad_()), end(weight))
        assert torch.autograd.gradcheck(end, weight.clone().requires_grad_(), atol=1e-6)


class TestSafeguards:
    def test_an_explosion_sends_a_sample_back_to_its_best_iterate(self):
        """A much worse residual is checked at a quarter of the way; then half a plain step is taken."""
        z0, z1 = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
        equation = problem(torch.ones(1, dtype=torch.float64), 1)
        for solver in (Anderson(), Anderson(kind="I"), Broyden()):
            with torch.no_grad():
                start = at(equation, z0, z1 - z0)
                first = solver.step(equation, start, solver.init(equation, start))
                assert first.z.item() == 1.0
                state, z = first.state, first.z
                for bad, expected in ((1e3, 0.25), (2.0, 0.5), (torch.nan, 0.125), (torch.inf, 0.5**7)):
                    back = solver.step(equation, at(equation, z, torch.full_like(z0, bad)), state)
                    state, z = back.state, back.z
                    assert z.item() == expected
                # Better: the returns are forgotten, and the secant is used.
                again = solver.step(equation, at(equation, z, torch.full_like(z0, 0.9)), state)
                assert again.state.returns.item() == 0
                assert again.z.item() == pytest.approx(0.5**7 + 0.9 * 0.5**7 / 0.1, rel=1e-4)

    def test_a_long_step_counts_where_the_residual_is_affine(self):
        """The trial at a quarter of the way tells: after it the step from before the trial follows."""
        equation = problem(torch.ones(1, dtype=torch.float64), 1)
        slope = 500.0
        for solver in (Anderson(), Anderson(kind="I"), Broyden()):
            with torch.no_grad():
                z, state, path = torch.full((1, 1), 1.0, dtype=torch.float64), None, []
                for step in range(4):
                    here = at(equation, z, slope * z - 1.0, step)
                    taken = solver.step(equation, here, solver.init(equation, here) if state is None else state)
                    path.append(z.item())
                    z, state = taken.z, taken.state
            assert path[1] == 1.0 + slope - 1.0
            assert 1.0 < path[2] < 1.0 + 0.25 * slope  # the trial
            assert path[3] == pytest.approx(1.0 / slope, abs=2e-3)  # what the secant of the whole step gives
            assert state.affine.item() == pytest.approx(slope - 1.0)

    def test_a_sample_whose_image_is_never_finite_again_has_diverged(self):
        equation, z, solver = problem(torch.ones(1, dtype=torch.float64), 1), torch.zeros(1, 1, dtype=torch.float64), Anderson()
        with torch.no_grad():
            start = at(equation, z, torch.ones_like(z))
            taken = solver.step(equation, start, solver.init(equation, start))
            ended = []
            for _ in range(12):
                taken = solver.step(equation, at(equation, taken.z, taken.z * torch.nan), taken.state)
                assert torch.isfinite(taken.z)
                ended.append(taken.status.item() == Status.DIVERGED)
        assert ended == [False] * 10 + [True] * 2
