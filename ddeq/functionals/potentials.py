r"""Equations of the potentials of entropic transport, and what solves them: linear equations with their derivatives.

Let ``c`` be the masses that the plan of a potential gives to the atoms, and ``-J`` the derivative of the residual. Then
``diag(c) J`` is symmetric and positive semidefinite, :math:`\mathrm{diag}(c) - \tau^2\pi^\top\mathrm{diag}(r)^{-1}\pi` between
two measures, :math:`\mathrm{diag}(c) + \tau\pi` between a measure and itself, with the plan :math:`\pi` and its other marginal
``r`` (the catalogue, T3).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ddeq.functionals.cells import Cells
from ddeq.functionals.entropic import EntropicTransport
from ddeq.functionals.pairs import pairs_of
from ddeq.functionals.plans import Pairs, Plan
from ddeq.iteration import (
    AdjointWarning,
    Equation,
    InnerProduct,
    LinearAnswer,
    LinearSolver,
    conjugate_gradients,
)
from ddeq.measures import DiscreteMeasure, unchecked

__all__ = ["CELLS", "Between", "Jacobian", "Place", "PotentialEquation", "Within"]

FEW = 256
"""Up to so many atoms linear systems are factorised as they are."""
CELLS = 128
"""Of more atoms, those of so many cells are."""
KRYLOV_STEPS = 500
LOST = 1e-280
"""Masses below this have lost digits, and are computed again by logarithms."""
UNSOLVED = 1e-6
"""Relative residual of an equation of derivatives from which on it is worth a warning."""


@dataclass(frozen=True)
class Place:
    """What a potential ``z`` makes, ``(*batch, m)`` each; no derivatives."""

    plan: Plan
    masses: Tensor
    """What the plan gives to the atoms."""
    residual: Tensor
    """The image under Sinkhorn's iteration minus the potential."""
    shift: Tensor
    """The constant ``(*batch, 1)`` by which the potential would have to move for the largest dual value."""


class Jacobian(ABC):
    """``J``, minus the derivative of the residual: self-adjoint in L2 of the masses of the plan.

    Parameters
    ----------
    transport, place
        The transport, and what the potential makes of it.
    rough
        Whether three digits are enough.
    """

    def __init__(self, transport: EntropicTransport, place: Place, rough: bool) -> None:
        self.plan = place.plan.rough() if rough else place.plan
        self.tau, self.masses = transport.tau, place.masses
        self.alive = self.masses > 0
        self.inverse = torch.where(self.alive, 1.0 / torch.where(self.alive, self.masses, 1.0), 0.0)

    @abstractmethod
    def product(self, a: Tensor) -> Tensor:
        """``J a`` at the atoms with mass, zero at the others."""

    def prepare(self) -> None:
        """Make ready for several solves."""

    def precondition(self, a: Tensor) -> Tensor:
        """About ``J^-1 a``, self-adjoint in the same inner product."""
        return a

    def solve(self, b: Tensor, rtol: float | Tensor) -> Tensor:
        """``J a = b`` at the atoms with mass, ``(*batch, m)``."""
        b = torch.where(self.alive, b, 0.0)
        options = {"weights": self.masses, "rtol": rtol, "max_steps": KRYLOV_STEPS}
        return conjugate_gradients(self.product, b, precondition=self.precondition, **options).x

    def change(self, residual: Tensor, rtol: float | Tensor) -> Tensor:
        """The step of Newton's method, where ``residual`` is that with the best constant added."""
        return self.solve(residual, rtol)

    def seen(self, b: Tensor) -> Tensor:
        """``b`` without what is not in the range."""
        return b


