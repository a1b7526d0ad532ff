"""Does a trained model have one equilibrium? Solved from many random starts: the spread of its predictions.

Two classifiers of scikit-learn's digits that differ in the cell alone are trained and then solved, for every test digit, from
``--starts`` Gaussian starts. The spread of a digit is the largest difference between two of its predicted probabilities, over
classes and over those starts whose status is CONVERGED.

    python benchmarks/starts.py [--epochs 20] [--starts 20]
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from common import add_output, keep, machine
from torch import Tensor, nn

from ddeq import fixed_point
from ddeq.data import MeasureDataset, RandomAffine, load_digits
from ddeq.nn import DDEQ, Classifier, ContractiveCell, EquilibriumCell, InducedSetEncoder, LearnedReference, spectral_radius
from ddeq.solvers import Stop

WIDTH, ATOMS, MARKS = 64, 8, 8
TOLERANCE = Stop(rtol=1e-5, max_steps=200)


def build(cell: type[nn.Module], seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    encoder = InducedSetEncoder(2, WIDTH)
    return Classifier(DDEQ(encoder, cell(WIDTH, MARKS), LearnedReference(ATOMS, WIDTH, MARKS)), 10)


def train(classifier: Classifier, data: MeasureDataset, epochs: int, penalty: float, seed: int = 0) -> float:
    """AdamW with one cycle of the learning rate; the penalty is on the direction in which the cell contracts least."""
    g = torch.Generator().manual_seed(seed)
    batches, augment = data.loader(64, shuffle=True, generator=g), RandomAffine(12.0, 0.12, 0.12, 0.12)
    optimizer = torch.optim.AdamW(classifier.parameters(), 3e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * len(batches), pct_start=0.15)
    start = time.perf_counter()
    for _ in range(epochs):
        for rho, labels in batches:
            loss = nn.functional.cross_entropy(classifier(augment(rho, g), generator=g), labels, label_smoothing=0.1)
            if penalty:
                loss = loss + penalty * classifier.model.penalty(classifier.solution, steps=2, target=0.5, generator=g).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(classifier.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return time.perf_counter() - start


@torch.no_grad()
def predictions(classifier: Classifier, data: MeasureDataset, starts: int, seed: int = 0) -> dict[str, Tensor]:
    """From each start: probabilities ``(starts, N, classes)``, which solves converged, steps; and what the cells are like."""
    model, g = classifier.eval().model, torch.Generator().manual_seed(seed)
    rho, labels = data.batch(range(len(data)))
    solution = model(rho)
    found: dict[str, list[Tensor]] = {"probabilities": [], "converged": [], "steps": []}
    for _ in range(starts):
        points = torch.randn(solution.measure.points.shape, generator=g)
        again = fixed_point(
            model.cell, solution.measure.with_points(points), *solution.args, in_dims=0, solver=model.solver, stop=TOLERANCE
        )
        found["converged"].append(again.converged)
        found["steps"].append(again.steps)
        atoms = torch.cat([again.measure.points, again.measure.marks], -1)
        found["probabilities"].append(classifier.scores(classifier.pool(classifier.features(atoms), again.measure)).softmax(-1))
    stacked = {name: torch.stack(parts) for name, parts in found.items()}
    radius = spectral_radius(model.cell, again.measure, *solution.args)
    return stacked | {"labels": labels, "radius": radius}


def spread(found: dict[str, Tensor]) -> Tensor:
    """Largest difference between two predictions of a sample, among its solves that converged, ``(N,)``."""
    among = found["converged"].unsqueeze(-1)
    p = found["probabilities"]
    high, low = torch.where(among, p, -torch.inf).amax(0), torch.where(among, p, torch.inf).amin(0)
    return (high - low).clamp_min(0.0).amax(-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--starts", type=int, default=20)
    add_output(parser)
    options = parser.parse_args()
    training, test = load_digits("train"), load_digits("test")
    rows: list[dict[str, Any]] = []
    for name, cell, penalty in (
        ("EquilibriumCell, penalty 1", EquilibriumCell, 1.0),
        ("EquilibriumCell, no penalty", EquilibriumCell, 0.0),
        ("ContractiveCell, no penalty", ContractiveCell, 0.0),
    ):
        classifier = build(cell)
        seconds = train(classifier, training, options.epochs, penalty)
        found = predictions(classifier, test, options.starts)
        apart = spread(found)
        correct = (found["probabilities"].argmax(-1) == found["labels"]).float().mean()
        certificate = getattr(classifier.model.cell, "certificate", None)
        rows.append(
            {
                "cell": name,
                "parameters": sum(p.numel() for p in classifier.parameters()),
                "seconds of training": f"{seconds:.0f}",
                "test accuracy": f"{100 * float(correct):.1f} %",
                "solves that converged": f"{100 * float(found['converged'].float().mean()):.2f} %",
                "mean steps": f"{float(found['steps'].float().mean()):.1f}",
                "largest spread where CONVERGED": f"{float(apart.max()):.1e}",
                "digits with a spread over 1e-3": int((apart > 1e-3).sum()),
                "largest spectral radius": f"{float(found['radius'].max()):.2f}",
                "certificate": "none" if certificate is None else f"{certificate:.2f}",
            }
        )
        print(rows[-1], flush=True)
    command = f"python benchmarks/starts.py --epochs {options.epochs} --starts {options.starts}"
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    lines += ["| " + " | ".join(str(v) for v in r.values()) + " |" for r in rows]
    intro = f"{len(test)} test digits, {options.starts} Gaussian starts each, relative tolerance {TOLERANCE.rtol:g}."
    text = "\n".join(["# Many starts", "", intro, "", *lines, "", f"Made by `{command}` on {machine()}.", ""])
    keep(options.output, "starts", text, {"command": command, "where": machine(), "rows": rows})


if __name__ == "__main__":
    main()
