"""What several processes do together, each case against one process; run by ``torchrun`` from tests/reductions/test_sharded.py.

A case takes ``shard``, which is the identity or spreads a measure over the ranks, and returns tensors. The first rank prints
the name of each case and how far both ways are apart, as lines of JSON.
"""

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

import ddeq
from ddeq import reductions
from ddeq.flows import (
    LBFGS,
    AdaptiveEuler,
    Euler,
    FisherRao,
    Heun,
    Langevin,
    Nesterov,
    NoiseInjection,
    Optimizer,
    Proximal,
    Stein,
)
from ddeq.functionals import (
    KSD,
    MMD,
    Chamfer,
    Entropy,
    InteractionEnergy,
    InternalEnergy,
    KLDivergence,
    PotentialEnergy,
    SinkhornDivergence,
    SlicedMMD,
    SlicedWasserstein,
    Wasserstein,
)
from ddeq.iteration import Stop
from ddeq.kernels import Gaussian
from ddeq.ranks import gathered

GENERATOR = torch.Generator().manual_seed(0)


def measure(n, *batch, dim=2):
    points = torch.randn(*batch, n, dim, dtype=torch.float64, generator=GENERATOR)
    return ddeq.DiscreteMeasure(points, torch.rand(*batch, n, dtype=torch.float64, generator=GENERATOR)).normalized()


MU, NU, MANY, TARGETS = measure(13), measure(10), measure(7, 3), measure(5, 3)
BANDWIDTH = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
CONFINEMENT = PotentialEnergy(lambda x: x.square().sum(-1))


def derivatives(functional, mu, *parameters):
    """Value, gradient in points, weights and parameters, and the gradient of its square in L2(mu)."""
    points, weights = mu.points.detach().requires_grad_(), mu.weights.detach().requires_grad_()
    value = functional(mu.with_points(points).with_weights(weights)).sum()
    inputs = [points, weights, *parameters]
    first = torch.autograd.grad(value, inputs, create_graph=True, materialize_grads=True)
    along_points, along_weights, *along_parameters = first
    square = (mu.weights * (along_points.square().sum(-1) + along_weights.square())).sum()
    square = square + sum(t.square() for t in along_parameters)
    second = torch.autograd.grad(square, inputs, materialize_grads=True) if square.requires_grad else ()
    return value, *first, *second


def gradient_field(functional, mu):
    """Closed forms, as flows call them: no graph is recorded, and the atoms travel in a ring."""
    with torch.no_grad():
        found = functional(mu), functional.wasserstein_gradient(mu)
        return found if isinstance(functional, Chamfer) else (*found, functional.first_variation(mu))  # it has none


FUNCTIONALS = {
    "MMD, its bandwidth a parameter": (lambda shard: MMD(shard(NU), Gaussian(BANDWIDTH)), (BANDWIDTH,)),
    "MMD of Riesz": (lambda shard: MMD(shard(NU)), ()),
    "MMD, its target whole": (lambda shard: MMD(NU), ()),
    "PotentialEnergy": (lambda shard: CONFINEMENT, ()),
    "InteractionEnergy": (lambda shard: InteractionEnergy(lambda z: z.square().sum(-1).cos()), ()),
    "Entropy": (lambda shard: Entropy(0.3), ()),
    "KLDivergence": (lambda shard: KLDivergence(lambda x: -0.5 * x.square().sum(-1), 0.3), ()),
    "InternalEnergy": (lambda shard: InternalEnergy(lambda rho: rho.square(), 0.3), ()),
    "SlicedMMD": (lambda shard: SlicedMMD(shard(NU), n_projections=5), ()),
    "SlicedMMD, fewer directions than ranks": (lambda shard: SlicedMMD(shard(NU), n_projections=1), ()),
    "SlicedWasserstein": (lambda shard: SlicedWasserstein(shard(NU), n_projections=5), ()),
    "SinkhornDivergence": (lambda shard: SinkhornDivergence(shard(NU), blur=0.3), ()),
    "Chamfer": (lambda shard: Chamfer(shard(NU)), ()),
    "KSD": (lambda shard: KSD(lambda x: -x, Gaussian(1.0)), ()),
    "sum": (lambda shard: MMD(shard(NU)) + 0.1 * Entropy(0.3), ()),
}
EVEN = measure(12)  # no atom is added to it: what is drawn for each atom is then the same
FLOWS = {
    "Euler": {"stepper": Euler(step_size=0.1), "steps": 20},
    "Heun": {"stepper": Heun(step_size=0.1), "steps": 10},
    "Nesterov": {"stepper": Nesterov(step_size=0.1), "steps": 10},
    "Optimizer": {"stepper": Optimizer(torch.optim.Adam, lr=0.1), "steps": 6},
    "AdaptiveEuler": {"stepper": AdaptiveEuler(), "stop": Stop(rtol=1e-2, max_steps=20)},
    "LBFGS": {"stepper": LBFGS(), "steps": 6},
    "Proximal": {"stepper": Proximal(step_size=0.1), "steps": 2},
    "Langevin": {"steps": 5, "noise": Langevin(0.1)},
    "NoiseInjection": {"steps": 5, "noise": NoiseInjection(0.1)},
    "Stein": {"steps": 5, "geometry": Stein(Gaussian(1.0))},
    "FisherRao": {"steps": 5, "reaction": FisherRao(1.0)},
}


