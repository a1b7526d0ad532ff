"""`check_noise`: the library's noises pass, and each wrong one fails with a message that names the law."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from ddeq.flows import Langevin, Noise, NoiseInjection
from ddeq.testing import check_noise

EACH = torch.tensor([0.1, 0.2, 0.3])


@pytest.mark.theorem("T17")
@pytest.mark.parametrize(
    ("noise", "zero"),
    [
        (Langevin(), Langevin(0.0)),
        (Langevin(EACH), Langevin(0.0 * EACH)),
        (Langevin(lambda k: 0.5**k), None),
        (NoiseInjection(), NoiseInjection(0.0)),
        (NoiseInjection(EACH), None),
    ],
    ids=["number", "each", "schedule", "injection", "injection, each"],
)
def test_noises_of_the_library_pass(noise, zero):
    check_noise(noise, zero=zero)


@dataclass(frozen=True)
class Plain(Noise):
    """A right one, to be made wrong."""

    size: float = 0.1

    def kick(self, equation, draw, duration, step):
        return self.size * draw()


@dataclass(frozen=True)
class OwnNumbers(Plain):
    def kick(self, equation, draw, duration, step):
        return self.size * torch.randn_like(equation.like.points)


@dataclass(frozen=True)
class OwnGenerator(Plain):
    """One that is seeded anew by the clock of the process."""

    calls: ClassVar[list] = []

    def kick(self, equation, draw, duration, step):
        self.calls.append(step)
        g = torch.Generator().manual_seed(len(self.calls))
        return self.size * draw() + torch.rand((), generator=g, dtype=equation.like.dtype)


@dataclass(frozen=True)
class OneForAll(Plain):
    """The same number for all samples, and the mean of the draws of all."""

    def kick(self, equation, draw, duration, step):
        return draw() * draw().mean()


@dataclass(frozen=True)
class MeanOfStoredAtoms(Plain):
    def kick(self, equation, draw, duration, step):
        drawn = draw()
        return drawn - drawn.mean(-2, keepdim=True)


@dataclass(frozen=True)
class InOrder(Plain):
    def kick(self, equation, draw, duration, step):
        drawn = draw()
        return drawn * torch.arange(drawn.shape[-2], dtype=drawn.dtype).unsqueeze(-1)


@dataclass(frozen=True)
class PerSample(Plain):
    """Numbers for each sample of the whole batch, whoever is left."""

    def kick(self, equation, draw, duration, step):
        drawn = draw()
        return drawn * torch.arange(1, len(drawn) + 1, dtype=drawn.dtype)[:, None, None]


@dataclass(frozen=True)
class WrongShape(Plain):
    def kick(self, equation, draw, duration, step):
        return draw()[..., :1]


@dataclass(frozen=True)
class DefaultDtype(Plain):
    def kick(self, equation, draw, duration, step):
        return (torch.ones(()) * 0.1).to(equation.like.points) * draw()


@dataclass(frozen=True)
class SaysEntropy(Plain):
    """Kicks that do not grow with the time."""

    stands_for_entropy: ClassVar[bool] = True


@dataclass(frozen=True)
class LinearInTime(SaysEntropy):
    def kick(self, equation, draw, duration, step):
        duration = duration[..., None, None] if isinstance(duration, torch.Tensor) else duration
        return self.size * duration * draw()


@dataclass(frozen=True)
class Drifts(SaysEntropy):
    def kick(self, equation, draw, duration, step):
        duration = duration[..., None, None] if isinstance(duration, torch.Tensor) else duration
        return self.size * duration**0.5 * (draw() + 0.5)


@dataclass(frozen=True)
class NeverZero(Plain):
    def kick(self, equation, draw, duration, step):
        return (self.size + 1e-3) * draw()


@dataclass(frozen=True)
class NothingAtAll(Plain):
    def kick(self, equation, draw, duration, step):
        return None


class DuckTyped:
    kick = Plain.kick


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        (OwnNumbers(), "draws: numbers are drawn from the global generator of torch"),
        (OwnGenerator(), "draws: the kick at step 0 is another with the same draws"),
        (OneForAll(), r"one measure at a time|measure consistency \(T1\)"),
        (MeanOfStoredAtoms(), r"measure consistency \(T1\): adding atoms of mass zero"),
        (InOrder(), r"measure consistency \(T1\): permuting"),
        (PerSample(), r"removal of samples: .*equation\.number"),
        (WrongShape(), "kick: expected a field of shape"),
        (DefaultDtype(), "default dtype"),
        (SaysEntropy(), r"stands_for_entropy \(T17\): .*takes no time"),
        (LinearInTime(), r"stands_for_entropy \(T17\): .*by the factor 16"),
        (Drifts(), r"stands_for_entropy \(T17\): .*the mean"),
        (NothingAtAll(), "neither a displacement nor a kick"),
        (DuckTyped(), "typed capabilities: DuckTyped is not a subclass of Noise"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
@pytest.mark.unchecked
def test_wrong_noises_are_found(noise, message):
    with pytest.raises(AssertionError, match=message):
        check_noise(noise)


def test_a_noise_of_size_zero_is_none():
    check_noise(Plain(), zero=Plain(0.0))
    with pytest.raises(AssertionError, match="zero: a noise of size zero"):
        check_noise(NeverZero(), zero=NeverZero(0.0))
