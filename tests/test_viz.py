"""Pictures: what is drawn is what was given."""

import math
import re

import pytest
import torch

from ddeq import DiscreteMeasure, flow
from ddeq.flows import Euler, Trajectory
from ddeq.functionals import PotentialEnergy

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.animation import FuncAnimation  # noqa: E402
from matplotlib.colors import to_hex, to_rgb  # noqa: E402
from PIL import Image  # noqa: E402

from ddeq import viz  # noqa: E402


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


MU = DiscreteMeasure(torch.tensor([[0.0, 0.0], [1.0, 2.0], [9.0, 9.0], [3.0, 1.0]]), torch.tensor([1.0, 2.0, 0.0, 1.0]))
QUADRATIC = PotentialEnergy(lambda x: 0.5 * x.square().sum(-1))


def places(collection):
    """Places of discs, in space too."""
    if hasattr(collection, "_offsets3d"):
        return torch.stack([torch.as_tensor(c) for c in collection._offsets3d], -1).float()
    return torch.as_tensor(collection.get_offsets()).float()


def drawn(ax, color=None):
    """The discs of a colour, as a set of places with their areas."""
    found = [c for c in ax.collections if len(c.get_sizes()) if color is None or to_hex(c.get_facecolor()[0]) == color]
    assert len(found) == 1
    return {tuple(round(v, 4) for v in p): s for p, s in zip(places(found[0]).tolist(), sizes(found[0]), strict=True)}


def sizes(collection):
    """Areas of discs, in the order of their places; space sorts them by depth when it draws."""
    return getattr(collection, "_sizes3d", collection.get_sizes()).tolist()


def show(animation, frame):
    """Draw one frame."""
    animation._draw_was_started = True  # else matplotlib warns when it is deleted
    animation._draw_frame(frame)


def trajectory(dim=2, records=5, batch=(), n=3, weights=None, times=None, energies=None):
    """Atoms that move at constant speed."""
    points = torch.randn(*batch, n, dim) + torch.linspace(0, 1, records).reshape(records, *[1] * (len(batch) + 2))
    weights = torch.full((records, *batch, n), 1 / n) if weights is None else weights
    times = torch.arange(float(records)) if times is None else times
    energies = (
        torch.logspace(0, -3, records).reshape(-1, *[1] * len(batch)).expand(records, *batch) if energies is None else energies
    )
    ended = torch.zeros(batch, dtype=torch.long)
    return Trajectory(DiscreteMeasure(points, weights), times, energies, ended, ended, 10.0 * energies)


