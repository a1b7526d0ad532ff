"""How often the processor waits for a GPU: in a step of a flow or a solve, in the forward pass of a classifier, in a gradient.

    python benchmarks/synchronisations.py

Counted on the pretend device of the tests (tests/support/pretend.py): there need be no GPU, and every machine gives the same
numbers.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

from common import add_output, keep

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from synchronisations import PER_CALL, PER_STEP


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_output(parser)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # solves are stopped on purpose before they converge
    steps = {name: count() for name, count in PER_STEP.items()}
    calls = {name: count() for name, count in PER_CALL.items()}
    rows = [f"| {name} | {number:g} |" for name, number in steps.items()]
    text = "\n".join(
        [
            "# Host synchronisations\n",
            "`python benchmarks/synchronisations.py`; counted on a pretend device, the same on every machine.\n",
            "| a step of | synchronisations |\n|---|---|",
            *rows,
            "\n| a call | synchronisations |\n|---|---|",
            *(f"| {name} | {number} |" for name, number in calls.items()),
            "",
        ]
    )
    keep(options.output, "synchronisations", text, {"per step": steps, "per call": calls})


if __name__ == "__main__":
    main()
