"""The command line: ``python -m ddeq demo``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="ddeq", description="Equilibria of maps on measures.")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="train a small DDEQ on embedded digits, compare solvers, flow between digits")
    demo.add_argument("--output", type=Path, default=Path("outputs/demo"), help="folder of pictures and numbers (%(default)s)")
    demo.add_argument("--epochs", type=int, default=None, help="training epochs (default: those of the reported numbers)")
    demo.add_argument("--seed", type=int, default=0, help="seed of all randomness (%(default)s)")
    options = parser.parse_args(arguments)
    try:
        from ddeq.experiments.demo import run
    except ImportError as error:
        print(f"ddeq demo needs more than the core: pip install 'ddeq[all]' ({error})", file=sys.stderr)
        return 1
    run(options.output, epochs=options.epochs, seed=options.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