class _BetweenJacobian(Jacobian):
    r""":math:`J = 1 - \tau^2 \mathrm{diag}(c)^{-1} P^\top \mathrm{diag}(r) P`, for which constants have the eigenvalue :math:`1 - \tau^2`.

    Conjugate gradients off the constants, with a correction on cells of atoms: what is slow varies little within a cell.
    """

    def __init__(self, transport: EntropicTransport, place: Place, rough: bool, rows: Tensor, cells: Cells | None) -> None:
        super().__init__(transport, place, rough)
        self._rows, self._cells, self._balanced = rows, cells, transport.reach is None
        self._of_constants = transport.epsilon * (2 * transport.rho + transport.epsilon) / (transport.rho + transport.epsilon) ** 2
        self._lift = 4.0 * self.plan.eps
        self._factor: Tensor | None = None
        self._scale = self.masses

    def product(self, a: Tensor) -> Tensor:
        back = self.plan.transposed(self._rows * self.plan.product(a))
        # Eigenvalues below rounding may be negative in it.
        return torch.where(self.alive, (1.0 + self._lift) * a, 0.0) - self.tau**2 * self.inverse * back

    @property
    def _is_exact(self) -> bool:
        """Whether the factorised matrix is that of the atoms."""
        return self._factor is not None and self._cells is not None and self._cells.count == self.masses.shape[-1]

    def solve(self, b: Tensor, rtol: float | Tensor) -> Tensor:
        mean = self._mean(b)
        rest = torch.where(self.alive, b - mean, 0.0)
        a = self.precondition(rest) if self._is_exact else super().solve(rest, rtol)
        a = a - self._mean(a)
        if not self._balanced:
            a = a + mean / self._of_constants
        return torch.where(self.alive, a, 0.0)

    def change(self, residual: Tensor, rtol: float | Tensor) -> Tensor:
        # Divided by a small eigenvalue a constant would keep no digits; the best one is in the residual.
        mean = self._mean(residual)
        return self.solve(residual - mean, rtol) + mean

    def seen(self, b: Tensor) -> Tensor:
        return torch.where(self.alive, b - self._mean(b), 0.0) if self._balanced else b

    def _mean(self, a: Tensor) -> Tensor:
        return (self.masses * torch.where(self.alive, a, 0.0)).sum(-1, keepdim=True) / self.masses.sum(-1, keepdim=True)

    def prepare(self) -> None:
        if self._cells is None:
            return
        sums, rows = self.plan.summed(self._cells, self._rows)
        masses = (rows.unsqueeze(-1) * sums).sum(-2)
        matrix = torch.diag_embed(masses) - self.tau**2 * sums.mT @ (rows.unsqueeze(-1) * sums)
        # Constants need no solve, and would leave the matrix singular.
        matrix = matrix + masses.unsqueeze(-1) * masses.unsqueeze(-2) / masses.sum(-1, keepdim=True).unsqueeze(-1)
        self._scale = torch.where(masses > 0, masses, 1.0).rsqrt()
        matrix = self._scale.unsqueeze(-1) * matrix * self._scale.unsqueeze(-2)
        self._factor = _factorised(matrix + torch.diag_embed((masses == 0).to(matrix)))

    def precondition(self, a: Tensor) -> Tensor:
        if self._factor is None or self._cells is None:
            return a
        of_cells = (self._scale * self._cells.sums(self.masses * a)).unsqueeze(-1)
        of_cells = self._scale * torch.cholesky_solve(of_cells, self._factor).squeeze(-1)
        spread = torch.where(self.alive, self._cells.spread(of_cells), 0.0)
        return spread if self._is_exact else a + spread


class _WithinJacobian(Jacobian):
    r""":math:`J = 1 + \tau P`, whose eigenvalues lie between 1 and 2."""

    def product(self, a: Tensor) -> Tensor:
        return torch.where(self.alive, a + self.tau * self.plan.product(a), 0.0)


def _factorised(matrix: Tensor) -> Tensor:
    """Cholesky factor of a semidefinite matrix with a unit diagonal: eigenvalues below rounding are lifted to it."""
    lift = matrix.shape[-1] * torch.finfo(matrix.dtype).eps
    diagonal = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    factor, failed = torch.linalg.cholesky_ex(matrix + lift * diagonal)
    while bool((failed > 0).any()) and lift < 1.0:
        lift = 100.0 * lift
        again, still = torch.linalg.cholesky_ex(matrix + lift * diagonal)
        factor = torch.where((failed > 0)[..., None, None], again, factor)
        failed = torch.where(failed > 0, still, failed)
    return factor


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
        lost = live & (masses < LOST)
        logarithm = torch.where(live & ~lost, masses / torch.where(live, self.at.weights, 1.0), 1.0).log()
        image = transport.tau * (z - transport.epsilon * logarithm)
        if bool(self.inner.everywhere(lost.any())):
            image = torch.where(lost, pairs.columns(transport, plan.f), image)
        residual = torch.where(live, image - z, 0.0)
        return Place(plan, torch.where(live, masses, 0.0), residual, self._shift(plan.f, z))

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
        return _BetweenJacobian(self.transport, place, rough, rows, cells)

    def cells(self, pairs: Pairs) -> Cells | None:
        return pairs.cells(FEW if self.at.n <= FEW else CELLS)

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
        return _WithinJacobian(self.transport, place, rough)

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
        if dual:
            right = torch.where(alive, b + operator(at_dead), 0.0) if some_dead else b
        else:
            right = torch.where(alive, b, 0.0)
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
        failed = ~(relative <= max(UNSOLVED, 100 * self._equation.rtol))
        if not bool(failed.any()):
            return ()
        text = (
            "Sinkhorn: some equations for derivatives of potentials are singular to rounding, as where the plan falls apart into "
            "parts whose masses the derivative would change: these derivatives are unreliable. Take a larger blur"
        )
        return (AdjointWarning(text, failed=failed, residual=relative, wanted=UNSOLVED),)
