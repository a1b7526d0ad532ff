"""Whole numbers of NumPy and PyTorch are options like Python's; truth values and fractions are none."""

import numpy as np
import pytest
import torch

from ddeq import DiscreteMeasure, flow
from ddeq.flows import LBFGS
from ddeq.functionals import SlicedMMD, SlicedWasserstein, Wasserstein
from ddeq.integers import is_whole, whole
from ddeq.iteration import Anderson, Auto, Broyden, NewtonKrylov, Phantom, Stop, Unrolled
from ddeq.kernels import Gaussian, Polynomial
from ddeq.nn import GaussianReference, LearnedReference
from ddeq.reductions import block_size

pytestmark = pytest.mark.unchecked
MU = DiscreteMeasure(torch.randn(4, 2))
F = Wasserstein(MU)
OPTIONS = {
    "max_steps": (lambda n: Stop(max_steps=n).max_steps, "max_steps: "),
    "check_every": (lambda n: Stop(check_every=n).check_every, "check_every: "),
    "patience": (lambda n: Stop(patience=n).patience, "patience: "),
    "Anderson": (lambda n: Anderson(memory=n).memory, "memory: "),
    "Broyden": (lambda n: Broyden(memory=n).memory, "memory: "),
    "NewtonKrylov": (lambda n: NewtonKrylov(products=n).products, "products: "),
    "Auto": (lambda n: Auto(patience=n).patience, "patience: "),
    "LBFGS": (lambda n: LBFGS(n).memory, "memory: "),
    "Phantom": (lambda n: Phantom(n).steps, "steps: "),
    "Unrolled": (lambda n: Unrolled(n).steps, "steps: "),
    "Wasserstein": (lambda n: Wasserstein(MU, max_steps=n).max_steps, "max_steps: "),
    "SlicedWasserstein": (lambda n: len(SlicedWasserstein(MU, n_projections=n).directions), "n_projections: "),
    "SlicedMMD": (lambda n: len(SlicedMMD(MU, n_projections=n).directions), "n_projections: "),
    "Polynomial": (lambda n: Polynomial(n).degree, "degree: "),
    "LearnedReference": (lambda n: LearnedReference(n, 2, 1).n, "n: "),
    "GaussianReference": (lambda n: GaussianReference(2, 1, n).n, "n: "),
    "resample": (lambda n: MU.resample(n).n, "n: "),
    "pad_atoms": (lambda n: MU.pad_atoms(n).n - 4, "k: "),
    "steps": (lambda n: int(flow(F, MU, steps=n).steps), "steps: "),
    "record": (lambda n: 15 // (len(flow(F, MU, steps=15, record=n).times) - 1), "record: "),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options(name):
    made, message = OPTIONS[name]
    for number in (5, np.int64(5), np.uint8(5), torch.tensor(5)):
        found = made(number)
        assert found == 5
        assert type(found) is int
    for wrong in (True, np.bool_(True), torch.tensor(True), 5.0, np.float64(5.0), "5", torch.tensor([[5, 5]]), -1):
        with pytest.raises(ValueError, match=message):
            made(wrong)


def test_steps_to_record():
    times = flow(F, MU, steps=10, record=np.array([3, 4])).times
    assert times.tolist() == pytest.approx([0.0, 0.3, 0.4, 1.0])
    with pytest.raises(ValueError, match="record: "):
        flow(F, MU, steps=10, record=[True])


def test_numbers_of_numpy_multiply():
    assert (np.float32(2.0) * F).factor == 2.0
    assert (np.int64(2) * Gaussian(1.0)).factor == 2.0
    assert (F * np.float64(0.5)).factor == 0.5


def test_the_helper():
    with block_size(np.int64(64)):
        pass
    assert whole("n", np.int32(0), 0) == 0
    assert not is_whole(None)
    with pytest.raises(ValueError, match="n: expected a number of atoms >= 1, got 0"):
        whole("n", 0, what="number of atoms")
