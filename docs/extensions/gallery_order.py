"""The order in which the gallery is read: from functionals over flows and equilibria to models."""

from __future__ import annotations

ORDER = [
    "write_a_functional",
    "closed_form_and_wrong_ones",
    "energy_of_the_catalogue",
    "sinkhorn_and_energy_distance",
    "ksd_on_an_axis",
    "stuck_mmd_flow",
    "which_stepper",
    "jko",
    "svgd_and_langevin",
    "flows_on_a_sphere",
    "mirrored_svgd_dirichlet",
    "mass_between_modes",
    "shape_to_shape",
    "varying_energies",
    "dynamics_without_energy",
    "several_species",
    "coupled_measures",
    "million_points",
    "barycentre",
    "solvers_on_one_map",
    "implicit_against_unrolled",
    "collapse_and_marks",
    "sets_of_different_sizes",
    "your_own_layer",
    "completing_a_shape",
]


class ByChapter:
    """Sorts the files of the gallery; pages that are not in the list come last."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self, file: str) -> tuple[int, str]:
        name = file.removeprefix("plot_").removesuffix(".py")
        return (ORDER.index(name) if name in ORDER else len(ORDER)), name

    def __repr__(self) -> str:
        return "ByChapter"
