"""Value and gradient of functionals beside their peers, in turn within one run: seconds, peak memory, error.

    python benchmarks/functionals.py [--sizes 500 2000] [--sliced 100000] [--repeats 5] [--only NAME ...]

Two clouds on surfaces of spheres in dimension 3, single precision. Each way computes the value by its library and the gradient
in the points by autograd: geomloss and POT where they have the functional, plain PyTorch by formula where they have not. Errors
are relative ones of the gradient, its largest entry, against the same functional in double precision, where a solve is carried to
1e-12. Memory is the peak of value and gradient above that before, in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

os.environ.setdefault("KEOPS_VERBOSE", "0")
os.environ.setdefault("PYKEOPS_VERBOSE", "0")

import torch
from common import add_output, added_megabytes, keep, machine, without_output
from torch import Tensor

from ddeq import DiscreteMeasure
from ddeq.functionals import KSD, MMD, Chamfer, Entropy, SinkhornDivergence, SlicedWasserstein, Wasserstein
from ddeq.kernels import IMQ, Riesz

Value = Callable[[Tensor], Tensor]
BLUR, BANDWIDTH, DIRECTIONS = 0.05, 0.2, 64
OURS = "ddeq"
FEW = 500
"""With more atoms POT's iterations take minutes."""


def clouds(n: int) -> tuple[Tensor, Tensor]:
    """A sphere, and a smaller one beside it."""
    g = torch.Generator().manual_seed(0)
    x, y = (torch.nn.functional.normalize(torch.randn(n, 3, generator=g), dim=-1) for _ in range(2))
    return x, 0.6 * y + torch.tensor([0.3, 0.0, 0.0])


def differences(x: Tensor, y: Tensor) -> Tensor:
    return x.unsqueeze(1) - y.unsqueeze(0)


def geomloss(y: Tensor, loss: str, backend: str, **options: Any) -> Value:
    from geomloss import SamplesLoss

    sampled = SamplesLoss(loss, backend=backend, **options)
    return lambda x: sampled(x, y)


def pot_sinkhorn(y: Tensor) -> Value:
    """Three regularised problems, each iterated in the logarithmic domain."""
    import ot

    def cost(x: Tensor, y: Tensor) -> Tensor:
        return ot.solve(
            0.5 * differences(x, y).square().sum(-1), reg=BLUR**2, reg_type="KL", max_iter=1000, grad="envelope"
        ).value

    return lambda x: cost(x, y) - 0.5 * cost(x, x) - 0.5 * cost(y, y)


def pot_exact(y: Tensor) -> Value:
    import ot

    return lambda x: ot.emd2(ot.unif(len(x), type_as=x), ot.unif(len(y), type_as=y), 0.5 * differences(x, y).square().sum(-1))


def pot_sliced(y: Tensor, directions: Tensor) -> Value:
    import ot

    return lambda x: 0.5 * ot.sliced_wasserstein_distance(x, y, p=2, projections=directions.mT) ** 2


def plain_chamfer(y: Tensor) -> Value:
    def value(x: Tensor) -> Tensor:
        squares = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()
        return 0.5 * (squares.amin(1).mean() + squares.amin(0).mean())

    return value


def plain_entropy(x: Tensor) -> Tensor:
    exponents = -differences(x, x).square().sum(-1) / (2 * BANDWIDTH**2)
    constant = x.shape[0] * (2 * torch.pi * BANDWIDTH**2) ** (x.shape[-1] / 2)
    return (torch.logsumexp(exponents, 1) - torch.tensor(constant, dtype=x.dtype).log()).mean()


def plain_ksd(x: Tensor) -> Tensor:
    """Half of the mean of the Stein kernel of a standard Gaussian and the IMQ kernel of bandwidth one, by its formula."""
    z, d = differences(x, x), x.shape[-1]
    s = 1.0 + z.square().sum(-1)
    slope, curvature = -0.5 * s**-1.5, 0.75 * s**-2.5  # derivatives in the squared distance
    products = (x @ x.mT) * s**-0.5
    cross = 2.0 * slope * ((z * -x.unsqueeze(0)).sum(-1) - (z * -x.unsqueeze(1)).sum(-1))
    return 0.5 * (products + cross - 2.0 * d * slope - 4.0 * curvature * z.square().sum(-1)).mean()


def ours(functional: Callable[[DiscreteMeasure], Tensor]) -> Value:
    return lambda x: functional(DiscreteMeasure(x))


