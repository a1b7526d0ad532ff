r"""Equations of the potentials of entropic transport: the image under Sinkhorn's iteration minus the potential."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from ddeq.functionals.cells import Cells
from ddeq.functionals.entropic import EntropicTransport
from ddeq.functionals.jacobians import BetweenJacobian, Jacobian, Place, WithinJacobian
from ddeq.functionals.pairs import pairs_of
from ddeq.functionals.plans import Pairs
from ddeq.iteration import AdjointWarning, Equation, InnerProduct, LinearAnswer, LinearSolver
from ddeq.measures import DiscreteMeasure, unchecked

__all__ = ["CELLS", "Between", "PotentialEquation", "Within"]

FEW = 256
"""Up to so many atoms linear systems are factorised as they are."""
CELLS = 128
"""Of more atoms, those of so many cells are."""
UNSOLVED, NOTHING = 1e-6, 1e-40
"""Relative residual of an equation of derivatives from which on it is worth a warning, if its right side is larger than this."""


class PotentialEquation(Equation):
    """An equation of potentials at the atoms of a measure: the image under Sinkhorn's iteration minus the potential.

    Parameters
    ----------
    transport
        The entropic transport.
    at, other
        The measure at whose atoms the potential is sought, and the other one.
    tensors
        The points and weights of both.
    """

    name = "potentials"
    shardable = True
    relaxation: float = 1.0
    """How much of the residual a step of Sinkhorn's iteration adds."""
    anneals: bool = False
    """Whether a solution at a larger blur helps."""

    def __init__(
        self, transport: EntropicTransport, at: DiscreteMeasure, other: DiscreteMeasure, tensors: tuple[Tensor, ...]
    ) -> None:
        self.transport, self.at, self.other, self.tensors = transport, at, other, tensors
        self.inner = InnerProduct(at.weights.detach(), dims=1)
        self.rtol = 1e-12
        """Relative residual of the linear equations of derivatives."""

    @abstractmethod
    def place(self, pairs: Pairs, z: Tensor, *, rtol: float = 0.0) -> Place:
        """What the potential ``z`` makes of the plan, with a relative error of ``rtol``."""

    @abstractmethod
    def jacobian(self, place: Place, cells: Cells | None, *, rough: bool = False) -> Jacobian:
        """Minus the derivative of the residual there; ``rough``: three digits are enough."""

    @abstractmethod
    def at_all_atoms(self, pairs: Pairs, z: Tensor) -> Tensor:
        """The image of ``z`` under Sinkhorn's iteration at all atoms, those of mass zero included; no derivatives."""

    @abstractmethod
    def at_blur(self, blur: float) -> PotentialEquation:
        """The same measures at another blur, without derivatives."""

    @abstractmethod
    def in_cells(self) -> PotentialEquation:
        """The same problem for cells of atoms, without derivatives."""

    @abstractmethod
    def extended(self, z: Tensor, coarse: PotentialEquation) -> Tensor:
        """The solution ``z`` of the problem in cells at the atoms of this one."""

    def pairs(self) -> Pairs:
        """The pairs of both measures, of which the second is `at`."""
        return pairs_of(self.other.detach(), self.at.detach())

    def cells(self, pairs: Pairs) -> Cells | None:
        """Cells of the atoms on which what is slow is corrected."""
        return None

    def normalised(self, z: Tensor) -> Tensor:
        """The solution of mean zero, where a constant may be added."""
        return z

    def diameter(self) -> Tensor:
        """Diagonal of the least box around the atoms that carry mass, ``(*batch,)``, the same on all ranks."""
        highest, lowest = [], []
        for mu in (self.at, self.other):
            dead = ~mu.support().unsqueeze(-1)
            highest.append(self.inner.everywhere(mu.points.detach().masked_fill(dead, -torch.inf).amax(-2)))
            lowest.append(self.inner.everywhere(mu.points.detach().masked_fill(dead, torch.inf).amin(-2)))
        diameter: Tensor = torch.linalg.vector_norm(torch.maximum(*highest) - torch.minimum(*lowest), dim=-1)
        return diameter

    def linear_solver(self, z: Tensor, status: Tensor) -> LinearSolver:
        return _Derivatives(self, z)


