"""All that the library computes, on a device that raises where a GPU would, equals what it computes on the CPU."""

import everywhere
import pretend
import pytest
import torch
from everywhere import Place
from torch.utils._pytree import tree_leaves

from ddeq import flow
from ddeq.data import MeasureDataset, RandomAffine, RemoveDiscs, normalize
from ddeq.flows import Nesterov, Trajectory
from ddeq.functionals import MMD, SlicedWasserstein
from ddeq.kernels import Gaussian
from ddeq.nn import load_pretrained
from ddeq.testing import assert_close

pytestmark = pytest.mark.xdist_group("devices")
CPU, DEVICE = Place(torch.float64), Place(torch.float64, pretend.NAME)


@pytest.mark.parametrize("name", everywhere.RUNS)
def test_results_are_those_of_the_cpu(name):
    wanted, found = (tree_leaves(everywhere.RUNS[name](place)) for place in (CPU, DEVICE))
    for a, b in zip(wanted, found, strict=True):
        assert b.device.type == pretend.NAME
        assert a.dtype == b.dtype
        torch.testing.assert_close(b.detach().cpu(), a.detach(), rtol=1e-6, atol=1e-8)


def test_second_derivatives_of_sliced_transport_at_tied_levels():
    """Both measures have the same cumulative masses: a sort that is not stable pairs the wrong levels."""

    def curvature(place):
        weights = place.put(torch.full((4,), 0.25)).requires_grad_()
        F = SlicedWasserstein(place.cloud(4, seed=3).with_weights(place.put(torch.full((4,), 0.25))), n_projections=5)
        (slope,) = torch.autograd.grad(F(place.cloud(4).with_weights(weights)), weights, create_graph=True)
        return torch.autograd.grad((slope * place.normal(4, seed=6)).sum(), weights)[0]

    assert_close(curvature(DEVICE).cpu(), curvature(CPU))


@pytest.mark.parametrize("name", ["mnist_pc", "modelnet40"])
def test_shipped_classifiers(name):
    dim = 2 if name == "mnist_pc" else 3
    logits = []
    for device in ("cpu", pretend.NAME):
        place = Place(torch.float32, device)
        with torch.no_grad():
            logits.append(load_pretrained(name).to(device)(normalize(place.cloud(40, dim, batch=(2,)))).cpu())
    assert_close(logits[1], logits[0], rtol=1e-3)


@pytest.mark.parametrize("stored", [False, True], ids=["moved", "from a file"])
def test_a_flow_goes_on_on_a_device(stored, tmp_path):
    options = {"stepper": Nesterov(0.1), "record": 1}
    first = flow(MMD(CPU.cloud(4, seed=3), Gaussian(1.0)), CPU.cloud(5, batch=(2,)), steps=3, **options)
    first.save(tmp_path / "flow.safetensors")
    moved = Trajectory.load(tmp_path / "flow.safetensors", pretend.NAME) if stored else first.to(pretend.NAME)
    both = flow(MMD(DEVICE.cloud(4, seed=3), Gaussian(1.0)), moved, steps=3, **options)
    whole = flow(MMD(CPU.cloud(4, seed=3), Gaussian(1.0)), CPU.cloud(5, batch=(2,)), steps=6, **options)
    assert_close(both.measures.points.cpu(), whole.measures.points)
    assert_close(both.to("cpu").energies, whole.energies)


def test_data_sets():
    def results(place):
        points, offsets = place.normal(9, 2), torch.tensor([0, 4, 6, 9], device=place.device)
        data = MeasureDataset(points, place.put(torch.ones(9)), offsets, torch.tensor([0, 1, 0], device=place.device), ["a", "b"])
        some = data.subset([2, 0])
        batches = [*some.loader(2), *data.loader(2, bucket=True), data.batch(torch.tensor([True, False, True]))]
        g = torch.Generator().manual_seed(0)
        rho = batches[0][0].normalized()
        return batches, RandomAffine(degrees=20.0)(rho, g), *RemoveDiscs(1, 0.5)(rho, g)

    for a, b in zip(tree_leaves(results(CPU)), tree_leaves(results(DEVICE)), strict=True):
        assert b.device.type == pretend.NAME
        assert_close(b.cpu().double(), a.double())


@pytest.mark.unchecked
def test_data_sets_on_two_devices_are_refused():
    points = DEVICE.normal(4, 2)
    with pytest.raises(ValueError, match=r"offsets: expected a tensor on pretend:0"):
        MeasureDataset(points, DEVICE.put(torch.ones(4)), torch.tensor([0, 4]), torch.tensor([0]), ["a"])
