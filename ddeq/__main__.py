"""The command line: ``demo``, ``info``, and the experiments' ``fit``, ``validate``, ``test``, ``predict`` and ``export``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ddeq import __version__

EXPERIMENTS = {
    "fit": "train a model as a configuration says",
    "validate": "evaluate a checkpoint on validation data",
    "test": "evaluate a checkpoint on test data",
    "predict": "write a checkpoint's predictions to a file",
    "export": "write a checkpoint's model as weights that ship, with a card",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="ddeq", description="Equilibria of maps on measures.")
    parser.add_argument("--version", action="version", version=f"ddeq {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="versions, devices and backends, for a report of a fault")
    demo = commands.add_parser("demo", help="train a small DDEQ on embedded digits, compare solvers, flow between digits")
    demo.add_argument("--output", type=Path, default=Path("outputs/demo"), help="folder of pictures and numbers (%(default)s)")
    demo.add_argument("--epochs", type=int, default=None, help="training epochs (default: those of the reported numbers)")
    demo.add_argument("--seed", type=int, default=0, help="seed of all randomness (%(default)s)")
    for name, what in EXPERIMENTS.items():
        commands.add_parser(name, help=f"{what}; --help for all options", add_help=False)
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = parser.parse_args(arguments[:1] if arguments and arguments[0] in EXPERIMENTS else arguments)
    try:
        if options.command == "export":
            from ddeq.experiments import export

            export.main(arguments[1:])
        elif options.command == "info":
            from ddeq.info import report

            print(report())
        elif options.command in EXPERIMENTS:
            from ddeq.experiments import command_line

            command_line.main(arguments)
        else:
            from ddeq.experiments.demo import run

            run(options.output, epochs=options.epochs, seed=options.seed)
    except ImportError as error:
        print(f"ddeq {options.command} needs more than the core: pip install 'ddeq[all]' ({error})", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