class Between(PotentialEquation):
    r"""The potential :math:`g` at the atoms ``y`` of masses ``v`` in the transport from atoms ``x`` of masses ``w``."""

    anneals = True

    def __init__(self, transport: EntropicTransport, x: Tensor, w: Tensor, y: Tensor, v: Tensor) -> None:
        super().__init__(transport, unchecked(y, v), unchecked(x, w), (x, w, y, v))

    def residual(self, z: Tensor, *tensors: Tensor) -> Tensor:
        x, w, y, v = tensors or self.tensors
        f = self.transport.transform(z, unchecked(y, v), x)
        return self.transport.transform(f, unchecked(x, w), y) - z

    def place(self, pairs: Pairs, z: Tensor, *, rtol: float = 0.0) -> Place:
        transport, live = self.transport, self.at.support()
        plan = pairs.plan(transport, z, rtol=rtol)
        masses = plan.transposed(self.other.weights * transport.marginal(plan.f))
        lost = live & (masses < plan.lost * self.at.weights)
        logarithm = torch.where(live & ~lost, masses / torch.where(live, self.at.weights, 1.0), 1.0).log()
        image = transport.tau * (z - transport.epsilon * logarithm)
        if bool(self.inner.everywhere(lost.any())):
            image = torch.where(lost, pairs.columns(transport, plan.f), image)
        residual = torch.where(live, image - z, 0.0)
        return Place(plan, torch.where(live & ~lost, masses, 0.0), residual, self._shift(plan.f, z))

    def _shift(self, f: Tensor, z: Tensor) -> Tensor:
        """The constant that maximises the dual value (translation-invariant iteration)."""
        transport = self.transport
        if transport.reach is None:
            return torch.zeros_like(z[..., :1])
        logarithms = [
            torch.where(m.support(), m.weights.log() - p / transport.rho, -torch.inf).logsumexp(-1, keepdim=True)
            for m, p in ((self.other, f), (self.at, z))
        ]
        return transport.rho / (1 + transport.tau) * (logarithms[1] - logarithms[0])

    def jacobian(self, place: Place, cells: Cells | None, *, rough: bool = False) -> Jacobian:
        rows = self.other.weights * self.transport.marginal(place.plan.f)
        return BetweenJacobian(self.transport, place, rough, rows, cells)

    def cells(self, pairs: Pairs) -> Cells | None:
        return pairs.cells(FEW if self.at.n <= FEW else CELLS)

    def at_all_atoms(self, pairs: Pairs, z: Tensor) -> Tensor:
        return pairs.columns(self.transport, pairs.plan(self.transport, z).f)

    def at_blur(self, blur: float) -> Between:
        return Between(EntropicTransport(blur, self.transport.reach), *(t.detach() for t in self.tensors))

    def in_cells(self) -> Between:
        x, y = (Cells.of(m, CELLS).measure(m) for m in (self.other.detach(), self.at.detach()))
        return Between(self.transport, x.points, x.weights, y.points, y.weights)

    def extended(self, z: Tensor, coarse: PotentialEquation) -> Tensor:
        transport = coarse.transport
        f = transport.transform(z, coarse.at, coarse.other.points)
        return transport.transform(f, coarse.other, self.at.points.detach())

    def normalised(self, z: Tensor) -> Tensor:
        if self.transport.reach is not None:
            return z
        live = torch.where(self.at.support(), z, 0.0)
        return z - ((self.at.weights * live).sum(-1) / self.at.mass()).unsqueeze(-1)


