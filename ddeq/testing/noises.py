"""`check_noise`: is a noise one that a flow can repeat, and one of each measure by itself?"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from ddeq.flows import Euler, FunctionalDescent, Noise, flow
from ddeq.functionals.base import Functional
from ddeq.measures import DiscreteMeasure
from ddeq.testing.close import assert_close
from ddeq.testing.problems import Bowl, trial_batch
from ddeq.testing.purity import assert_unchanged, check_declarations, check_precision, copied, in_dtype, same_numbers, stated
from ddeq.testing.samples import HINTS, changed_neighbour, with_dead_atoms

__all__ = ["check_noise"]

DURATION = 0.1
MANY = 300
"""Draws by which a mean square is estimated, to about one part in fifty."""


def check_noise(
    noise: Noise,
    functional: Functional | None = None,
    mu0: DiscreteMeasure | None = None,
    *,
    zero: Noise | None = None,
    steps: int = 3,
    rtol: float = 1e-8,
) -> None:
    """Hold a noise to what `ddeq.flow` relies on.

    The laws: numbers come from ``draw`` alone, so that a flow with the same generator takes the same path, bit for bit, and no
    other randomness is touched; displacements and kicks are fields ``(*batch, n, d)`` that are permuted as atoms and draws are,
    and depend neither on atoms of mass zero (measure consistency, T1) nor on other measures of the batch; float32 and float64
    stay what they are. Of a noise that ``stands_for_entropy``, the kicks have mean zero and a mean square that is proportional to
    the time of the step, whatever the steps (noise, T17).

    Parameters
    ----------
    noise
        What to check.
    functional, mu0
        An energy with removable samples, and a batch in double precision; default: a bowl and three measures.
    zero
        The same noise with its size zero, which moves nothing; None: not checked.
    steps
        Numbers of the steps that are looked at: so many from 0.
    rtol
        Allowed relative difference where two ways of computing differ by rounding.

    Raises
    ------
    AssertionError
        Saying which law broke, with numbers.
    """
    check_declarations(noise, Noise, "Noise", ("stands_for_entropy",))
    functional = Bowl() if functional is None else functional
    mu0 = trial_batch() if mu0 is None else mu0.detach()
    with torch.no_grad():
        for step in range(steps):
            _check_fields(noise, functional, mu0, step, rtol)
        if zero is not None:
            for name, field in _fields(zero, FunctionalDescent(functional, mu0), _draws(mu0), 0).items():
                if bool((field != 0).any()):
                    raise AssertionError(f"zero: a noise of size zero has a {name} of up to {float(field.abs().max()):.3e}")
        if noise.stands_for_entropy:
            _check_entropic(noise, FunctionalDescent(functional, mu0), mu0)
        _check_path(noise, functional, mu0)


def _draws(mu: DiscreteMeasure, seed: int = 0, change: Callable[[Tensor], Tensor] = torch.positive) -> Callable[[], Tensor]:
    """Normal numbers at the atoms, others at each call, after a ``change``; the same each time that they are made."""
    g = torch.Generator().manual_seed(seed)
    return lambda: change(torch.randn(mu.points.shape, generator=g, dtype=mu.dtype).to(mu.device))


def _fields(
    noise: Noise, equation: FunctionalDescent, draw: Callable[[], Tensor], step: int, duration: float | Tensor = DURATION
) -> dict[str, Tensor]:
    """Displacement and kick, those that there are."""
    found: dict[str, Tensor | None] = {}
    with stated("displacement"):
        found["displacement"] = noise.displacement(equation, draw, step)
    with stated("kick"):
        found["kick"] = noise.kick(equation, draw, duration, step)
    fields = {name: field for name, field in found.items() if field is not None}
    for name, field in fields.items():
        points = equation.like.points
        if (field.shape, field.dtype, field.device) != (points.shape, points.dtype, points.device):
            raise AssertionError(
                f"{name}: expected a field of shape {tuple(points.shape)}, {points.dtype} on {points.device}, got "
                f"{tuple(field.shape)}, {field.dtype} on {field.device}"
            )
        if not bool(torch.isfinite(field).all()):
            raise AssertionError(f"{name}: not finite at step {step}")
    return fields


@contextmanager
def _other_randomness_untouched() -> Iterator[None]:
    """Raise if numbers are drawn from the global generators of torch or NumPy. (Run-time type checkers use Python's own.)"""

    def states() -> dict[str, bytes]:
        return {
            "torch": torch.get_rng_state().numpy().tobytes(),
            "NumPy": pickle.dumps(np.random.get_state()),
        }

    before = states()
    yield
    for name, state in states().items():
        if state != before[name]:
            raise AssertionError(f"draws: numbers are drawn from the global generator of {name}; take them from `draw` alone")


def _check_fields(noise: Noise, functional: Functional, mu0: DiscreteMeasure, step: int, rtol: float) -> None:
    equation = FunctionalDescent(functional, mu0)
    before = copied(equation=equation)
    with _other_randomness_untouched():
        fields = _fields(noise, equation, _draws(mu0), step)
    assert_unchanged("purity: the noise changes what it was given", before, equation=equation)
    if not fields:
        raise AssertionError(f"typed capabilities: {type(noise).__name__} gives neither a displacement nor a kick at step {step}")
    again = _fields(noise, equation, _draws(mu0), step)

    def assert_same(others: dict[str, Tensor], of: Callable[[Tensor], Tensor], law: str, hint: str = "") -> None:
        if others.keys() != fields.keys():
            raise AssertionError(f"{law}: there are {sorted(others)}, and else {sorted(fields)}")
        for name, field in fields.items():
            wanted = of(field)
            assert_close(others[name], wanted, f"{law} ({name})", rtol=rtol, hint=hint)

    for name, field in fields.items():
        if not same_numbers(field, again[name]):
            raise AssertionError(f"draws: the {name} at step {step} is another with the same draws; nothing else may enter")
    order = torch.randperm(mu0.n, generator=torch.Generator().manual_seed(5)).to(mu0.device)
    permuted = FunctionalDescent(functional, mu0.permute_atoms(order))
    law = "measure consistency (T1): permuting atoms and their draws does not permute the noise"
    others = _fields(noise, permuted, _draws(mu0, change=lambda t: t[..., order, :]), step)
    assert_same(others, lambda t: t[..., order, :], law)
    padded, g = with_dead_atoms(mu0), torch.Generator().manual_seed(6)

    def pad(t: Tensor) -> Tensor:
        return torch.cat([t, torch.randn(*t.shape[:-2], 3, t.shape[-1], generator=g, dtype=t.dtype).to(t.device)], -2)

    law = "measure consistency (T1): adding atoms of mass zero changes the noise of the others"
    others = _fields(noise, FunctionalDescent(functional, padded), _draws(mu0, change=pad), step)
    shortened = {name: field[..., : mu0.n, :] for name, field in others.items()}
    assert_same(shortened, lambda t: t, law, HINTS["adding atoms of mass zero"])
    neighbour = changed_neighbour(mu0)
    if neighbour is None:
        return

    def other_draws(t: Tensor) -> Tensor:
        return torch.cat([2.0 * t[:1] + 1.0, t[1:]])

    law = "one measure at a time: the noise depends on another measure of the batch"
    others = _fields(noise, FunctionalDescent(functional, neighbour), _draws(mu0, change=other_draws), step)
    assert_same({k: t[1:] for k, t in others.items()}, lambda t: t[1:], law, HINTS["another measure"])
    if equation.removable:
        keep = torch.arange(mu0.batch_shape[0], device=mu0.device)[1:]
        law = "removal of samples: the noise of those that are left is another"
        others = _fields(noise, equation.rows(keep), _draws(mu0, change=lambda t: t[keep]), step)
        assert_same(others, lambda t: t[keep], f"{law}; take numbers for each sample by equation.number(name, schedule, step)")


def _check_entropic(noise: Noise, equation: FunctionalDescent, mu0: DiscreteMeasure) -> None:
    """Kicks of mean zero, whose mean square is proportional to the time."""
    law = f"stands_for_entropy (T17): {type(noise).__name__} says so"

    def kicks(duration: float | Tensor) -> Tensor:
        draw = _draws(mu0, seed=7)
        found = [noise.kick(equation, draw, duration, 0) for _ in range(MANY)]
        if any(kick is None for kick in found):
            raise AssertionError(f"{law}, and it does not kick; expected kicks of mean square 2 * temperature * duration")
        return torch.stack([kick for kick in found if kick is not None])

    short, long, none = kicks(DURATION), kicks(4.0 * DURATION), kicks(0.0)
    if bool((none != 0).any()):
        raise AssertionError(f"{law}, and a step that takes no time kicks by up to {float(none.abs().max()):.3e}")
    size = short.square().mean()
    if size == 0:
        return
    if short.mean().abs() > 5.0 * (size / short.numel()).sqrt():
        mean, deviation = float(short.mean()), float(size) ** 0.5
        raise AssertionError(f"{law}, and its kicks have the mean {mean:.3e}, at a deviation of {deviation:.3e}")
    ratio = float(long.square().mean() / size)
    if abs(ratio - 4.0) > 0.4:
        raise AssertionError(
            f"{law}, and its mean squared kick grows by the factor {ratio:.3f} in four times the time; expected 4, "
            "as 2 * temperature * duration does"
        )
    each = torch.full(mu0.batch_shape, DURATION, dtype=mu0.dtype, device=mu0.device)
    assert_close(kicks(each), short, f"{law}, and its kicks are others where each sample has its duration", rtol=1e-6)


def _check_path(noise: Noise, functional: Functional, mu0: DiscreteMeasure) -> None:
    """Flows with the same generator take the same path; no other randomness is used."""

    def end(mu: DiscreteMeasure, seed: int = 0) -> DiscreteMeasure:
        generator = torch.Generator().manual_seed(seed)
        energy = in_dtype(functional, mu.dtype)
        found: DiscreteMeasure = flow(energy, mu, Euler(0.1), steps=4, noise=noise, generator=generator, record=4).measure
        return found

    with stated("a flow with the noise"), _other_randomness_untouched():
        first = end(mu0)
    if not same_numbers(first.points, end(mu0).points):
        raise AssertionError("draws: two flows with the same generator take different paths")
    check_precision(end, mu0, "a flow with the noise")
