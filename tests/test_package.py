"""The package as a whole: what it costs to import, and what its front door shows."""

import subprocess
import sys
import time

import pytest

import ddeq


def test_the_front_door():
    assert set(ddeq.__all__) >= {"DiscreteMeasure", "Functional", "flow", "fixed_point", "__version__"}
    for name in dir(ddeq):
        getattr(ddeq, name)
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        ddeq.nothing_of_the_kind  # noqa: B018


def test_kernels_are_found_in_both_places():
    from ddeq.functionals.kernels import Gaussian as again
    from ddeq.kernels import Gaussian

    assert again is Gaussian
    assert ddeq.functionals.kernels.Gaussian is Gaussian


def test_importing_is_light():
    program = "import sys, ddeq; print(*{m.split('.')[0] for m in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    for name in ("pykeops", "ot", "geomloss", "lightning", "matplotlib", "sklearn", "scipy", "hypothesis"):
        assert name not in loaded


@pytest.mark.slow
def test_importing_costs_little_more_than_torch():
    def seconds(module):
        times = []
        for _ in range(5):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
            times.append(time.perf_counter() - start)
        return min(times)

    assert seconds("ddeq") < 1.5 * seconds("torch")


def test_info_names_versions_and_says_of_each_backend_whether_it_runs():
    def said(*arguments):
        done = subprocess.run([sys.executable, "-m", "ddeq", *arguments], capture_output=True, text=True, check=True, timeout=300)
        return done.stdout

    assert said("--version") == f"ddeq {ddeq.__version__}\n"
    lines = said("info").splitlines()
    assert lines[0].startswith(f"ddeq {ddeq.__version__}, Python 3.")
    assert "backend dense on cpu: runs" in lines
    assert {line.split()[1] for line in lines if line.startswith("backend ")} >= {
        "dense",
        "products",
        "compiled",
        "keops",
        "sorted",
    }
