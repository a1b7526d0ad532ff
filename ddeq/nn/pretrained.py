"""Weights that come with the library: classifiers and a completer, and the maps from raw clouds to their inputs."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import ddeq.data
from ddeq.measures import DiscreteMeasure
from ddeq.nn.configuration import build

__all__ = ["load_pretrained", "load_weights", "pretrained_preprocessing", "save_weights"]

WEIGHTS = "weights"


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
    with as_file(_resource(name)) as path, safe_open(path, "pt") as file:
        preprocessing: Callable[[Any], DiscreteMeasure] = getattr(ddeq.data, file.metadata()["preprocessing"])
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
        If the file lacks the configuration, or it does not fit the weights.
    """
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    if "configuration" not in metadata:
        raise ValueError(f"path: expected weights with a configuration, got {path} with {sorted(metadata)}")
    with torch.random.fork_rng(devices=[]):  # the first weights are drawn and forgotten
        model: nn.Module = build(json.loads(metadata["configuration"]))
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"path: the weights of {path} do not fit their configuration: {error}") from None
    return model.eval()


def _resource(name: str) -> Any:
    folder = files("ddeq.nn") / WEIGHTS
    known = sorted(f.name.removesuffix(".safetensors") for f in folder.iterdir() if f.name.endswith(".safetensors"))
    if name not in known:
        raise ValueError(f"name: expected one of {known}, got {name!r}")
    return folder / f"{name}.safetensors"