class TestMeasures:
    @pytest.mark.parametrize("dim", [1, 2, 3])
    def test_areas_are_masses_and_dead_atoms_are_not_seen(self, dim):
        mu = MU.with_points(torch.cat([MU.points, MU.points[:, :1] + 1.0], -1)[:, :dim])
        ax = viz.plot_measure(mu, area=100.0)
        on_line = [0.0] if dim == 1 else []
        wanted = {(*mu.points[i].tolist(), *on_line): 100.0 * share for i, share in ((0, 0.25), (1, 0.5), (3, 0.25))}
        assert drawn(ax) == pytest.approx(wanted)

    @pytest.mark.theorem("T1")
    @pytest.mark.parametrize("dim", [1, 2, 3])
    def test_a_picture_is_one_of_the_measure(self, dim):
        mu = DiscreteMeasure(torch.randn(6, dim), torch.rand(6))
        far = mu.pad_atoms(1)
        far = far.with_points(torch.cat([mu.points, torch.full((1, dim), 1e3)]))
        wanted = viz.plot_measure(mu)
        for same in (mu.permute_atoms(torch.randperm(6)), mu.split_atom(2, 0.3), mu.pad_atoms(2), far):
            ax = viz.plot_measure(same)
            assert drawn(ax).keys() == drawn(wanted).keys()
            assert drawn(ax) == pytest.approx(drawn(wanted), rel=1e-5)
            assert ax.get_xlim() == pytest.approx(wanted.get_xlim())

    def test_colors_stay_with_their_atoms(self):
        values = torch.tensor([0.1, 0.2, 0.3, 0.4])
        collection = viz.plot_measure(MU, color=values, cmap="cividis").collections[0]
        found = {tuple(p): v for p, v in zip(places(collection).tolist(), collection.get_array().tolist(), strict=True)}
        assert found == pytest.approx({(0.0, 0.0): 0.1, (1.0, 2.0): 0.2, (3.0, 1.0): 0.4})

    @pytest.mark.parametrize("n", [10, 2000])
    def test_many_discs_are_small_faint_and_stored_as_pixels(self, n):
        collection = viz.plot_measure(DiscreteMeasure(torch.randn(n, 2))).collections[0]
        assert collection.get_rasterized() == (n > 1000)
        diameter = math.sqrt(collection.get_sizes()[0])
        assert (6 < diameter < 12) if n == 10 else (1 < diameter < 4)
        assert (collection.get_alpha() < 0.8) == (n > 1000)

    def test_options_win(self):
        collection = viz.plot_measure(MU, alpha=0.25, rasterized=True, color="#ff0000").collections[0]
        assert collection.get_alpha() == 0.25
        assert collection.get_rasterized()
        assert collection.get_facecolor()[0, :3].tolist() == list(to_rgb("#ff0000"))

    def test_density_on_a_line(self):
        mu = DiscreteMeasure(torch.tensor([[-1.0], [2.0]]), torch.tensor([1.0, 3.0]))
        ax = viz.plot_measure(mu, bandwidth=0.2)
        outline = torch.as_tensor(ax.collections[1].get_paths()[0].vertices)
        places, heights = outline[outline[:, 1] > 0].T
        wanted = sum(w * torch.distributions.Normal(x, 0.2).log_prob(places).exp() for x, w in ((-1.0, 0.25), (2.0, 0.75)))
        assert torch.allclose(heights, wanted, atol=0.02)
        assert not ax.spines["left"].get_visible()
        assert len(viz.plot_measure(mu, bandwidth=0.0).collections) == 1
        assert len(viz.plot_measure(DiscreteMeasure(torch.ones(3, 1))).collections) == 1  # no width, no density

    def test_a_second_density_has_room(self):
        ax = viz.plot_measure(DiscreteMeasure(torch.randn(20, 1)))
        low = ax.get_ylim()[1]
        viz.plot_measure(DiscreteMeasure(0.01 * torch.randn(20, 1)), ax)
        assert ax.get_ylim()[1] > 10 * low
        assert ax.get_ylim()[0] == 0.0

    def test_space_has_one_scale_and_the_view_asked_for(self):
        ax = viz.plot_measure(DiscreteMeasure(torch.randn(50, 3) * torch.tensor([5.0, 1.0, 0.1])), view=(35.0, 10.0), up="y")
        sides = [high - low for low, high in (ax.get_xlim(), ax.get_ylim(), ax.get_zlim())]
        assert sides == pytest.approx([sides[0]] * 3)
        assert (ax.elev, ax.azim) == (35.0, 10.0)
        assert not ax.axison
        assert ax.collections[0]._depthshade

    def test_space_has_room_for_what_was_drawn_before(self):
        near, far = DiscreteMeasure(torch.randn(20, 3)), DiscreteMeasure(torch.randn(20, 3) + 50.0)
        ax = viz.plot_measure(near, viz.plot_measure(far))
        assert ax.get_xlim()[1] > 50.0
        assert ax.get_xlim()[0] < 0.0

    def test_nothing_leaves_the_panel_when_the_view_turns(self):
        from mpl_toolkits.mplot3d import proj3d

        mu = DiscreteMeasure(torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3))  # corners: farther than the sides
        ax = viz.plot_measure(mu)
        for azimuth in range(0, 360, 60):
            ax.view_init(elev=30.0, azim=azimuth)
            ax.figure.canvas.draw()
            x, y, _ = proj3d.proj_transform(*mu.points.numpy().T, ax.get_proj())
            seen = ax.transAxes.inverted().transform(ax.transData.transform(list(zip(x, y, strict=True))))
            assert seen.min() > 0.0
            assert seen.max() < 1.0

    def test_planes_keep_the_variance(self):
        mu = DiscreteMeasure(torch.randn(6, 5) * torch.tensor([3.0, 2.0, 0.0, 0.0, 0.0]))
        ax = viz.plot_plane(mu)
        assert "100%" in ax.get_title()
        spread = places(ax.collections[0]).square().mean(0).sum()
        assert spread.item() == pytest.approx(mu.covariance().trace().item(), rel=1e-4)

    @pytest.mark.unchecked
    def test_bad_input(self):
        space = plt.figure().add_subplot(projection="3d")
        for call, message in (
            (lambda: viz.plot_measure(DiscreteMeasure(torch.zeros(3, 4))), r"mu: .*plot_plane"),
            (lambda: viz.plot_measure(DiscreteMeasure(torch.zeros(2, 3, 2))), r"mu: .*take mu\[i\]"),
            (lambda: viz.plot_plane(DiscreteMeasure(torch.zeros(2, 3, 5))), r"mu: .*take mu\[i\]"),
            (lambda: viz.plot_plane(DiscreteMeasure(torch.zeros(3, 1))), r"mu: .*plot_measure"),
            (lambda: viz.plot_measure(MU, space), r"ax: .*without projection"),
            (lambda: viz.plot_measure(DiscreteMeasure(torch.zeros(3, 3)), plt.figure().add_subplot()), r"ax: .*'3d'"),
            (lambda: viz.plot_measure(0.0 * MU), r"mass"),
        ):
            with pytest.raises(ValueError, match=message):
                call()


