"""What the benchmarks share: the peak memory of a call in a process of its own, and the machine in words."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from ddeq import __version__
from ddeq.experiments import machine as machines

RESULTS = Path(__file__).parent / "results"
"""The last full run of each benchmark."""


def add_output(parser: argparse.ArgumentParser) -> None:
    """The option that says where results go."""
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")


def keep(folder: Path, name: str, text: str, found: dict[str, Any], *, show: bool = True) -> None:
    """Writes what a person reads and what a program reads, and shows the first."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(text)
    (folder / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    if show:
        print(text)


def without_output(words: list[str]) -> list[str]:
    """Arguments of a command as a reader would give them: where results went is no part of how they were made."""
    if "--output" in words:
        place = words.index("--output")
        return words[:place] + words[place + 2 :]
    return words


def added_megabytes(prepare: str, call: str) -> float:
    """Megabytes by which ``call`` raises the peak of a process that has run ``prepare``; both are Python statements.

    The process gives memory back as soon as it is freed, so that the peak is that of what was needed at once.
    """
    program = f"""
import sys
sys.path.insert(0, "benchmarks")
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
{prepare}
before = peak()
{call}
print((peak() - before) / 1024)
"""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, env=environment)
    return float(done.stdout.split()[-1])


def machine() -> str:
    """Where a benchmark ran."""
    return f"{machines.machine()}, torch {torch.__version__}, ddeq {__version__}"
