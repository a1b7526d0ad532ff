"""Odd environments, each in a process of its own: a slower path runs, the numbers are the same, and one message says why."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import importlib.abc, sys
class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in sys.argv[1].split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
import torch
import ddeq, ddeq.flows, ddeq.nn, ddeq.solvers
from ddeq.functionals import MMD, Wasserstein
from ddeq.kernels import Gaussian
from ddeq.reductions import backend, choose
cloud = lambda n, seed: ddeq.DiscreteMeasure(torch.randn(n, 2, generator=torch.Generator().manual_seed(seed)))
F, mu = MMD(cloud(700, 1), Gaussian(1.0)), cloud(700, 0)
found = F.wasserstein_gradient(mu)
with backend("dense"):
    assert torch.allclose(found, F.wasserstein_gradient(mu), rtol=1e-4, atol=1e-5)
print("CHOSEN", choose(700, 700, torch.device("cpu"), dim=2).name)
try:
    print("TRANSPORT", float(Wasserstein(cloud(3, 1))(cloud(3, 2))) > 0)
except ImportError as error:
    print("TRANSPORT", error)
"""


def run(missing="none", **environment):
    changed = {"OMP_NUM_THREADS": "1"} | environment
    command = [sys.executable, "-c", PROGRAM, missing]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | changed)
    assert done.returncode == 0, done.stderr[-3000:]
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines() if line)
    return said["CHOSEN"], said["TRANSPORT"], done.stderr.strip()


def test_no_compiler(tmp_path):
    chosen, transport, messages = run(
        PATH=str(tmp_path), TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "a"), KEOPS_CACHE_FOLDER=str(tmp_path / "b")
    )
    assert (chosen, transport) == ("dense", "True")
    (message,) = messages.splitlines()
    assert "compiler" in message
    assert "another backend runs instead" in message


def test_no_keops_and_no_pot():
    chosen, transport, messages = run("pykeops,ot")
    assert chosen == "compiled"
    assert "pip install POT" in transport
    assert not messages


def test_a_cache_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    chosen, _, messages = run("pykeops", TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "file" / "cache"))
    assert chosen == "dense"
    (message,) = messages.splitlines()
    assert str(tmp_path / "file") in message


@pytest.mark.slow
def test_caches_with_blanks_and_a_home_that_is_read_only(tmp_path):
    home, caches = tmp_path / "home", tmp_path / "with a blank"
    home.mkdir(mode=0o500)
    chosen, transport, _ = run(HOME=str(home), TORCHINDUCTOR_CACHE_DIR=str(caches / "a"), KEOPS_CACHE_FOLDER=str(caches / "b"))
    assert chosen in ("compiled", "dense", "keops")
    assert transport == "True"