class TestTrajectories:
    @pytest.mark.parametrize(("steps", "frames", "panels"), [(20, 6, 6), (0, 6, 1), (3, 1, 1)])
    def test_snapshots_of_a_flow(self, steps, frames, panels):
        figure = viz.plot_trajectory(flow(QUADRATIC, MU, stepper=Euler(0.1), steps=steps), MU, frames=frames)
        assert len(figure.axes) == panels
        assert figure.axes[0].get_title() == "t = 0"

    @pytest.mark.parametrize("dim", [2, 3])
    def test_panels_show_records_at_the_same_scale(self, dim):
        course, target = trajectory(dim, records=9), DiscreteMeasure(torch.randn(4, dim) + 5.0)
        axes = viz.plot_trajectory(course, target, frames=3, spacing="time").axes
        assert [ax.get_title() for ax in axes] == ["t = 0", "t = 4", "t = 8"]
        for ax, record in zip(axes, (0, 4, 8), strict=True):
            behind, front = ax.collections
            assert {tuple(p) for p in places(behind).tolist()} == {tuple(p) for p in target.points.tolist()}
            assert {tuple(p) for p in places(front).tolist()} == {tuple(p) for p in course.measures.points[record].tolist()}
            assert ax.get_xlim() == axes[0].get_xlim()
            assert ax.get_xlim()[0] < min(course.measures.points[..., 0].min(), target.points[:, 0].min())
            assert ax.get_xlim()[1] > max(course.measures.points[..., 0].max(), target.points[:, 0].max())

    def test_the_start_has_more_room_in_logarithmic_spacing(self):
        course = trajectory(records=101, times=torch.linspace(0, 1, 101))
        titles = [ax.get_title() for ax in viz.plot_trajectory(course, frames=3).axes]
        assert titles == ["t = 0", "t = 0.24", "t = 1"]  # (sqrt(10) - 1) / 9

    def test_areas_follow_the_mass(self):
        weights = torch.tensor([[1.0, 1.0, 0.0], [1.0, 3.0, 0.0], [0.0, 1.0, 1.0]])
        course = trajectory(records=3, weights=weights)
        axes = viz.plot_trajectory(course, frames=3, spacing="time", area=10.0).axes
        assert [sorted(ax.collections[0].get_sizes().tolist()) for ax in axes] == [[5.0, 5.0], [5.0, 15.0], [5.0, 5.0]]

    def test_paths_lead_to_the_atoms(self):
        course = trajectory(records=5)
        for ax, last in zip(viz.plot_trajectory(course, frames=2, paths=True).axes, (0, 4), strict=True):
            ends = {tuple(round(float(v), 4) for v in path.vertices[-1]) for path in ax.collections[0].get_paths()}
            assert ends == drawn_points(course.measures[last])
            assert all(len(path.vertices) == last + 1 for path in ax.collections[0].get_paths())

    def test_paths_in_space(self):
        axes = viz.plot_trajectory(trajectory(3), frames=2, paths=True).axes
        assert all(type(ax.collections[0]).__name__ == "Line3DCollection" for ax in axes)

    def test_on_a_line_paths_run_against_time(self):
        weights = torch.tensor([1.0, 3.0, 0.0]).expand(5, 3)
        course, target = trajectory(1, weights=weights), DiscreteMeasure(torch.tensor([[7.0], [8.0]]))
        (ax,) = viz.plot_trajectory(course, target).axes
        lines, goal = ax.collections
        assert len(lines.get_paths()) == 2  # the third atom has no mass
        seen = {
            tuple(path.vertices[:, 1].round(4)): width
            for path, width in zip(lines.get_paths(), lines.get_linewidths(), strict=True)
        }
        atoms = [tuple(course.measures.points[:, i, 0].double().numpy().round(4)) for i in range(2)]
        assert seen[atoms[1]] == pytest.approx(3 * seen[atoms[0]])
        assert lines.get_paths()[0].vertices[:, 0].tolist() == course.times.tolist()
        assert sorted(places(goal)[:, 1].tolist()) == [7.0, 8.0]
        assert ax.get_ylim()[1] > 8.0
        assert ax.get_xlim() == (0.0, 4.0)

    def test_on_a_line_widths_follow_the_mass(self):
        weights = torch.tensor([[1.0, 1.0], [0.5, 1.5], [0.0, 2.0]])
        (ax,) = viz.plot_trajectory(trajectory(1, records=3, n=2, weights=weights)).axes
        widths = torch.tensor(sorted(ax.collections[0].get_linewidths()))
        assert torch.allclose(widths / widths[0], torch.tensor([1.0, 3.0, 5.0, 7.0]).double())

    def test_on_a_line_time_can_be_stretched(self):
        (ax,) = viz.plot_trajectory(trajectory(1, records=101, times=torch.linspace(0, 1, 101)), spacing="log").axes
        ax.figure.canvas.draw()
        middle = ax.transAxes.inverted().transform(ax.transData.transform([[(10**0.5 - 1) / 9, ax.get_ylim()[0]]]))
        assert middle[0, 0] == pytest.approx(0.5)

    def test_samples_of_a_batch(self):
        course = trajectory(batch=(2, 3), times=torch.rand(5, 2, 3).cumsum(0))
        ax = viz.plot_trajectory(course, sample=(1, 2), frames=1).axes[0]
        assert drawn(ax).keys() == drawn_points(course.measures[0, 1, 2])
        assert ax.get_title() == f"t = {course.times[0, 1, 2]:.3g}"

    @pytest.mark.unchecked
    def test_bad_input(self):
        for call, message in (
            (lambda: viz.plot_trajectory(trajectory(batch=(3,))), "sample=i"),
            (lambda: viz.plot_trajectory(trajectory(batch=(3,)), sample=3), "sample: "),
            (lambda: viz.plot_trajectory(trajectory(), sample=0), "sample: "),
            (lambda: viz.plot_trajectory(trajectory(), frames=0), "frames: "),
            (lambda: viz.plot_trajectory(trajectory(), spacing="even"), "spacing: .*'log' or 'time'"),
            (lambda: viz.plot_trajectory(trajectory(1), spacing="even"), "spacing: .*'log' or 'time'"),
            (lambda: viz.plot_trajectory(trajectory(4)), "plot_plane"),
            (lambda: viz.plot_trajectory(trajectory(3), MU), "target: expected dimension 3"),
            (lambda: viz.plot_trajectory(trajectory(2), DiscreteMeasure(torch.zeros(2, 3, 2))), r"target\[i\]"),
        ):
            with pytest.raises(ValueError, match=message):
                call()


