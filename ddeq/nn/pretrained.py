"""Weights that come with the library: classifiers and a completer, and the maps from raw clouds to their inputs."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from safetensors.torch import save_file
from torch import Tensor, nn

import ddeq.data
from ddeq.files import read_tensors
from ddeq.measures import DiscreteMeasure
from ddeq.nn.configuration import build

__all__ = ["load_pretrained", "load_weights", "pretrained_preprocessing", "save_weights"]

WEIGHTS = "weights"
LARGEST = 2**20
"""No number in a configuration that comes with weights is larger: sizes and steps are thousands at most."""


def load_pretrained(name: str) -> nn.Module:
    """A trained model that comes with the library, in evaluation mode; ``ddeq/nn/weights/<name>.md`` is its card.

    Parameters
    ----------
    name
        ``"mnist_pc"``: a `Classifier` of digits in the plane; ``"modelnet40"``: one of shapes in space;
        ``"mnist_pc_completion"``: a `Completer` of digits of which discs are missing.

    Raises
    ------
    ValueError
        If there are no weights of this name; the message lists those that there are.

    Examples
    --------
    >>> classifier = load_pretrained("modelnet40")
    >>> raw = 5.0 + torch.nn.functional.normalize(torch.randn(256, 3), dim=-1)  # a sphere somewhere
    >>> tuple(classifier(pretrained_preprocessing("modelnet40")(raw)).shape)
    (40,)
    """
    with as_file(_resource(name)) as path:
        return load_weights(path)


def pretrained_preprocessing(name: str) -> Callable[[Any], DiscreteMeasure]:
    """The map from a raw cloud to the input of the model ``name``: `ddeq.data.digit_measure` or `ddeq.data.shape_measure`.

    Raises
    ------
    ValueError
        If there are no weights of this name.
    """
    with as_file(_resource(name)) as path:
        _, metadata = read_tensors(path)
    preprocessing: Callable[[Any], DiscreteMeasure] = getattr(ddeq.data, metadata["preprocessing"])
    return preprocessing


def save_weights(path: str | Path, model: nn.Module, configuration: dict[str, Any], preprocessing: str) -> None:
    """Write a model to a safetensors file that holds its configuration.

    Parameters
    ----------
    path
        The file.
    model
        The model that ``build(configuration)`` gives, up to its weights.
    configuration
        For `build`.
    preprocessing
        Name of a public function of ``ddeq.data`` from a raw cloud to the model's input.
    """
    tensors = {name: t.detach().contiguous().clone() for name, t in model.state_dict().items()}
    save_file(tensors, path, {"configuration": json.dumps(configuration), "preprocessing": preprocessing})


def load_weights(path: str | Path) -> nn.Module:
    """The model in a file of `save_weights`, in evaluation mode.

    Raises
    ------
    ValueError
        If the file is none of the format or cut short, lacks the configuration, or it does not fit the weights.
    """
    tensors, metadata = read_tensors(path)
    if "configuration" not in metadata:
        raise ValueError(f"path: expected weights with a configuration, got {path} with {sorted(metadata)}")
    try:
        configuration = json.loads(metadata["configuration"])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"path: the configuration in {path} is no JSON: {error}") from None
    return build_with_weights(configuration, tensors, path).eval()


def build_with_weights(configuration: Any, weights: Mapping[str, Tensor], path: str | Path, *, dotted: bool = False) -> nn.Module:
    """The module that a ``configuration`` describes, with the ``weights`` that the file at ``path`` holds.

    It is built without memory first: a configuration of a stranger may ask for more than there is. ``dotted`` as in `build`.

    Raises
    ------
    ValueError
        If a number is too large, or the weights do not fit.
    """
    _check_numbers(configuration, path)
    try:
        with torch.device("meta"):
            shape_of = {name: tuple(t.shape) for name, t in _module(configuration, path, dotted).state_dict().items()}
    except ValueError:
        raise
    except Exception as error:  # options of wrong types fail in their own ways
        raise ValueError(f"path: the configuration in {path} describes no model: {error}") from error
    found = {name: tuple(t.shape) for name, t in weights.items()}
    if wrong := [name for name in sorted({*shape_of, *found}) if shape_of.get(name) != found.get(name)]:
        raise ValueError(
            f"path: the weights of {path} do not fit their configuration: {wrong[0]} has shape {found.get(wrong[0], 'none')}, "
            f"wanted {shape_of.get(wrong[0], 'none')}{f'; so do {len(wrong) - 1} more' if len(wrong) > 1 else ''}"
        )
    with _drawing, torch.random.fork_rng(devices=[]):  # the first weights are drawn and forgotten
        model = _module(configuration, path, dotted)
    model.load_state_dict(weights)
    return model


_drawing = threading.Lock()
"""Held while weights are drawn: the state of PyTorch's generator is put back, in one thread at a time."""


def _module(configuration: Any, path: str | Path, dotted: bool) -> nn.Module:
    model = build(configuration, dotted=dotted)
    if not isinstance(model, nn.Module):
        raise ValueError(f"path: the configuration in {path} describes no torch.nn.Module, but {type(model).__name__}")
    return model


def _check_numbers(configuration: Any, path: str | Path) -> None:
    """Raise a `ValueError` if a size of layers, or a number of them, is beyond all that there are."""
    largest = max((n for n in pytree.tree_leaves(configuration) if isinstance(n, int | float)), default=0)
    if largest > LARGEST:
        raise ValueError(f"path: expected numbers up to {LARGEST:,} in the configuration in {path}, got {largest:,}")


def _resource(name: str) -> Any:
    folder = files("ddeq.nn") / WEIGHTS
    known = sorted(f.name.removesuffix(".safetensors") for f in folder.iterdir() if f.name.endswith(".safetensors"))
    if name not in known:
        raise ValueError(f"name: expected one of {known}, got {name!r}")
    return folder / f"{name}.safetensors"