def flowed(shard, mu, target, options):
    if "noise" in options:
        options = options | {"generator": torch.Generator().manual_seed(3)}
    functional = CONFINEMENT if isinstance(options.get("geometry"), Stein) else MMD(shard(target))
    trajectory = ddeq.flow(functional, shard(mu), record=5, **options)
    return trajectory.measures.points, trajectory.measure.weights, trajectory.energies, trajectory.times, trajectory.status


def remembered(shard):
    """A flow whose inner problems start from their last solutions."""
    trajectory = ddeq.flow(SinkhornDivergence(shard(NU), blur=0.3), shard(MU), steps=4, record=2)
    return trajectory.measures.points, trajectory.energies


def resumed(shard, folder):
    """Five steps, a file, and five more from it."""
    options = {"stepper": Nesterov(step_size=0.1), "noise": NoiseInjection(0.1), "record": 5}
    generator = torch.Generator().manual_seed(1)
    first = ddeq.flow(MMD(shard(NU)), shard(EVEN), steps=5, generator=generator, **options)
    first.save(folder / "flow.safetensors")
    if dist.is_initialized():
        dist.barrier()
    loaded = ddeq.flows.Trajectory.load(folder / "flow.safetensors")
    loaded = replace(loaded, measures=shard(loaded.measures))
    return (ddeq.flow(MMD(shard(NU)), loaded, steps=5, **options).measures.points,)


def local(shard):
    x, mu = shard(NU).points, shard(MU)
    return (
        reductions.local_moments(x, mu, [0.3, 1.0]),
        reductions.local_operators(x, mu, 0.5, order=1),
        reductions.nearest_squared_distance(x, mu),
        reductions.nearest_squared_distance(NU.points, mu),
        reductions.integrate_kernel(Gaussian(1.0), x, MU),
        reductions.integrate_kernel(Gaussian(1.0), NU.points, mu),
        reductions.integrate_kernel(Gaussian(1.0), x, mu, mu.points),
        reductions.integrate_kernel_gradient(Gaussian(1.0), NU.points, mu),
        reductions.log_integrate_kernel(Gaussian(0.1), x, mu),
        reductions.log_integrate_kernel(Gaussian(0.1), NU.points, mu),
        reductions.log_integrate_kernel(Gaussian(0.1), x, MU, MU.weights),
        *reductions.kernel_average(Gaussian(0.1), x, mu, mu.points),
    )


def cases(folder):
    for name, (make, parameters) in FUNCTIONALS.items():
        yield name, lambda s, make=make, parameters=parameters: derivatives(make(s), s(MU), *parameters)
        yield f"{name}: closed forms", lambda s, make=make: gradient_field(make(s), s(MU))
    yield "MMD of a batch", lambda s: derivatives(MMD(s(TARGETS), Gaussian(1.0)), s(MANY))
    for name, options in FLOWS.items():
        yield f"flow: {name}", lambda s, options=options: flowed(s, EVEN if "noise" in options else MU, NU, options)
    yield "flow: batch", lambda s: flowed(s, MANY, TARGETS, {"stepper": AdaptiveEuler(), "stop": Stop(rtol=0.1, max_steps=5)})
    yield "flow: Sinkhorn potentials that are remembered", remembered
    yield "flow: resumed", lambda s: resumed(s, folder)
    yield "points and measures of both kinds", local


def fits(a, b):
    """``b`` without the atoms of mass zero that `shard` added, beside ``a``."""
    return b[tuple(slice(0, n) for n in a.shape)]


def errors(mesh):
    """Bad input, and what the message says."""
    mu, part = reductions.shard(MU, mesh), MU if mesh.get_rank() else NU
    for name, call in {
        "Wasserstein": lambda: Wasserstein(mu)(mu),
        "fixed_point": lambda: ddeq.fixed_point(lambda m: m.push_forward(torch.sin), mu),
        "equilibrium": lambda: ddeq.flows.equilibrium(CONFINEMENT, mu),
        "mesh": lambda: reductions.shard(MU, init_device_mesh("cpu", (1, mesh.size()))),
        "join_shards": lambda: reductions.join_shards(part, mesh),
    }.items():
        try:
            call()
            yield {"error": name, "message": None}
        except ValueError as error:
            yield {"error": name, "message": str(error)}


def main():
    mesh = init_device_mesh("cpu", (int(sys.argv[1]),))
    folders = [tempfile.mkdtemp() if mesh.get_rank() == 0 else None]
    dist.broadcast_object_list(folders)

    def say(line):
        if mesh.get_rank() == 0:
            print(json.dumps(line), flush=True)

    for name, case in cases(Path(folders[0])):
        alone, together = case(lambda mu: mu), case(lambda mu: reductions.shard(mu, mesh))
        pairs = [(a, fits(a, gathered(b))) for a, b in zip(alone, together, strict=True)]
        say({"case": name, "apart": [float((a - b).detach().abs().max() / (1.0 + a.detach().abs().max())) for a, b in pairs]})
    joined = reductions.gather(
        reductions.join_shards(measure(4).with_points(torch.full((4, 2), float(mesh.get_rank()), dtype=torch.float64)), mesh)
    )
    say({"joined": joined.points[:, 0].tolist()})
    for line in errors(mesh):
        say(line)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
