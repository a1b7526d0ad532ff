"""Steps of any optimiser of PyTorch, on Wasserstein gradients."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ddeq.flows.descent import FunctionalDescent
from ddeq.flows.schedules import Schedule, check_schedule
from ddeq.flows.steppers import Stepper
from ddeq.iteration import Iterate, Step

__all__ = ["Optimizer"]


@dataclass(frozen=True)
class _Kind:
    """How an optimiser holds a number."""

    dtype: torch.dtype | None
    """That of a tensor; None for a Python number."""
    device: torch.device | None
    whole: bool
    """Whether a Python number is an int."""


class _State(NamedTuple):
    taken: Tensor
    """Steps of each sample, ``(*batch,)``; at 0 the optimiser begins, whatever else is here."""
    fields: dict[str, Tensor]
    """What the optimiser remembers of each coordinate, ``(*batch, n, d)``."""
    numbers: dict[str, Tensor]
    """What it remembers of a sample as a whole, such as how many steps it has taken, ``(*batch,)`` in double precision."""
    kinds: dict[str, _Kind]


@dataclass(frozen=True, init=False)
class Optimizer(Stepper):
    r"""Steps of an optimiser of PyTorch on the points, whose gradients are the Wasserstein gradients.

    A step is ``p.grad = F.wasserstein_gradient(mu); optimizer.step()`` with the points as the parameter ``p``. In another
    geometry the gradient is minus the velocity. It is the Wasserstein gradient :math:`\frac1{w_i}\frac{\partial F}{\partial x_i}`
    and not the raw one, :math:`\partial F/\partial x_i`: its scale does not depend on the number of atoms, and the steps depend
    on the measure alone (measure consistency, T1).

    Parameters
    ----------
    optimizer
        A class such as ``torch.optim.Adam``, ``Adagrad``, ``RMSprop`` or ``SGD``, whose steps treat each coordinate by itself.
    lr
        The learning rate, as step sizes are: a number, one for each sample, or a function of the number of the step to either.
    **options
        What the class takes besides, such as ``betas=(0.9, 0.99)`` or ``momentum=0.9``.

    Raises
    ------
    ValueError
        If a learning rate is not positive and finite; if the class is no optimiser, does not take the options, needs a closure as
        ``torch.optim.LBFGS`` does (`LBFGS` is the one to take), or mixes coordinates as ``torch.optim.Adafactor`` does, so that
        steps would depend on how a measure is stored. In a flow, if autograd records the steps.

    Notes
    -----
    Each sample of a batch has a state of its own; it is saved with a trajectory. Autograd cannot record the steps: flow under
    ``torch.no_grad()`` where a functional has parameters, and differentiate where the flow ends by `ddeq.flows.equilibrium`. A
    step takes the time ``lr``, as it does for SGD without momentum, which is `Euler`. The energy may rise, and with a fixed
    learning rate points may oscillate about a minimum by about as much: let it fall.

    References
    ----------
    :cite:t:`kingma2015adam`; :cite:t:`duchi2011adaptive`.

    Examples
    --------
    >>> from ddeq import DiscreteMeasure, flow
    >>> from ddeq.functionals import PotentialEnergy
    >>> mu = DiscreteMeasure(torch.tensor([[1.0], [100.0]]))
    >>> V = PotentialEnergy(lambda x: 0.5 * x.square().sum(-1))
    >>> flow(V, mu, stepper=Optimizer(torch.optim.Adam, lr=0.1), steps=1).measure.points  # signs, whatever the slope
    tensor([[ 0.9000],
            [99.9000]])
    """

    optimizer: type[torch.optim.Optimizer]
    lr: Schedule
    options: tuple[tuple[str, Any], ...]

    differentiable: ClassVar[bool] = False
    has_momentum: ClassVar[bool] = True
    needs_energy: ClassVar[bool] = True

    def __init__(self, optimizer: type[torch.optim.Optimizer], lr: Schedule = 1e-2, **options: Any) -> None:
        options = dict(options.pop("options", ())) | options  # `dataclasses.replace` hands them over in one
        check_schedule("lr", lr)
        object.__setattr__(self, "optimizer", optimizer)
        object.__setattr__(self, "lr", lr)
        frozen = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
        object.__setattr__(self, "options", tuple(sorted(frozen.items())))
        self._check()

    def init(self, equation: FunctionalDescent, at: Iterate) -> _State:
        z, batch_shape = at.z.detach(), equation.inner.batch_shape
        none = torch.zeros(batch_shape, dtype=torch.float64, device=z.device)
        _, found = self._stepped(torch.zeros_like(z), torch.zeros_like(z), 1.0, {})
        fields = {name: torch.zeros_like(z) for name, value in found.items() if _is_field(value, z)}
        kinds = {name: _kind(value) for name, value in found.items() if name not in fields}
        return _State(none, fields, {name: none.clone() for name in kinds}, kinds)

    def step(self, equation: FunctionalDescent, at: Iterate, state: _State) -> Step:
        lr = equation.number("lr", self.lr, at.step)
        z, gradient, batch_shape = at.z.detach(), -at.residual.detach(), equation.inner.batch_shape
        everywhere = equation.inner.everywhere
        taken = everywhere(state.taken)
        numbers = {name: everywhere(value) for name, value in state.numbers.items()}
        rates = everywhere(torch.as_tensor(lr, dtype=torch.float64, device=taken.device)).expand(batch_shape)
        # Samples whose numbers agree make their step together: nearly always all do.
        alike = torch.stack([taken, rates, *numbers.values()]).reshape(2 + len(numbers), -1)
        groups, member = alike.unique(dim=1, return_inverse=True)
        if groups.shape[1] == 1:
            held = self._held(groups[:, 0], state.fields, state.kinds)
            points, found = self._stepped(z, gradient, groups[1, 0].item(), held)
            fields = {name: found[name] for name in state.fields}
            numbers = {name: torch.full_like(taken, float(found[name])) for name in numbers}
        else:
            points, fields, numbers = self._by_group(z, gradient, groups, member.reshape(batch_shape), state)
        return Step(points, _State(taken + 1.0, fields, numbers, state.kinds), duration=lr)

    def _by_group(
        self, z: Tensor, gradient: Tensor, groups: Tensor, member: Tensor, state: _State
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """One step for each set of samples whose numbers agree."""
        points, fields = z.clone(), {name: value.clone() for name, value in state.fields.items()}
        numbers = {name: torch.zeros_like(value) for name, value in state.numbers.items()}
        for k in range(groups.shape[1]):
            own = member == k
            held = self._held(groups[:, k], {name: value[own] for name, value in state.fields.items()}, state.kinds)
            points[own], found = self._stepped(z[own], gradient[own], groups[1, k].item(), held)
            for name, value in fields.items():
                value[own] = found[name]
            for name, value in numbers.items():
                value[own] = float(found[name])
        return points, fields, numbers

    def _held(self, group: Tensor, fields: Mapping[str, Tensor], kinds: Mapping[str, _Kind]) -> dict[str, Any]:
        """The state as the optimiser holds it; nothing before the first step."""
        taken, _, *numbers = group.tolist()
        if not taken:
            return {}
        held = {name: _number(value, kind) for (name, kind), value in zip(kinds.items(), numbers, strict=True)}
        return held | {name: value.clone() for name, value in fields.items()}

    def _stepped(self, z: Tensor, gradient: Tensor, lr: float, held: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """A step of a fresh optimiser from the state ``held``, which it may change; none: it begins."""
        parameter = nn.Parameter(z.clone())
        parameter.grad = gradient.clone()
        optimizer = self.optimizer([parameter], lr=lr, **dict(self.options))  # type: ignore[call-arg]
        if held:
            optimizer.state[parameter] = held
        optimizer.step()
        return parameter.detach(), dict(optimizer.state[parameter])

    def _check(self) -> None:
        """Raise a `ValueError` unless steps of the optimiser are functions of a measure."""
        if not (isinstance(self.optimizer, type) and issubclass(self.optimizer, torch.optim.Optimizer)):
            raise ValueError(f"optimizer: expected a class such as torch.optim.Adam, got {self.optimizer!r}")
        name = self.optimizer.__name__
        closure = inspect.signature(self.optimizer.step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise ValueError(
                f"optimizer: {name} asks for a closure that evaluates the energy anew; use the stepper ddeq.flows.LBFGS()"
            )
        g = torch.Generator().manual_seed(0)
        start, *gradients = torch.randn(4, 2, 3, 2, generator=g, dtype=torch.float64, device="cpu")
        ends: list[Tensor] = []
        for part in (slice(None), slice(1)):
            points, held = start[:, part], dict[str, Any]()
            for gradient in gradients:
                try:
                    points, held = self._stepped(points, gradient[:, part], 0.1, held)
                except (RuntimeError, TypeError, ValueError) as error:
                    raise ValueError(f"optimizer: {name} with options {dict(self.options)} makes no step: {error}") from error
            ends.append(points[:, :1])
            odd = [key for key, value in held.items() if not (_is_field(value, points) or _is_number(value))]
            if odd:
                raise ValueError(f"optimizer: {name} remembers {odd}, neither numbers nor a value for each coordinate; use Adam")
        together, alone = ends
        if not torch.allclose(together, alone, rtol=1e-9):
            raise ValueError(
                f"optimizer: the step of {name} at an atom depends on the gradients at others, not by their weights: it would "
                "depend on how the measure is stored; use one that treats each coordinate by itself, such as torch.optim.Adam"
            )


def _is_field(value: Any, z: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == z.shape


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float) or (isinstance(value, Tensor) and value.numel() == 1 and value.ndim == 0)


def _kind(value: Any) -> _Kind:
    if isinstance(value, Tensor):
        return _Kind(value.dtype, value.device, False)
    return _Kind(None, None, isinstance(value, int))


def _number(value: float, kind: _Kind) -> Any:
    if kind.dtype is not None:
        return torch.tensor(value, dtype=kind.dtype, device=kind.device)
    return int(value) if kind.whole else value
