"""Measures that are spread over processes: the same values and derivatives as in one, and no hang when a process dies."""

import functools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

SUPPORT = Path(__file__).parents[1] / "support"
pytestmark = pytest.mark.xdist_group("processes")
RANKS = [2, pytest.param(4, marks=pytest.mark.slow)]


def torchrun(ranks, script, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", script, *arguments]
    alone = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.run(command, capture_output=True, text=True, env=alone, timeout=600, check=False)


@functools.cache
def found(ranks):
    done = torchrun(ranks, str(SUPPORT / "sharded.py"), str(ranks))
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.theorem("T20")
@pytest.mark.parametrize("ranks", RANKS)
def test_values_and_derivatives_are_those_of_one_process(ranks):
    cases = {line["case"]: line["apart"] for line in found(ranks) if "case" in line}
    assert len(cases) > 40
    # Flows and Sinkhorn potentials are solved to tolerances, which sums in another order reach elsewhere.
    solved = ("Sinkhorn", "AdaptiveEuler", "LBFGS", "batch", "Proximal")
    tolerance = {name: 1e-9 if any(word in name for word in solved) else 1e-12 for name in cases}
    wrong = {name: apart for name, apart in cases.items() if not max(apart) <= tolerance[name]}
    assert not wrong


@pytest.mark.parametrize("ranks", RANKS)
def test_parts_join_in_the_order_of_ranks(ranks):
    (joined,) = [line["joined"] for line in found(ranks) if "joined" in line]
    assert joined == [rank for rank in range(ranks) for _ in range(4)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("Wasserstein", "mu: expected all atoms in one place, got some on each rank; take ddeq.reductions.gather(mu)"),
        ("fixed_point", "mu0: expected all atoms in one place"),
        ("equilibrium", "mu0: expected all atoms in one place"),
        ("mesh", "mesh: expected one dimension"),
        ("join_shards", "part: expected the same shapes on every rank"),
    ],
)
def test_what_cannot_be_sharded_says_so(call, message):
    messages = {line["error"]: line["message"] for line in found(2) if "error" in line}
    assert messages[call] is not None
    assert messages[call].startswith(message)


DYING = """
import os, sys, torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
import ddeq
from ddeq.functionals import MMD
mesh = init_device_mesh("cpu", (2,))
mu = ddeq.reductions.shard(ddeq.DiscreteMeasure(torch.randn(8, 2)), mesh)

def watch(report):
    if mesh.get_rank() == 1 and report.step == 3:
        os._exit(7)

ddeq.flow(MMD(mu), mu, steps=10**6, callback=watch)
"""


def test_a_dead_rank_ends_the_job(tmp_path):
    script = tmp_path / "dying.py"
    script.write_text(DYING)
    start = time.monotonic()
    done = torchrun(2, str(script))
    assert done.returncode != 0
    assert time.monotonic() - start < 300  # the flow itself would take a day
    assert "exitcode  : 7" in done.stderr
    assert "rank      : 1" in done.stderr
