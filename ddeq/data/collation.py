"""Samples that hold measures, put together to batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils.data._utils.collate import collate as collate_by_type
from torch.utils.data._utils.collate import default_collate_fn_map

from ddeq.measures import DiscreteMeasure

__all__ = ["collate"]


def collate(samples: Sequence[Any]) -> Any:
    """Put samples together to one batch: what ``DataLoader(..., collate_fn=collate)`` needs for a data set of your own.

    Parameters
    ----------
    samples
        Samples of one structure: measures, or tuples, lists and dictionaries of measures, numbers and tensors, such as pairs
        of a measure and a label.

    Returns
    -------
    The same structure. Measures become one batch, padded with atoms of mass zero; all else is as in
    `torch.utils.data.default_collate`.

    Raises
    ------
    ValueError
        If measures differ in batch shape, dimension, marks, type or device.

    Examples
    --------
    >>> import torch
    >>> rho, labels = collate([(DiscreteMeasure(torch.zeros(3, 2)), 0), (DiscreteMeasure(torch.ones(5, 2)), 1)])
    >>> rho.batch_shape, rho.n, labels
    ((2,), 5, tensor([0, 1]))
    """
    return collate_by_type(samples, collate_fn_map={DiscreteMeasure: _stack, **default_collate_fn_map})


def _stack(measures: Sequence[DiscreteMeasure], *, collate_fn_map: object = None) -> DiscreteMeasure:
    return DiscreteMeasure.stack(measures)
