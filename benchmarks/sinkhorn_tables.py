"""What sinkhorn.py found: as tables, and as the numbers that the report of suite.py asks for."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

Row = dict[str, Any]
PEERS = ("geomloss", "POT", "OTT-JAX")
ACCURACIES = (2e-2, 1e-3, 1e-4)
"""Relative errors of the gradient; the last is the accuracy of ours, or a looser one."""
CASE = ("atoms", "dim", "precision")


def cases(rows: list[Row]) -> list[list[Row]]:
    """Rows of each pair of measures."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in CASE), []).append(row)
    return list(found.values())


def fastest(rows: list[Row], peer: str, accuracy: float) -> Row | None:
    """A peer's fastest row with an error of at most ``accuracy``, else the row that was stopped; None: no row is so accurate."""
    known = [row for row in rows if row["peer"] == peer]
    accurate = [row for row in known if row.get("error", math.inf) <= accuracy]
    if accurate:
        return min(accurate, key=lambda row: row["ratio"])
    return next((row for row in known if row.get("stopped")), None)


def least_ratio(found: Row, peers: Iterable[str], accuracy: float) -> float:
    """Time of the fastest of these peers at an accuracy over ours, the least of all measures and numbers of threads."""
    rows = [fastest(case, peer, accuracy) for run in found["runs"] for case in cases(run["cold"]) for peer in peers]
    return min((row["ratio"] for row in rows if row is not None), default=math.inf)


def slowest_flow(found: Row) -> float:
    """Largest of our times per step over those of geomloss's default, without energies, which the loop does not keep."""
    return max(1 / row["auto"]["ratio"] for run in found["runs"] for row in run["flows"] if not row["energies"])


def worst_gradient(found: Row) -> float:
    """Largest error of our gradients in flows."""
    return max(row["ddeq"] for run in found["runs"] for row in run["errors"])


def table(names: list[str], rows: Iterable[Iterable[str]]) -> list[str]:
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def flows(runs: list[Row]) -> list[str]:
    names = ["atoms", "precision", "threads", "energies recorded", "ddeq, ms per step", "geomloss, ms per step", "ratio"]
    names += ["ratio of whole flows", "geomloss multiscale, ms per step", "ratio", "ratio of whole flows"]
    names += ["divergence at the end: ddeq, geomloss, multiscale"]
    rows = []
    for run in runs:
        for row in run["flows"]:
            cells = [f"{row['atoms']:,}", row["precision"], str(run["threads"]), "yes" if row["energies"] else "no"]
            cells.append(f"{row['milliseconds']:.3g}")
            for way in (row["auto"], row["multiscale"]):
                cells += [f"{way['milliseconds']:.3g}", f"{way['ratio']:.2f}", f"{way['whole']:.2f}"]
            ends = (row["end"], row["auto"]["end"], row["multiscale"]["end"])
            rows.append([*cells, ", ".join(f"{end:.1e}" for end in ends)])
    return table(names, rows)


def gradients(rows: list[Row]) -> list[str]:
    names = [
        "atoms",
        "precision",
        "step",
        "norm of the gradient",
        "error, ddeq in the flow",
        "error, geomloss at the same measure",
    ]
    cells = (
        [f"{r['atoms']:,}", r["precision"], str(r["step"]), *(f"{r[name]:.1e}" for name in ("size", "ddeq", "geomloss"))]
        for r in rows
    )
    return table(names, cells)


def case_of(row: Row) -> list[str]:
    return [f"{row['atoms']:,}", str(row["dim"]), row["precision"]]


def ratio_of(row: Row) -> str:
    return f"{'> ' if row.get('stopped') else ''}{row['ratio']:.2g}"


def summary(runs: list[Row]) -> list[str]:
    peers = [peer for peer in PEERS if any(row["peer"] == peer for row in runs[0]["cold"])]
    rows = []
    for run in runs:
        for case in cases(run["cold"]):
            ours = case[0]
            for accuracy in ACCURACIES:
                cells = [*case_of(ours), str(run["threads"]), f"{ours['seconds']:.3g}", f"{ours['error']:.0e}", f"{accuracy:g}"]
                for peer in peers:
                    best = fastest(case, peer, accuracy)
                    cells.append("not reached" if best is None else f"{ratio_of(best)} ({best['way'].removeprefix(f'{peer}, ')})")
                rows.append(cells)
    return table([*CASE, "threads", "ddeq, seconds", "its error", "error at most", *peers], rows)


def everything(runs: list[Row]) -> list[str]:
    names = [*CASE, "way", "error"]
    for run in runs:
        threads = f"{run['threads']} thread{'s' if run['threads'] > 1 else ''}"
        names += [f"seconds, {threads}", "ratio"]
    laps: dict[tuple[str, ...], dict[int, Row]] = {}
    for run in runs:
        for row in run["cold"]:
            laps.setdefault((*case_of(row), row["way"]), {})[run["threads"]] = row
    rows = []
    for key, known in laps.items():
        found = [row["error"] for row in known.values() if "error" in row]
        cells = [*key, f"{found[0]:.0e}" if found else ""]
        for run in runs:
            row = known.get(run["threads"])
            more = "> " if row and row.get("stopped") else ""
            cells += [f"{more}{row['seconds']:.3g}", ratio_of(row)] if row else ["", ""]
        rows.append(cells)
    return table(names, rows)


def report(about: list[str], runs: list[Row], made: str) -> str:
    lines = ["# Sinkhorn divergence", "", *about, ""]
    if runs[0]["flows"]:
        differ = (
            f"The reference and POT's gradient differ by {runs[0]['from POT']:.0e}, relative, at the start of the smallest flow."
        )
        lines += ["## Flows", "", *flows(runs), "Errors of the gradient along the flow:", "", *gradients(runs[0]["errors"])]
        lines += [differ, ""]
    if runs[0]["cold"]:
        lines += ["## Value and gradient, cold", "", "Ratios of the fastest setting of each peer whose gradient is as accurate:"]
        lines += ["", *summary(runs), "All settings:", "", *everything(runs)]
    return "\n".join([*lines, made, ""])
