"""`Varying`: energies and velocity fields that change from step to step, and a check that nothing else changes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ddeq.functionals.dynamics import Dynamics
from ddeq.iteration import Report

__all__ = ["Varying", "watched_callback"]


class Varying(Dynamics):
    r"""An energy :math:`F_k` of its own in each step :math:`k` of a flow: it depends on time, or is random.

    .. math:: x_{k+1} = x_k - \tau_k \nabla_W F_k(\mu_k)(x_k)

    For annealing, mini-batches of a target, random features, fresh directions. The function is called once per step: velocities,
    energies and line searches of the step are those of one energy. Between steps energies do not compare, and recorded ones are
    each of its step (varying energies, T24). ``dissipation`` is the rate at which the flow alone lowers the energy of the step.

    Parameters
    ----------
    function
        The number of the step and the flow's generator to a `ddeq.Functional`, or to a `VelocityField`. It depends on these
        two alone: then a flow with a ``generator`` can be repeated, and one that was saved goes on to the last bit. Draw on
        ``generator.device``. It is called once at construction, at step 0 with a generator on the CPU, to see what it gives.

    Raises
    ------
    ValueError
        If ``function`` cannot be called, or does not give a functional or a velocity field, always the same of the two. In a
        flow, for `LBFGS` and a stop with ``metric="energy"``, which compare steps; in `equilibrium`.

    Notes
    -----
    Gradients reach tensors from which the function makes its energies. Samples that have finished stay in the computation. An
    inner problem, such as that of `SinkhornDivergence`, starts anew in each step. If a random gradient is right in the mean, as
    with mini-batches and `MMD`, or fresh directions and a sliced energy, steps that fall to zero lead to a stationary measure of
    the mean; the mean of ``Wasserstein`` or ``SinkhornDivergence`` over mini-batches is another energy (T24).

    For a field that depends on time take it in the middle of the step: at ``(step + 0.5) * step_size`` `Heun` is of order two,
    at the start of the step of order one.

    References
    ----------
    :cite:t:`robbins1951stochastic`; :cite:t:`fatras2020learning`, on mini-batches of transport.

    Examples
    --------
    >>> import torch
    >>> from ddeq import DiscreteMeasure, flow
    >>> from ddeq.functionals import PotentialEnergy
    >>> V = PotentialEnergy(lambda x: 0.5 * x.square().sum(-1))
    >>> stiffer = Varying(lambda step, generator: (1 + step) * V)
    >>> trajectory = flow(stiffer, DiscreteMeasure(torch.tensor([[1.0]])), steps=2)  # steps of 0.1
    >>> trajectory.measures.points.flatten(), trajectory.energies
    (tensor([1.0000, 0.9000, 0.7200]), tensor([0.5000, 0.8100, 0.7776]))
    """

    draws = True
    varies = True

    def __init__(self, function: Callable[[int, torch.Generator], Dynamics]) -> None:
        super().__init__()
        if isinstance(function, Dynamics | type) or not callable(function):
            raise ValueError(
                f"function: expected one of step and generator, got {function!r}; Varying(lambda step, generator: F)"
            )
        self.function = function
        self._made = (self._at(0, torch.Generator().manual_seed(0)),)  # in a tuple: it is no part of this module
        self.has_energy = self._made[0].has_energy

    @property
    def example(self) -> Dynamics:
        return self._made[0]

    def at(self, step: int, generator: torch.Generator) -> Dynamics:
        """The energy, or the velocity field, of a ``step``, drawn from the ``generator``."""
        made = self._at(step, generator)
        if made.has_energy != self.has_energy:
            raise ValueError(f"function: expected what it gives at step 0, {self.example!r}, or its like at {step}, got {made!r}")
        return made

    def velocity(self, mu: Any, x: Float[Tensor, "*points m d"] | None = None) -> Float[Tensor, "*batch m d"]:
        raise ValueError("Varying: it has a velocity in a step of a flow only; use varying.at(step, generator)")

    def prepare(self, mu: Any, memory: Any, step: int, generator: torch.Generator | None) -> tuple[Dynamics, Any]:
        if generator is None:
            raise ValueError("generator: expected that of the flow, got None; Varying is for ddeq.flow")
        with torch.enable_grad():  # what it is made of may train
            made = self.at(step, generator)
        return made.prepare(mu, None, step, generator)[0], None

    def _at(self, step: int, generator: torch.Generator) -> Dynamics:
        made = self.function(step, generator)
        if not isinstance(made, Dynamics) or made.varies:
            raise ValueError(
                f"function: expected a ddeq.Functional or a VelocityField at step {step}, one that does not vary, got {made!r}; "
                "Varying(lambda step, generator: F)"
            )
        return made

    def __repr__(self) -> str:
        return f"Varying({self.example!r} at step 0)"


def watched_callback(callback: Callable[[Report], object], dynamics: Dynamics) -> Callable[[Report], object]:
    """The ``callback``, which must not change what the flow follows: parameters, buffers, numbers and parts of it.

    The velocity of the step has been evaluated when the callback is called, and a change would take effect a step late.
    """

    def called(report: Report) -> object:
        before = list(_contents(dynamics))
        answer = callback(report)
        after = list(_contents(dynamics))
        for (name, value, version), (_, now, changed) in zip(before, after, strict=False):
            if not (value is now or (isinstance(value, float) and value == now)) or version != changed:
                raise ValueError(
                    f"callback: expected one that leaves {dynamics!r} as it is, but it changed {name}. The change would take "
                    "effect a step late; let the energy depend on the step, Varying(lambda step, generator: F)"
                )
        return answer

    return called


def _contents(dynamics: Dynamics) -> Iterator[tuple[str, Any, int]]:
    """Names and values of what it holds, tensors with the number of their changes in place."""
    for prefix, module in dynamics.named_modules():
        held = dict(module._parameters) | dict(module._buffers)
        for name, value in held.items():
            yield f"{prefix}.{name}".strip("."), value, 0 if value is None or value.is_inference() else value._version
        for name, value in vars(module).items():
            if isinstance(value, float) or callable(value):
                yield f"{prefix}.{name}".strip("."), value, 0