def drawn_points(mu):
    return {tuple(round(v, 4) for v in p) for p in mu.points.tolist()}


class TestEnergies:
    def test_of_a_flow(self):
        course = flow(QUADRATIC, MU, steps=40)
        ax = viz.plot_energy(course)
        assert ax.lines[0].get_ydata().tolist() == pytest.approx(course.energies.tolist())
        assert ax.lines[0].get_xdata().tolist() == pytest.approx(course.times.tolist())
        assert ax.get_yscale() == "log"

    @pytest.mark.parametrize(
        ("energies", "options", "scale"),
        [
            ([1.0, 0.9, 0.5], {}, "linear"),  # less than a decade
            ([1.0, 0.01, -0.01], {}, "linear"),
            ([1.0, 0.01, 1e-3], {}, "log"),
            ([1.0, 0.01, 1e-3], {"log": False}, "linear"),
            ([1.0, 0.9, 0.5], {"log": True}, "log"),
            ([3.0, 2.01, 2.0], {"minimum": 2.0}, "log"),
        ],
    )
    def test_scales(self, energies, options, scale):
        ax = viz.plot_energy(trajectory(records=3, energies=torch.tensor(energies)), **options)
        assert ax.get_yscale() == scale
        left = torch.tensor(energies) - options.get("minimum", 0.0)
        assert ax.lines[0].get_ydata().tolist() == pytest.approx(left.tolist(), rel=1e-5)
        assert ("minimum" in ax.get_ylabel()) == ("minimum" in options)

    def test_batches_are_faint_lines_with_the_median(self):
        energies = torch.tensor([[3.0, 1.0, 2.0], [30.0, 10.0, 80.0]])
        times = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 4.0]])
        for clock, middle in ((times, [0.0, 2.0]), (times[:, 0], [0.0, 1.0])):
            ax = viz.plot_energy(trajectory(records=2, batch=(3,), energies=energies, times=clock))
            *samples, median = ax.lines
            assert [line.get_ydata().tolist() for line in samples] == energies.T.tolist()
            assert (median.get_xdata().tolist(), median.get_ydata().tolist()) == (middle, [2.0, 30.0])
            assert samples[0].get_alpha() < 0.5

    def test_names_have_styles_of_their_own(self):
        ax = viz.plot_energy({f"flow {i}": trajectory() for i in range(7)})
        assert [t.get_text() for t in ax.get_legend().get_texts()] == [f"flow {i}" for i in range(7)]
        assert len({(line.get_color(), line.get_linestyle()) for line in ax.lines}) == 7
        assert viz.plot_energy(trajectory(), label="one").get_legend().get_texts()[0].get_text() == "one"
        assert viz.plot_energy(trajectory()).get_legend() is None

    def test_dissipation_has_a_panel_below(self):
        course = trajectory()
        _, (left, right) = plt.subplots(1, 2)
        ax = viz.plot_energy(course, right, dissipation=True)
        below = ax.figure.axes[-1]
        assert ax is right
        assert below.lines[0].get_ydata().tolist() == pytest.approx(course.dissipation.tolist())
        assert below.get_yscale() == "log"
        upper, lower = ax.get_position(), below.get_position()
        assert lower.y1 <= upper.y0
        assert left.get_position().x1 < min(upper.x0, lower.x0)

    @pytest.mark.unchecked
    def test_bad_input(self):
        course = trajectory()
        loose = plt.figure().add_axes((0, 0, 1, 1))
        for call, message in (
            (lambda: viz.plot_energy(course, loose, dissipation=True), "ax: .*grid"),
            (lambda: viz.plot_energy({}), "at least one"),
            (lambda: viz.plot_energy({"a": course}, label="b"), "label: "),
            (lambda: viz.plot_energy(course, plt.figure().add_subplot(projection="3d")), "ax: "),
        ):
            with pytest.raises(ValueError, match=message):
                call()


