"""The processor waits for a device no more often than the table of `benchmarks/synchronisations.py` says."""

import json
from pathlib import Path

import pytest
from synchronisations import EVERY, PER_CALL, PER_STEP

pytestmark = [pytest.mark.xdist_group("devices"), pytest.mark.filterwarnings("ignore")]
TABLE = json.loads((Path(__file__).parents[2] / "benchmarks" / "results" / "synchronisations.json").read_text())


@pytest.mark.parametrize("name", PER_STEP)
def test_a_step(name):
    """Flows of many steps do not wait at all, solves and flows with a stop once in ``check_every`` steps."""
    found = PER_STEP[name]()
    assert found <= TABLE["per step"][name]
    if name != "AdaptiveEuler":  # it looks at energies to choose its steps
        assert found <= (1 / EVERY if "check_every" in name else 1)


@pytest.mark.parametrize("name", PER_CALL)
def test_a_call(name):
    assert PER_CALL[name]() <= TABLE["per call"][name]
