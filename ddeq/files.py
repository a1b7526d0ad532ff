"""Files that others may have written: they are read without executing anything in them, and one that is broken is one error."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["EXPANSION", "check_archive", "read_checkpoint", "read_tensors"]

EXPANSION = 1100
"""No byte of a compressed archive becomes more bytes than so many (deflate: 1,032)."""


def read_tensors(path: str | Path, device: torch.device | str = "cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, on ``device``, and the texts that it holds besides.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is none of the format, cut short, or says that it holds more than it does.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name).to(device) for name in file.keys()}  # noqa: SIM118  # no mapping
            return tensors, file.metadata() or {}
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, MemoryError) as error:
        raise ValueError(f"path: {path} cannot be read as a safetensors file: {error}; is it whole?") from None


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The contents of a checkpoint of PyTorch or Lightning, on the CPU: tensors, numbers, texts, and lists and mappings of them.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is none of the format, cut short, says that it holds more than it does, or names functions or classes other than
        those that PyTorch, or `torch.serialization.add_safe_globals`, knows to be harmless: loading it would run code.
    """
    check_archive(path, "a checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file fails in every way there is
        reason = str(error).split("\n")[0]
        raise ValueError(
            f"path: {path} cannot be read as a checkpoint of tensors and plain values: {_harm(str(error)) or reason}"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"path: expected a mapping in the checkpoint {path}, got {type(content).__name__}")
    return content


def check_archive(path: str | Path, what: str) -> None:
    """Raise a `ValueError` unless ``path`` is a zip archive, ``what`` for short, whose entries can be as long as it says."""
    size = Path(path).stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (OSError, EOFError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise ValueError(f"path: {path} cannot be read as {what}, which is a zip archive: {error}; is it whole?") from None
    for entry in entries:
        if entry.compress_size > size or entry.file_size > EXPANSION * (entry.compress_size + 1):
            raise ValueError(
                f"path: {path} cannot be {what}: its entry {entry.filename!r} is said to hold {entry.file_size:,} bytes, and the "
                f"file has {size:,}"
            )


def _harm(message: str) -> str:
    """What PyTorch's refusal of a name says, in short."""
    _, found, rest = message.partition("Unsupported global: GLOBAL ")
    _, blocked, module = message.partition("Trying to load unsupported GLOBAL ")
    name = (rest or module).split(" ")[0]
    return f"it names {name}, which would be run; nothing was" if found or blocked else ""