class TestAnimations:
    @pytest.mark.parametrize("dim", [1, 2, 3])
    def test_a_gif_has_its_frames(self, dim, tmp_path):
        path = tmp_path / "flow.gif"
        viz.animate(trajectory(dim), path, DiscreteMeasure(torch.randn(4, dim)), frames=4, fps=10, dpi=30, turn=30.0)
        with Image.open(path) as gif:
            assert gif.n_frames == 4
            assert gif.info["duration"] == 100
            assert gif.size[0] == 96
        assert not plt.get_fignums()

    def test_a_page_has_its_frames(self, tmp_path):
        path = tmp_path / "flow.html"
        viz.animate(trajectory(), str(path), frames=3, dpi=30)
        page = path.read_text()
        assert len(re.findall(r'frames\[\d+\] = "data:image/png;base64', page)) == 3
        assert not re.search(r'frames\[\d+\] = "(?!data:)', page)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["flow.html"]

    def test_frames_show_the_flow(self):
        course = trajectory(records=3, weights=torch.tensor([[1.0, 1.0, 2.0], [1.0, 0.0, 2.0], [1.0, 1.0, 0.0]]))
        target = DiscreteMeasure(torch.randn(2, 2))
        animation = viz.animate(course, None, target, frames=5, spacing="time", area=8.0, dpi=30)
        assert isinstance(animation, FuncAnimation)
        (ax,) = animation._fig.axes
        limits = []
        for frame in (0, 1, 2, 4):
            show(animation, frame)
            behind, front = ax.collections
            assert len(places(behind)) == 2
            before, after = course.measures[frame // 2], course.measures[min(frame // 2 + frame % 2, 2)]
            wanted = (before.points + after.points) / 2, (before.weights + after.weights) / 2
            live = wanted[1] > 0
            found = {
                tuple(p): s for p, s in zip(places(front).round(decimals=3).tolist(), front.get_sizes().tolist(), strict=True)
            }
            points = [tuple(p) for p in wanted[0][live].round(decimals=3).tolist()]
            assert found == pytest.approx(dict(zip(points, (2.0 * wanted[1][live]).tolist(), strict=True)))
            limits.append((ax.get_xlim(), ax.get_ylim()))
        assert len(set(limits)) == 1

    def test_on_a_line_the_density_moves_too(self):
        animation = viz.animate(trajectory(1, records=2), frames=2, dpi=30)
        (ax,) = animation._fig.axes
        outlines = []
        for frame in range(2):
            show(animation, frame)
            assert len(ax.collections) == 2
            outlines.append(ax.collections[1].get_paths()[0].vertices.copy())
            assert outlines[-1][:, 1].max() < ax.get_ylim()[1]
            assert ax.get_xlim()[0] < places(ax.collections[0])[:, 0].min()
        shift = outlines[1][:, 0].mean() - outlines[0][:, 0].mean()
        assert shift == pytest.approx(1.0, rel=1e-3)

    def test_the_view_turns(self):
        animation = viz.animate(trajectory(3), frames=3, turn=90.0, view=(10.0, 5.0), dpi=30)
        (ax,) = animation._fig.axes
        seen = []
        for frame in range(3):
            show(animation, frame)
            seen.append((ax.elev, ax.azim))
        assert seen == [(10.0, 5.0), (10.0, 50.0), (10.0, 95.0)]

    def test_notebooks_show_a_player(self):
        animation = viz.animate(trajectory(batch=(2,)), sample=1, frames=2, dpi=30)
        assert plt.get_fignums()
        assert "data:image/png;base64" in animation._repr_html_()
        assert not plt.get_fignums()

    def test_a_single_record_stands_still(self):
        animation = viz.animate(flow(QUADRATIC, MU, steps=0), frames=2, dpi=30)
        (ax,) = animation._fig.axes
        show(animation, 1)
        assert drawn(ax).keys() == {(0.0, 0.0), (1.0, 2.0), (3.0, 1.0)}

    @pytest.mark.unchecked
    def test_bad_input(self, tmp_path):
        for call, message in (
            (lambda: viz.animate(trajectory(), tmp_path / "flow.mp4"), r"path: .*\.gif or \.html"),
            (lambda: viz.animate(trajectory(batch=(2,))), "sample=i"),
            (lambda: viz.animate(trajectory(4)), "plot_plane"),
            (lambda: viz.animate(trajectory(), frames=0), "frames: "),
        ):
            with pytest.raises(ValueError, match=message):
                call()
        assert not list(tmp_path.iterdir())


def test_convergence_shows_the_largest_residual_of_a_batch():
    ax = viz.plot_convergence({"a": torch.tensor([[1.0, 0.5], [0.1, torch.nan]]), "b": torch.tensor([1.0, 0.2])}, tolerance=1e-2)
    assert ax.lines[0].get_ydata().tolist() == pytest.approx([1.0, 0.1])
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["a", "b"]


def test_attention_numbers_the_atoms_as_stored():
    shares = torch.full((2, 3, 4), 0.25)
    equilibrium = DiscreteMeasure(torch.randn(3, 5), torch.tensor([1.0, 0.0, 2.0]))
    figure = viz.plot_attention(MU, shares, equilibrium=equilibrium)
    assert len(figure.axes) == 2 * 3 + 1 + 1  # panels, colour bar, equilibrium
    ax = figure.axes[-1]
    area = dict(zip(map(tuple, places(ax.collections[0]).tolist()), ax.collections[0].get_sizes().tolist(), strict=True))
    numbered = {text.get_text(): area[tuple(torch.tensor(text.xy).tolist())] for text in ax.texts}
    assert numbered.keys() == {"1", "3"}
    assert numbered["3"] == pytest.approx(2 * numbered["1"])


def test_matplotlib_is_imported_when_something_is_drawn():
    import subprocess
    import sys

    program = "import ddeq.viz, sys; sys.exit('matplotlib.pyplot' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
