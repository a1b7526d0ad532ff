"""What the benchmarks share: the peak memory of a call in a process of its own, and the machine in words."""

from __future__ import annotations

import platform
import subprocess
import sys

import torch

from ddeq import __version__


def added_megabytes(prepare: str, call: str) -> float:
    """Megabytes by which ``call`` raises the peak of a process that has run ``prepare``; both are Python statements."""
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
    return float(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()[-1])


def machine() -> str:
    """Where a benchmark ran."""
    return f"{torch.get_num_threads()} threads, {platform.machine()}, torch {torch.__version__}, ddeq {__version__}"