class Within(PotentialEquation):
    """The potential of a measure and itself."""

    relaxation = 0.5  # the image has the derivative -P with 0 <= P <= 1: a whole step may alternate

    def __init__(self, transport: EntropicTransport, x: Tensor, w: Tensor) -> None:
        mu = unchecked(x, w)
        super().__init__(transport, mu, mu, (x, w))

    def residual(self, z: Tensor, *tensors: Tensor) -> Tensor:
        x, w = tensors or self.tensors
        return self.transport.transform(z, unchecked(x, w), x) - z

    def place(self, pairs: Pairs, z: Tensor, *, rtol: float = 0.0) -> Place:
        live, transport = self.at.support(), self.transport
        plan = pairs.plan(transport, z, rtol=rtol)
        exponents = torch.where(live, z - plan.f / transport.tau, 0.0) / transport.epsilon
        residual = torch.where(live, plan.f - z, 0.0)
        return Place(plan, self.at.weights * exponents.exp(), residual, torch.zeros_like(z[..., :1]))

    def jacobian(self, place: Place, cells: Cells | None, *, rough: bool = False) -> Jacobian:
        return WithinJacobian(self.transport, place, rough)

    def at_all_atoms(self, pairs: Pairs, z: Tensor) -> Tensor:
        return pairs.columns(self.transport, z)

    def at_blur(self, blur: float) -> Within:
        return Within(EntropicTransport(blur, self.transport.reach), *(t.detach() for t in self.tensors))

    def in_cells(self) -> Within:
        x = Cells.of(self.at.detach(), CELLS).measure(self.at.detach())
        return Within(self.transport, x.points, x.weights)

    def extended(self, z: Tensor, coarse: PotentialEquation) -> Tensor:
        return coarse.transport.transform(z, coarse.at, self.at.points.detach())


class _Derivatives(LinearSolver):
    """Solves ``A x + b = 0`` for the derivative ``A = -J`` of an equation of potentials at a solution, or its transpose."""

    def __init__(self, equation: PotentialEquation, z: Tensor) -> None:
        self._equation, self._z = equation, z.detach()

    @cached_property
    def _jacobian(self) -> Jacobian:
        equation = self._equation.at_blur(self._equation.transport.blur)
        pairs = equation.pairs()
        jacobian = equation.jacobian(equation.place(pairs, self._z), equation.cells(pairs))
        jacobian.prepare()
        return jacobian

    def solve(self, operator: Callable[[Tensor], Tensor], b: Tensor, dual: bool) -> LinearAnswer:
        jacobian, rtol = self._jacobian, self._equation.rtol
        alive, masses = jacobian.alive, jacobian.masses
        some_dead = bool(self._equation.inner.everywhere((~alive).any()))
        # At atoms of mass zero the derivative is the identity plus what the others contribute.
        at_dead = torch.where(alive, 0.0, b)
        right = torch.where(alive, b + operator(at_dead) if dual and some_dead else b, 0.0)
        right, x = self._seen(right, dual), torch.zeros_like(b)
        for _ in range(2):  # once more for what rounding left
            left = self._seen(torch.where(alive, right + operator(x), 0.0), dual)
            x = x + (masses * jacobian.solve(jacobian.inverse * left, rtol) if dual else jacobian.solve(left, rtol))
        left = self._seen(torch.where(alive, right + operator(x), 0.0), dual)
        if some_dead:
            x = torch.where(alive, x, b if dual else b + operator(x))
        return LinearAnswer(x, failures=self._judged(left, right, dual))

    def _seen(self, b: Tensor, dual: bool) -> Tensor:
        jacobian = self._jacobian
        return jacobian.masses * jacobian.seen(jacobian.inverse * b) if dual else jacobian.seen(b)

    def _judged(self, left: Tensor, right: Tensor, dual: bool) -> tuple[AdjointWarning, ...]:
        inner = InnerProduct(self._jacobian.inverse if dual else self._jacobian.masses, dims=1)
        size, rest = inner.norm(right), inner.norm(left)
        relative = torch.where(size > 0, rest / torch.where(size > 0, size, 1.0), 0.0)
        failed = ~(relative <= max(UNSOLVED, 100 * self._equation.rtol)) & ~(size < NOTHING)
        if not bool(failed.any()):
            return ()
        text = (
            "Sinkhorn: some equations for derivatives of potentials are singular to rounding, as where the plan falls apart into "
            "parts whose masses the derivative would change: these derivatives are unreliable. Take a larger blur"
        )
        return (AdjointWarning(text, failed=failed, residual=relative, wanted=UNSOLVED),)
