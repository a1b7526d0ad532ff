"""Shapes in public signatures are checked while the tests run, and hypothesis repeats itself in continuous integration."""

import os
from pathlib import Path

import jaxtyping
import pytest
import shape_checks
from hypothesis import HealthCheck, settings

# Processes that compile at the same time read each other's unfinished files: a folder for each worker.
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "main")
os.environ["KEOPS_CACHE_FOLDER"] = str(Path.home() / ".cache" / "ddeq-tests" / WORKER)

os.environ["JSONARGPARSE_DEPRECATION_WARNINGS"] = "off"  # Lightning calls what jsonargparse has renamed

# Before the first import of ddeq: the hook rewrites modules as they load.
shape_checks.install()

import torch  # noqa: E402

torch.set_num_threads(1)  # the workers of pytest-xdist share the cores

collect_ignore = ["support"]  # helpers without tests or examples; the pretend device is registered once in a process

common = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}
settings.register_profile("dev", max_examples=10, **common)
settings.register_profile("ci", max_examples=10, derandomize=True, **common)
settings.register_profile("thorough", max_examples=300, **common)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))


@pytest.fixture(autouse=True)
def _shape_checks(request):
    """Tests of bad input meet the library's own errors, not those of the shape checker."""
    off = request.node.get_closest_marker("unchecked") is not None
    jaxtyping.config.update("jaxtyping_disable", off)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
