"""What a report of a fault needs: versions, devices, and which backends run, and why one does not."""

from __future__ import annotations

import importlib.metadata
import platform

import torch

from ddeq import __version__
from ddeq.reductions.backends import named
from ddeq.reductions.settings import backends

__all__ = ["report"]

PACKAGES = ("numpy", "scipy", "pykeops", "geomloss", "POT", "jaxtyping", "lightning", "geoopt", "matplotlib", "hypothesis")


def report() -> str:
    """Lines of text; the backends are tried out on each device, which may compile for some seconds."""
    lines = [f"ddeq {__version__}, Python {platform.python_version()}, torch {torch.__version__}, {platform.platform()}"]
    lines.append("packages: " + ", ".join(f"{name} {_version(name)}" for name in PACKAGES))
    lines.append(f"threads: {torch.get_num_threads()}")
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices.append(torch.device("cuda"))
        lines.append(f"cuda: {torch.cuda.get_device_name()}, CUDA {torch.version.cuda}")
    for device in devices:
        for name in backends():
            backend = named(name)
            obstacle = None if backend.specialised else backend.obstacle(device, None)
            state = "runs" + " (for some kernels)" * backend.specialised if obstacle is None else obstacle
            lines.append(f"backend {name} on {device.type}: {state}")
    return "\n".join(lines)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
