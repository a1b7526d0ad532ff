"""Pictures: what is drawn is what was given."""

import pytest
import torch

from ddeq import DiscreteMeasure, flow
from ddeq.flows import Euler
from ddeq.functionals import PotentialEnergy

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

from matplotlib import pyplot as plt  # noqa: E402

from ddeq import viz  # noqa: E402


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


MU = DiscreteMeasure(torch.randn(4, 2), torch.tensor([1.0, 2.0, 0.0, 1.0]))
QUADRATIC = PotentialEnergy(lambda x: 0.5 * x.square().sum(-1))


def test_areas_are_masses():
    drawn = viz.plot_measure(MU, area=100.0).collections[0]
    assert drawn.get_sizes().tolist() == pytest.approx([25.0, 50.0, 0.0, 25.0])
    assert torch.allclose(torch.as_tensor(drawn.get_offsets()).float(), MU.points)


@pytest.mark.parametrize(("steps", "frames", "panels"), [(20, 6, 6), (0, 6, 1), (3, 1, 1)])
def test_trajectories(steps, frames, panels):
    trajectory = flow(QUADRATIC, MU, stepper=Euler(0.1), steps=steps)
    figure = viz.plot_trajectory(trajectory, MU, frames=frames)
    assert len(figure.axes) == panels
    assert figure.axes[0].get_title() == "t = 0"


def test_energies():
    trajectory = flow(QUADRATIC, MU, steps=5)
    ax = viz.plot_energy(trajectory)
    assert ax.lines[0].get_ydata().tolist() == pytest.approx(trajectory.energies.tolist())
    assert ax.get_yscale() == "log"


def test_convergence_shows_the_largest_residual_of_a_batch():
    ax = viz.plot_convergence({"a": torch.tensor([[1.0, 0.5], [0.1, torch.nan]]), "b": torch.tensor([1.0, 0.2])}, tolerance=1e-2)
    assert ax.lines[0].get_ydata().tolist() == pytest.approx([1.0, 0.1])
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["a", "b"]


def test_planes_keep_the_variance():
    mu = DiscreteMeasure(torch.randn(6, 5) * torch.tensor([3.0, 2.0, 0.0, 0.0, 0.0]))
    ax = viz.plot_plane(mu)
    assert "100%" in ax.get_title()
    spread = torch.as_tensor(ax.collections[0].get_offsets()).float().square().mean(0).sum()
    assert spread.item() == pytest.approx(mu.covariance().trace().item(), rel=1e-4)


def test_attention():
    shares = torch.full((2, 3, 4), 0.25)
    figure = viz.plot_attention(MU, shares, equilibrium=DiscreteMeasure(torch.randn(3, 5)))
    assert len(figure.axes) == 2 * 3 + 1 + 1  # panels, colour bar, equilibrium


@pytest.mark.unchecked
def test_bad_input():
    for mu in (DiscreteMeasure(torch.zeros(3, 3)), DiscreteMeasure(torch.zeros(2, 3, 2))):
        with pytest.raises(ValueError, match=r"mu: .*dimension 2"):
            viz.plot_measure(mu)
