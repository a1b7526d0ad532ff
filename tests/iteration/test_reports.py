"""What a user hears of: warnings at their line, once, with numbers; errors under inference mode; foreign errors untouched."""

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from maps import affine, mean_field, point

from ddeq import ConvergenceWarning, DiscreteMeasure, fixed_point, flow
from ddeq.flows import Euler, equilibrium
from ddeq.functionals import KALE, MMD, PotentialEnergy, SinkhornDivergence
from ddeq.iteration import (
    AdjointWarning,
    DivergedWarning,
    SingularAdjointWarning,
    UnconvergedWarning,
    UntrustedDerivativeWarning,
)
from ddeq.kernels import Gaussian
from ddeq.solvers import Anderson, Broyden, Implicit, NewtonKrylov, Picard, Stop, Unrolled, jacobian_penalty, spectral_radius
from ddeq.testing import assert_close


def unconverged(steps):
    a = torch.tensor(0.99, dtype=torch.float64, requires_grad=True)
    stop = Stop(rtol=1e-9, max_steps=steps)
    adjoint = Implicit(stop=Stop(rtol=1e-6, max_steps=500))
    return fixed_point(affine, point(0.0), a, 1.0, solver=Picard(), stop=stop, adjoint=adjoint).measure.points.sum()


LOOP = """
import sympy  # PyTorch imports it at some backward pass, and it changes warning filters, which makes Python forget, too
import torch
from ddeq import DiscreteMeasure, fixed_point
from ddeq.solvers import Picard, Stop

rate, mu = torch.tensor(0.99, requires_grad=True), DiscreteMeasure(torch.zeros(1, 1))
for steps in range(5, 25):
    map = lambda mu, a: mu.push_forward(lambda z: a * z + 1)
    solution = fixed_point(map, mu, rate, solver=Picard(), stop=Stop(max_steps=steps))
    solution.measure.points.sum().backward()
"""


def test_a_warning_in_a_loop_is_shown_once_however_its_numbers_change():
    """In a process without run-time shape checks, which make Python forget what it has shown."""
    command = [sys.executable, "-W", "default::UserWarning", "-c", LOOP]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    shown = [line for line in done.stderr.splitlines() if "UnconvergedWarning" in line]
    assert len(shown) == 1
    assert shown[0].startswith("<string>:11: UnconvergedWarning: some fixed points did not converge")


def test_a_warning_points_to_the_users_line_and_has_its_numbers():
    with pytest.warns(UnconvergedWarning) as caught:
        unconverged(7).backward()
    warning = caught[0]
    assert warning.filename == __file__
    assert (warning.message.failed, warning.message.total, warning.message.samples) == (1, 1, [0])
    assert warning.message.residual > warning.message.wanted == 1e-9
    assert not any(digit in str(warning.message) for digit in "0123456789")


@pytest.mark.parametrize(
    "kind", [UnconvergedWarning, DivergedWarning, AdjointWarning, SingularAdjointWarning, UntrustedDerivativeWarning]
)
def test_all_classes_of_warnings_are_one(kind):
    assert issubclass(kind, ConvergenceWarning)


# --- inference mode ---

MU, NU = (DiscreteMeasure(torch.randn(6, 2, generator=torch.Generator().manual_seed(s))) for s in (0, 1))


@pytest.mark.parametrize(
    "ask",
    [
        lambda: spectral_radius(mean_field, MU, 0.5, 0.1),
        lambda: jacobian_penalty(mean_field, MU, 0.5, 0.1),
        lambda: MMD(NU, Gaussian(1.0)).wasserstein_gradient(MU),
        lambda: PotentialEnergy(lambda x: x.square().sum(-1)).wasserstein_gradient(MU),
        lambda: flow(MMD(NU, Gaussian(1.0)), MU, Euler(0.1), steps=2),
        lambda: flow(KALE(NU, Gaussian(1.0), 0.1), MU, Euler(0.1), steps=2),
        lambda: equilibrium(MMD(NU, Gaussian(1.0)), MU),
        lambda: fixed_point(mean_field, MU, 0.5, 0.1, solver=NewtonKrylov()),
    ],
)
def test_what_needs_autograd_says_so_under_inference_mode(ask):
    """Else autograd records nothing, and derivatives would be zero, or an error of PyTorch's own."""
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"torch\.inference_mode\(\) forbids; use torch\.no_grad\(\)"):
        ask()
    with torch.no_grad():
        ask()


@pytest.mark.parametrize("functional", [KALE(NU, Gaussian(1.0), 0.1), SinkhornDivergence(NU)], ids=repr)
def test_what_does_not_is_right_there(functional):
    with torch.inference_mode():
        found = functional.wasserstein_gradient(MU)
    assert_close(found.clone(), functional.wasserstein_gradient(MU))


def test_what_needs_no_autograd_runs_under_inference_mode():
    expected = fixed_point(mean_field, MU, 0.5, 0.1).measure.points
    with torch.inference_mode():
        assert_close(fixed_point(mean_field, MU, 0.5, 0.1).measure.points, expected)


# --- errors of the user's own ---


def test_a_warning_that_is_an_error_leaves_forward_mode_alone():
    """It is raised, and not taken for a missing derivative."""

    def map(mu):
        warnings.warn("look here", UserWarning, stacklevel=1)
        return mu.push_forward(lambda z: 0.5 * z.cos() + 1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quiet = fixed_point(map, MU, solver=NewtonKrylov())
        assert quiet.converged.all()
    calls = []

    def late(mu):
        calls.append(1)
        if len(calls) > 1:  # within the products with the derivative
            warnings.warn("look here", UserWarning, stacklevel=1)
        return mu.push_forward(lambda z: 0.5 * z.cos() + 1)

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with pytest.raises(UserWarning, match="look here"):
            fixed_point(late, MU, solver=NewtonKrylov())
    assert len(calls) == 2


class Reverse(torch.autograd.Function):
    """A cosine without forward-mode derivatives."""

    @staticmethod
    def forward(x):
        return x.cos()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, cotangent):
        return -cotangent * ctx.saved_tensors[0].sin()


def test_a_map_without_forward_mode_is_differentiated_in_reverse():
    mu = MU.to(torch.float64)
    by_reverse, by_forward = (
        fixed_point(lambda mu, f=f: mu.push_forward(lambda z: 0.5 * f(z) + 1), mu, solver=NewtonKrylov(), stop=Stop(rtol=1e-10))
        for f in (Reverse.apply, torch.cos)
    )
    assert by_reverse.converged.all()
    assert_close(by_reverse.measure.points, by_forward.measure.points)


# --- gradients in weights through a leap ---


@pytest.mark.parametrize("solver", [Anderson(), Anderson(kind="I"), Broyden()], ids=repr)
def test_a_sample_that_leaps_makes_no_gradient_of_another_nan(solver):
    """One sample is led far away by flat residuals, while the other has converged, and stays at its best iterate."""
    weights = torch.full((2, 2), 0.5, dtype=torch.float64, requires_grad=True)
    points = torch.tensor([[[9.0], [8.0]], [[0.1], [0.2]]], dtype=torch.float64)

    def map(mu):
        flat = mu.points[:1] - mu.points[:1].atan()
        return mu.with_points(torch.cat([flat, torch.ones_like(flat)]))

    solution = fixed_point(map, DiscreteMeasure(points, weights), solver=solver, stop=Stop(max_steps=12), adjoint=Unrolled())
    (gradient,) = torch.autograd.grad(solution.measure.points.square().sum(), weights)
    assert gradient.isfinite().all()