def ways(name: str, y: Tensor) -> dict[str, Value]:
    """Ours first, then its peers, for the functional ``name`` with the target ``y``."""
    nu = DiscreteMeasure(y)
    if name == "MMD(target, Riesz(1.0))":
        return {
            OURS: ours(MMD(nu, Riesz(1.0))),
            "geomloss, online": geomloss(y, "energy", "online"),
            "geomloss, tensorized": geomloss(y, "energy", "tensorized"),
        }
    if name == "SinkhornDivergence(target, blur=0.05)":
        options = {"p": 2, "blur": BLUR}
        slow: dict[str, Value] = {"POT, 1,000 iterations": pot_sinkhorn(y)} if len(y) <= FEW else {}
        return {
            OURS: ours(SinkhornDivergence(nu, BLUR)),
            "geomloss, online, scaling 0.5 (its default)": geomloss(y, "sinkhorn", "online", **options),
            "geomloss, online, scaling 0.95": geomloss(y, "sinkhorn", "online", scaling=0.95, **options),
            "geomloss, tensorized, scaling 0.95": geomloss(y, "sinkhorn", "tensorized", scaling=0.95, **options),
            "geomloss, tensorized, scaling 0.99": geomloss(y, "sinkhorn", "tensorized", scaling=0.99, **options),
            **slow,
        }
    if name == "Wasserstein(target)":
        return {OURS: ours(Wasserstein(nu)), "POT": pot_exact(y)}
    if name == "SlicedWasserstein(target)":
        functional = SlicedWasserstein(nu, n_projections=DIRECTIONS)
        return {OURS: ours(functional), "POT, the same directions": pot_sliced(y, functional.directions)}
    if name == "Chamfer(target)":
        return {OURS: ours(Chamfer(nu)), "PyTorch": plain_chamfer(y)}
    if name == "Entropy(0.2)":
        return {OURS: ours(Entropy(BANDWIDTH)), "PyTorch": plain_entropy}
    if name == "KSD(score, IMQ(1.0))":
        return {OURS: ours(KSD(torch.neg, IMQ(1.0))), "PyTorch": plain_ksd}
    raise ValueError(f"name: expected a functional of this benchmark, got {name!r}")


NAMES = (
    "MMD(target, Riesz(1.0))",
    "SinkhornDivergence(target, blur=0.05)",
    "Wasserstein(target)",
    "SlicedWasserstein(target)",
    "Chamfer(target)",
    "Entropy(0.2)",
    "KSD(score, IMQ(1.0))",
)
SLICED = "SlicedWasserstein(target)"


def gradient(value: Value, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    (found,) = torch.autograd.grad(value(x), x)
    return found


def call(name: str, way: str, n: int) -> Callable[[], Tensor]:
    """For processes in which memory is measured."""
    x, y = clouds(n)
    value = ways(name, y)[way]
    return lambda: gradient(value, x)


def megabytes(name: str, way: str, n: int) -> float:
    prepare = f"import functionals as f; f.call({name!r}, {way!r}, 64)(); call = f.call({name!r}, {way!r}, {n})"
    return added_megabytes(prepare, "call()")


def measure(name: str, n: int, repeats: int, limit: float) -> list[dict[str, Any]]:
    """A row for each way; those that take longer than ``limit`` seconds are called once."""
    x, y = clouds(n)
    truth = gradient(ways(name, y.double())[OURS], x.double())
    made = ways(name, y)
    found: dict[str, Tensor] = {}
    laps: dict[str, list[float]] = {way: [] for way in made}
    for way, value in made.items():  # compiles what is to be compiled
        found[way] = gradient(value, x)
    for _ in range(repeats):
        for way, value in made.items():
            if laps[way] and max(laps[way]) > limit:
                continue
            start = time.perf_counter()
            gradient(value, x)
            laps[way].append(time.perf_counter() - start)
    rows = []
    for way in made:
        error = float((found[way].double() - truth).abs().max() / truth.abs().max())
        rows.append(
            {
                "functional": name,
                "atoms": n,
                "way": way,
                "seconds": statistics.median(laps[way]),
                "least": min(laps[way]),
                "most": max(laps[way]),
                "times ours": statistics.median(laps[way]) / statistics.median(laps[OURS]),
                "megabytes": megabytes(name, way, n),
                "error": error,
            }
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[500, 2000])
    parser.add_argument("--sliced", type=int, default=100_000, help="atoms for SlicedWasserstein (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit", type=float, default=10.0, help="what takes more seconds is timed once (%(default)s)")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES), metavar="NAME")
    add_output(parser)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module="ot")
    rows = []
    for name in options.only:
        for n in [options.sliced] if name == SLICED else options.sizes:
            rows += measure(name, n, options.repeats, options.limit)
    command = " ".join(["python benchmarks/functionals.py", *without_output(sys.argv[1:])])
    lines = ["# Functionals", "", *(__doc__ or "").strip().splitlines()[4:], ""]
    lines += ["| functional | atoms of each | way | seconds (smallest to largest) | times as long as ours | peak MB | error |"]
    lines += ["|---|---|---|---|---|---|---|"]
    before = None
    for r in rows:
        here, before = ("" if (r["functional"], r["atoms"]) == before else f"`{r['functional']}`"), (r["functional"], r["atoms"])
        lines.append(
            f"| {here} | {r['atoms']:,} | {r['way']} | {r['seconds']:.3g} ({r['least']:.3g} to {r['most']:.3g}) | "
            f"{r['times ours']:.2g} | {r['megabytes']:.0f} | {r['error']:.0e} |"
        )
    lines += ["", f"Made by `{command}` on {machine()}.", ""]
    keep(options.output, "functionals", "\n".join(lines), {"command": command, "where": machine(), "rows": rows})


if __name__ == "__main__":
    main()
