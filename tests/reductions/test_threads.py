"""Threads that flow at once, each the first to sum: no crash, no fall to a slower path, and the user can compile afterwards."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys, threading, warnings, torch
torch.set_num_threads(1)
from ddeq import DiscreteMeasure, fixed_point, flow
from ddeq.functionals import MMD, SinkhornDivergence, SlicedWasserstein, Wasserstein
from ddeq.kernels import Gaussian
from ddeq.nn import load_pretrained
from ddeq.reductions import backend, block_size, choose
warnings.simplefilter("error")
count, name = int(sys.argv[1]), sys.argv[2]
barrier, found = threading.Barrier(count), [None] * count
cloud = lambda n, seed: DiscreteMeasure(torch.randn(n, 2, generator=torch.Generator().manual_seed(seed)))

def everything(i):
    mu, nu = cloud(700, 0), cloud(700, 1)
    results = [flow(MMD(nu, Gaussian(1.0)), mu, steps=2).measure.points]
    few, other = cloud(6, 0), cloud(5, 1)
    for F in (SinkhornDivergence(other, blur=0.5), SlicedWasserstein(other), Wasserstein(other)):
        results.append(F.wasserstein_gradient(few))
    results.append(fixed_point(lambda m: m.push_forward(lambda x: 0.5 * x.cos()), few).measure.points)
    with block_size(100 + i), backend("dense"):  # of this thread only
        results.append(MMD(other, Gaussian(1.0))(few))
    results += load_pretrained("mnist_pc").state_dict().values()
    return results

def work(i):
    barrier.wait()
    try:
        found[i] = everything(i)
    except BaseException as error:
        found[i] = error

backend(name)
state = torch.get_rng_state()
threads = [threading.Thread(target=work, args=(i,)) for i in range(count)]
[t.start() for t in threads]
[t.join() for t in threads]
assert torch.equal(torch.get_rng_state(), state)
for results in found:
    if isinstance(results, BaseException):
        raise results
    for a, b in zip(results, found[0], strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)
warnings.simplefilter("default")
assert torch.compile(lambda x: x.sin() + 1)(torch.zeros(3)).tolist() == [1.0] * 3
print("CHOSEN", choose(700, 700, torch.device("cpu"), dim=2).name)
"""


@pytest.mark.xdist_group("compilers")
@pytest.mark.parametrize(
    ("count", "name", "chosen"),
    [
        (8, "auto", "compiled"),
        pytest.param(2, "auto", "compiled", marks=pytest.mark.slow),
        pytest.param(4, "keops", "keops", marks=pytest.mark.slow),
    ],
)
def test_threads_at_once(count, name, chosen, tmp_path):
    if name == "keops":
        pytest.importorskip("pykeops")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if count < 8:  # nothing was compiled before
        environment |= {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor"), "KEOPS_CACHE_FOLDER": str(tmp_path / "keops")}
    command = [sys.executable, "-c", PROGRAM, str(count), name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"CHOSEN {chosen}" in done.stdout, done.stderr[-2000:]
    assert "instead" not in done.stderr
